"""`binep presets`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from binep.cli.options import parse
from binep.cli.output import print_table
from binep.experiment.config import preset, preset_names


@dataclass(frozen=True)
class Options:
    """List the presets."""


def main(arguments: Sequence[str]) -> None:
    """Print a row for each preset."""
    parse(Options, arguments, prog="binep presets")
    table = Table("preset", "title", "what", "epochs")
    for name in preset_names():
        config = preset(name)
        table.add_row(name, config.title, config.summary(), str(config.epochs))
    print_table(table)
