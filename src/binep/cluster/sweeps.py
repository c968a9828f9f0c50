"""The folder of a sweep: what is searched, its trials, and which settings are best."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

import tomli_w

from binep.cluster import space
from binep.cluster.space import Setting
from binep.data.sources import is_path
from binep.experiment.config import Config, ConfigError
from binep.runs import files
from binep.runs.files import RunError
from binep.runs.metrics import read_metrics
from binep.runs.settings import past, read_config

FILE = "sweep.toml"
BEST = "best.toml"
TRIALS = "trials"


@dataclass(frozen=True)
class Trial:
    """A trial of a sweep.

    Attributes:
        number: from 0, in the order in which they were drawn.
        folder: of its run.
        config: its configuration.
        epochs: that have ended.
        error: on the validation set after the last of them, in percent; None before.
    """

    number: int
    folder: Path
    config: Config
    epochs: int
    error: float | None


@dataclass(frozen=True)
class Group:
    """Trials of a sweep that differ in their seeds alone, or a single one.

    Attributes:
        trials: in the order of their numbers; each has ended an epoch.
        error: mean of their errors on the validation set, in percent.
    """

    trials: tuple[Trial, ...]
    error: float


def usual_samples(sets: tuple[str, ...], base: Config) -> int:
    """How many times settings are drawn where that is not said: of grids alone all points, once."""
    return 1 if _grids_alone(space.read(sets, base.replace(device="cpu"))) else 20


def _grids_alone(settings: list[Setting]) -> bool:
    return all(setting.kind == "grid" for setting in settings)


@dataclass(frozen=True)
class Sweep:
    """What a sweep searches, as sweep.toml in its folder keeps it.

    Attributes:
        folder: of the sweep.
        base: what all trials have in common.
        sets: NAME=DISTRIBUTION(...) of each setting that differs.
        samples: how many times settings are drawn, each trained at all points of the grids.
        grace: epochs that a trial has before it may be ended early.
        cpus: that a trial takes.
        gpus: that a trial takes.
    """

    folder: Path
    base: Config
    sets: tuple[str, ...]
    samples: int
    grace: int
    cpus: int
    gpus: float

    @cached_property
    def settings(self) -> list[Setting]:
        """What is searched."""
        return space.read(self.sets, self.base.replace(device="cpu"))

    @cached_property
    def points(self) -> list[dict[str, Any]]:
        """Every combination of the grids' values."""
        return space.points(self.settings)

    @property
    def trials(self) -> int:
        """How many trials it has when it has ended."""
        return self.samples * len(self.points)

    def check(self) -> None:
        """Look at everything before any work.

        Raises:
            ConfigError: a line for what cannot be.
        """
        # A machine without a GPU may start trials on others that have one.
        base = self.base.replace(device="cpu")
        source = base.source() if is_path(base.dataset) else None  # data of one's own: read once
        base.check(source)
        if base.start is not None:
            raise ConfigError(
                f"start = {base.start[:16]}: trials of a sweep start anew; leave it out"
            )
        if not self.settings:
            raise ConfigError("--set: name a setting at least, as --set beta=uniform(0.1,1)")
        if self.samples > 1 and _grids_alone(self.settings):
            raise ConfigError(f"--trials {self.samples}: must be 1 where there are grids alone")
        for name in ("samples", "grace", "cpus"):
            if getattr(self, name) < 1:
                flag = "trials" if name == "samples" else name
                raise ConfigError(f"--{flag} {getattr(self, name)}: must be at least 1")
        if not 0 <= self.gpus <= 64:
            raise ConfigError(f"--gpus {self.gpus:g}: must be from 0 to 64")
        if self.trials > space.MOST:
            raise ConfigError(
                f"--trials {self.samples}: with {len(self.points)} points of the grids these are "
                f"{self.trials} trials: at most {space.MOST}"
            )
        space.check(self.sets, self.settings, base, source)

    def at(self, folder: Path) -> Sweep:
        """The same in another folder."""
        return dataclasses.replace(self, folder=folder)

    def write(self) -> None:
        """Write sweep.toml."""
        table = {
            "set": list(self.sets),
            "samples": self.samples,
            "grace": self.grace,
            "cpus": self.cpus,
            "gpus": float(self.gpus),
            "base": tomllib.loads(self.base.to_toml()),
        }
        files.write(self.folder / FILE, tomli_w.dumps(table).encode())

    def config(self, values: dict[str, Any]) -> Config:
        """The configuration of a trial.

        Args:
            values: of the settings, by name.
        """
        chosen = {s.path: values[s.name] for s in self.settings}
        return space.replaced(self.base, chosen)

    def place(self, number: int, config: Config) -> Path:
        """The folder of a trial, with a number behind it where another's settings lie there.

        A search that was killed before it had written its state may draw other settings.
        """
        attempt = 1
        while True:
            name = f"{number:04d}" if attempt == 1 else f"{number:04d}-{attempt}"
            folder = self.folder / TRIALS / name
            if not (folder / "config.toml").exists() or past(read_config(folder)) == past(config):
                return folder
            attempt += 1


def is_sweep(folder: Path) -> bool:
    """Whether a folder is a sweep's."""
    return (folder / FILE).is_file()


def runs_of(folder: Path) -> list[Path]:
    """The runs of a sweep that have ended an epoch; any other folder as it is."""
    if not is_sweep(folder):
        return [folder]
    return sorted(path.parent for path in (folder / TRIALS).glob("*/metrics.csv"))


def read(folder: Path) -> Sweep:
    """The sweep of a folder.

    Raises:
        RunError: it is none, or its sweep.toml is damaged.
        ConfigError: a setting that cannot be.
    """
    path = folder / FILE
    if not is_sweep(folder):
        raise RunError(f"{folder}: not the folder of a sweep: it holds no {FILE}")
    try:
        table = tomllib.loads(files.read(path).decode())
        base, sets = table["base"], table["set"]
        numbers = {name: table[name] for name in ("samples", "grace", "cpus", "gpus")}
        if not isinstance(base, dict) or not all(isinstance(text, str) for text in sets):
            raise ValueError("base is no table, or set no list of texts")
        if any(type(numbers[name]) is not int for name in ("samples", "grace", "cpus")):
            raise ValueError("samples, grace and cpus are no whole numbers")
        if type(numbers["gpus"]) is not float:
            raise ValueError("gpus is no number")
    except RunError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{path}: does not describe a sweep: {error}") from None
    return Sweep(folder, Config.from_toml(tomli_w.dumps(base), str(path)), tuple(sets), **numbers)


def trials(sweep: Sweep) -> list[Trial]:
    """The trials that have begun, in the order of their numbers.

    Raises:
        RunError, ConfigError: a run folder that cannot be read.
    """
    found: list[Trial] = []
    for path in sorted((sweep.folder / TRIALS).glob("*/config.toml")):
        folder = path.parent
        rows = read_metrics(folder / "metrics.csv") if (folder / "metrics.csv").exists() else []
        error = rows[-1].get("valid_error") if rows else None
        number = int(folder.name.split("-")[0]) if folder.name[:4].isdecimal() else len(found)
        found.append(Trial(number, folder, read_config(folder), len(rows), error))
    return found


def ranked(found: Sequence[Trial]) -> list[Group]:
    """Trials with equal settings but for their seeds together, the lowest error first."""
    together: dict[str, list[Trial]] = {}
    for trial in found:
        if trial.error is not None:
            together.setdefault(trial.config.replace(seed=0).to_toml(), []).append(trial)
    groups = [Group(tuple(same), mean(t.error or 0.0 for t in same)) for same in together.values()]
    return sorted(groups, key=lambda group: (group.error, group.trials[0].number))


def write_best(sweep: Sweep, groups: Sequence[Group]) -> Path:
    """Write best.toml, which trains the best settings with the first of their seeds."""
    best = groups[0].trials[0]
    own, title = best.config.title, f"trial {best.number} of the sweep {sweep.folder.name}"
    config = best.config.replace(title=f"{own}: {title}" if own else title)
    files.write(sweep.folder / BEST, config.to_toml().encode())
    return sweep.folder / BEST
