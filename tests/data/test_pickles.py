"""cifar-10-batches-py: read back, and nothing but arrays is made of what a pickle holds."""

from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import samples
import torch
from hypothesis import given
from hypothesis import strategies as st

from binep.data.errors import DataError
from binep.data.pickles import read_batch
from binep.data.sources import load

Batch = dict[Any, Any]
NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def batch(seed: int = 0, count: int = 4) -> Batch:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 3072), np.uint8)
    labels = rng.integers(0, 10, count).tolist()
    return {b"data": pixels, b"labels": labels, b"batch_label": b"one", b"filenames": [b"a.png"]}


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("text", [False, True])
def test_a_batch_of_any_protocol_is_read(protocol: int, text: bool) -> None:
    held = batch()
    named = {key.decode(): value for key, value in held.items()} if text else held
    pixels, labels = read_batch(pickle.dumps(named, protocol))
    assert np.array_equal(pixels, held[b"data"])
    assert labels.tolist() == held[b"labels"]


def test_arrays_of_older_versions_of_numpy_are_read() -> None:
    content = pickle.dumps(batch(), 2)
    assert b"numpy._core" in content
    old = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert np.array_equal(read_batch(old)[0], batch()[b"data"])


class Evil:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize(
    "evil",
    [
        Evil(os.system, "touch evil"),
        Evil(open, "evil", "w"),
        Evil(exec, "open('evil', 'w')"),
        Evil(eval, "open('evil', 'w')"),
        Path("evil"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_nothing_else_is_called(
    evil: Any, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="only arrays are read"):
        read_batch(pickle.dumps({**batch(), b"more": evil}, protocol))
    assert not Path("evil").exists()


@pytest.mark.parametrize(
    "held",
    [
        [],
        {},
        {b"data": [1, 2], b"labels": [1, 2]},
        {**batch(), b"data": np.zeros((4, 3072))},
        {**batch(), b"data": np.zeros((4, 3071), np.uint8)},
        {**batch(), b"data": np.zeros((5, 3072), np.uint8)},
        {**batch(), b"labels": [0, 1, 2, "3"]},
        {**batch(), b"labels": [0, 1, 2, -3]},
    ],
)
def test_what_is_no_batch_is_refused(held: Any) -> None:
    with pytest.raises(ValueError, match="it holds no "):
        read_batch(pickle.dumps(held))


@given(st.binary(max_size=60), st.integers(0, 300))
def test_damage_is_a_value_error(damage: bytes, place: int) -> None:
    content = pickle.dumps(batch(count=1), 2)
    with contextlib.suppress(ValueError):
        read_batch(content[:place] + damage + content[place + len(damage) :])
    with pytest.raises(ValueError, match=r"."):
        read_batch(content[:place])


def test_the_data_set_is_that_of_the_binary_files(tmp_path: Path) -> None:
    samples.write_cifar10(tmp_path)
    wanted = load("cifar10", tmp_path, download=False)
    (tmp_path / "cifar-10-batches-py").mkdir()
    for name in NAMES:
        path = tmp_path / "cifar-10-batches-bin" / f"{name}.bin"
        records = np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, 3073)
        held = {b"data": records[:, 1:].copy(), b"labels": records[:, 0].tolist()}
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(held, 2))
        path.unlink()
    found = load("cifar10", tmp_path, download=False)
    assert found.identity == wanted.identity
    assert torch.equal(found.train.images, wanted.train.images)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"no pickle")
    with pytest.raises(DataError, match="test_batch cannot be read: "):
        load("cifar10", tmp_path, download=False)
