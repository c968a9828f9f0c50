"""What a report computes from scores and weights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from binep.analysis import pictures, readings
from binep.core.synapses import Conv, Dense


def test_a_confusion_matrix_by_hand() -> None:
    labels, predictions = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 2, 0, 0])
    expected = [[1, 1, 0], [0, 1, 0], [2, 0, 1]]
    assert readings.confusion(labels, predictions, 3).tolist() == expected


@given(st.lists(st.tuples(*[st.floats(-1, 1, width=32)] * 3, st.integers(0, 2))), st.integers(0, 9))
def test_the_most_confident_errors_come_first(
    rows: list[tuple[float, float, float, int]], count: int
) -> None:
    scores = torch.tensor([row[:3] for row in rows]).view(-1, 3)
    labels = torch.tensor([row[3] for row in rows], dtype=torch.int64)
    found = readings.most_confident_errors(scores, labels, count)
    lead = {i: float(max(row[:3]) - np.float32(row[row[3]])) for i, row in enumerate(rows)}
    wrong = [i for i, row in enumerate(rows) if max(range(3), key=row.__getitem__) != row[3]]
    assert len(found) == len(set(found)) == min(count, len(wrong))
    assert set(found) <= set(wrong)
    leads = [lead[i] for i in found]
    assert leads == sorted(leads, reverse=True)
    assert all(lead[i] <= min(leads, default=0) for i in set(wrong) - set(found)) or not count


LEAD = "the largest lead of the predicted class over the right one first."


@pytest.mark.parametrize(
    ("wrong", "seen"),
    [
        (0, "Seed 4: none of 30 is misread."),
        (2, f"Seed 4: 2 of 30 are misread, {LEAD}"),
        (30, f"Seed 4: 30 of 30 are misread; these 24, {LEAD}"),
    ],
)
def test_how_many_are_misread_is_said(wrong: int, seen: str) -> None:
    labels = torch.zeros(30, dtype=torch.int64)
    reading: Any = SimpleNamespace(
        run=SimpleNamespace(config=SimpleNamespace(seed=4)),
        scores=torch.eye(2)[(torch.arange(30) < wrong).long()],
        labels=labels,
        classes=("a", "b"),
        images=torch.zeros(30, 1, 2, 2, dtype=torch.uint8),
    )
    report: Any = SimpleNamespace(readings=[reading])
    found = pictures.misread(report)
    assert found is not None
    assert (found.seen, len(found.tiles)) == (seen, min(wrong, 24))


def test_weights_as_images() -> None:
    real = Dense((1, 2, 2), 3, weights="real")
    with torch.no_grad():
        real.values.copy_(torch.tensor([[-2.0, 0, 1, 2], [0, 0, 0, 0], [9, 9, 9, 9]]))
    images = pictures.weight_images(real, 2)
    assert images.tolist() == [[[[0, 128], [191, 255]]], [[[128, 128], [128, 128]]]]
    binary = Conv((3, 8, 8), 2, kernel=3)
    images = pictures.weight_images(binary, 9)
    assert images.shape == (2, 3, 3, 3)
    assert np.array_equal(images > 127, (binary.values > 0).numpy())
