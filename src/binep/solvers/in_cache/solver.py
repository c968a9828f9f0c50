"""Small dense networks of real activations on a CPU: every sample settles on its own.

Where the synapses between the neurons fit in cache, multiplying is quick and what takes time is
the way of the states through memory, once for each operation of `Network.step`. So one compiled
loop takes a sample through all of its steps while it stays in cache, and stops when that sample
has settled. It computes in float32 what `Network.step` computes; only the order of sums differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from binep.core.costs import SquaredError
from binep.core.neurons import Real
from binep.core.synapses import Dense
from binep.solvers import kernels

if TYPE_CHECKING:
    from binep.core.network import Clamped, Equilibrium, Network, Task
    from binep.solvers.events.solver import Settled

_CACHED = 2**17
"""Synapses between neurons, at 4 bytes each, that a core's cache holds."""


class Unrolled(NamedTuple):
    """Steps that were differentiated, by the sum over the batch of the cost.

    Attributes:
        states: s_1 … s_L after the last.
        residual: per layer max|Δs| in the last, (L,).
        drive: ∂C/∂p of the first layer by what the input adds to it, (batch, *shape).
        weights: ∂C/∂W of each synapse above the first.
        biases: ∂C/∂b of the same.
    """

    states: list[Tensor]
    residual: Tensor
    drive: Tensor
    weights: list[Tensor]
    biases: list[Tensor]


class Loop:
    """The loop for a network.

    Args:
        network: for which `fits` holds.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.sizes = [torch.Size(synapse.output_shape).numel() for synapse in network.synapses]

    def relax(self, task: Task, trace: object) -> Settled:
        """Take a phase's steps; `Network.relax` says what for.

        Args:
            task: what to do.
            trace: not needed to go on: the states say all.
        """
        kernels.use_threads()
        output = self.network.neurons[-1]
        assert isinstance(output, Real)
        batch, count = len(task.clamped.x), len(self.sizes)
        states, arrays = self._arrays(task.states, task.clamped)
        taken = torch.zeros(batch, dtype=torch.int64)
        moved, residual = torch.zeros(batch, count, dtype=torch.int64), torch.zeros(batch, count)
        target = torch.zeros(batch, 0)
        if task.target is not None and task.beta != 0:
            target = task.target.float().flatten(1)
        kernels.settle_fused(
            *arrays,
            target.contiguous().numpy(),
            np.float32(task.beta),
            output.nudge == "inside",
            output.clip_nudged,
            task.steps,
            np.float32(task.tolerance),
            task.alternate,
            taken.numpy(),
            moved.numpy(),
            residual.numpy(),
        )
        settled = self._layers(states)
        return settled, int(taken.max()), moved.amax(dim=0), residual.amax(dim=0), None

    def unroll(self, start: Equilibrium, steps: int, target: Tensor) -> Unrolled:
        """Take free steps, and differentiate the cost through them.

        Args:
            start: where from.
            steps: how many.
            target: of the output, (batch, outputs).
        """
        kernels.use_threads()
        states, arrays = self._arrays(start.states, start.clamped)
        residual = torch.zeros(len(states), len(self.sizes))
        between = self.network.synapses[1:]
        counts = [synapse.values.numel() for synapse in between]
        shares = torch.get_num_threads()
        drive = torch.zeros(len(states), self.sizes[0])
        weights = torch.zeros(shares, sum(counts))
        biases = torch.zeros(shares, sum(self.sizes[1:]))
        kernels.backpropagate(
            *arrays,
            target.float().contiguous().numpy(),
            steps,
            *(gradient.numpy() for gradient in (drive, weights, biases)),
            residual.numpy(),
        )
        parts = torch.split(weights.sum(dim=0), counts)
        return Unrolled(
            self._layers(states),
            residual.amax(dim=0),
            drive.view_as(start.states[0]),
            [part.view_as(s.values) for part, s in zip(parts, between, strict=True)],
            list(torch.split(biases.sum(dim=0), self.sizes[1:])),
        )

    def _arrays(
        self, states: Sequence[Tensor], clamped: Clamped
    ) -> tuple[Tensor, list[kernels.Array]]:
        """The states side by side, a copy, and what the kernels begin with."""
        between = self.network.synapses[1:]
        flat = torch.cat([state.flatten(1) for state in states], dim=1)
        weights = [synapse.values.detach().flatten() for synapse in between]
        scales = [1.0 if s.scale is None else float(s.scale.detach()) for s in between]
        biases = [synapse.bias.detach() for synapse in between]
        return flat, [
            np.array(self.sizes),
            flat.numpy(),
            clamped.drive.detach().flatten(1).contiguous().numpy(),
            torch.cat([*weights, torch.zeros(0)]).numpy(),
            np.array(scales, np.float32),
            torch.cat([*biases, torch.zeros(0)]).numpy(),
        ]

    def _layers(self, flat: Tensor) -> list[Tensor]:
        """The layers of (batch, neurons) side by side, each (batch, *shape)."""
        parts = torch.split(flat, self.sizes, dim=1)
        shapes = [synapse.output_shape for synapse in self.network.synapses]
        return [part.view(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]


def fits(network: Network) -> bool:
    """Whether the loop can settle this network, and is the quickest way to."""
    between = network.synapses[1:]
    return (  # a subclass may do something else
        all(type(neurons) is Real for neurons in network.neurons)
        and type(network.cost) is SquaredError
        and all(type(synapse) is Dense for synapse in between)
        and sum(synapse.values.numel() for synapse in between) <= _CACHED
        and all(s.values.dtype == torch.float32 for s in network.synapses)
        and all(s.values.device.type == "cpu" for s in network.synapses)
    )
