"""Arrays of one's own: read back, their classes found, and anything else refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import samples
import torch
from hypothesis import given
from hypothesis import strategies as st

from binep.data.errors import DataError
from binep.data.own import NAMES, Own, from_arrays
from binep.data.sources import GIVEN, Files, is_path, load, source_of

Array = np.ndarray[Any, Any]


def arrays(
    shape: tuple[int, ...] = (12, 20), labels: tuple[Any, ...] = (0, 1, 2), **changed: Any
) -> dict[str, Array]:
    """Two samples of each class to train on, one to test on; some arrays changed."""
    rng, count = np.random.default_rng(0), len(labels)
    held = {
        "x_train": rng.integers(0, 256, (2 * count, *shape), np.uint8),
        "y_train": np.array(labels * 2),
        "x_test": rng.integers(0, 256, (count, *shape), np.uint8),
        "y_test": np.array(labels),
    }
    return held | changed


def read(held: dict[str, Array]) -> Own:
    return from_arrays([held[name] for name in NAMES])


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4).filter(
        lambda sizes: len(sizes) != 3 or sizes[2] not in (1, 3)
    ),
    st.sampled_from([np.uint8, np.float16, np.float64, bool]),
    st.integers(2, 40),
    st.sampled_from([0, 1]),
)
def test_samples_of_any_shape_and_any_number_of_classes(
    shape: list[int], dtype: Any, classes: int, first: int
) -> None:
    held = arrays(tuple(shape), tuple(range(first, first + classes)))
    held |= {name: held[name].astype(dtype) for name in ("x_train", "x_test")}
    own = read(held)
    assert own.shape == ((1, *shape) if len(shape) == 2 else tuple(shape))
    assert own.classes == tuple(map(str, range(first, first + classes)))
    for split, part in zip(own.splits, ("train", "test"), strict=True):
        assert split.images.dtype == (torch.uint8 if dtype == np.uint8 else torch.float32)
        assert np.array_equal(split.images.reshape(held[f"x_{part}"].shape), held[f"x_{part}"])
        assert np.array_equal(split.labels, held[f"y_{part}"] - first)
        assert not split.problem(own.shape, classes)


def test_names_are_classes_in_their_order() -> None:
    own = read(arrays(labels=("plum", "apple")))
    assert own.classes == ("apple", "plum")
    assert own.splits[1].labels.tolist() == [1, 0]


def test_lists_tensors_and_objects_are_arrays_too() -> None:
    held = arrays((3,), ("a", "b"))
    as_lists: dict[str, Any] = {name: array.tolist() for name, array in held.items()}
    as_lists["x_train"] = torch.tensor(held["x_train"])
    as_lists["x_test"] = torch.tensor(held["x_test"])
    as_lists["y_train"] = held["y_train"].astype(object)
    one, other = read(held), read(as_lists)
    assert one.classes == other.classes
    for a, b in zip(one.splits, other.splits, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)


def test_tensors_may_be_of_a_type_that_numpy_lacks() -> None:
    held: dict[str, Any] = arrays((3,))
    for name in ("x_train", "x_test"):
        held[name] = torch.tensor(held[name] / 256.0).bfloat16()
    assert torch.equal(read(held).splits[0].images, held["x_train"].float())


def test_what_was_read_is_a_copy() -> None:
    held = arrays()
    own = read(held)
    before = own.splits[0].images.clone()
    held["x_train"] += 1
    assert torch.equal(own.splits[0].images, before)


def _nan() -> Array:
    x = np.zeros((6, 4))
    x[3, 2] = np.nan
    return x


BAD: list[tuple[dict[str, Any], str]] = [
    ({"x_train": [[1.0], [1.0, 2.0]]}, "x_train is no array, or its samples are of several shapes"),
    (arrays((4,), x_train=_nan(), x_test=np.zeros((3, 4))), "those of sample 3 are not"),
    (arrays((4,), x_train=np.full((6, 4), 1e300), x_test=np.zeros((3, 4))), "sample 0 are not"),
    ({"y_train": np.zeros(6, int)}, "all labels of y_train are 0: must be of two classes"),
    ({"y_train": np.array([0, 1, 3, 0, 1, 3])}, "y_train has no label 2, but 3"),
    ({"y_train": np.array([2, 3, 4, 2, 3, 4])}, "the lowest label of y_train is 2: must be 0 or 1"),
    ({"y_train": np.array([-1, 0, 1, 0, 1, 2])}, "the lowest label of y_train is -1"),
    ({"y_test": np.array([0, 1, 7])}, "y_test has the label 7: must be one of 0, 1, 2"),
    ({"y_test": np.array(["a", "b", "c"])}, "y_test is <U1: must be as y_train, int64"),
    ({"y_train": np.zeros(6)}, "y_train is float64: labels must be whole numbers or names"),
    ({"y_train": np.zeros(5, int)}, "y_train is of shape (5,): must be a label for each of the 6"),
    ({"y_test": np.zeros((3, 1), int)}, "y_test is of shape (3, 1)"),
    ({"x_test": np.zeros((0, 12, 20), np.uint8), "y_test": np.zeros(0, int)}, "at least one"),
    ({"x_test": np.zeros((3, 12, 21), np.uint8)}, "must be as x_train, uint8 of shape (N, 12, 20)"),
    ({"x_test": np.zeros((3, 12, 20))}, "x_test is float64 of shape (N, 12, 20): must be as"),
    ({"x_train": np.zeros((6, 12, 20), np.int64)}, "x_train is int64: must be uint8"),
    ({"x_train": np.zeros(6, np.uint8)}, "x_train is of shape (6,): must be (samples, "),
    ({"x_train": np.zeros((6, 32, 32, 3))}, "x.transpose(0, 3, 1, 2) puts channels there"),
    ({"x_train": np.array([{}] * 6)}, "x_train holds objects"),
    ({"x_train": np.float32(3)}, "x_train is of shape (): must be (samples, "),
    (
        {"y_train": np.array(["a\nb", "c", "d"] * 2), "y_test": np.array(["c"] * 3)},
        "a class is called 'a\\nb': must be a name of printed letters",
    ),
    (
        {"y_train": np.array([" ", "c", "d"] * 2), "y_test": np.array(["c"] * 3)},
        "a class is called ' '",
    ),
]


@pytest.mark.parametrize(("changed", "said"), BAD, ids=[said[:40] for _, said in BAD])
def test_what_is_no_data_set_is_refused_by_name(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError) as refusal:
        read(arrays() | changed)
    assert said in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize("data", [(), (1, 2, 3), None, 5, "four"])
def test_what_are_not_four_arrays_is_refused(data: Any) -> None:
    with pytest.raises(DataError):
        from_arrays(data)


@pytest.mark.parametrize(
    ("changes", "whole"),
    [
        ({}, True),
        ({"train": 54_000, "valid": 6_000, "sha256": "another"}, True),
        ({"train": 20}, False),
        ({"test": 20}, False),
        ({"sha256": "another"}, False),
    ],
)
def test_only_a_whole_true_data_set_is_one(changes: dict[str, Any], whole: bool) -> None:
    source = source_of("mnist")
    assert isinstance(source, Files)
    identity = {"train": 60_000, "test": 10_000, "sha256": source.sha256}
    assert source.is_whole({**identity, **changes}) == whole


# ---- .npz


def test_npz_is_read_as_its_arrays(tmp_path: Path) -> None:
    held = arrays()
    np.savez(tmp_path / "a.npz", **held)  # type: ignore[arg-type]
    found, wanted = load(str(tmp_path / "a.npz")), read(held)
    assert (found.classes, found.mean, found.mirror) == (("0", "1", "2"), None, False)
    for a, b in zip((found.train, found.test), wanted.splits, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)


def test_names_of_classes_differ(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays(), classes=np.array(["a", "b", "a"]))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="two classes are called a: names must differ"):
        source_of(str(tmp_path / "a.npz"))


def test_names_may_be_bytes(tmp_path: Path) -> None:
    names = ["évident", "nought"]
    held = arrays(labels=[name.encode() for name in names], y_test=np.array(names))
    np.savez(tmp_path / "a.npz", **held)
    own = source_of(str(tmp_path / "a.npz"))
    assert own.classes == tuple(sorted(names))
    assert own.splits[1].labels.tolist() == [sorted(names).index(name) for name in names]
    numbered = arrays(labels=(0, 1), classes=np.array([name.encode() for name in names]))
    np.savez(tmp_path / "b.npz", **numbered)
    assert source_of(str(tmp_path / "b.npz")).classes == tuple(names)
    with pytest.raises(DataError, match="y_train holds bytes that are no text in UTF-8"):
        read(arrays(y_train=np.array([b"\xff"] * 6)))


def test_npz_may_name_its_classes_of_which_some_have_no_sample(tmp_path: Path) -> None:
    names = np.array(["nought", "one", "two", "three"])
    np.savez(tmp_path / "a.npz", classes=names, **arrays(labels=(0, 3)))  # type: ignore[arg-type]
    own = source_of(str(tmp_path / "a.npz"))
    assert own.classes == ("nought", "one", "two", "three")
    np.savez(tmp_path / "b.npz", classes=names[:3], **arrays(labels=(0, 3)))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="y_train has the label 3: must be one of nought, one, two"):
        source_of(str(tmp_path / "b.npz"))


def _without_one(path: Path) -> None:
    np.savez(path, **{k: v for k, v in arrays().items() if k != "y_test"})  # type: ignore[arg-type]


def _with_objects(path: Path) -> None:
    np.savez(path, **arrays(y_train=np.array([0, "a", None] * 2, object)))  # type: ignore[arg-type]


def _one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def _cut(path: Path) -> None:
    np.savez(path, **arrays())  # type: ignore[arg-type]
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (_without_one, "holds no y_test: must hold the arrays x_train, y_train, x_test, y_test"),
        (_with_objects, "holds objects, as samples of several shapes are"),
        (_cut, "cannot be read: "),
        (lambda path: path.write_bytes(b"no zip"), "cannot be read: is damaged, or holds objects"),
        (lambda path: path.write_bytes(b""), "cannot be read: "),
        (_one_array, "holds an array alone: must be what numpy.savez writes"),
        (lambda path: None, "there is no such file or folder"),
        (lambda path: path.mkdir(), ""),
    ],
)
def test_a_file_that_is_none_is_refused(
    write: Callable[[Path], Any], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.npz"
    write(path)
    with pytest.raises(DataError) as refusal:
        source_of(str(path))
    assert said in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"a.txt: must be a folder, or a file that ends in .npz"):
        source_of(str(tmp_path / "a.txt"))


def test_what_has_moved_is_found_in_the_data_folder(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    np.savez(tmp_path / "new" / "a.npz", **arrays())  # type: ignore[arg-type]
    assert source_of(str(tmp_path / "a.npz"), None, tmp_path / "new").shape == (1, 12, 20)
    with pytest.raises(DataError, match="no such file"):
        source_of(str(tmp_path / "a.npz"))


def test_what_a_path_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "mnist").mkdir()
    paths = ("folder", "a.npz", "some/where", "./mnist")
    assert [is_path(name) for name in paths] == [True] * len(paths)
    assert not any(map(is_path, ("mnist", "mnist5k", "nosuch", GIVEN)))


# ---- further sets by name


def test_kmnist_lies_as_mnist_does(tmp_path: Path) -> None:
    samples.write_mnist(tmp_path)
    (tmp_path / "MNIST").rename(tmp_path / "KMNIST")
    found = load("kmnist", tmp_path, download=False)
    assert (len(found.train), len(found.test)) == (20, 10)
    assert found.classes[:2] == ("o", "ki")


def test_cifar100_has_the_fine_label_behind_the_coarse_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "cifar-100-binary").mkdir()
    records = rng.integers(0, 256, (5, 3074), np.uint8)
    records[:, 0], records[:, 1] = 19, (99, 0, 50, 7, 98)
    for name in ("train", "test"):
        (tmp_path / "cifar-100-binary" / f"{name}.bin").write_bytes(records.tobytes())
    found = load("cifar100", tmp_path, download=False)
    assert found.train.labels.tolist() == [99, 0, 50, 7, 98]
    assert np.array_equal(found.test.images, records[:, 2:].reshape(-1, 3, 32, 32))
    assert [found.classes[i] for i in (0, 50, 99)] == ["apple", "mouse", "worm"]
    records[2, 1] = 100
    (tmp_path / "cifar-100-binary" / "test.bin").write_bytes(records.tobytes())
    with pytest.raises(DataError, match=r"test.bin holds label 100; labels must be 0\.\.99"):
        load("cifar100", tmp_path, download=False)
