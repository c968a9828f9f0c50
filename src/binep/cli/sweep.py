"""`binep sweep`."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from binep.cli.base import completed, from_file, started
from binep.cli.compare import add_settings, setting_cells, show_sweep
from binep.cli.options import Pluggable, parse
from binep.cli.output import escaped, warn
from binep.experiment import plugins
from binep.experiment.config import Config, ConfigError, preset

if TYPE_CHECKING:
    from rich.table import Table

    from binep.cluster.search import TrialStatus
    from binep.cluster.sweeps import Sweep

PROG = "binep sweep"
HELD_OUT = 0.1667
"""The share of the training samples to choose by, where none is given: a sixth."""


@dataclass(frozen=True)
class Options(Pluggable):
    """Search settings with many runs, on this machine or on a Ray cluster.

    What differs between runs is given with --set, all else as to binep train.
    - uniform(LOW,HIGH), loguniform(LOW,HIGH), randint(LOW,HIGH) with both ends, and
      choice(A,B,...) are drawn by Optuna, which learns from ended trials.
    - grid(A,B,...) trains every draw of the others at each of its values.
    - Settings are chosen by the error on validation data, never on the test set.
    """

    preset: Annotated[
        str | None,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="PRESET", help_behavior_hint=""),
    ] = None
    """What to train: `binep presets` lists them."""
    config: Path | None = None
    """A TOML file in the place of a preset; or a run folder."""
    resume: Path | None = None
    """The folder of a sweep to go on with, in the place of a preset. Only --address goes with
    it."""
    sets: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(name="set", metavar="NAME=DISTRIBUTION(...)"),
    ] = ()
    """A setting that is searched, by the name of its flag, such as 'beta=uniform(0.1,1)'; may stand
    several times."""
    trials: int | None = None
    """Draws of the settings, each a run, or as many as the grids have points; by default 20, and 1
    where there are grids alone."""
    grace: int = 1
    """Epochs that every trial has before a poor one may be ended early; as many as --epochs, and
    none is."""
    address: str | None = None
    """A Ray cluster: auto, or HOST:PORT; otherwise this machine alone."""
    cpus: int = 1
    """CPUs for each trial, and its threads."""
    gpus: float = 0.0
    """GPUs for each trial; 0.5 lets two share one."""
    sweep_dir: Path | None = None
    """Folder for the sweep, new or empty; otherwise sweeps/PRESET/TIME-SEED."""
    experiment: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


def main(arguments: Sequence[str]) -> None:
    """Train the trials of a sweep, or what is missing of them, and show the best."""
    start, name = _start(arguments)
    options = parse(Options, arguments, prog=PROG, default=Options(experiment=start))
    from binep.cluster import rays, sweeps

    rays.require()
    if options.resume is not None:
        _check_alone(options, start)
        sweep = sweeps.read(options.resume)
    else:
        base, trials = _base(options, start), options.trials
        sweep = sweeps.Sweep(
            options.sweep_dir or Path(),
            base,
            options.sets,
            sweeps.usual_samples(options.sets, base) if trials is None else trials,
            options.grace,
            options.cpus,
            options.gpus,
        )
    sweep.check()
    with rays.connected(options.address, sweep.cpus, sweep.gpus):
        _run(sweep if options.resume else _begun(sweep, options, name), options)


def _start(arguments: Sequence[str]) -> tuple[Config, str]:
    """The settings that flags replace, and what the sweep is called."""
    start, name = started(Options, arguments, PROG, _named)
    return (start if start.validation else start.replace(validation=HELD_OUT)), name


def _named(found: Options, complete: bool) -> tuple[Config, str]:
    """The settings of what is named, and what a sweep of it is called.

    Args:
        found: what was parsed.
        complete: without --help, something must be named.
    """
    sources = {"the preset": found.preset, "--config": found.config, "--resume": found.resume}
    named = [f"{what} {source}" for what, source in sources.items() if source is not None]
    if len(named) > 1:
        raise ConfigError(f"both {' and '.join(named)}: name one of them")
    if found.preset is not None:
        return preset(found.preset), found.preset
    if found.config is not None:
        return from_file(found.config)
    if found.resume is None and complete:
        raise ConfigError(
            "search what? Name a preset (binep presets lists them) or --config FILE, and settings "
            "with --set"
        )
    return preset("quickstart"), "quickstart"


def _check_alone(options: Options, start: Config) -> None:
    """Refuse settings beside --resume, which would do nothing.

    Raises:
        ConfigError: there are some.
    """
    usual = Options(experiment=start)
    names = {"sets": "set", "experiment": "other settings"}
    kept = ("resume", "address", "plugin")
    changed = [
        names.get(name, name).replace("_", "-")
        for name, value in vars(options).items()
        if name not in kept and value != vars(usual)[name]
    ]
    if changed:
        raise ConfigError(
            f"--resume {options.resume}: a sweep goes on as it was begun: leave out "
            f"{', '.join(changed)}"
        )


def _base(options: Options, start: Config) -> Config:
    """What all trials have in common."""
    from binep.cluster.runs import placed

    config, _ = completed(options.experiment, start)
    config = config.replace(plugins=plugins.loaded())
    if not config.validation:
        raise ConfigError("--validation 0: must be above 0: a sweep chooses by what is held out")
    if options.gpus > 0 and config.device == "cpu":
        config = config.replace(device="cuda")
    return placed(config, max(1, options.cpus))


def _begun(sweep: Sweep, options: Options, name: str) -> Sweep:
    """A sweep with its folder made."""
    from binep.runs import folder as runs

    if options.sweep_dir is not None:
        sweep = sweep.at(runs.claim_folder(options.sweep_dir))
    else:
        sweep = sweep.at(runs.new_folder(name, sweep.base.seed, Path("sweeps")))
    sweep.write()
    return sweep


def _run(sweep: Sweep, options: Options) -> None:
    """Train what is missing, and show what came of it.

    Raises:
        RunError: every trial failed.
        SystemExit: it was interrupted, with 128 and the signal's number.
    """
    from binep.cluster.search import search
    from binep.runs import files

    print(
        f"{sweep.base.summary()}: {sweep.trials} trials of {sweep.base.epochs} epochs, "
        f"sweep folder {sweep.folder}\n"
        f"chosen by the error on a share of {sweep.base.validation:g} of the training samples, "
        "held out by --validation",
        flush=True,
    )
    again = f"{PROG} --resume {shlex.quote(str(sweep.folder))}"
    again += f" --address {options.address}" if options.address else ""
    again += plugins.flags(sweep.base.plugins)
    with files.locked(sweep.folder):
        try:
            with Display(sweep) as display:
                number = search(sweep, options.plugin, display.show)
        except KeyboardInterrupt:
            print(f"interrupted; go on with: {again}")
            raise
        show_sweep(sweep)
    if number:
        print(f"stopped; go on with: {again}")
        raise SystemExit(128 + number)
    if len(display.failed) == sweep.trials:
        raise files.RunError(f"all trials failed: {display.failed[0].why}; once more: {again}")
    if display.failed:
        warn(f"{len(display.failed)} of {sweep.trials} trials failed; once more: {again}")


class Display:
    """Shows a sweep while it goes on: a table on a terminal, a line per trial elsewhere."""

    def __init__(self, sweep: Sweep) -> None:
        from rich.console import Console
        from rich.live import Live

        self.sweep = sweep
        self.statuses: dict[int, TrialStatus] = {}
        self.console = Console()
        self.began = time.monotonic()
        self.live = (
            Live(get_renderable=self.table, console=self.console, refresh_per_second=2)
            if self.console.is_terminal
            else None
        )

    def __enter__(self) -> Display:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.live is not None:
            self.live.stop()

    @property
    def failed(self) -> list[TrialStatus]:
        """Trials that failed."""
        return [one for one in self.statuses.values() if one.state == "failed"]

    def show(self, status: TrialStatus) -> None:
        """Note what has happened to a trial, and print it where it is of interest."""
        self.statuses[status.number] = status
        if status.state == "failed":
            self._say(f"warning: trial {status.number} failed: {status.why}")
        elif status.state == "lost":
            self._say(
                f"trial {status.number}: its worker was lost: begun again from its checkpoint"
            )
        elif status.state != "running" and self.live is None:
            ended = sum(one.state.startswith("ended") for one in self.statuses.values())
            words = "".join(
                f", {name} {value:.4g}" if isinstance(value, float) else f", {name} {value}"
                for name, value in status.values.items()
            )
            error = "" if status.error is None else f", valid error {status.error:.2f} %"
            self._say(
                f"trial {status.number} {status.state} after epoch {status.epochs}{error}{words}"
                f"  ({ended}/{self.sweep.trials})"
            )

    def _say(self, line: str) -> None:
        self.console.print(escaped(line), highlight=False, soft_wrap=True, markup=False)

    def table(self) -> Table:
        """The trials that run, and the best of those that have ended."""
        from rich.table import Table

        statuses = list(self.statuses.values())
        ended = [one for one in statuses if one.state.startswith("ended")]
        early = sum(one.state == "ended early" for one in ended)
        at_work = [one for one in statuses if one.state in ("running", "lost")]
        seconds = int(time.monotonic() - self.began)
        clock = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        head = (
            f"{len(ended)} of {self.sweep.trials} trials ended, {early} of them early; "
            f"{len(at_work)} running; {clock}"
        )
        table = Table(title=head, title_justify="left", title_style="")
        table.add_column("trial", justify="right")
        table.add_column("epoch", justify="right")
        table.add_column("valid error", justify="right")
        table.add_column("state")
        add_settings(table, [setting.name for setting in self.sweep.settings])
        best = sorted((one for one in ended if one.error is not None), key=lambda n: n.error or 0.0)
        for one in [*at_work[:8], *best[:8]]:
            error = "" if one.error is None else f"{one.error:.2f} %"
            epochs = f"{one.epochs}/{self.sweep.base.epochs}"
            cells = setting_cells({s.name: one.values[s.name] for s in self.sweep.settings})
            table.add_row(str(one.number), epochs, error, one.state, *cells)
        return table
