"""`binep models`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from binep.cli.options import parse
from binep.cli.output import print_table


@dataclass(frozen=True)
class Options:
    """List the trained networks that come with binep.

    A name may stand for a RUN in:
    - evaluate, inspect, predict, summary, report, export, page and train --from
    - Python: binep.load("mnist-fc1")
    """


def main(arguments: Sequence[str]) -> None:
    """Print a row for each network, from its card."""
    parse(Options, arguments, prog="binep models")
    from binep.export.packed import card, shipped

    table = Table("name", "network", "test error (%)", "seed", "epochs", "trained by")
    for name in shipped():
        about = card(name)
        shown = (f"{about['test_error']:.2f}", about["seed"], about["epochs"], about["command"])
        table.add_row(name, about["network"], *map(str, shown))
    print_table(table)
