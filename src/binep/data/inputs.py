"""Images and arrays from files that are no data set, as a network takes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from binep.data.arrays import opened as opened_arrays
from binep.data.errors import DataError
from binep.data.pictures import opened, pixels

_Array = np.ndarray[Any, Any]


def read_inputs(path: Path, shape: Sequence[int]) -> Tensor:
    """The samples in a file, (N, *shape): uint8, or floating point as float32.

    Args:
        path: a picture, of which there is one; an array in .npy; or .npz, in which it is called x
            or x_test, or is the only one.
        shape: of one sample. Where it is (channels, height, width), pictures become grey or
            coloured as it says; into one channel arrays (N, height, width) go, too.

    Raises:
        DataError: the file is missing or damaged, or holds something else.
    """
    shape = tuple(shape)
    samples = _array(path) if path.suffix.lower() in (".npy", ".npz") else _picture(path, shape)
    if samples.dtype != np.uint8 and samples.dtype.kind != "f":
        raise DataError(f"{path}: holds {samples.dtype}: must be uint8, or floating point")
    if samples.dtype != np.uint8:
        with np.errstate(over="ignore"):  # infinite, which is refused below
            samples = samples.astype(np.float32)
    accepted = {shape, (math.prod(shape),), *([shape[1:]] if shape[0] == 1 else [])}
    if samples.shape in accepted:  # one sample
        samples = samples[None]
    if samples.shape[1:] not in accepted:
        needed = ", ".join(map(str, ("N", *shape)))
        raise DataError(f"{path}: holds samples of shape {samples.shape}: must be ({needed})")
    if not len(samples) or not np.isfinite(samples).all():
        raise DataError(f"{path}: must hold at least one sample, and finite numbers")
    return torch.tensor(samples).view(-1, *shape)


def _array(path: Path) -> _Array:
    with opened_arrays(path) as found:
        if not hasattr(found, "files"):
            array: _Array = found
            return array
        names = [name for name in ("x", "x_test") if name in found.files] or found.files
        if len(names) > 1 and names[0] not in ("x", "x_test"):
            raise DataError(f"{path}: holds {', '.join(names)}: one must be called x")
        if not names:
            raise DataError(f"{path}: holds no array")
        only: _Array = found[names[0]]
        return only


def _picture(path: Path, shape: tuple[int, ...]) -> _Array:
    """A picture as (1, channels, height, width) uint8."""
    if len(shape) != 3 or shape[0] not in (1, 3):
        needed = ", ".join(map(str, ("N", *shape)))
        raise DataError(
            f"{path}: the network reads no pictures: must be an array ({needed}) in .npy or .npz"
        )
    channels, height, width = shape
    with opened(path) as picture:
        if picture.size != (width, height):
            found = " × ".join(map(str, picture.size))
            raise DataError(
                f"{path}: a picture of {found} pixels (width × height): must be {width} × {height}"
            )
        return pixels(picture, channels)[None]
