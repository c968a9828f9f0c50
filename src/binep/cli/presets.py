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
    groups: dict[str, list[str]] = {}
    for name in preset_names():
        groups.setdefault(preset(name).title, []).append(name)
    table = Table()
    table.add_column("preset", no_wrap=True)
    table.add_column("epochs", justify="right")
    table.add_column("what")
    for title, names in sorted(groups.items(), key=lambda group: "quickstart" not in group[1]):
        table.add_section()
        table.add_row(f"{title}:")
        for name in names:
            config = preset(name)
            table.add_row(f"  {name}", str(config.epochs), config.summary())
    print_table(table)
