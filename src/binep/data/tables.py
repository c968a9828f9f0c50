"""Features with a label column in CSV or Parquet files, read by pandas; as arrays."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from binep.data.errors import DataError, reason_of
from binep.data.regular import open_regular

SUFFIXES = (".csv", ".parquet")
LABEL = "label"
SPLIT = "split"


def read_table(path: Path) -> tuple[list[Any], list[str]]:
    """The data in one file, whose column "split" says train or test of each row.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    table = _table(path)
    if SPLIT not in table:
        raise DataError(
            f"{path}: has no column {SPLIT} of train or test for each row: add one, or give a "
            f"folder with train{path.suffix} and test{path.suffix}"
        )
    parts = table[SPLIT].astype(str)
    if odd := sorted({*parts} - {"train", "test"}):
        raise DataError(f"{path}: the column {SPLIT} holds {odd[0]}: must be train or test")
    rest = table.drop(columns=SPLIT)
    _check_cells(rest, path)
    return [*_arrays(rest[parts == "train"]), *_arrays(rest[parts == "test"])], []


def read_two_tables(train: Path, test: Path) -> tuple[list[Any], list[str]]:
    """The data in two files with the same columns.

    Raises:
        DataError: one cannot be read, or holds something else.
    """
    learnt, tested = _table(train), _table(test)
    if {*learnt} != {*tested}:
        odd = sorted(map(str, {*learnt} ^ {*tested}))
        raise DataError(f"{test}: must have the columns of {train}: {', '.join(odd)} differ")
    for part, path in ((learnt, train), (tested, test)):
        _check_cells(part, path)
    return [*_arrays(learnt), *_arrays(tested[list(learnt)])], []


def _table(path: Path) -> Any:
    """A data frame with rows and a column of labels."""
    try:
        import pandas

        with open_regular(path) as file:
            if path.suffix.lower() == ".csv":  # where a class may be called None, or NA
                table = pandas.read_csv(file, keep_default_na=False, na_values=[""])
            else:
                table = pandas.read_parquet(file)
    except ImportError as error:
        raise DataError(
            f"{path}: is read by pandas, Parquet also by pyarrow: pip install 'binep[tables]'"
        ) from error
    except (OSError, ValueError, EOFError, OverflowError) as error:
        raise DataError(f"{path}: cannot be read: {reason_of(error)}") from error
    for number, name in enumerate(table.columns, start=1):
        if re.fullmatch(r"Unnamed: \d+", str(name)):  # as pandas calls it
            raise DataError(
                f"{path}: column {number} has no name: must have one, or be left out, as numbers "
                "of rows are by to_csv(..., index=False)"
            )
    if LABEL not in table:
        held = ", ".join(map(str, table.columns[:20]))
        raise DataError(f"{path}: has no column {LABEL}: must have one beside {held}")
    if table.shape[1] < 2 or not len(table):
        raise DataError(f"{path}: must have rows, and columns of features beside {LABEL}")
    return table


def _check_cells(table: Any, path: Path) -> None:
    """Refuse a table with an empty cell, or one that is neither label nor number."""
    empty = table.isna()
    if empty.to_numpy().any():
        row, column = np.argwhere(empty.to_numpy())[0]
        name = table.columns[column]
        needed = "class" if name == LABEL else "number"
        raise DataError(
            f"{path}: the column {name}, row {row + 1} is empty: must be a {needed}, or left out "
            "with its row"
        )
    for name, column in table.drop(columns=LABEL).items():
        if column.dtype.kind not in "biuf":
            odd = next((cell for cell in column if not _is_number(cell)), column.iloc[0])
            raise DataError(f"{path}: the column {name} holds {str(odd)[:40]!r}: must be numbers")


def _arrays(table: Any) -> tuple[Any, Any]:
    """Features (N, columns), float64, and labels (N,)."""
    labels = table[LABEL].to_numpy()
    labels = labels if labels.dtype.kind in "iu" else labels.astype(str)
    return table.drop(columns=LABEL).to_numpy(np.float64), labels


def _is_number(cell: object) -> bool:
    try:
        return math.isfinite(float(str(cell)))
    except ValueError:
        return False
