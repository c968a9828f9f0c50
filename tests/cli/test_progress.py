"""The table that training prints: what it shows of which networks, and that it fits."""

from __future__ import annotations

import dataclasses

import pytest

from binep.cli.progress import EpochTable, _short
from binep.experiment.config import Config, preset
from binep.experiment.experiment import Experiment
from binep.experiment.training import Scores

PASS = Scores({"error": 100.0, "error_bits": 89.36}, 1234.5678, [250.0] * 9, [0.0] * 9, 9, 99999)


def table(config: Config, **changes: object) -> EpochTable:
    small = {n: dataclasses.replace(x, size=20) for n, x in config.layers.items()}
    small[max(small)] = dataclasses.replace(small[max(small)], size=config.layers[max(small)].size)
    return EpochTable(Experiment(config.replace(threads=1, layers=small, **changes)))


@pytest.mark.parametrize("validation", [0.0, 0.1])
@pytest.mark.parametrize("name", ["quickstart", "mnist-bits-fc1-ep", "mnist-conv-ep"])
def test_its_lines_fit_and_are_aligned(name: str, validation: float) -> None:
    shown = table(preset(name), dataset="mnist5k", validation=validation, epochs=500)
    titles, names = shown.heading().splitlines()
    flips = [123456] * len(shown.layers["flips"])
    steps = [250.0] * len(shown.layers["steps"])
    scores = dataclasses.replace(PASS, settle_steps=steps)
    row = shown.row(500, (scores, scores if validation else None, scores), flips)
    assert len(titles) <= len(names) == len(row) <= 80
    assert ("valid" in names) == (row.count("100.00") == 3) == (validation > 0)
    assert ("bits" in names) == ("89.36" in row) == ("bits" in name)


def test_of_many_layers_flips_are_summed_and_the_last_settles() -> None:
    config = preset("quickstart")
    layers = {str(i): dataclasses.replace(config.layers["1"], size=10) for i in range(1, 9)}
    shown = table(config.replace(layers=layers), epochs=50)
    assert " ".join(shown.heading().split()[-6:]) == "epoch train test all last s"
    scores = dataclasses.replace(PASS, settle_steps=[3.0, 25.0, 4.0])
    row = shown.row(1, (scores, None, scores), [1, 2, 3])
    assert row.split()[:5] == ["1/50", "100.00", "100.00", "6", "25"]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (9999, "9999"), (10_000, "10k"), (834_499, "834k"), (999_600, "1.0M")],
)
def test_counts_take_four_letters(count: int, text: str) -> None:
    assert _short(count) == text
    assert len(_short(count * 997)) <= 4
