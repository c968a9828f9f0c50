"""`binep compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from binep.cli.options import Pluggable, Runs, figure_kind, parse
from binep.cli.output import fits, print_table
from binep.experiment.config import ConfigError


@dataclass(frozen=True)
class Options(Pluggable):
    """Show runs side by side: settings that differ, and how they ended."""

    runs: Runs
    """Run folders. Those that differ by the seed alone are one row: mean ± standard deviation."""
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
        raise ConfigError("compare what? Name two run folders or more")
    kind = figure_kind(options.output)
    from binep.analysis import comparison

    found = comparison.groups(options.runs, options.by, options.each)
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
