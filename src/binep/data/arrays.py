"""NumPy's files, opened as other files are and read without pickle."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from binep.data.errors import DataError, reason_of
from binep.data.regular import open_regular


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A context with what `numpy.load` makes of a file: an array, or arrays by name in ``files``.

    Raises:
        DataError: it cannot be read, at once or in the context.
    """
    try:
        with open_regular(path) as file:
            yield np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        reason = reason_of(error)
        if "pickle" in reason:  # which NumPy suggests to read all the same
            reason = "is damaged, or holds objects, as samples of several shapes are"
        raise DataError(f"{path}: cannot be read: {reason}") from error
