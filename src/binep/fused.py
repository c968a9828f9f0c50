"""Small dense networks of real activations on a CPU: every sample settles on its own.

Where the synapses between the neurons fit in cache, multiplying is quick and what takes time is
the way of the states through memory, once for each operation of `Network.step`. So one compiled
loop takes a sample through all of its steps while it stays in cache, and stops when that sample
has settled. It computes in float32 what `Network.step` computes; only the order of sums differs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from binep import kernels
from binep.costs import SquaredError
from binep.neurons import Real
from binep.synapses import Dense

if TYPE_CHECKING:
    from binep.events import Settled
    from binep.network import Network, Task

_CACHED = 2**17
"""Synapses between neurons, at 4 bytes each, that a core's cache holds."""


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
        synapses, output = self.network.synapses, self.network.neurons[-1]
        between = synapses[1:]
        assert isinstance(output, Real)
        batch, count = len(task.clamped.x), len(self.sizes)
        states = torch.cat([state.flatten(1) for state in task.states], dim=1)
        weights = [synapse.values.detach().flatten() for synapse in between]
        scales = [1.0 if s.scale is None else float(s.scale.detach()) for s in between]
        biases = [synapse.bias.detach() for synapse in between]
        taken = torch.zeros(batch, dtype=torch.int64)
        moved, residual = torch.zeros(batch, count, dtype=torch.int64), torch.zeros(batch, count)
        target = torch.zeros(batch, 0)
        if task.target is not None and task.beta != 0:
            target = task.target.float().flatten(1)
        kernels.settle_fused(
            np.array(self.sizes),
            states.numpy(),
            task.clamped.drive.detach().flatten(1).contiguous().numpy(),
            torch.cat([*weights, torch.zeros(0)]).numpy(),
            np.array(scales, np.float32),
            torch.cat([*biases, torch.zeros(0)]).numpy(),
            target.contiguous().numpy(),
            np.float32(task.beta),
            output.nudge == "inside",
            output.clip_nudged,
            task.steps,
            np.float32(task.tolerance),
            task.alternate,
            np.float32(task.relaxation),
            taken.numpy(),
            moved.numpy(),
            residual.numpy(),
        )
        parts = torch.split(states, self.sizes, dim=1)
        settled = [part.view_as(state) for part, state in zip(parts, task.states, strict=True)]
        return settled, int(taken.max()), moved.amax(dim=0), residual.amax(dim=0), None


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
