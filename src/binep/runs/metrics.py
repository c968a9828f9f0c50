"""metrics.csv: a row per epoch."""

from __future__ import annotations

import csv
import io
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binep.experiment.config import ConfigError, differing
from binep.runs.files import CHECKPOINT, RunError, read
from binep.runs.headers import about
from binep.runs.settings import comparable, read_config

if TYPE_CHECKING:
    from binep.experiment.experiment import EpochResult

Row = dict[str, float | None]
"""A row of metrics.csv by column; None where a column has no meaning for the layer."""


def row_of(result: EpochResult) -> Row:
    """An epoch as a row of metrics.csv; docs/runs.md explains the columns."""
    train, test = result.train, result.test
    row: Row = {
        "epoch": result.epoch,
        "train_error": train.error,
        "test_error": test.error,
        "train_loss": train.loss,
        "test_loss": test.loss,
        "train_seconds": train.seconds,
        "test_seconds": test.seconds,
    }
    if result.valid is not None:
        row |= {"valid_error": result.valid.error, "valid_loss": result.valid.loss}
    for i, change in enumerate(result.layers):
        settles = i < len(train.settle_steps)  # a readout has no states
        row |= {
            f"layer{i + 1}_flips": change.flips if change else None,
            f"layer{i + 1}_flip_rate": change.flip_rate if change else None,
            f"layer{i + 1}_settle_steps": train.settle_steps[i] if settles else None,
            f"layer{i + 1}_residual": train.residual[i] if settles else None,
            f"layer{i + 1}_alpha": change.scale if change else None,
        }
        if change and change.most is not None:
            row[f"layer{i + 1}_most_flips"] = change.most
    for name in train.errors:
        if name != "error":
            row |= {f"train_{name}": train.errors[name], f"test_{name}": test.errors[name]}
            if result.valid is not None:
                row[f"valid_{name}"] = result.valid.errors[name]
    return row


COLUMNS = (
    *("epoch", "train_error", "test_error", "train_loss", "test_loss"),
    *("train_seconds", "test_seconds"),
)
"""Columns that every table of metrics has, and that have a value in each row."""


def checked_rows(rows: Any) -> list[Row]:
    """Rows as they can be: of epochs 1, 2, ..., with the same columns of numbers in each.

    Raises:
        ValueError: something else, in one line.
    """
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("no list of rows, one for an epoch")
    for number, row in enumerate(rows, start=1):
        if row.keys() != rows[0].keys():
            raise ValueError(f"row {number} has other columns than the first")
        for name, value in row.items():
            wrong = _wrong_cell(name, value)
            if wrong:
                shown = name if str(name).isidentifier() else ascii(name)
                raise ValueError(f"row {number}: {shown} = {value!a}: must be {wrong}")
        if missing := [name for name in COLUMNS if row.get(name) is None]:
            raise ValueError(f"row {number} has no {', '.join(missing)}")
        if row["epoch"] != number:
            raise ValueError(f"row {number} is of epoch {row['epoch']:g}")
    return rows


def _wrong_cell(name: Any, value: Any) -> str:
    """What a cell must be, if it is something else; otherwise ""."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_]+", name):
        return "in a column whose name has letters, digits and _ alone"
    if value is None:
        return ""
    if type(value) not in (int, float) or sys.float_info.max < abs(value) != math.inf:
        return "a number"
    if re.fullmatch(r"(train|test|valid)_error(_\w+)?", name) and not 0 <= value <= 100:
        return "from 0 to 100"
    if name.endswith(("_seconds", "_flips", "_flip_rate", "_settle_steps")) and not (
        0 <= value < math.inf
    ):
        return "a finite number from 0"
    return ""


def ordered(row: Row) -> Row:
    """A row with its columns in the order of `row_of`, which JSON files do not keep."""

    def place(name: str) -> tuple[int, int, str]:
        first = (*COLUMNS, "valid_error", "valid_loss")
        if name in first:
            return 0, first.index(name), ""
        if found := re.fullmatch(r"layer(\d+)_(\w+)", name):
            kinds = ("flips", "flip_rate", "settle_steps", "residual", "alpha", "most_flips")
            kind = kinds.index(found[2]) if found[2] in kinds else len(kinds)
            return 1, 10 * int(found[1]) + kind, name
        part, _, error = name.partition("_")
        further = ("error_single", "error_bits", "error_bits_single")
        kind = further.index(error) if error in further else len(further)
        splits = ("train", "test", "valid")
        return 2, 3 * kind + (splits.index(part) if part in splits else 0), name

    return {name: row[name] for name in sorted(row, key=place)}


def checkpointed(folder: Path) -> list[Row] | None:
    """The rows that the checkpoint of a run folder holds; None if it has none, or a damaged one."""
    try:
        return [ordered(row) for row in checked_rows(about(folder / CHECKPOINT).get("rows"))]
    except ValueError:
        return None


def table(rows: Sequence[Row], digits: int = 6) -> str:
    """Rows as the text of a CSV file, with so many significant digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: _cell(v, digits) for k, v in row.items()})
    return text.getvalue()


def _cell(value: float | None, digits: int = 6) -> str:
    return "" if value is None else f"{value:.{digits}g}"


def read_metrics(path: Path) -> list[Row]:
    """Read a metrics.csv, which must agree with the checkpoint beside it if there is one.

    Raises:
        RunError: the file is missing or damaged, or no such table.
    """
    held = checkpointed(path.parent) or []  # first: an epoch that ends now is added to the table
    try:
        text = read(path).decode()
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        if not rows:
            raise ValueError("it has no row for an epoch")
        found = checked_rows([{k: float(v) if v else None for k, v in r.items()} for r in rows])
        for name in found[0]:
            if len({row[name] is None for row in found}) > 1:
                raise ValueError(f"{name} is empty in some rows")
        if not text.endswith("\n"):
            raise ValueError("its last row is cut off")
    except RunError:
        raise
    except (ValueError, TypeError, csv.Error) as error:
        raise RunError(f"{path}: no table of metrics: {error}") from error
    if odd := _odd(found, held):
        again = f"binep train --resume {path.parent} writes it again"
        raise RunError(f"{path}: differs from {CHECKPOINT} in {odd}: {again}")
    return found


def _odd(rows: Sequence[Row], held: Sequence[Row]) -> str:
    """The first place where a table is not what a checkpoint holds, or ""."""
    for number, wanted in enumerate(held, start=1):
        row = rows[number - 1] if number <= len(rows) else {}
        for name in dict.fromkeys([*wanted, *row]):
            if name not in row or name not in wanted or _cell(row[name]) != _cell(wanted[name]):
                return f"epoch {number}, {name}"
    return ""


def read_alike(folders: Sequence[Path]) -> list[list[Row]]:
    """The metrics of runs that differ in nothing but seed, machine and length.

    Raises:
        ConfigError: settings or columns that are not those of the first run.
        RunError: a file is missing or damaged.
    """
    settings = [comparable(read_config(folder)) for folder in folders]
    metrics = [read_metrics(folder / "metrics.csv") for folder in folders]
    for folder, chosen, rows in zip(folders, settings, metrics, strict=True):
        if chosen != settings[0] or rows[0].keys() != metrics[0][0].keys():
            others = differing(chosen, settings[0]) or ["columns of metrics.csv"]
            raise settings_differ(folder, folders[0], others)
    return metrics


def settings_differ(path: Path, first: Path, others: Sequence[str]) -> ConfigError:
    """The error of a run that is to be shown with others, and is not of their setting."""
    return ConfigError(f"{path}: its settings are not those of {first}: {', '.join(others)}")
