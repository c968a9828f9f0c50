"""What bounds a training step: its operations and bytes, and the rates of the machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from binep.core.network import Network
from binep.core.phases import Phase
from binep.core.solvers import choose
from binep.core.synapses import Conv, Dense, Synapse
from binep.solvers import machine
from binep.solvers.digits.products import Products
from binep.solvers.digits.solver import DigitSolver

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
    and downward in every step and correlates once per phase. Bits are multiplied in int8 (one byte
    per sign), reals in float32, or where they travel as digits in int8: one digit in the free phase
    and two in the nudged one. The update reads the signs, and reads and writes the float32
    momenta. States, gradients, biases and pooling count as nothing: they are small or need not
    leave the cache.

    A step can be faster than its bound only by leaving out some of these products or momenta, such
    as those of bits that did not change, of samples that have settled before the last one, or of
    the zeros that unpooling puts in.
    """
    bits = not network.neurons[0].differentiable
    x = torch.zeros(1, *network.synapses[0].input_shape, device=network.synapses[0].values.device)
    by_digits = choose(network, Phase.of(network, x, 1)) is DigitSolver
    per_step = 2 * (free_steps + nudged_steps)
    products = 2 * (free_steps + 2 * nudged_steps) if by_digits else per_step
    real, width = ("int8", 1) if bits else ("float32", 4)
    settling = "int8" if by_digits else real
    (input_ops, input_weights), *others = [
        (2.0 * batch * weights * positions, weights)
        for weights, positions in (_size(synapse) for synapse in network.synapses)
    ]
    ops, weights = (
        (float(sum(column)) for column in zip(*others, strict=True)) if others else (0, 0)
    )
    read = per_step * (1 if by_digits else width) * weights
    return [
        Stage("input", "float32", 2 * input_ops, 4 * input_weights),
        Stage("settling", settling, products * ops, read),
        Stage("correlation", real, 2 * ops, 0),
        Stage("update", "float32", 0, (width + 8) * (input_weights + weights)),
    ]


def _size(synapse: Any) -> tuple[int, int]:
    """Weights, and positions at which each is used."""
    assert isinstance(synapse, Dense | Conv)
    positions = math.prod(synapse.map_shape) if isinstance(synapse, Conv) else 1
    return synapse.values.numel(), positions


def measured_rates(repeats: int = 5) -> dict[str, float]:
    """The best of a few: operations a second of products, bytes a second of memory.

    "float32" is the faster of a matrix product and a convolution, which come from two libraries;
    "int8" the fastest of the products that binep has.
    """
    real, bits = torch.rand(SIDE, SIDE), torch.randint(-1, 2, (SIDE, SIDE), dtype=torch.int8)
    half = real.bfloat16()
    maps, kernels = torch.rand(64, 32, 14, 14), torch.rand(64, 32, 5, 5)
    source, copy = torch.ones(2, BUFFER // 4)
    square, some = 2 * SIDE**3, SIDE // 8  # fewer rows of what some machines take minutes for
    convolution = 2 * maps[:, 0].numel() * kernels.numel()
    work: dict[str, tuple[float, Callable[[], object]]] = {
        "float32 product": (square, lambda: real @ real),
        "float32 convolution": (convolution, lambda: F.conv2d(maps, kernels, padding=2)),
        "bfloat16": (square // 8, lambda: half[:some] @ half),
        "int8 product": (square // 8, lambda: torch._int_mm(bits[:some], bits)),
        "read": (BUFFER, lambda: source.sum()),
        "copy": (2 * BUFFER, lambda: copy.copy_(source)),
    }
    for name, amount, rows, synapse in (
        ("int8 digits", square, SIDE, Dense(SIDE, SIDE)),
        ("int8 digits, convolution", convolution, 64, Conv((32, 14, 14), 64, padding=2)),
    ):
        if machine.has_packed_int8():
            work[name] = (amount, _digits(synapse, rows))
    rates = {name: amount / _best(act, repeats) for name, (amount, act) in work.items()}
    for unit in ("float32", "int8"):
        rates[unit] = max(rate for name, rate in rates.items() if name.startswith(unit))
    return rates


def _digits(synapse: Synapse, rows: int) -> Callable[[], object]:
    """Multiply so many rows of digits by a synapse's signs."""
    below = torch.zeros(1, rows, math.prod(synapse.input_shape), dtype=torch.uint8)
    products = Products.of(synapse, torch.arange(synapse.values[0].numel()))
    return lambda: products.up(below)


def _best(act: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats + 1):  # the first warms up
        begin = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - begin)
        if seconds[-1] > 1:  # nothing that matters is warmed up then
            return seconds[-1]
    return min(seconds[1:])
