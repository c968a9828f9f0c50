"""Products that follow states in 8-bit integers, for a CPU without instructions for bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor

from binep.core.synapses import Synapse
from binep.solvers.following import FollowingSolver

_LARGEST = 127
"""An integer stands for at most so many units, upward and downward."""
MOST = 2**31 // _LARGEST**2
"""The most neurons of a layer whose products add up to less than 2³¹."""
_ROWS = 32
"""So many rows of weights are rounded at a time, in cache."""
_TINY = torch.finfo(torch.float32).tiny


class Int8:
    """Weights in 8-bit integers, each row in units of its own: see `following.Rounded`."""

    def __init__(self, weights: Tensor) -> None:
        self._integers = torch.empty_like(weights, dtype=torch.int8)
        self._units = weights.new_empty(len(weights), 1)
        sums, squares = weights.new_zeros(2, weights.shape[1])
        worst = weights.new_zeros(())
        for some in range(0, len(weights), _ROWS):
            part = slice(some, some + _ROWS)
            rows, units = weights[part], _unit(weights[part])
            integers = (rows / units).round_()
            self._integers[part], self._units[part] = integers, units
            wrong = rows.addcmul(integers, units, value=-1)
            sums += wrong.sum(0)
            squares += wrong.square().sum(0)
            worst = worst.maximum(_worst(wrong.sum(1), wrong.square().sum(1)))
        self.error = float(worst.maximum(_worst(sums, squares)))

    def up(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """W·Δs and Δs."""
        integers, units = _rounded(change)
        product = torch._int_mm(integers, self._integers.t())
        return product * units * self._units.t(), integers * units

    def down(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """Wᵀ·Δs and Δs."""
        integers, units = _rounded(change * self._units.t())
        return torch._int_mm(integers, self._integers) * units, integers * units / self._units.t()


def _worst(sums: Tensor, squares: Tensor) -> Tensor:
    """By how much drives are wrong where all states have moved by 1.

    If they moved alike, by the sum of the weights' errors; if each moved up or down at random, by
    the root of the sum of their squares (the standard deviation), and of a million drives the worst
    by five times that.
    """
    return torch.maximum(sums.abs(), 5 * squares.sqrt()).max()


def _unit(rows: Tensor) -> Tensor:
    """What an integer stands for in each row, (rows, 1)."""
    return (rows.abs().amax(1, keepdim=True) / _LARGEST).clamp_min_(_TINY)


def _rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Integers, each row in units of its own, and the units, (rows, 1)."""
    units = _unit(rows)
    return (rows / units).round_().to(torch.int8), units


class Int8Solver(FollowingSolver):
    """Real activations on a CPU: steps as of `LeavingSolver`, most dense products in int8."""

    name = "int8"
    rounded = Int8
    least = 2**20
    samples = 8

    @classmethod
    def follows(cls, synapse: Synapse) -> bool:
        """As for `FollowingSolver`, where sums of products fit in 32 bits."""
        return super().follows(synapse) and max(synapse.values.shape) <= MOST

    @staticmethod
    def is_quick() -> bool:
        """Whether the CPU has instructions for products of 8-bit integers, and they are right."""
        from binep.solvers import machine  # loads numba: only where all else fits

        return machine.has_int8_products() and machine.has_exact_int8()
