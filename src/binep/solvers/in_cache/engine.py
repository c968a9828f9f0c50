"""Phases of small dense networks, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from binep.core.network import Network
from binep.core.neurons import Real
from binep.core.phases import Equilibrium, Phase
from binep.core.solvers import Gradient, Unrolled, odd_even
from binep.solvers import machine
from binep.solvers.in_cache import kernels
from binep.solvers.primitives import Array


class Engine:
    """What takes a network's phases sample by sample. Keeps nothing from one to the next.

    Args:
        network: of which `InCacheSolver.fits` holds.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._shapes = [synapse.output_shape for synapse in network.synapses]
        self._sizes = [torch.Size(shape).numel() for shape in self._shapes]

    def settle(self, phase: Phase, drive: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Take a phase's steps.

        Args:
            phase: the phase to take.
            drive: the input's, (batch, *shape of layer 1).

        Returns:
            States, last steps that moved, and residuals: see `Equilibrium`.
        """
        machine.use_threads()
        output = self._network.neurons[-1]
        assert isinstance(output, Real)
        states, batch, count = _side_by_side(phase.states), len(phase.x), len(self._sizes)
        residual = drive.new_zeros(batch, count)
        moved = residual.long()
        target = drive.new_zeros(batch, 0)
        if phase.target is not None and phase.beta != 0:
            target = phase.target.flatten(1).contiguous()
        kernels.settle(
            self._synapses(),
            states.numpy(),
            _flat(drive),
            kernels.Nudge(
                target.numpy(),
                np.float32(phase.beta),
                output.nudge == "inside",
                bool(output.clip_nudged),
            ),
            kernels.Until(phase.steps, np.float32(phase.tolerance), odd_even(phase)),
            kernels.Ended(moved.numpy(), residual.numpy()),
        )
        return self._layers(states), moved.amax(dim=0), residual.amax(dim=0)

    def unroll(self, start: Equilibrium, steps: int, target: Tensor) -> Unrolled:
        """Free steps, and the gradient of the mean squared error through them.

        Args:
            start: where from.
            steps: how many.
            target: of the output, (batch, *shape of the output).
        """
        machine.use_threads()
        first, *between = self._network.synapses
        states, x = _side_by_side(start.states), start.clamped.x
        batch, shares = len(x), torch.get_num_threads()
        residual = x.new_zeros(batch, len(self._sizes))
        counts = [synapse.values.numel() for synapse in between]
        drive = x.new_zeros(batch, self._sizes[0])
        weights = x.new_zeros(shares, sum(counts))
        biases = x.new_zeros(shares, sum(self._sizes[1:]))
        kernels.backpropagate(
            self._synapses(),
            states.numpy(),
            _flat(start.clamped.drive),
            _flat(target),
            steps,
            kernels.Gradients(drive.numpy(), weights.numpy(), biases.numpy()),
            residual.numpy(),
        )
        above = drive.view(batch, *self._shapes[0])
        gradients = [(first.correlate(above, x), first.correlate_bias(above))]
        gradients += zip(
            torch.split(weights.sum(dim=0), counts),
            torch.split(biases.sum(dim=0), self._sizes[1:]),
            strict=True,
        )
        return Unrolled(
            self._layers(states),
            residual.amax(dim=0),
            [
                Gradient(weight.view_as(synapse.values).div(batch), bias.div(batch))
                for synapse, (weight, bias) in zip((first, *between), gradients, strict=True)
            ],
        )

    def _synapses(self) -> kernels.Synapses:
        """Those between layers of neurons, as they are now."""
        first, *between = self._network.synapses
        none = first.bias.new_zeros(0)
        weights = [synapse.values.detach().flatten() for synapse in between]
        scales = [1.0 if s.scale is None else s.scale.item() for s in between]
        biases = [synapse.bias.detach() for synapse in between]
        return kernels.Synapses(
            np.array(self._sizes),
            torch.cat([*weights, none]).numpy(),
            np.array(scales, np.float32),
            torch.cat([*biases, none]).numpy(),
        )

    def _layers(self, flat: Tensor) -> list[Tensor]:
        """The layers of (batch, neurons) side by side, each (batch, *shape)."""
        parts = torch.split(flat, self._sizes, dim=1)
        return [part.view(-1, *shape) for part, shape in zip(parts, self._shapes, strict=True)]


def _side_by_side(states: Sequence[Tensor]) -> Tensor:
    """A copy of all layers' states, (batch, neurons)."""
    return torch.cat([state.flatten(1) for state in states], dim=1)


def _flat(tensor: Tensor) -> Array:
    """(batch, values) in one piece."""
    return tensor.detach().flatten(1).contiguous().numpy()
