"""`binep compare`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from binep.cli.options import Pluggable, Runs, figure_kind, parse
from binep.cli.output import fits, print_table
from binep.experiment.config import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from binep.cluster.sweeps import Sweep

COLUMNS = 4
"""The most settings of which each has a column of such a table."""

BEST = 10
"""Settings of a sweep that are shown, the best first."""

NOTHING_YET = "no trial has ended an epoch yet"


@dataclass(frozen=True)
class Options(Pluggable):
    """Show runs side by side: settings that differ, and how they ended."""

    runs: Runs
    """Run folders, or a sweep's. Those that differ by the seed alone are one row: mean ± standard
    deviation."""
    by: str | None = None
    """Column of metrics.csv to sort by, lowest first; valid_error if there is one, otherwise
    test_error."""
    each: bool = False
    """A row for each run, also where only the seed differs."""
    format: Literal["text", "csv", "markdown"] = "text"
    """How the table is printed."""
    plot: str | None = None
    """A setting that differs, such as beta or layers.1.size: draws the result over it."""
    output: Path = Path("comparison.png")
    """Where to draw: a file that ends in .png, .pdf or .svg."""


def main(arguments: Sequence[str]) -> None:
    """Print a table of runs, and draw a result over a setting if that is asked for."""
    options = parse(Options, arguments, prog="binep compare")
    if not options.runs:
        raise ConfigError("compare what? Name two run folders or more, or a sweep")
    kind = figure_kind(options.output)
    from binep.analysis import comparison
    from binep.cluster import sweeps

    first, alone = options.runs[0], Options(options.runs[:1], plugin=options.plugin)
    if options == alone and sweeps.is_sweep(first):
        show_sweep(sweeps.read(first))
        return
    chosen = [run for given in options.runs for run in sweeps.runs_of(given)]
    if not chosen:
        print(f"{' '.join(map(str, options.runs))}: {NOTHING_YET}")
        return
    found = comparison.groups(chosen, options.by, options.each)
    columns = comparison.results(found)
    by = options.by or comparison.judged_by(found)
    head, rows = comparison.table(found, list(dict.fromkeys([*columns, by])))
    drawn = comparison.figure(found, options.plot, by) if options.plot is not None else None
    if options.format == "text":
        _print(head, rows)
    else:
        written = comparison.as_csv if options.format == "csv" else comparison.as_markdown
        print(written(head, rows), end="")
    if drawn is not None:
        from binep.runs import curves, files

        files.write(options.output, curves.rendered(drawn, kind))
        print(options.output)


def _print(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A row for each run, or where that is too wide a column for each, as many as there is room."""
    from rich.table import Table

    lines = [[*cells, folders.replace(" ", "\n")] for *cells, folders in rows]
    upright = Table()
    for name in head:
        upright.add_column("\n".join(name.rsplit(".", 1)))
    for line in lines:
        upright.add_row(*line)
    if fits(upright):
        print_table(upright)
        return
    while lines:
        for count in range(len(lines), 0, -1):
            across = Table(show_header=False)
            for name, *cells in zip(head, *lines[:count], strict=True):
                across.add_row(name, *cells)
            if fits(across):
                break
        print_table(across)
        lines = lines[count:]


def show_sweep(sweep: Sweep) -> None:
    """Print the best trials of a sweep and what they depend on; write best.toml and a figure."""
    from rich.table import Table

    from binep.analysis.measurements import spread
    from binep.cluster import importance, sweeps
    from binep.experiment import plugins
    from binep.runs import curves, files

    found = sweeps.trials(sweep)
    groups = sweeps.ranked(found)
    if not groups:
        print(f"{sweep.folder}: {NOTHING_YET}")
        return
    table = Table(title_justify="left", title_style="")
    table.title = f"{len(found)} of {sweep.trials} trials have begun; the best:"
    for name in ("trial", "epochs", "valid error (%)"):
        table.add_column(name, justify="right")
    seeds = any(len({trial.config.seed for trial in group.trials}) > 1 for group in groups)
    shown = [s for s in sweep.settings if not (seeds and s.name == "seed")]
    add_settings(table, [s.name for s in shown])
    for group in groups[:BEST]:
        values = {s.name: s.of(group.trials[0].config) for s in shown}
        table.add_row(
            " ".join(str(trial.number) for trial in group.trials),
            f"{max(trial.epochs for trial in group.trials)}/{sweep.base.epochs}",
            spread([trial.error or 0.0 for trial in group.trials]),
            *setting_cells(values),
        )
    print_table(table)
    if shares := importance.importance(groups, sweep.settings):
        words = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
        print(f"importance of settings (PED-ANOVA): {words}")
    best = shlex.quote(str(sweeps.write_best(sweep, groups)))
    print(f"binep train --config {best}{plugins.flags(sweep.base.plugins)}")
    drawn = importance.parallel(groups, sweep.settings, sweep.base.epochs)
    files.write(sweep.folder / "parallel.png", curves.rendered(drawn))
    print(sweep.folder / "parallel.png")


def add_settings(table: Table, names: Sequence[str]) -> None:
    """Add a column for each setting of a sweep, or one for all where there are many."""
    if len(names) > COLUMNS:
        table.add_column("settings", ratio=1, overflow="fold")
        return
    for name in names:
        table.add_column("\n".join(name.rsplit(".", 1)), overflow="fold", justify="right")


def setting_cells(values: Mapping[str, Any]) -> list[str]:
    """The values of settings for the columns of `add_settings`; None where there is none."""
    from rich.markup import escape

    texts = {name: f"{v:.4g}" if isinstance(v, float) else str(v) for name, v in values.items()}
    texts |= {name: "–" for name, value in values.items() if value is None}
    if len(texts) > COLUMNS:
        return [escape(", ".join(f"{name} {text}" for name, text in texts.items()))]
    return [escape(text) for text in texts.values()]
