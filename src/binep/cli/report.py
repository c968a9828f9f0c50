"""`binep report`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from binep.cli.options import Pluggable, Runs, given, parse
from binep.cli.output import warn
from binep.experiment.config import ConfigError


@dataclass(frozen=True)
class Options(Pluggable):
    """Write a page about one run, or about several that differ in their seeds.

    One complete HTML file:
    - results beside the paper's claims, and curves
    - confusion matrix, misread images and weights
    - speed, settings and machine
    """

    runs: Runs
    """Run folders; or files that `binep export` wrote, or names (`binep models`)."""
    output: Path = Path("report.html")
    """A file that ends in .html."""
    data_dir: Path | None = None
    """Folder of the data sets, if not the run's."""
    device: str | None = None
    """cpu, cuda or cuda:N, if not the run's."""


def main(arguments: Sequence[str]) -> None:
    """Write the page, and warn of what it lacks."""
    options = parse(Options, arguments, prog="binep report")
    if options.output.suffix != ".html":
        raise ConfigError(f"--output {options.output}: must end in .html")
    if not options.output.parent.is_dir():
        raise ConfigError(f"--output {options.output}: there is no folder {options.output.parent}")
    if not options.runs:
        raise ConfigError("report what? Name one run folder or more")
    from binep.analysis import readings, report
    from binep.runs import files

    found = readings.gather(options.runs, **given(options, "data_dir", "device"))
    for reason in found.missing:
        warn(reason)
    files.write(options.output, report.page(found).encode(errors="backslashreplace"))
    print(options.output)
