"""What the measures of reliability compare and count; no times."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import pytest

from benchmarks import flatness
from benchmarks.kills import differences
from benchmarks.kinds import KINDS
from binep.experiment.experiment import Experiment
from binep.runs import folder as runs

SMALL = KINDS["real weights"].replace(max_batches=2, epochs=2, test_batch_size=1000)


def test_runs_that_differ_in_a_bit_are_told_apart(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "same", "other")]
    for folder, seed in zip(folders, (0, 0, 1), strict=True):
        folder.mkdir()
        runs.train(Experiment(SMALL.replace(seed=seed)), folder, warn=lambda text: None)
    one, same, other = folders
    assert differences(one, same) == []
    odd = differences(one, other)
    assert {"model", "best", "order", "epoch 1", "epoch 2"} <= set(odd)
    assert "progress" not in odd
    content = bytearray((same / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (same / "model.safetensors").write_bytes(content)
    assert differences(one, same) == ["model"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, asks glibc")
def test_memory_and_files_are_counted_after_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flatness, "KINDS", {"small": SMALL})
    rows = flatness.measured("small", 2)
    assert [(row["kind"], row["epoch"]) for row in rows] == [("small", 1), ("small", 2)]
    assert len(flatness.drawn(rows).axes) == len(flatness.SHOWN)
    # What earlier tests freed may be resident still, and would hold it.
    ctypes.CDLL(None).malloc_trim(0)
    before = flatness.used()
    opened, held = os.open(os.devnull, os.O_RDONLY), bytearray(10**8)
    after = flatness.used()
    os.close(opened)
    assert after["open_files"] == before["open_files"] + 1
    for name in ("allocated_mb", "resident_mb"):
        assert after[name] - before[name] == pytest.approx(len(held) / 1e6, rel=0.1)
