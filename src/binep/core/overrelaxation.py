"""Adaptive over-relaxation of odd/even Gauss–Seidel updates: ω of each sample.

Every second layer is updated from the new states of the others, s ← rho(s + ω(p − s)); the changes
of successive steps then shrink by a rate λ. The rate μ of updating all layers at once with ω = 1
(Jacobi) follows from it, (λ + ω − 1)² = λω²μ², and with it the ω that
settles fastest, 2 / (1 + √(1 − μ²)) (Young 1954, Transactions of the American Mathematical Society
76:92).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FIRST = 1.2
"""ω of the first steps: the best for networks before training."""
MOST = 1.5
"""The largest ω: with much larger ones max-pooled convolutions do not settle."""
STEADY = 0.1
"""A rate is used once it changes by less than this share of itself in a step."""


@dataclass
class OverRelaxation:
    """ω of each sample of a batch, and what it is estimated from.

    Attributes:
        omega: ω, (batch,).
        change: max|Δs| in the last step, (batch,).
        rate: that change over the one before it, (batch,).
    """

    omega: Tensor
    change: Tensor
    rate: Tensor

    @classmethod
    def of(cls, like: Tensor) -> OverRelaxation:
        """For samples (batch, …) before their first step."""
        omega = like.new_full((len(like),), FIRST)
        return cls(omega, torch.full_like(omega, torch.inf), torch.zeros_like(omega))

    def update(self, change: Tensor) -> None:
        """Raise ω of samples whose changes shrink slowly at a steady rate.

        Args:
            change: max|Δs| of each sample in a step, (batch,).
        """
        rate = change / self.change
        seen = rate.maximum(self.omega - 1)  # no rate is smaller than that for long
        mu_squared = (seen + self.omega - 1).square() / (seen * self.omega.square())
        best = 2 / (1 + (1 - mu_squared).clamp(min=0).sqrt())
        steady = (rate - self.rate).abs() < STEADY * rate
        larger = self.omega.maximum(best.clamp(max=MOST))
        self.omega = torch.where(steady & (rate < 1), larger, self.omega)
        self.change, self.rate = change, rate

    def part(self, samples: Tensor) -> OverRelaxation:
        """That of some samples, by a mask or by their numbers."""
        return OverRelaxation(self.omega[samples], self.change[samples], self.rate[samples])
