"""What bounds a training step: its operations and bytes, and the rates of the machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from binep.network import Network
from binep.synapses import Conv, Dense

SIDE = 2048
"""Side of the square matrices that are multiplied to find a rate."""

BUFFER = 2**28
"""Bytes read or copied to find a bandwidth: far more than a cache holds."""


@dataclass(frozen=True)
class Stage:
    """A part of the step that is done in one unit.

    Attributes:
        name: what it is.
        unit: a key of `measured_rates`.
        operations: multiplications and additions.
        bytes: moved between memory and the cores.
    """

    name: str
    unit: str
    operations: float
    bytes: float

    def seconds(self, rates: Mapping[str, float]) -> float:
        """The least time: that of its operations or of its bytes, whichever is longer."""
        return max(self.operations / rates[self.unit], self.bytes / rates["read"])


def stages(network: Network, batch: int, free_steps: int, nudged_steps: int) -> list[Stage]:
    """Count what a batch of equilibrium propagation takes, at the steps that were taken.

    A product of one layer is 2·batch·weights operations (times the positions of a convolution) and
    reads every weight once. The input is real and clamped: one product in the batch, and one
    correlation, of the difference of the phases, in float32. Every other layer multiplies upward
    and downward in every step and correlates once per phase: in int8 where neurons send bits (one
    byte per sign), in float32 otherwise. The update reads the signs, and reads and writes the
    float32 momenta. States, gradients, biases and pooling count as nothing: they are small or
    need not leave the cache.

    A step can be faster than its bound only by leaving out some of these products or momenta, such
    as those of bits that did not change or of the zeros that unpooling puts in, or by multiplying
    reals in parts of 16 bits.
    """
    bits = not network.neurons[0].differentiable
    unit, width = ("int8", 1) if bits else ("float32", 4)
    (input_ops, input_weights), *others = [
        (2.0 * batch * weights * positions, weights)
        for weights, positions in (_size(synapse) for synapse in network.synapses)
    ]
    ops, weights = (
        (float(sum(column)) for column in zip(*others, strict=True)) if others else (0, 0)
    )
    products = 2 * (free_steps + nudged_steps)
    return [
        Stage("input", "float32", 2 * input_ops, 4 * input_weights),
        Stage("settling", unit, products * ops, products * width * weights),
        Stage("correlation", unit, 2 * ops, 0),
        Stage("update", "float32", 0, (width + 8) * (input_weights + weights)),
    ]


def _size(synapse: Any) -> tuple[int, int]:
    """Weights, and positions at which each is used."""
    assert isinstance(synapse, Dense | Conv)
    positions = math.prod(synapse.map_shape) if isinstance(synapse, Conv) else 1
    return synapse.values.numel(), positions


def measured_rates(repeats: int = 5) -> dict[str, float]:
    """The best of a few: operations a second of products, bytes a second of memory.

    "float32" is the faster of a matrix product and a convolution, which come from two libraries.
    """
    real, bits = torch.rand(SIDE, SIDE), torch.randint(-1, 2, (SIDE, SIDE), dtype=torch.int8)
    half = real.bfloat16()
    maps, kernels = torch.rand(64, 32, 14, 14), torch.rand(64, 32, 5, 5)
    source, copy = torch.ones(2, BUFFER // 4)
    square, some = 2 * SIDE**3, SIDE // 8  # fewer rows of what some machines take minutes for
    work: dict[str, tuple[float, Callable[[], object]]] = {
        "float32 product": (square, lambda: real @ real),
        "float32 convolution": (
            2 * maps[:, 0].numel() * kernels.numel(),
            lambda: F.conv2d(maps, kernels, padding=2),
        ),
        "bfloat16": (square // 8, lambda: half[:some] @ half),
        "int8": (square // 8, lambda: torch._int_mm(bits[:some], bits)),
        "read": (BUFFER, lambda: source.sum()),
        "copy": (2 * BUFFER, lambda: copy.copy_(source)),
    }
    rates = {name: amount / _best(act, repeats) for name, (amount, act) in work.items()}
    return rates | {"float32": max(rates["float32 product"], rates["float32 convolution"])}


def _best(act: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats + 1):  # the first warms up
        begin = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - begin)
        if seconds[-1] > 1:  # nothing that matters is warmed up then
            return seconds[-1]
    return min(seconds[1:])
