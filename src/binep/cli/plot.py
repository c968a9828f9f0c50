"""`binep plot`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from binep.cli.options import Pluggable, Runs, figure_kind, parse
from binep.experiment.config import ConfigError


@dataclass(frozen=True)
class Options(Pluggable):
    """Draw the curves of one run, or the mean and standard deviation of many."""

    runs: Runs
    """Run folders."""
    output: Path = Path("curves.png")
    """A file that ends in .png, .pdf or .svg."""


def main(arguments: Sequence[str]) -> None:
    """Draw the metrics of runs of one setting."""
    options = parse(Options, arguments, prog="binep plot")
    kind = figure_kind(options.output)
    if not options.runs:
        raise ConfigError("plot what? Name one run folder or more")
    from binep.runs import curves, files, metrics

    found = metrics.read_alike(options.runs)
    for folder, rows in zip(options.runs, found, strict=True):
        if len(rows) != min(map(len, found)):
            print(f"{folder}: drawn as far as the shortest run goes, not to epoch {len(rows)}")
    files.write(options.output, curves.rendered(curves.curves(found), kind))
    print(options.output)
