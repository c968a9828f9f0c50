"""How numbers and tables are printed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from binep.experiment.training import Scores


def errors(scores: Scores) -> str:
    """The error in percent, and in brackets what else a data set counts as one."""
    others = [
        f"{name.removeprefix('error_').replace('_', ' ')} {value:.2f}"
        for name, value in scores.errors.items()
        if name != "error"
    ]
    return f"{scores.error:.2f} %" + (f" ({', '.join(others)})" if others else "")


def join(values: Sequence[float]) -> str:
    """Whole numbers with blanks between them."""
    return " ".join(f"{value:.0f}" for value in values)


LONGEST = 2000
"""Letters of a line that are shown."""


def escaped(line: str) -> str:
    """A line for a terminal, without control sequences and halves of letters, and not too long."""
    line = line if len(line) <= LONGEST else f"{line[:LONGEST]}…"
    letters = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return "".join(letters)


def _lines_escaped(text: str) -> str:
    return "\n".join(map(escaped, text.split("\n")))


def warn(text: str) -> None:
    """Print a warning, where it does not mix with what the command prints."""
    print(f"binep: warning: {escaped(text)}", file=sys.stderr)


def print_table(table: Table) -> None:
    """Print a table: in the width of a terminal; in a file or a pipe each row in one line."""
    console = _console(table)
    with console.capture() as said:
        console.print(table)
    print("\n".join(line.rstrip() for line in said.get().strip("\n").split("\n")))


def fits(table: Table) -> bool:
    """Whether no cell of a table would be broken into lines."""
    console = _console(table)
    return console.measure(table, options=console.options.update(max_width=10_000)).maximum <= (
        console.width
    )


def _console(table: Table) -> Console:
    from rich import box
    from rich.console import Console

    for column in table.columns:
        cells = column._cells  # names of folders and of classes may hold anything
        column._cells = [_lines_escaped(cell) if isinstance(cell, str) else cell for cell in cells]
    table.box, table.pad_edge = box.SIMPLE_HEAD if table.show_header else None, False
    console = Console(highlight=False)
    return console if console.is_terminal else Console(width=10_000, highlight=False)
