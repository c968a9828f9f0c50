"""`binep page`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from binep.cli.options import Pluggable, Run, given, parse
from binep.cli.output import warn
from binep.experiment.config import ConfigError


@dataclass(frozen=True)
class Options(Pluggable):
    """Write a page that runs a trained network in a browser.

    One HTML file, which needs no server and fetches nothing:
    - draw an image, and see the layers settle
    - nudge the output to a class: a second equilibrium forms
    - teach the network the difference, and count the flips
    """

    run: Run
    """A run folder, a file that `binep export` wrote of one, or a name (`binep models`)."""
    output: Path = Path("digit.html")
    """A file that ends in .html."""
    data_dir: Path | None = None
    """Folder of the data sets, if not the run's."""


def main(arguments: Sequence[str]) -> None:
    """Write the page, and print its name and size."""
    options = parse(Options, arguments, prog="binep page")
    if options.output.suffix != ".html":
        raise ConfigError(f"--output {options.output}: must end in .html")
    from binep.export.page import page
    from binep.runs import files

    try:
        content = page(options.run, warn=warn, **given(options, "data_dir")).encode()
    except (ConfigError, files.RunError):
        raise
    except ValueError as error:  # of a part of one's own
        raise ConfigError(f"{options.run}: {error}") from None
    files.write(options.output, content)
    print(f"{options.output}  {len(content):,} bytes")
