"""How far layers that move in turn go: ω, found for each sample from how fast it settles.

Where every second layer moves, each from what the others have just become, and goes ω times the
way to its update, the changes of successive steps shrink by a rate λ. That of moving all at once
and no further, μ, follows from it: (λ + ω − 1)² = λω²μ², and with it the ω that settles fastest,
2 / (1 + √(1 − μ²)) (Young 1954, Transactions of the American Mathematical Society 76:92).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FIRST = 1.2
"""ω of the first steps: what a new network settles fastest with."""
MOST = 1.5
"""Max-pooled convolutions do not settle where ω is much more."""
STEADY = 0.1
"""A rate tells something once it changes by less than this share of itself in a step."""


@dataclass
class Relaxation:
    """The samples of a batch on their way.

    Attributes:
        factor: ω of each, (batch,).
        change: max|Δs| in its last step.
        rate: by how much that was smaller than in the step before.
    """

    factor: Tensor
    change: Tensor
    rate: Tensor

    @classmethod
    def of(cls, like: Tensor) -> Relaxation:
        """That of samples (batch, …) which have not moved yet."""
        factor = like.new_full((len(like),), FIRST)
        return cls(factor, torch.full_like(factor, torch.inf), torch.zeros_like(factor))

    def follow(self, change: Tensor) -> None:
        """Go further where a sample settles steadily, but slowly; `kernels.further` is the same.

        Args:
            change: max|Δs| of each sample in a step, (batch,).
        """
        rate = change / self.change
        seen = rate.maximum(self.factor - 1)  # nothing settles faster than that for long
        mu_squared = (seen + self.factor - 1).square() / (seen * self.factor.square())
        best = 2 / (1 + (1 - mu_squared).clamp(min=0).sqrt())
        steady = (rate - self.rate).abs() < STEADY * rate
        further = self.factor.maximum(best.clamp(max=MOST))
        self.factor = torch.where(steady & (rate < 1), further, self.factor)
        self.change, self.rate = change, rate

    def keep(self, count: int, to: Tensor, of: Tensor) -> None:
        """So many samples, after some have taken the places of others."""
        for name, values in vars(self).items():
            values[to] = values[of]
            setattr(self, name, values[:count])
