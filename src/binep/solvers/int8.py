"""Products that follow states in 8-bit integers, for a CPU without instructions for bfloat16."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from binep.core.network import Network
from binep.core.phases import Phase
from binep.solvers.following import FollowingSolver, is_wide

_LARGEST = 127
"""An integer stands for at most so many units, upward and downward."""
FEWEST = 2
"""The fewest neurons of a layer: torch._int_mm is wrong for sums of one term (torch 2.13)."""
MOST = 2**31 // _LARGEST**2
"""The most, whose products add up to less than 2³¹."""
_ROWS = 64
"""So many rows of weights are rounded at a time, in cache."""
_TINY = torch.finfo(torch.float32).tiny


class Int8:
    """Weights in 8-bit integers, each row in units of its own: see `following.Rounded`."""

    def __init__(self, weights: Tensor) -> None:
        self._integers = torch.empty_like(weights, dtype=torch.int8)
        self._units = _unit(weights)
        for some in range(0, len(weights), _ROWS):
            part = slice(some, some + _ROWS)
            self._integers[part] = (weights[part] / self._units[part]).round_()
        # Rounded to units of u, a weight is wrong by u/√12 (the standard deviation). Of n such
        # errors, with states that have all moved as far, sums are wrong by u·√(n/12), of a million
        # the worst by five times as much.
        self.error = 5 * float(self._units.max()) * math.sqrt(max(weights.shape) / 12)

    def up(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """W·Δs and Δs."""
        integers, units = _rounded(change)
        product = torch._int_mm(integers, self._integers.t())
        return product * units * self._units.t(), integers * units

    def down(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """Wᵀ·Δs and Δs."""
        integers, units = _rounded(change * self._units.t())
        return torch._int_mm(integers, self._integers) * units, integers * units / self._units.t()


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

    @classmethod
    def fits(cls, network: Network, phase: Phase) -> bool:
        """As for `FollowingSolver`, of layers whose sums of products `torch._int_mm` gets right."""
        return super().fits(network, phase) and all(
            FEWEST <= size <= MOST
            for synapse in network.synapses[1:]
            if is_wide(synapse)
            for size in synapse.values.shape
        )

    @staticmethod
    def is_quick() -> bool:
        """Whether the CPU has instructions for products of 8-bit integers."""
        from binep.solvers import machine  # loads numba: only where all else fits

        return machine.has_int8_products()
