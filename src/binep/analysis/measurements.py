"""Runs of presets, as `binep reproduce` keeps them: which are still to be run, what they gave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from binep.experiment.config import Config, differing, preset
from binep.runs.checkpoints import CHECKPOINT
from binep.runs.environment import read_environment
from binep.runs.files import RunError
from binep.runs.metrics import Row, checkpointed, read_metrics
from binep.runs.settings import comparable, read_config


@dataclass(frozen=True)
class Measured:
    """A run of a preset.

    Attributes:
        folder: where its log is.
        config: its setting.
        metrics: a row for every epoch; none of an exported file, which holds no log.
        about: what it ran on, from environment.json; empty if that was not kept.
    """

    folder: Path
    config: Config
    metrics: list[Row]
    about: dict[str, Any]

    @property
    def machine(self) -> str:
        """Processor, threads or device, those it went on with, and settings of speed not usual."""
        if "processor" not in self.about:
            return "not recorded"
        on = dict.fromkeys(map(_machine, [self.about, *self.about.get("resumed", [])]))
        return ", ".join(["; then ".join(on), *_flags(self.config)])

    @property
    def epochs(self) -> int:
        """Epochs that have ended."""
        return len(self.metrics)

    @property
    def seconds(self) -> float:
        """Of training and testing."""
        columns = ("train_seconds", "test_seconds")
        return sum(row[column] or 0.0 for row in self.metrics for column in columns)

    def last(self, column: str) -> float | None:
        """Of metrics.csv, after the last epoch."""
        return self.metrics[-1].get(column) if self.metrics else None


def _machine(about: Mapping[str, Any]) -> str:
    threads = about.get("threads", 1)
    on = about.get("device_name") or f"{threads} thread{'s' * (threads != 1)}"
    return _plain(f"{about.get('processor')}, {on}")


def _plain(text: str) -> str:
    """Text in one line, without the marks of code that `_flags` sets."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split()).replace("`", "'")


def _flags(config: Config) -> Iterator[str]:
    """Settings of speed that differ from the defaults, as flags."""
    usual = vars(Config().speed)
    for name, value in vars(config.speed).items():
        flag = name.replace("_", "-")
        if value == usual[name]:
            continue
        if isinstance(value, tuple):  # names of what is off
            yield f"`--{flag} {' '.join(value)}`"
        elif isinstance(value, bool):
            yield f"`--{'' if value else 'no-'}{flag}`"
        else:
            yield f"`--{flag} {value}`"


def folder_of(root: Path, name: str, seed: int) -> Path:
    """Where a run of a preset is kept."""
    return root / name / f"seed{seed}"


def is_unfinished(folder: Path, config: Config) -> bool:
    """Whether a run has not begun, or has epochs left.

    Raises:
        RunError: the folder holds another run, or a log without the checkpoint to resume from.
    """
    if not (folder / "config.toml").exists():
        return True
    held = Config.load(folder / "config.toml")
    done = 0
    if (folder / "metrics.csv").exists():
        done = len(read_metrics(folder / "metrics.csv"))
        kept = checkpointed(folder)  # with which an epoch ends
        done = done if kept is None else min(done, len(kept))
    if others := differing(comparable(held), comparable(config)):
        problem = f"a run of other settings: {', '.join(others)}"
    elif held.epochs != config.epochs:
        problem = f"a run of {held.epochs} epochs, not {config.epochs}"
    elif 0 < done < held.epochs and not (folder / CHECKPOINT).exists():
        problem = f"the log of {done} of {held.epochs} epochs, and no checkpoint to go on from"
    else:
        return done < held.epochs
    raise RunError(f"{folder}: holds {problem}: name another folder")


def measured(root: Path, name: str) -> list[Measured]:
    """The runs of a preset that have a log, in the order of their seeds.

    Raises:
        RunError: a log that cannot be read, or is of another setting than the preset's.
    """
    wanted = comparable(preset(name))
    found = []
    # Not root.glob(f"{name}/…"): a name may hold what a pattern gives a meaning to.
    folders = [path.parent for path in (root / name).glob("seed*/metrics.csv")]
    numbered = [folder for folder in folders if folder.name[4:].isdecimal()]
    for folder in sorted(numbered, key=lambda f: int(f.name[4:])):
        if others := differing(comparable(read_config(folder)), wanted):
            raise RunError(f"{folder}: its settings are not those of {name}: {', '.join(others)}")
        found.append(read(folder))
    return found


def read(folder: Path) -> Measured:
    """The log of a run.

    Raises:
        RunError: a file is missing or damaged.
        ConfigError: config.toml is missing or damaged.
    """
    config = Config.load(folder / "config.toml")
    metrics = read_metrics(folder / "metrics.csv")
    return Measured(folder, config, metrics, read_environment(folder))


def longest(found: Sequence[Measured]) -> list[Measured]:
    """Runs of the most epochs: errors after different ones are not averaged."""
    most = max((m.epochs for m in found), default=0)
    return [m for m in found if m.epochs == most]


def epochs_of(found: Sequence[Measured], config: Config) -> str:
    """How many epochs these runs had, and of how many."""
    epochs = found[0].epochs if found else config.epochs
    return str(epochs) if epochs >= config.epochs else f"{epochs} of {config.epochs}"


def mean_of(found: Sequence[Measured], column: str = "test_error") -> str:
    """Mean ± standard deviation of a column after the last epoch."""
    return spread([m.last(column) or 0.0 for m in found])


def spread(errors: Sequence[float]) -> str:
    """Mean ± standard deviation of errors in percent; of one, the error itself."""
    return f"{mean(errors):.2f}" + (f" ± {stdev(errors):.2f}" if len(errors) > 1 else "")


def errors_of(found: Sequence[Measured]) -> str:
    """Test error (%) after the last epoch, and that of the fired bits."""
    text = mean_of(found)
    if all(m.last("test_error_bits") is not None for m in found):
        text += f"; from fired bits {mean_of(found, 'test_error_bits')}"
    return text
