"""EMNIST and SVHN: stand-ins in their formats are read upright, with labels from 0."""

from __future__ import annotations

import gzip
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import pytest
from scipy.io import savemat

from binep.data import readers
from binep.data.errors import DataError
from binep.data.sources import SOURCES, Files, load, source_of

Array = np.ndarray[Any, Any]
PUBLISHED = [n for n in SOURCES if isinstance(SOURCES[n].build(), Files)]


def idx(array: Array) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def letters(first: int = 1, part: str = "letters") -> dict[str, bytes]:
    """The four files, zipped as NIST does; image i has a bar of 9 lit pixels down its column i."""
    images = np.zeros((5, 28, 28), np.uint8)
    for i, image in enumerate(images):
        image[3:12, i] = 200 + i
    stored = np.ascontiguousarray(images.transpose(0, 2, 1))
    labels = np.arange(first, first + 5, dtype=np.uint8)
    return {
        f"emnist-{part}-{split}-{kind}-ubyte.gz": gzip.compress(idx(array), mtime=0)
        for split in ("train", "test")
        for kind, array in (("images-idx3", stored), ("labels-idx1", labels))
    }


def write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def test_letters_are_upright_and_counted_from_0(tmp_path: Path) -> None:
    write(tmp_path / "EMNIST/raw", letters())
    found = load("emnist-letters", tmp_path, download=False)
    assert found.train.images.shape == (5, 1, 28, 28)
    for i, image in enumerate(found.test.images[:, 0]):
        assert image[3:12, i].tolist() == [200 + i] * 9
        assert int(image.sum()) == 9 * (200 + i)
    assert found.train.labels.tolist() == [0, 1, 2, 3, 4]
    assert (found.classes[0], found.classes[-1], len(found.classes)) == ("a", "z", 26)


def test_the_balanced_set_starts_at_label_0(tmp_path: Path) -> None:
    write(tmp_path / "EMNIST/raw", letters(42, "balanced"))
    found = load("emnist-balanced", tmp_path, download=False)
    assert [found.classes[i] for i in found.train.labels] == ["h", "n", "q", "r", "t"]
    assert [found.classes[i] for i in (0, 10, 35, 36, 46)] == ["0", "A", "Z", "a", "t"]
    assert len(found.classes) == 47


@pytest.mark.parametrize(("first", "label"), [(0, 0), (23, 27)])
def test_a_letter_that_is_none_is_refused(first: int, label: int, tmp_path: Path) -> None:
    write(tmp_path / "EMNIST/raw", letters(first))
    with pytest.raises(DataError, match=rf"holds label {label}; labels must be 1\.\.26"):
        load("emnist-letters", tmp_path, download=False)


def test_the_four_files_are_taken_from_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their names alone, whatever else it holds."""
    archive = tmp_path / "gzip.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("gzip/../../evil", b"")
        zipped.writestr("gzip/emnist-mnist-train-images-idx3-ubyte.gz", b"")
        for name, content in letters().items():
            zipped.writestr(f"gzip/{name}", content)
    content = archive.read_bytes()

    def served(url: str, known_hash: str, name: str, folder: Path, **_: Any) -> str:
        assert url == "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip"
        assert known_hash == "md5:58c8d27c78d21e728a6bc7b3cc06412e"
        (folder / name).write_bytes(content)
        return str(folder / name)

    monkeypatch.setattr(pooch, "retrieve", served)
    data = tmp_path / "data"
    assert load("emnist-letters", data).train.labels.tolist() == [0, 1, 2, 3, 4]
    found = {str(p.relative_to(data)) for p in data.rglob("*") if p.is_file()}
    assert found == {f"EMNIST/raw/{name}" for name in letters()}
    monkeypatch.setattr(pooch, "retrieve", lambda *_, **__: pytest.fail("fetched again"))
    load("emnist-letters", data)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x05\x06" + bytes(18)])
def test_an_archive_that_is_none_is_refused(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def served(url: str, known_hash: str, name: str, folder: Path, **_: Any) -> str:
        (folder / name).write_bytes(content)
        return str(folder / name)

    monkeypatch.setattr(pooch, "retrieve", served)
    with pytest.raises(DataError, match=r"emnist-letters: .* lacks emnist-letters-train") as error:
        load("emnist-letters", tmp_path)
    assert "download failed" in str(error.value) or "holds no" in str(error.value)


# ---- SVHN


def house_numbers(folder: Path, **changed: Any) -> Array:
    """Both files, with the labels 10, 1 and 9; the images (3, 3, 32, 32)."""
    (folder / "SVHN").mkdir(exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), np.uint8)
    held = {"X": images.transpose(2, 3, 1, 0), "y": np.array([[10], [1], [9]], np.uint8)}
    for part in ("train", "test"):
        savemat(folder / f"SVHN/{part}_32x32.mat", held | changed, do_compression=True)
    return images


def test_svhn_counts_ten_as_zero(tmp_path: Path) -> None:
    images = house_numbers(tmp_path)
    found = load("svhn", tmp_path, download=False)
    assert np.array_equal(found.train.images, images)
    assert found.test.labels.tolist() == [0, 1, 9]
    assert not found.mirror  # a mirrored digit is another


@pytest.mark.parametrize(
    ("changed", "refusal"),
    [
        ({"y": np.array([[0], [1], [9]], np.uint8)}, r"holds label 0; labels must be 1\.\.10"),
        ({"y": np.array([[11], [1], [9]], np.uint8)}, "holds label 11"),
        ({"y": np.array([[1.5], [1], [9]])}, "y is float64"),
        ({"y": np.array([[1], [9]], np.uint8)}, r"y is uint8 of \(2, 1\)"),
        ({"X": np.zeros((32, 32, 3))}, "X is float64"),
        ({"X": np.zeros((28, 28, 3, 3), np.uint8)}, r"X is uint8 of \(28, 28, 3, 3\)"),
    ],
)
def test_what_is_no_svhn_is_refused(changed: Any, refusal: str, tmp_path: Path) -> None:
    house_numbers(tmp_path, **changed)
    with pytest.raises(DataError, match=refusal) as error:
        load("svhn", tmp_path, download=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [0, 3, 100, 500, 5000])
def test_a_broken_mat_file_is_refused(size: int, tmp_path: Path) -> None:
    house_numbers(tmp_path)
    path = tmp_path / "SVHN/train_32x32.mat"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=r"train_32x32.mat") as error:
        load("svhn", tmp_path, download=False)
    assert "\n" not in str(error.value)


def test_svhn_without_scipy_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house_numbers(tmp_path)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(DataError, match=r"pip install 'binep\[svhn\]'"):
        load("svhn", tmp_path, download=False)


# ---- all that are published


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_known_of_a_set_fits_together(name: str) -> None:
    source = source_of(name)
    assert isinstance(source, Files)
    assert len(source.md5) == (len(source.files) if "NAME" in source.url else 1)
    assert all(len(md5) == 32 and not set(md5) - set("0123456789abcdef") for md5 in source.md5)
    assert len(set(source.classes)) == len(source.classes) > 1
    assert source.largest > 10**7
    assert all(("NAME" in mirror) == ("NAME" in source.url) for mirror in source.mirrors)
    train, test = source.counts
    assert source.is_whole({"train": train, "test": test, "sha256": source.sha256})
    assert not source.is_whole({"train": train - 1, "test": test, "sha256": source.sha256})


@pytest.mark.parametrize("name", PUBLISHED)
def test_without_a_network_it_is_said_where_to_get_the_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = replace(source_of(name), also=(), url="http://127.0.0.1:9/NAME", mirrors=())  # type: ignore[type-var]
    assert isinstance(source, Files)
    if len(source.md5) == 1:
        source = replace(source, url="http://127.0.0.1:9/archive.zip")
    with pytest.raises(DataError, match=f"^{name}: .*download failed: ConnectionError") as error:
        readers.read_files(source, tmp_path / "data", True)
    for part in (source.files[0], source.url, "data_dir or BINEP_DATA"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "data").exists()
