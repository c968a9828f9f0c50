"""Data of one's own in a folder: pictures by class, or IDX files; as arrays."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from binep.data import tables
from binep.data.errors import DataError, reason_of
from binep.data.pictures import GREY, opened, pixels
from binep.data.readers import read_idx

Array = np.ndarray[Any, Any]
Arrays = tuple[list[Array], list[str]]
"""x_train, y_train, x_test and y_test; and the names of the classes 0, 1, …, or none."""


def read_folder(path: Path) -> Arrays:
    """The data in a folder.

    Raises:
        DataError: it holds none, or they cannot be read.
    """
    try:
        names = sorted(os.listdir(path))
        if (path / "train").is_dir() and (path / "test").is_dir():
            return _read_pictures(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {reason_of(error)}") from error
    if any("-idx" in name for name in names):
        return _read_idx_files(path, names)
    for suffix in tables.SUFFIXES:
        if f"train{suffix}" in names and f"test{suffix}" in names:
            return tables.read_two_tables(path / f"train{suffix}", path / f"test{suffix}")
    raise DataError(
        f"{path}: must hold train/CLASS/PICTURE and test/CLASS/PICTURE, or IDX files such as "
        "train-images-idx3-ubyte, or train.csv and test.csv"
    )


def _read_pictures(path: Path) -> Arrays:
    """Pictures of one size; grey where all of them are."""
    found = {part: _pictures(path / part) for part in ("train", "test")}
    classes = sorted({file.parent.name for file in found["train"]})
    for file in found["test"]:
        if file.parent.name not in classes:
            raise DataError(f"{file.parent}: its class has no folder in {path / 'train'}")
    (width, height), channels = _size([*found["train"], *found["test"]])
    arrays: list[Array] = []
    for files in found.values():
        images = np.empty((len(files), channels, height, width), np.uint8)
        for image, file in zip(images, files, strict=True):
            with opened(file) as picture:
                image[:] = pixels(picture, channels)
        arrays += [images, np.array([classes.index(file.parent.name) for file in files])]
    return arrays, classes


def _pictures(folder: Path) -> list[Path]:
    """The files FOLDER/CLASS/FILE in their order, but for hidden ones."""
    found: list[Path] = []
    for place in _shown(folder):
        if not place.is_dir():
            raise DataError(f"{place}: must be in the folder of its class, {folder}/CLASS")
        found += _shown(place)
    return found


def _shown(folder: Path) -> list[Path]:
    """What a folder holds that is not hidden, of which there must be some."""
    found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if not found:
        raise DataError(f"{folder}: is empty")
    return found


def _size(files: Sequence[Path]) -> tuple[tuple[int, int], int]:
    """Width and height of all pictures, and their channels."""
    first = (0, 0)
    modes: set[str] = set()
    for file in files:
        with opened(file) as picture:
            size, mode = picture.size, picture.mode
        first = first if modes else size
        if size != first:
            one, other = (" × ".join(map(str, pair)) for pair in (size, first))
            raise DataError(
                f"{file}: a picture of {one} pixels (width × height): must be {other} as {files[0]}"
            )
        modes.add(mode)
    return first, 1 if modes <= GREY else 3


def _read_idx_files(path: Path, names: Sequence[str]) -> Arrays:
    """Images of any size with their labels, each file zipped or not; EMNIST's turned upright."""
    arrays = []
    for part, word in (("train", "train"), ("test", "t10k|test")):
        for kind in ("images", "labels"):
            pattern = rf"(.*-)?({word})-{kind}-idx\d-ubyte(\.gz)?"
            found = sorted(name for name in names if re.fullmatch(pattern, name))
            if len({name.removesuffix(".gz") for name in found}) != 1:
                held = ", ".join(found) or "none"
                raise DataError(
                    f"{path}: must hold one file of the {part} {kind}, such as "
                    f"{word.split('|')[0]}-{kind}-idx{3 if kind == 'images' else 1}-ubyte: {held}"
                )
            array = read_idx(path / found[0]).numpy()
            turned = kind == "images" and found[0].startswith("emnist-") and array.ndim == 3
            arrays.append(array.transpose(0, 2, 1) if turned else array)
    return arrays, []
