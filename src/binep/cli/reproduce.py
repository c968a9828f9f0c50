"""`binep reproduce`."""

from __future__ import annotations

import signal
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from binep.cli.options import given, parse
from binep.cli.output import escaped
from binep.experiment.config import Config, ConfigError, did_you_mean, preset, preset_names
from binep.experiment.settings import Count


@dataclass(frozen=True)
class Options:
    """Run rows of the paper's tables, and write the tables from all runs so far.

    What has been run is not run again; what was interrupted goes on.

    Without a row only the tables are written.
    """

    rows: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="ROW...", help_behavior_hint=""),
    ] = ()
    """Presets, or all: every row of the paper's tables."""
    all: bool = False
    """Every row of the paper's tables."""
    seeds: Count = 3
    """Runs of each row, from seed 0."""
    output: Path = Path("reproduced")
    """Folder of the runs, and of README.md with the tables."""
    epochs: Count | None = None
    """Fewer epochs than a row's own; the tables say so."""
    data_dir: Path | None = None
    """Folder of the data sets; otherwise $BINEP_DATA, otherwise a cache folder."""
    device: str | None = None
    """cpu, cuda or cuda:N; otherwise cpu, or what a run was on that goes on."""
    threads: int | None = None
    """CPU threads; otherwise what PyTorch chooses, and 1 for each run with --address."""
    address: str | None = None
    """A Ray cluster, auto or HOST:PORT, whose machines train the runs side by side."""


def main(arguments: Sequence[str]) -> None:
    """Train what is missing of the rows, then write and print the tables."""
    options = parse(Options, arguments, prog="binep reproduce")
    from binep.analysis import measurements, tables
    from binep.cli.training import run_or_resume
    from binep.runs import files

    jobs = _jobs(options)
    unfinished = {f: c for f, c in jobs.items() if measurements.is_unfinished(f, c)}
    tables.table(options.output)  # what cannot be read is reported before any work
    files.make_folder(options.output)
    try:
        if options.address is None:
            run_or_resume(unfinished, _given(options))
        elif unfinished:
            _run_on_cluster(unfinished, options)
    finally:
        files.write(options.output / "README.md", tables.page(options.output).encode())
        _print_rows(options.output, {folder.parent.name for folder in jobs})


def _given(options: Options) -> dict[str, Any]:
    """The settings of `Config` that were given."""
    return given(options, "device", "data_dir", "threads")


def _run_on_cluster(jobs: Mapping[Path, Config], options: Options) -> None:
    """Train on a Ray cluster what is missing, and print a line for each run that has ended.

    Raises:
        RunError: some could not be trained.
        SystemExit: it was interrupted, with 128 and the signal's number.
    """
    from binep.cluster import rays
    from binep.runs.files import RunError

    rays.require()
    from binep.cluster.rows import train_all
    from binep.cluster.runs import placed

    cpus, gpus = options.threads or 1, float(options.device not in (None, "cpu"))
    failed: list[str] = []
    done = 0

    def show(folder: Path, text: str, well: bool) -> None:
        nonlocal done
        done += 1
        line = f"{folder}: {text}"
        if not well:
            failed.append(line)
        print(f"{escaped(line)}  ({done}/{len(jobs)})", flush=True)

    with rays.connected(options.address, cpus, gpus), rays.as_interrupts() as came:
        print(f"{len(jobs)} runs on the cluster {options.address}", flush=True)
        try:
            there = {f: placed(c, cpus) for f, c in jobs.items()}
            train_all(there, [*_given(options), "threads"], cpus, gpus, show)
        except KeyboardInterrupt:
            print("stopped; the same command goes on")
            raise SystemExit(128 + (came or [signal.SIGINT])[0]) from None
    if failed:
        raise RunError(f"{len(failed)} of {len(jobs)} runs failed: {failed[0]}")


def _jobs(options: Options) -> dict[Path, Config]:
    """The runs that were asked for: folder and settings.

    Raises:
        ConfigError: an unknown row, or a setting that cannot be.
    """
    from binep.analysis import claims, measurements

    known = preset_names()
    for name in options.rows:
        if name not in (*known, "all"):
            raise ConfigError(
                f"no row {name}{did_you_mean(name, known)}: one of {', '.join(known)}"
            )
    chosen = _given(options)
    every = options.all or "all" in options.rows
    names = [*claims.rows()] if every else [*dict.fromkeys(options.rows)]
    most = max((preset(name).epochs for name in names), default=0)
    if names and options.epochs is not None and options.epochs > most:
        raise ConfigError(f"--epochs {options.epochs}: must be at most {most}, the row's own")
    jobs = {}
    for name in names:
        for seed in range(options.seeds):
            config = preset(name).replace(seed=seed, **chosen)
            if options.epochs is not None:
                config = config.replace(epochs=min(options.epochs, config.epochs))
            # A machine without a GPU may start runs on others that have one.
            (config.replace(device="cpu") if options.address else config).check()
            jobs[measurements.folder_of(options.output, name, seed)] = config
    return jobs


def _print_rows(root: Path, wanted: Collection[str]) -> None:
    """The rows that were asked for, or have been run; all of them are in README.md."""
    from binep.analysis import measurements, tables

    head = ("row", "test error (%)", "runs", "epochs", "reference (%)")
    lines = [(head, "")]
    for row in tables.rows(root, wanted):
        found = measurements.longest(measurements.measured(root, row.preset))
        beside: list[measurements.Measured] = []
        if row.reference:
            beside = measurements.longest(measurements.measured(root, row.reference))
        if not found and row.preset not in wanted:
            continue
        cells = (
            row.preset,
            measurements.mean_of(found) if found else "not run",
            str(len(found)) if found else "",
            measurements.epochs_of(found, preset(row.preset)) if found else "",
            measurements.mean_of(beside) if beside else "",
        )
        lines.append((cells, f"  claimed: {row.claim or 'nothing'}"))
    widths = [max(map(len, column)) for column in zip(*(cells for cells, _ in lines), strict=True)]
    for (name, *others), claim in lines:
        numbers = "  ".join(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))
        print(f"{name.ljust(widths[0])}  {numbers}\n{claim}".rstrip())
    print(root / "README.md")
