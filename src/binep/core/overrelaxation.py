"""Adaptive over-relaxation of odd/even Gauss–Seidel updates: ω of each sample.

Every second layer is updated from the new states of the others, s ← rho(s + ω(p − s)); the changes
of successive steps then shrink by a rate λ. The rate μ of updating all layers at once with ω = 1
(Jacobi) follows from it, (λ + ω − 1)² = λω²μ², and with it the ω that
settles fastest, 2 / (1 + √(1 − μ²)) (Young 1954, Transactions of the American Mathematical Society
76:92).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from binep.core.synapses import Dense, Synapse

FIRST = 1.2
"""ω of the first steps: the best for networks before training."""
STEADY = 0.1
"""A rate is used once it changes by less than this share of itself in a step."""
LARGE = 1.5
"""The largest ω that such a rate leads to, and of all ω where other synapses than dense ones join
layers: with much larger ones max-pooled convolutions do not settle."""
VERY_STEADY = 0.01
"""A rate that changes by less than this share leads to a larger ω, …"""
MOST = 1.7
"""… up to this. Where ω is larger than the best, settling takes longer for it."""


@dataclass
class OverRelaxation:
    """ω of each sample of a batch, and what it is estimated from.

    Attributes:
        omega: ω, (batch,).
        change: max|Δs| in the last step, (batch,).
        rate: that change over the one before it, (batch,).
        most: the largest ω.
    """

    omega: Tensor
    change: Tensor
    rate: Tensor
    most: float

    @classmethod
    def of(cls, like: Tensor, synapses: Sequence[Synapse]) -> OverRelaxation:
        """Before the first step.

        Args:
            like: of the samples, (batch, …).
            synapses: of all layers; those of the first join none.
        """
        omega = like.new_full((len(like),), FIRST)
        most = MOST if all(type(synapse) is Dense for synapse in synapses[1:]) else LARGE
        return cls(omega, torch.full_like(omega, torch.inf), torch.zeros_like(omega), most)

    def update(self, change: Tensor) -> None:
        """Raise ω of samples whose changes shrink slowly at a steady rate.

        Args:
            change: max|Δs| of each sample in a step, (batch,).
        """
        rate = change / self.change
        seen = rate.maximum(self.omega - 1)  # no rate is smaller than that for long
        mu_squared = (seen + self.omega - 1).square() / (seen * self.omega.square())
        best = 2 / (1 + (1 - mu_squared).clamp(min=0).sqrt())
        shift = (rate - self.rate).abs()
        best = torch.where(shift < VERY_STEADY * rate, best, best.clamp(max=LARGE))
        larger = self.omega.maximum(best.clamp(max=self.most))
        steady = shift < STEADY * rate
        self.omega = torch.where(steady & (rate < 1), larger, self.omega)
        self.change, self.rate = change, rate

    def part(self, samples: Tensor) -> OverRelaxation:
        """That of some samples, by a mask or by their numbers."""
        omega, change, rate = (values[samples] for values in self.tensors())
        return replace(self, omega=omega, change=change, rate=rate)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """All that a step replaces."""
        return self.omega, self.change, self.rate
