"""The benchmark of workers: what its page makes of what was measured."""

from __future__ import annotations

import pytest

from benchmarks.report import Row
from benchmarks.workers import efficiency, medians, page


def row(turn: int, alone: float, sent: int) -> Row:
    times = {"alone": alone, "together": 0.3, "sending": 0.1, "update": 0.1}
    return {"shape": "mnist-fc1-ep", "turn": turn, **times, "messages": 5, "bytes": sent}


def test_medians_are_of_each_shape() -> None:
    rows = [row(0, 0.5, 8), row(1, 0.4, 8), row(2, 9.0, 8), {**row(0, 7.0, 1), "shape": "other"}]
    found = medians(rows)
    assert [(r["shape"], r["alone"]) for r in found] == [("mnist-fc1-ep", 0.5), ("other", 7.0)]


def test_sums_in_a_ring_cost_what_they_send() -> None:
    # 1.25e9 bytes are 1 s at 10 Gbit/s; two workers send each of them once
    measured = row(0, 0.9, 1_250_000_000)
    assert efficiency(measured, 2, 10) == pytest.approx(1 / 2, rel=1e-3)
    assert efficiency(measured, 1000, 10) == pytest.approx(1 / (1 + 2 * 0.999), rel=3e-3)
    assert efficiency({**measured, "bytes": 0}, 1000, 10) == pytest.approx(1 / 1.002)


def test_the_page_says_what_is_measured_and_what_computed() -> None:
    text = page(medians([row(0, 0.4, 1_000_000)]), 2, "a machine")
    measured, computed = text.split("## Computed")
    assert "| `mnist-fc1-ep` | 0.4 | 0.3 | 1.25 | 0.1 | 0.1 | 5 | 1 |" in measured
    assert "Not measured" in computed
    assert "1000 workers" in computed
