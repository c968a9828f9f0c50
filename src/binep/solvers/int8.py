"""Products that follow states in 8-bit integers, by AVX-512's dot products of bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from binep.core import memory
from binep.core.phases import Clamped, Phase
from binep.core.solvers import Loop
from binep.core.synapses import Synapse
from binep.solvers.following import FollowingSolver

if TYPE_CHECKING:
    from binep.solvers.primitives import Array

_LARGEST = 127
"""An integer stands for at most so many units, upward and downward."""
MOST = 2**31 // _LARGEST**2
"""The most neurons of a layer whose products add up to less than 2³¹."""


@dataclass(frozen=True)
class Int8:
    """Weights in 8-bit integers, each row in units of its own: see `following.Rounded`.

    Attributes:
        upward, downward: the integers, as `dot_products.multiply` takes them.
        units: what 1 stands for in each row, (above,).
        inputs: how many neurons lie below.
        error: see `Rounded`.
        rest: what rounding leaves of the weights, rounded; what is left of that is dropped.
    """

    upward: Array
    downward: Array
    units: Tensor
    inputs: int
    error: float
    rest: Int8 | None

    @classmethod
    def of(cls, layer: Synapse) -> Int8:
        """A layer's weights, (above, below)."""
        from binep.solvers import dot_products  # only now, as it loads numba

        weights = layer.values.detach()
        above, below = weights.shape
        up, down = (
            tuple(memory.empty(*shape, dtype=torch.uint8).numpy() for _ in range(2))
            for shape in map(dot_products.numbers, (above, below), (below, above))
        )
        units, rows = weights.new_empty(above), weights.new_empty(above, 2, 2)
        columns = memory.empty(len(up[0]), 2, 2, below)
        arrays = (t.numpy() for t in (weights.contiguous(), units, rows, columns))
        dot_products.round_rows(*arrays, up, down)
        lefts = zip(rows.unbind(1), columns.sum(0), strict=True)
        errors = [float(max(map(_worst, (r.t(), c)))) for r, c in lefts]
        rest = cls(up[1], down[1], units / (2 * _LARGEST), below, errors[1], None)
        return cls(up[0], down[0], units, below, errors[0], rest)

    def up(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """W·Δs and Δs."""
        product, rounded = _multiply(self.upward, change, len(self.units))
        return product.mul_(self.units), rounded

    def down(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """Wᵀ·Δs and Δs."""
        product, rounded = _multiply(self.downward, change * self.units, self.inputs)
        return product, rounded.div_(self.units)


def _multiply(integers: Array, change: Tensor, neurons: int) -> tuple[Tensor, Tensor]:
    """Integers times Δs, (samples, neurons), each sample rounded in units of its own; and Δs."""
    from binep.solvers import dot_products
    from binep.solvers.digits import kernels
    from binep.solvers.digits.steps import Update

    rounded, update = torch.zeros_like(change), Update.empty(change, 1)
    kernels.quantise(change.numpy(), rounded.numpy(), update.written())
    product = dot_products.product(integers, update.digits[0], neurons)
    return product.mul_(update.units.t()), rounded


def _worst(left: Tensor) -> Tensor:
    """By how much drives are wrong where all states have moved by 1.

    If they moved alike, by the sum of the weights' errors; if each moved up or down at random, by
    the root of the sum of their squares (the standard deviation), and of a million drives the worst
    by five times that.

    Args:
        left: sums, and sums of squares, of what is left of the weights, (2, neurons).
    """
    sums, squares = left
    return torch.maximum(sums.abs(), 5 * squares.sqrt()).max()


class Int8Solver(FollowingSolver):
    """Real activations on a CPU: steps as of `LeavingSolver`, most dense products in int8."""

    name = "int8"
    least = 2**20
    samples = 8

    @classmethod
    def follows(cls, synapse: Synapse) -> bool:
        """As for `FollowingSolver`, where sums of products fit in 32 bits."""
        return super().follows(synapse) and max(synapse.values.shape) <= MOST

    @staticmethod
    def is_quick() -> bool:
        """Whether the CPU has AVX-512's dot products of bytes."""
        from binep.solvers import machine  # loads numba: only where all else fits

        return machine.has_byte_dot_products()

    def loop(self, phase: Phase, clamped: Clamped) -> Loop:
        """As `FollowingSolver.loop`."""
        from binep.solvers import machine

        machine.use_threads()
        return super().loop(phase, clamped)

    def round(self, layer: Synapse) -> Int8:
        """Weights in integers."""
        return Int8.of(layer)
