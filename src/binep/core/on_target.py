"""Samples that are on their target for certain before all of their layers have settled.

Where every output neuron is saturated, its drive p outside of [0, 1], at a value that nothing
nudges, −∂C/∂s_L = 0, a sample has nothing to learn: its nudged phase would stay where it is, and
rho'(p) = 0 lets no gradient pass. The output no longer moves, and where its hidden layers settle
does not matter, as long as p stays outside of [0, 1]. What is still to come of changes that shrink
by a rate λ is λ/(1 − λ) times the last one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from binep.core.costs import Cost

MARGIN = 30
"""How many times its last change p is outside of [0, 1]: what is still to come is less up to
λ = 0.967, at which states settle in no fewer than 280 more steps, …"""
STILL = 0.1
"""… once no state moves by more than that: the input has arrived in all layers."""


@dataclass
class OnTarget:
    """Which samples of a batch are on their target for certain.

    Attributes:
        cost: of the output.
        target: of each sample, from `Cost.as_target`.
        drive: p of the output after the step before, (batch, *shape).
    """

    cost: Cost
    target: Tensor
    drive: Tensor

    @classmethod
    def of(cls, cost: Cost, target: Tensor, output: Tensor) -> OnTarget:
        """Before the first step, with an output (batch, *shape)."""
        return cls(cost, target, torch.full_like(output, torch.inf))

    def certain(self, output: Tensor, drive: Tensor, change: Tensor) -> Tensor:
        """A mask, (batch,) bool.

        Args:
            output: s_L after a step, (batch, *shape).
            drive: p of the output, likewise.
            change: max|Δs| of each sample in this step, (batch,).
        """
        before, self.drive = self.drive, drive
        certain = change <= STILL
        if not certain.any():
            return certain
        outside = (drive - 0.5).abs() - 0.5
        moved = (drive - before).abs()
        certain &= outside.flatten(1).amin(1) > MARGIN * moved.flatten(1).amax(1)
        at_rest = (drive.clamp(0, 1) == output) & (self.cost.force(output, self.target) == 0)
        return certain & at_rest.flatten(1).all(1)

    def part(self, samples: Tensor) -> OnTarget:
        """That of some samples, by a mask or by their numbers."""
        return replace(self, target=self.target[samples], drive=self.drive[samples])
