"""Folders of pictures and of IDX files: read back, and anything else refused in one line."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from binep.cli.main import main
from binep.data.errors import DataError
from binep.data.sources import Source, source_of

Array = np.ndarray[Any, Any]


def splits(source: Source) -> list[tuple[Array, list[int]]]:
    found = source.read(None, False)
    return [(split.images.numpy(), split.labels.tolist()) for split in found]


# ---- pictures


def draw(path: Path, shape: tuple[int, ...] = (12, 20), seed: int = 0) -> Array:
    """A random picture in a file."""
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of grey pictures, 20 wide and 12 high."""
    for seed, name in enumerate(("cat", "ant", "bee")):
        for i in range(2):
            draw(tmp_path / "train" / name / f"{i}.png", seed=10 * seed + i)
        draw(tmp_path / "test" / name / "a.png", seed=seed + 100)
    return tmp_path


def test_folders_are_classes_in_their_order(folder: Path) -> None:
    (folder / "train" / "cat" / ".hidden").write_text("no picture")
    source = source_of(str(folder))
    assert (source.shape, source.classes) == ((1, 12, 20), ("ant", "bee", "cat"))
    (train, labels), (test, tested) = splits(source)
    assert (labels, tested) == ([0, 0, 1, 1, 2, 2], [0, 1, 2])
    read = [np.asarray(Image.open(folder / "train" / n / "1.png")) for n in ("ant", "bee", "cat")]
    assert np.array_equal(train[1::2, 0], read)
    assert np.array_equal(test[2, 0], np.asarray(Image.open(folder / "test" / "cat" / "a.png")))


def test_one_coloured_picture_makes_all_coloured(folder: Path) -> None:
    colours = draw(folder / "train" / "bee" / "0.png", (12, 20, 3))
    source = source_of(str(folder))
    assert source.shape == (3, 12, 20)
    (train, _), (test, _) = splits(source)
    assert np.array_equal(train[2], colours.transpose(2, 0, 1))
    assert np.array_equal(test[0, 0], test[0, 1])


def test_a_class_may_have_nothing_to_be_tested_on(folder: Path) -> None:
    (folder / "test" / "bee" / "a.png").unlink()
    (folder / "test" / "bee").rmdir()
    assert splits(source_of(str(folder)))[1][1] == [0, 2]


def _small(folder: Path) -> None:
    draw(folder / "test" / "bee" / "a.png", (12, 19))


def _deep(folder: Path) -> None:
    pixels = np.zeros((12, 20), np.uint16)
    Image.fromarray(pixels).save(folder / "train" / "bee" / "1.png")


def _cut(folder: Path) -> None:
    path = folder / "train" / "bee" / "1.png"
    path.write_bytes(path.read_bytes()[:-60])


def _one_class(folder: Path) -> None:
    for name in ("ant", "bee"):
        for path in [*folder.glob(f"*/{name}/*"), *folder.glob(f"*/{name}")]:
            path.rmdir() if path.is_dir() else path.unlink()


BAD: list[tuple[Callable[[Path], Any], str]] = [
    (_small, "test/bee/a.png: a picture of 19 × 12 pixels (width × height): must be 20 × 12 as"),
    (_deep, "train/bee/1.png: its pixels are I;16: must be of 8 bits per channel"),
    (_cut, "train/bee/1.png: cannot be read as a picture: "),
    (lambda folder: (folder / "train/bee/x.txt").write_text("x"), "x.txt: cannot be read as a pic"),
    (lambda folder: (folder / "train/bee/in").mkdir(), "bee/in: cannot be read as a picture: "),
    (
        lambda folder: draw(folder / "train/x.png"),
        "train/x.png: must be in the folder of its",
    ),
    (lambda folder: draw(folder / "test/dog/a.png"), "test/dog: its class has no folder in"),
    (lambda folder: (folder / "train/dog").mkdir(), "train/dog: is empty"),
    (_one_class, "all labels of y_train are cat: must be of two classes"),
    (
        lambda folder: (folder / "test").rename(folder / "tests"),
        "must hold train/CLASS/PICTURE and",
    ),
]


@pytest.mark.parametrize(("spoil", "said"), BAD, ids=[said[:30] for _, said in BAD])
def test_what_is_no_folder_of_pictures_is_refused(
    spoil: Callable[[Path], Any], said: str, folder: Path
) -> None:
    spoil(folder)
    with pytest.raises(DataError) as refusal:
        source_of(str(folder))
    assert said in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


def test_from_pictures_to_predictions(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder.parent)
    words = ["train", "quickstart", "--dataset", folder.name, "--epochs", "1", "--run-dir", "run"]
    assert main([*words, "--layers.1.size", "8", "--threads", "1"]) == 0
    capsys.readouterr()
    assert main(["predict", "run", f"{folder.name}/test/bee/a.png"]) == 0
    assert capsys.readouterr().out.startswith("file,row,class,score ant,score bee,score cat\n")


# ---- IDX files


def idx(array: Array) -> bytes:
    """An IDX file of unsigned bytes."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write(folder: Path, shape: tuple[int, ...], labels: list[int], prefix: str = "") -> Array:
    """Training and test files of so many random images; returns those."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (len(labels), *shape), np.uint8)
    folder.mkdir(exist_ok=True)
    for part in ("train", "t10k" if not prefix else "test"):
        name = f"{prefix}{part}-images-idx{images.ndim}-ubyte"
        (folder / name).write_bytes(idx(images))
        packed = gzip.compress(idx(np.array(labels, np.uint8)))
        (folder / f"{prefix}{part}-labels-idx1-ubyte.gz").write_bytes(packed)
    return images


@pytest.mark.parametrize("prefix", ["", "emnist-letters-"])
@pytest.mark.parametrize("shape", [(12, 20), (3, 4, 5), (7,)])
def test_idx_files_of_any_size_with_labels_from_one(
    shape: tuple[int, ...], prefix: str, tmp_path: Path
) -> None:
    images = write(tmp_path, shape, [1, 2, 3, 3], prefix)
    if prefix and len(shape) == 2:  # EMNIST's rows are columns
        images, shape = images.transpose(0, 2, 1), shape[::-1]
    source = source_of(str(tmp_path))
    assert source.shape == (shape if len(shape) != 2 else (1, *shape))
    assert source.classes == ("1", "2", "3")
    for found, labels in splits(source):
        assert np.array_equal(found.reshape(images.shape), images)
        assert labels == [0, 1, 2, 2]


def test_labels_that_skip_and_other_numbers_of_them_are_refused(tmp_path: Path) -> None:
    write(tmp_path, (12, 20), [0, 1, 3])
    with pytest.raises(DataError, match="y_train has no label 2, but 3"):
        source_of(str(tmp_path))
    labels = gzip.compress(idx(np.array([0, 1], np.uint8)))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(labels)
    with pytest.raises(DataError, match=r"y_train is of shape \(2,\): must be a label for each of"):
        source_of(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "starts with bytes none"),
        (b"\0\0\x08", "starts with bytes 000008"),
        (b"\0\0\x08\0", "holds items of sizes ()"),
        (b"\0\0\x0d\3" + b"\0\0\0\1" * 3 + b"\0\0\0\0", "starts with bytes 00000d03"),
        (idx(np.zeros((2, 0, 3), np.uint8)), "holds items of sizes (2, 0, 3)"),
        (idx(np.zeros((2, 4, 3), np.uint8))[:-1], "holds 23 bytes of items"),
    ],
)
def test_damaged_idx_files_are_refused(content: bytes, said: str, tmp_path: Path) -> None:
    write(tmp_path, (12, 20), [0, 1])
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError) as refusal:
        source_of(str(tmp_path))
    assert said in str(refusal.value)
    assert "train-images-idx3-ubyte" in str(refusal.value)


def test_a_missing_or_doubtful_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, (12, 20), [0, 1])
    write(tmp_path, (12, 20), [0, 1], "emnist-letters-")
    with pytest.raises(DataError, match="must hold one file of the train images, such as train-im"):
        source_of(str(tmp_path))
    for path in tmp_path.glob("emnist*"):
        path.unlink()
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="one file of the test labels, such as t10k-labels-idx1"):
        source_of(str(tmp_path))
