"""Data of one's own: arrays from Python or from files, checked and turned into splits."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from binep.data import tables
from binep.data.arrays import opened
from binep.data.batches import Split
from binep.data.errors import DataError
from binep.data.folders import Array, Arrays, read_folder
from binep.data.source import Source

NAMES = ("x_train", "y_train", "x_test", "y_test")


class Own(Source):
    """Data that have been read: shape and classes are what was found in them.

    Args:
        train, test: the splits.
        classes: names of the labels, in order.
    """

    def __init__(self, train: Split, test: Split, classes: Sequence[str]) -> None:
        self.shape = tuple(train.images.shape[1:])
        self.classes = tuple(classes)
        self.splits = train, test

    def read(self, data_dir: Path | None, download: bool) -> tuple[Split, Split]:
        """Both splits."""
        return self.splits


def read_own(path: Path) -> Own:
    """The data in a file or folder.

    Raises:
        DataError: there is none, it cannot be read, or it holds something else.
    """
    if not os.path.lexists(path):
        raise DataError(f"{path}: there is no such file or folder")
    reader = _FILES.get("folder" if path.is_dir() else path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: must be a folder, or a file that ends in {', '.join(_SUFFIXES)}")
    arrays, names = reader(path)
    return from_arrays(arrays, str(path), names)


def from_arrays(data: Sequence[Any], place: str = "data", names: Sequence[str] = ()) -> Own:
    """Data from arrays.

    Args:
        data: x_train (N, *shape), y_train (N,), x_test (M, *shape) and y_test (M,): arrays, tensors
            or lists. x is uint8, which becomes x/255, or floating point, which stays. Labels are
            names, or whole numbers without a gap from 0 or from 1.
        place: where they are from, for errors.
        names: of the classes 0, 1, …, of which some may then have no sample.

    Raises:
        DataError: something else, by the name of the array.
    """
    if not isinstance(data, Sequence) or len(data) != len(NAMES):
        raise DataError(f"{place}: must be the four arrays {', '.join(NAMES)}")
    arrays = [_array(array, f"{place}: {name}") for array, name in zip(data, NAMES, strict=True)]
    x, y, x_test, y_test = arrays
    images, tested = _samples(x, f"{place}: x_train"), _samples(x_test, f"{place}: x_test")
    for part, samples, labels in (("train", x, y), ("test", x_test, y_test)):
        if labels.ndim != 1 or labels.shape != samples.shape[:1] or not len(labels):
            count = len(samples) if samples.ndim else 0
            raise DataError(
                f"{place}: y_{part} is of shape {labels.shape}: must be a label for each of the "
                f"{count} samples of x_{part}, of which there must be at least one"
            )
    if x.shape[1:] != x_test.shape[1:] or images.dtype != tested.dtype:
        held = [f"{a.dtype} of shape (N, {str(a.shape[1:])[1:]}" for a in (x_test, x)]
        raise DataError(f"{place}: x_test is {held[0]}: must be as x_train, {held[1]}")
    known, numbers = _numbered(y, y_test, place, names)
    train, test = (torch.from_numpy(array.astype(np.int64)) for array in numbers)
    return Own(Split(images, train), Split(tested, test), known)


def _array(values: Any, name: str) -> Array:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        if values.dtype == torch.bfloat16:  # which NumPy lacks
            values = values.float()
    try:
        array = np.asarray(values)
    except (ValueError, TypeError) as error:
        raise DataError(f"{name} is no array, or its samples are of several shapes") from error
    if array.dtype.kind == "S":
        try:
            return np.char.decode(array, "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{name} holds bytes that are no text in UTF-8") from error
    if array.dtype == object:
        if array.ndim == 1 and all(isinstance(value, str) for value in array):
            return array.astype(str)
        raise DataError(f"{name} holds objects: must be an array of numbers, of samples of a shape")
    return array


def _samples(array: Array, name: str) -> Tensor:
    """Samples as uint8 or float32; those of two dimensions get a channel."""
    if array.ndim < 2 or not math.prod(array.shape[1:]):
        raise DataError(f"{name} is of shape {array.shape}: must be (samples, *shape of a sample)")
    if array.ndim == 4 and array.shape[3] in (1, 3) and array.shape[1] not in (1, 3):
        raise DataError(
            f"{name} is of shape {array.shape}: must be (samples, channels, rows, columns); "
            "x.transpose(0, 3, 1, 2) puts channels there"
        )
    if array.dtype == bool or array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # infinite, which is refused
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            sample = int(np.isfinite(array).reshape(len(array), -1).all(axis=1).argmin())
            raise DataError(f"{name} must hold finite numbers: those of sample {sample} are not")
    elif array.dtype != np.uint8:
        raise DataError(
            f"{name} is {array.dtype}: must be uint8, of which x/255 is used, or floating point; "
            "x.astype(numpy.uint8) or x.astype(numpy.float32) converts it"
        )
    samples = torch.from_numpy(np.array(array, order="C"))  # a copy: the caller's may change
    return samples[:, None] if samples.dim() == 3 else samples


def _numbered(
    y: Array, y_test: Array, place: str, names: Sequence[str]
) -> tuple[list[str], tuple[Array, Array]]:
    """Names of the classes, and both arrays of labels as numbers from 0."""
    for part, labels in (("train", y), ("test", y_test)):
        if labels.dtype.kind not in "iubUT":
            raise DataError(
                f"{place}: y_{part} is {labels.dtype}: labels must be whole numbers or names"
            )
    if (y.dtype.kind in "iu") != (y_test.dtype.kind in "iu"):
        raise DataError(f"{place}: y_test is {y_test.dtype}: must be as y_train, {y.dtype}")
    found = np.unique(y)
    known = [str(name) for name in names] or [str(label) for label in found]
    if odd := next((n for n in known if not n.strip() or not n.isprintable()), None):
        raise DataError(f"{place}: a class is called {odd!a}: must be a name of printed letters")
    if len(set(known)) < len(known):
        twice = next(name for name in known if known.count(name) > 1)
        raise DataError(f"{place}: two classes are called {twice}: names must differ")
    if len(known) < 2:
        raise DataError(f"{place}: all labels of y_train are {known[0]}: must be of two classes")
    first = 0
    if y.dtype.kind in "iu":
        first = 0 if names else int(found[0])
        if first not in (0, 1):
            raise DataError(f"{place}: the lowest label of y_train is {first}: must be 0 or 1")
        if not names and int(found[-1]) - first >= len(found):
            gap = next(i for i, label in enumerate(found.tolist(), start=first) if label != i)
            raise DataError(
                f"{place}: y_train has no label {gap}, but {found[-1]}: labels must not skip one, "
                "or be names"
            )
        numbers = tuple(labels.astype(np.int64) - first for labels in (y, y_test))
    else:
        order = {name: number for number, name in enumerate(known)}
        numbers = tuple(np.array([order.get(str(v), -1) for v in some]) for some in (y, y_test))
    for part, labels, some in zip(("train", "test"), (y, y_test), numbers, strict=True):
        outside = (some < 0) | (some >= len(known))
        if outside.any():
            odd = labels[outside.argmax()]
            shown = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
            raise DataError(f"{place}: y_{part} has the label {odd}: must be one of {shown}")
    return known, (numbers[0], numbers[1])


def _read_npz(path: Path) -> Arrays:
    with opened(path) as held:
        if not hasattr(held, "files"):
            raise DataError(f"{path}: holds an array alone: must be what numpy.savez writes")
        missing = [name for name in NAMES if name not in held.files]
        if missing:
            raise DataError(
                f"{path}: holds no {', '.join(missing)}: must hold the arrays {', '.join(NAMES)}"
            )
        arrays = [held[name] for name in NAMES]
        classes = held["classes"] if "classes" in held.files else []
        names = _array(classes, f"{path}: classes").tolist()
    if not isinstance(names, list):
        raise DataError(f"{path}: classes must be a list of names")
    return arrays, names


_FILES: dict[str, Callable[[Path], Arrays]] = {
    "folder": read_folder,
    ".npz": _read_npz,
    **dict.fromkeys(tables.SUFFIXES, tables.read_table),
}
_SUFFIXES = [suffix for suffix in _FILES if suffix.startswith(".")]
