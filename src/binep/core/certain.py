"""Outputs that are certain before hidden layers have settled.

An output neuron whose drive p is outside of [0, 1] is saturated: it stays at 0 or 1 for as long as
p stays outside, wherever hidden layers settle. What is still to come of changes of p that shrink by
a rate λ is λ/(1 − λ) times the last one. Where only the output is asked for, as in evaluation, such
a sample may leave the free phase; in training it may where nothing nudges its output: its nudged
phase would stay at the equilibrium, and rho'(p) = 0 lets no gradient pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from binep.core.costs import Cost

if TYPE_CHECKING:
    from binep.core.phases import Phase

STILL = 1e-3
"""The most that a state may move in a step, …"""
MARGIN = 30
"""… and how many times its change, in each of the last two steps, p is outside of [0, 1]: what is
still to come is less up to λ = 0.967. (Two, for layers that all move at once are two iterations in
turn.)"""


@dataclass
class CertainOutputs:
    """Which samples of a batch of real neurons have an output that is certain.

    Attributes:
        cost: of the output.
        goal: see `Phase.goal`.
        wait: steps before any is certain: a signal takes so many to the output, and back.
        drive: p of the output after the step before, (batch, *shape); infinite if it is not known.
        moved: by how much it moved in that step, (batch,); likewise.
    """

    cost: Cost
    goal: Tensor | None
    wait: int
    drive: Tensor
    moved: Tensor

    @classmethod
    def of(cls, phase: Phase) -> CertainOutputs | None:
        """Before a phase's first step; None where all are to settle."""
        network = phase.network
        if not (
            phase.output_only
            and phase.is_free
            and phase.tolerance > 0
            and network.speed.uses("certain-outputs")
            and network.is_real
            and not network.has_own_steps
        ):
            return None
        drive = torch.full_like(phase.states[-1], torch.inf)
        moved = drive.flatten(1).amax(1)
        return cls(network.cost, phase.goal, 2 * len(network), drive, moved)

    def find(self, output: Tensor, drive: Callable[[], Tensor], change: Tensor) -> Tensor:
        """A mask, (batch,) bool.

        Args:
            output: s_L after a step, (batch, *shape).
            drive: what returns p of the output, likewise, which nobody may change afterwards.
            change: max|Δs| of each sample in this step, (batch,).
        """
        self.wait -= 1
        certain = change <= STILL
        if certain.any():
            stays = (output == 0) | (output == 1)
            if self.goal is not None:
                stays &= self.cost.force(output, self.goal) == 0
            certain &= stays.flatten(1).all(1)
        if not certain.any():
            self.drive = torch.full_like(self.drive, torch.inf)
            return certain
        before, last = self.drive, self.moved
        self.drive = drive()
        self.moved = (self.drive - before).abs().flatten(1).amax(1)
        outside = torch.where(output == 1, self.drive - 1, -self.drive).flatten(1).amin(1)
        certain &= outside > MARGIN * self.moved.maximum(last)
        return certain & (self.wait < 0)

    def part(self, samples: Tensor | slice) -> CertainOutputs:
        """That of some samples, by a mask, their numbers or a slice."""
        goal = None if self.goal is None else self.goal[samples]
        return replace(self, goal=goal, drive=self.drive[samples], moved=self.moved[samples])
