"""The table of a network."""

from __future__ import annotations

import torch
from torch.nn.utils import parametrize

import binep
from binep.core import summary


def test_layers_are_counted() -> None:
    network = binep.Network(
        [binep.Conv((2, 9, 7), 4, kernel=3, padding=1), binep.Dense((4, 4, 3), 6)],
        [binep.Real(), binep.Real(0.5)],
        binep.CrossEntropy(binep.Dense(6, 3, weights="real")),
        free_steps=40,
    )
    conv, dense, readout = summary.layers(network)
    assert (conv.kind, conv.shape) == ("Conv", "2×9×7 → 4×4×3")
    assert (conv.bits, conv.numbers, conv.memory) == (72, 8, 9 + 8 * 4)  # α and bias per channel
    assert conv.operations == 72 * 9 * 7
    assert (dense.bits, dense.numbers, dense.memory) == (288, 7, 36 + 7 * 4)
    assert dense.operations == 288
    assert (readout.bits, readout.numbers, readout.memory) == (0, 21, 84)
    assert summary.layers(network.double())[2].memory == 168


def test_what_others_are_computed_from_is_counted() -> None:
    network = binep.Network([binep.Dense(20, 30), binep.Dense(30, 3)], binep.Real())
    before = [layer.cells()[1:] for layer in summary.layers(network)]
    parametrize.register_parametrization(network.synapses[0], "values", torch.nn.Tanh())
    parametrize.register_parametrization(network.synapses[1], "bias", torch.nn.Softplus())
    assert [layer.cells()[1:] for layer in summary.layers(network)] == before


def test_repr_is_the_table() -> None:
    network = binep.Network([binep.Dense(784, 4096), binep.Dense(4096, 10)], binep.Real())
    head, about, columns, *rows = repr(network).splitlines()
    assert head.startswith("Network: Real(")
    assert about == "SquaredError, T = 250"
    assert max(map(len, repr(network).splitlines())) <= 80
    assert columns.split()[:3] == ["layer", "synapses", "shape"]
    assert rows[0].split() == [
        "1",
        "Dense",
        "784",
        "→",
        "4096",
        "3,211,264",
        "4,097",
        "408.0",
        "KiB",
        "3,211,264",
    ]
    assert rows[1].split() == [
        "2",
        "Dense",
        "4096",
        "→",
        "10",
        "40,960",
        "11",
        "5.0",
        "KiB",
        "40,960",
    ]
    assert " ".join(rows[2].split()) == "all 3,252,224 4,108 413.0 KiB"
    assert len({len(line) for line in (columns, *rows[:2])}) == 1
    assert max(map(len, (columns, *rows))) <= 80


def test_sizes_are_read_easily() -> None:
    assert [summary.size(n) for n in (1, 1023, 1024, 1536, 3 * 2**20)] == [
        "1 B",
        "1023 B",
        "1.0 KiB",
        "1.5 KiB",
        "3.0 MiB",
    ]
