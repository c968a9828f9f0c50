"""Event-driven phases of binary neurons, and the gradients of two equilibria from their bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from binep.core.network import Network
from binep.core.phases import Clamped, Equilibrium, Phase
from binep.core.solvers import Gradient
from binep.core.synapses import Conv
from binep.solvers import layouts, machine, primitives, sign_bits
from binep.solvers.events import gradients, kernels
from binep.solvers.events.parameters import SignCopies, widest
from binep.solvers.inputs import InputDrive
from binep.solvers.primitives import Array

_DENSE_ADVANTAGE = 12
"""How many times cheaper an addition is in a dense product than in an event."""


@dataclass
class Samples:
    """States, bits and sums of a batch after a phase: the tensors of `kernels.Samples`."""

    states: Tensor
    bits: Tensor
    up: Tensor
    down: Tensor
    sent: Tensor
    route: Tensor
    maps: Tensor

    def copy(self) -> Samples:
        """The same values in memory of their own."""
        return Samples(*(tensor.clone() for tensor in vars(self).values()))

    def arrays(self) -> kernels.Samples:
        """NumPy arrays that share its memory, for the loops."""
        return kernels.Samples(*(tensor.numpy() for tensor in vars(self).values()))


class Memory(NamedTuple):
    """Samples after a phase, and the parameters, which stay while the equilibrium is current."""

    samples: Samples
    parameters: kernels.Parameters


Result = tuple[Clamped, list[Tensor], Tensor, Tensor, Memory]
"""The input, states, moved and residual of an `Equilibrium`, and what to go on from."""


class Engine:
    """Takes a network's phases in event-driven updates. Several threads may call it at once.

    Args:
        network: for which `EventSolver.fits` holds.
    """

    def __init__(self, network: Network) -> None:
        machine.use_threads()
        self.network = network
        self.copies = SignCopies(network)
        self.shape, self.sizes = self.copies.shape, self.copies.sizes
        self._input = InputDrive(network)
        self._orders = [
            o[:0] if np.array_equal(o, np.arange(len(o))) else o for o in self.copies.orders
        ]
        high = network.synapses[1:]
        areas = [s.map_shape[0] * s.map_shape[1] if isinstance(s, Conv) else 0 for s in high]
        self._places = sum(
            area * synapse.output_shape[0] for area, synapse in zip(areas, high, strict=True)
        )
        # Of a dense synapse upward and downward, of a convolution upward.
        additions = sum(s.values.numel() * (a or 2) for a, s in zip(areas, high, strict=True))
        # No step costs more additions than all of them.
        self._budget = additions // _DENSE_ADVANTAGE

    def settle(self, phase: Phase, memory: object) -> Result:
        """Input, states, moved, residual and memory after a phase's steps; see `Equilibrium`."""
        machine.use_threads()
        clamped = phase.clamped or self._input.clamp(phase.x)
        if isinstance(memory, Memory):
            samples, parameters = memory.samples.copy(), memory.parameters
        else:
            parameters = self.copies.current()
            samples = self._begin(phase.states, parameters)
        moved, residual = self._run(samples, phase, clamped, parameters)
        states = [self.layer(samples.states, k) for k in range(len(self.sizes))]
        memory = Memory(samples, parameters)
        return clamped, states, moved.amax(dim=0), residual.amax(dim=0), memory

    def _run(
        self, samples: Samples, phase: Phase, clamped: Clamped, parameters: kernels.Parameters
    ) -> tuple[Tensor, Tensor]:
        """Per sample and layer the last step in which a bit changed, and max|Δs| of the last."""
        batch = len(samples.states)
        residual = samples.states.new_zeros(batch, len(self.sizes))
        moved, taken = residual.long(), residual.new_zeros(batch, dtype=torch.int64)
        push = phase.held if phase.held is not None else phase.target
        if push is None or phase.beta == 0:
            push = residual.new_zeros(batch, 0)
        held, beta = phase.held is not None, np.float32(phase.beta)
        nudge = kernels.Nudge(layouts.flatten(push).contiguous().numpy(), beta, held)
        base = layouts.flatten(clamped.drive).contiguous().numpy()
        limits = kernels.Limits(phase.steps, self._budget, phase.tolerance > 0)
        outcome = kernels.Outcome(taken.numpy(), moved.numpy(), residual.numpy())
        while True:
            kernels.settle(samples.arrays(), parameters, base, nudge, limits, outcome)
            stopped = (taken > phase.steps).nonzero().flatten()
            if not len(stopped):
                return moved, residual
            taken[stopped] -= phase.steps + 1
            self._sum_up(samples, stopped, parameters)

    def _begin(self, states: Sequence[Tensor], parameters: kernels.Parameters) -> Samples:
        """Samples at these states, with all their sums."""
        batch = len(states[0])
        uniform = all(state.stride(0) == 0 for state in states)
        if uniform:  # as at the start of the free phase: one sample serves for all
            states = [state[:1] for state in states]
        flat = torch.cat([layouts.flatten(state) for state in states], dim=1)
        network = self.network
        fired = [n.fire(self.layer(flat, k)) for k, n in enumerate(network.neurons)]
        bits = torch.cat([layouts.flatten(layer) for layer in fired], dim=1)
        conv = any(isinstance(synapse, Conv) for synapse in network.synapses[1:])
        narrow = torch.int16 if widest(network) < 2**15 else torch.int32
        up = torch.zeros_like(flat, dtype=narrow)
        down = up.int() if conv else up.clone()
        small = torch.zeros_like(flat if conv else flat[:, :0], dtype=torch.int32)
        maps = flat.new_zeros(len(flat), self._places, dtype=narrow)
        found = Samples(flat, bits, up, down, small - 1, small, maps)
        self._sum_up(found, torch.arange(len(flat), device="cpu"), parameters)
        if uniform:
            found = Samples(*(t.expand(batch, -1).contiguous() for t in vars(found).values()))
        return found

    def _sum_up(self, samples: Samples, some: Tensor, parameters: kernels.Parameters) -> None:
        """Form the sums of some samples from their bits, by dense products."""
        shape = self.shape
        every = len(some) == len(samples.bits)
        chosen = slice(None) if every else some  # indexing by numbers would copy
        for k in range(1, len(shape)):
            synapse = self.network.synapses[k]
            up, down = self.copies.signs(k)
            low, here = shape[k - 1 : k + 1, primitives.START]
            low_size, size = self.sizes[k - 1 : k + 1]
            below = samples.bits[chosen, low : low + low_size]
            if isinstance(synapse, Conv):
                at = shape[k, primitives.MAP]
                product = _product(_patches(synapse, below), down).view(len(some), -1)
                samples.maps[chosen, at : at + product.shape[1]] = product.to(samples.maps.dtype)
            else:
                above = samples.bits[chosen, here : here + size]
                for sums, place, sent, received in (
                    (samples.up, slice(here, here + size), below, down),
                    (samples.down, slice(low, low + low_size), above, up),
                ):
                    product = _product(sign_bits.packed(_distinct(sent).numpy()), received)
                    sums[chosen, place] = product if every else product.to(sums.dtype)
        if self._places:
            kernels.resend(some.numpy(), samples.arrays(), parameters)

    def part(self, flat: Tensor, k: int) -> Tensor:
        """A layer's part of a flat tensor."""
        start = self.shape[k, primitives.START]
        return flat[:, start : start + self.sizes[k]]

    def layer(self, flat: Tensor, k: int) -> Tensor:
        """A layer's part of a flat tensor, in the network's own order of neurons."""
        return layouts.unflatten(self.part(flat, k), self.network.synapses[k].output_shape)

    def compare(
        self, first: Equilibrium, second: Equilibrium, factor: float, row_sparse: bool
    ) -> list[Gradient] | None:
        """See `Solver.compare`; None where the equilibria do not hold what it takes."""
        if not isinstance(first.memory, Memory) or not isinstance(second.memory, Memory):
            return None
        then, now = first.memory.samples, second.memory.samples
        if len(then.bits) >= 2**15:  # sums over the batch are in 16 bits
            return None
        machine.use_threads()
        found: list[Gradient] = []
        below = [then.bits[:, :0]] * 2
        for k, synapse in enumerate(self.network.synapses):
            above = [self.part(samples.bits, k).contiguous() for samples in (then, now)]
            bias, rows = gradients.of_bias(synapse, below, above, factor)
            if k == 0:
                weight = gradients.of_input(synapse, first.clamped, above, rows, factor)
            elif isinstance(synapse, Conv):
                sent = [self.part(samples.sent, k).contiguous() for samples in (then, now)]
                weight = gradients.of_conv(synapse, self.shape[k], sent, below, factor)
            else:
                order = self._orders[k - 1]
                weight = gradients.of_dense(synapse, above, below, rows, order, factor)
            found.append(Gradient(weight if row_sparse else weight.to_dense(), bias))
            below = above
        return found


def _distinct(bits: Tensor) -> Tensor:
    """Bits (batch, neurons), or those of one sample where all are equal.

    Of equal states at first, only the first layer's differ after a step, for it sees the input.
    """
    return bits[:1] if torch.equal(bits[1:], bits[:-1]) else bits


def _product(sent: Array, received: Array) -> Tensor:
    """For each row of bits and each neuron, the sum of the signs by which it receives them, int32.

    Args:
        sent: (rows, bytes).
        received: of each neuron, (neurons, parts, bytes).
    """
    product = np.empty((len(sent), len(received)), np.int32)
    sign_bits.multiply(sent, received.reshape(len(received), -1), product)
    return torch.from_numpy(product)


def _patches(synapse: Conv, below: Tensor) -> Array:
    """What each place of the map sees of bits (batch, row·column·channel): bytes, a row a place."""
    channels, rows, columns = synapse.input_shape
    pad, kernel = synapse.padding, synapse.values.shape[-1]
    images = sign_bits.packed(below.reshape(-1, rows, columns, channels).numpy())
    images = np.pad(images, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
    places = synapse.map_shape[0] * synapse.map_shape[1]
    found = np.empty((len(below) * places, kernel**2 * images.shape[3]), np.uint8)
    kernels.patches(images, kernel, found)
    return found
