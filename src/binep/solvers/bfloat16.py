"""Products that follow states in bfloat16, which has 8 bits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from binep.core.synapses import Synapse
from binep.solvers.following import FollowingSolver


class Bfloat16:
    """Weights in bfloat16: see `binep.solvers.following.Rounded`."""

    error = 2**-8
    rest = None

    def __init__(self, weights: Tensor) -> None:
        self._weights = weights.bfloat16()

    def up(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """W·Δs and Δs."""
        rounded = change.bfloat16()
        return F.linear(rounded, self._weights).float(), rounded.float()

    def down(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """Wᵀ·Δs and Δs."""
        rounded = change.bfloat16()
        return (rounded @ self._weights).float(), rounded.float()


class Bfloat16Solver(FollowingSolver):
    """Real activations on a CPU: steps as of `LeavingSolver`, most dense products in bfloat16."""

    name = "bfloat16"

    @staticmethod
    def is_quick() -> bool:
        """Whether the CPU has instructions for products of bfloat16."""
        from binep.solvers import machine  # loads numba: only where all else fits

        return machine.has_bfloat16_products()

    def round(self, layer: Synapse) -> Bfloat16:
        """Weights in bfloat16."""
        return Bfloat16(layer.values.detach())
