"""Pictures in files, read by Pillow; what is none is refused in a line."""

from __future__ import annotations

import contextlib
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from binep.data.errors import DataError, reason_of
from binep.data.regular import open_regular

GREY = {"1", "L", "LA"}
"""Pillow's modes of grey pictures."""

COLOURED = {"RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB"}
"""Pillow's modes of coloured pictures, of 8 bits per channel as the grey ones."""

_BROKEN = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """A context with a picture of 8 bits per channel.

    Raises:
        DataError: it cannot be read, at once or in the context, or is another.
    """
    try:
        with open_regular(path) as file, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as picture:
                if picture.mode not in GREY | COLOURED:
                    raise DataError(
                        f"{path}: its pixels are {picture.mode}: must be of 8 bits per channel"
                    )
                yield picture
    except _BROKEN as error:
        if isinstance(error, DataError):
            raise
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "of no format that Pillow knows" if unknown else reason_of(error)
        raise DataError(f"{path}: cannot be read as a picture: {reason}") from error


def pixels(picture: Image.Image, channels: int) -> np.ndarray[Any, Any]:
    """The pixels, (channels, height, width) uint8: grey in one channel, or coloured in three."""
    found = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    return found[None] if channels == 1 else found.transpose(2, 0, 1)
