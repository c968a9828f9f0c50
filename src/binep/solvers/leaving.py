"""Steps of `Network.step` from which samples that have settled are left out."""

from __future__ import annotations

import torch
from torch import Tensor

from binep.core.certain import CertainOutputs
from binep.core.network import Network
from binep.core.phases import Clamped, Equilibrium, Phase
from binep.core.solvers import Loop, Solver
from binep.core.synapses import Conv, Dense

PARTS = 8
"""Samples leave an eighth of the batch at a time: kernels are chosen, and some compiled, for each
size."""


class LeavingSolver(Solver):
    """Real activations on a CPU: in the free phase a sample that has settled leaves the batch.

    No sample depends on another. One that no step moves by more than the tolerance stays where it
    is, instead of taking steps for as long as any other moves; nor does one whose output is
    certain, where the phase asks for no more.
    """

    name = "leaving"

    @classmethod
    def fits(cls, network: Network, phase: Phase) -> bool:
        """What comes with binep, in which no sample depends on another."""
        return (
            phase.x.device.type == "cpu"
            and not network.speed.compile
            and network.is_real
            and all(type(synapse) in (Dense, Conv) for synapse in network.synapses)
        )

    def solve(self, phase: Phase, memory: object) -> Equilibrium:
        """Step until all samples have settled, or the steps are used up."""
        clamped = phase.clamped or self.network.clamp(phase.x)
        loop = self.loop(phase, clamped)
        ends = [torch.empty_like(state) for state in loop.states]
        residual, batch = torch.zeros_like(loop.residual), len(phase.x)
        certain = torch.zeros_like(loop.certain)
        rows = torch.arange(batch, device="cpu")
        for taken in range(1, phase.steps + 1):
            loop.advance()
            if not phase.tolerance > 0 or taken % phase.check_every:
                continue
            moving = ~loop.finished
            if not moving.any():
                break
            stays = rounded(moving, -(-batch // PARTS))
            if phase.is_free and not stays.all():
                leave = ~stays
                for end, state in zip(ends, loop.states, strict=True):
                    end[rows[leave]] = state[leave]
                settled = leave & ~loop.certain
                residual = residual.maximum(loop.change.masked_fill(~settled, 0).amax(dim=1))
                certain[rows[leave]] = loop.certain[leave]
                rows = rows[stays]
                loop.keep(stays)
        for end, state in zip(ends, loop.states, strict=True):
            end[rows] = state
        certain[rows] = loop.certain
        residual = residual.maximum(loop.residual)
        left = None if loop.outputs is None else certain
        return phase.ended(self, clamped, ends, loop.moved, residual, certain=left)

    def loop(self, phase: Phase, clamped: Clamped) -> Loop:
        """Before the phase's first step."""
        loop = Loop.of(phase, clamped)
        loop.outputs = CertainOutputs.of(phase)
        return loop


def rounded(stays: Tensor, part: int) -> Tensor:
    """A mask with so many more samples that it keeps a whole number of parts."""
    wanted = -(-int(stays.sum()) // part) * part
    return stays | (stays.logical_not().cumsum(0) <= wanted - stays.sum())
