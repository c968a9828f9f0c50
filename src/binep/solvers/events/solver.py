"""Binary activations on a CPU: work that follows the bits that change.

While no bit changes around a layer, its drive stays the same number. So the sums of what arrives
are kept as integers, and every bit that changes adds or takes away its row of signs. A sample in
which many bits change at once has its sums formed anew by a dense product. What is computed is
what `Network.step` computes, to the last bit, step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from binep.core.costs import SquaredError
from binep.core.neurons import Binary
from binep.core.synapses import Conv, Synapse, Version, changed_rows, version_of
from binep.solvers import kernels, layouts, machine
from binep.solvers.kernels import Array

if TYPE_CHECKING:
    from binep.core.network import Clamped, Equilibrium, Network, Task

Settled = tuple[list[Tensor], int, Tensor, Tensor, object]
"""Of an `Equilibrium`: states, steps, moved, residual and trace."""

_DENSE_ADVANTAGE = 8
"""How many times cheaper an addition is in a dense product than in an event."""

_FIXED_BITS = 20
"""Scaling factors of a convolution's channels are added up in units of 2^-20 of the largest."""


@dataclass
class Trace:
    """Samples on their way through time; a row per sample, layers side by side.

    Attributes:
        states: pre-activations s, float32.
        bits: what fires, int8.
        up: sums of signs from below, after pooling: int16 where they fit, or int32.
        down: sums from above, likewise, in units of the layer's feedback.
        sent: the place in its map that a convolution's neuron sends from, or −1 where it is silent.
        route: the place of its window's maximum.
        maps: sums of signs before pooling, int16 or int32.
    """

    states: Tensor
    bits: Tensor
    up: Tensor
    down: Tensor
    sent: Tensor
    route: Tensor
    maps: Tensor

    def copy(self) -> Trace:
        """Arrays of its own."""
        return Trace(*(tensor.clone() for tensor in vars(self).values()))


class Wiring:
    """A network of binary neurons and synapses as flat arrays of integers.

    Args:
        network: for which `fits` holds.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.shape = layouts.table(network.synapses)
        self.sizes = [int(size) for size in self.shape[:, kernels.SIZE]]
        self.total = sum(self.sizes)
        low, high = network.synapses[:-1], network.synapses[1:]
        pairs = zip(high, low, strict=True)
        self.orders = [layouts.column_order(*pair).numpy() for pair in pairs]
        signs = sum(synapse.values.numel() for synapse in high)
        areas = [
            synapse.map_shape[0] * synapse.map_shape[1] if isinstance(synapse, Conv) else None
            for synapse in high
        ]
        self.places = sum(
            area * synapse.output_shape[0]
            for area, synapse in zip(areas, high, strict=True)
            if area is not None
        )
        self.signs_up = torch.zeros(signs, dtype=torch.int8)
        self.signs_down = torch.zeros(signs, dtype=torch.int8)
        self._loaded: list[Version] = [(0, -1)] * len(network)
        additions = sum(  # of a dense synapse upward and downward, of a convolution upward
            synapse.values.numel() * (2 if area is None else area)
            for area, synapse in zip(areas, high, strict=True)
        )
        # A step asks for all of them at most.
        self.budget = additions // (_DENSE_ADVANTAGE if machine.multiplies_integers() else 1)
        self.refresh()

    def refresh(self) -> None:
        """Take over the network's signs, scaling factors and biases."""
        kernels.use_threads()
        self.scale = np.zeros(self.total, np.float32)
        self.bias = np.zeros(self.total, np.float32)
        self.fixed = np.zeros(self.total, np.int32)
        self.feedback = np.zeros(len(self.sizes), np.float32)
        for k, synapse in enumerate(self.network.synapses):
            where = slice(
                self.shape[k, kernels.START], self.shape[k, kernels.START] + self.sizes[k]
            )
            assert synapse.scale is not None
            if k == 0:
                continue
            scale = layouts.per_neuron(synapse.scale, synapse)
            self.scale[where] = scale
            self.bias[where] = layouts.per_neuron(synapse.bias, synapse)
            if isinstance(synapse, Conv):
                unit = 2.0 ** (np.ceil(np.log2(float(scale.max()))) - _FIXED_BITS)
                self.feedback[k - 1] = unit
                self.fixed[where] = (scale.double() / unit).round().int()
            else:
                self.feedback[k - 1] = float(scale[0])
            version = version_of(synapse.values)
            if version != self._loaded[k]:
                rows = changed_rows(synapse.values, self._loaded[k])
                if rows is None:
                    rows = torch.arange(len(synapse.values))
                values = synapse.values.detach().flatten(1).numpy()
                signs = [signs.numpy() for signs in self._signs(k)]
                kernels.load_signs(rows.numpy(), values, self.orders[k - 1], *signs)
                self._loaded[k] = version

    def _signs(self, k: int) -> tuple[Tensor, Tensor]:
        """The signs of the synapse to layer k, (below, above) and (above, below)."""
        values = self.network.synapses[k].values
        where = slice(self.shape[k, kernels.SIGNS], self.shape[k, kernels.SIGNS] + values.numel())
        rows = values.shape[0]
        return self.signs_up[where].view(-1, rows), self.signs_down[where].view(rows, -1)

    def part(self, flat: Tensor, k: int) -> Tensor:
        """A layer's part of a flat tensor."""
        start = self.shape[k, kernels.START]
        return flat[:, start : start + self.sizes[k]]

    def layer(self, flat: Tensor, k: int) -> Tensor:
        """A layer's part of a flat tensor, in the network's own order of neurons."""
        return layouts.unflatten(self.part(flat, k), self.network.synapses[k].output_shape)

    @staticmethod
    def flatten(layers: Sequence[Tensor]) -> Tensor:
        """The reverse of `layer`, for all layers."""
        return torch.cat([layouts.flatten(layer) for layer in layers], dim=1)

    def begin(self, states: Sequence[Tensor]) -> Trace:
        """Samples at these states, with all their sums."""
        batch = len(states[0])
        uniform = all(state.stride(0) == 0 for state in states)
        if uniform:  # as at the start of the free phase: one sample serves for all
            states = [state[:1] for state in states]
        flat = self.flatten(states).float()
        network = self.network
        fired = [n.fire(self.layer(flat, k)) for k, n in enumerate(network.neurons)]
        conv = any(isinstance(synapse, Conv) for synapse in network.synapses[1:])
        most = max(*self.sizes, *(synapse.values[0].numel() for synapse in network.synapses))
        few = most < 2**15
        narrow = torch.int16 if few else torch.int32
        up = torch.zeros(len(flat), self.total, dtype=narrow)
        down = up.int() if conv else up.clone()
        small = torch.zeros(len(flat), self.total if conv else 0, dtype=torch.int32)
        maps = torch.zeros(len(flat), self.places, dtype=narrow)
        trace = Trace(flat, self.flatten(fired), up, down, small - 1, small, maps)
        self.sum_up(trace, torch.arange(len(flat)))
        if uniform:
            trace = Trace(*(t.expand(batch, -1).contiguous() for t in vars(trace).values()))
        return trace

    def sum_up(self, trace: Trace, samples: Tensor) -> None:
        """Form the sums of some samples from their bits, by dense products."""
        shape = self.shape
        every = len(samples) == len(trace.bits)
        chosen = slice(None) if every else samples  # indexing by numbers would copy
        for k in range(1, len(shape)):
            synapse = self.network.synapses[k]
            up, down = self._signs(k)
            low, here = shape[k - 1 : k + 1, kernels.START]
            low_size, size = self.sizes[k - 1 : k + 1]
            below = trace.bits[chosen, low : low + low_size]
            if isinstance(synapse, Conv):
                at = shape[k, kernels.MAP]
                product = _product(_patches(synapse, below), up).view(len(samples), -1)
                trace.maps[chosen, at : at + product.shape[1]] = product.to(trace.maps.dtype)
            else:
                above = trace.bits[chosen, here : here + size]
                for sums, place, sent, signs in (
                    (trace.up, slice(here, here + size), below, up),
                    (trace.down, slice(low, low + low_size), above, down),
                ):
                    product = _product(sent, signs)
                    sums[chosen, place] = product if every else product.to(sums.dtype)
        if self.places:
            kernels.resend(
                samples.numpy(),
                shape,
                *(t.numpy() for t in (trace.bits, trace.up, trace.down, trace.sent)),
                trace.route.numpy(),
                trace.maps.numpy(),
                self.signs_down.numpy(),
                self.fixed,
            )

    def relax(self, task: Task, trace: object) -> Settled:
        """Take a phase's steps; `Network.relax` says what for.

        Args:
            task: what to do.
            trace: of the samples to go on from; else their states are sent anew.
        """
        if isinstance(trace, Trace):
            trace = trace.copy()
        else:
            self.refresh()
            trace = self.begin(task.states)
        push = task.held
        if push is None and task.beta != 0:
            push = task.target
        moved, residual = self._run(trace, task, push)
        states = [self.layer(trace.states, k) for k in range(len(self.sizes))]
        return states, task.steps, moved.amax(dim=0), residual.amax(dim=0), trace

    def _run(self, trace: Trace, task: Task, push: Tensor | None) -> tuple[Tensor, Tensor]:
        """Per sample and layer the last step in which a bit changed, and max|Δs| of the last."""
        neurons = [n for n in self.network.neurons if isinstance(n, Binary)]
        batch = len(trace.states)
        moved = torch.zeros(batch, len(self.sizes), dtype=torch.int64)
        residual = torch.zeros(batch, len(self.sizes))
        taken = torch.zeros(batch, dtype=torch.int64)
        if push is None:
            push = torch.zeros(batch, 0)
        base = layouts.flatten(task.clamped.drive.detach()).contiguous()
        while True:
            kernels.settle(
                self.shape,
                *(t.numpy() for t in vars(trace).values()),
                self.signs_up.numpy(),
                self.signs_down.numpy(),
                self.fixed,
                base.numpy(),
                self.scale,
                self.bias,
                self.feedback,
                np.array([n.threshold for n in neurons], np.float32),
                neurons[0].filter,
                layouts.flatten(push.float()).contiguous().numpy(),
                np.float32(task.beta),
                task.held is not None,
                task.steps,
                self.budget,
                taken.numpy(),
                moved.numpy(),
                residual.numpy(),
                task.tolerance > 0,
            )
            stopped = (taken > task.steps).nonzero().flatten()
            if not len(stopped):
                return moved, residual
            taken[stopped] -= task.steps + 1
            self.sum_up(trace, stopped)


def fits(network: Network) -> bool:
    """Whether events can follow this network: bits, signs, a CPU, and pooling by the maximum."""
    binary = [neurons for neurons in network.neurons if type(neurons) is Binary]  # no subclass
    return (
        len(binary) == len(network)
        and all(replace(n, threshold=binary[0].threshold) == binary[0] for n in binary)
        and (binary[0].hold_nudge or type(network.cost) is SquaredError)
        and all(layouts.is_compiled(synapse) for synapse in network.synapses)
    )


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Exact product of bits and signs, in int32."""
    # torch._int_mm is wrong for sums of one term (torch 2.13)
    if left.shape[1] > 1 and machine.multiplies_integers():
        return torch._int_mm(left.contiguous(), right)
    product = torch.zeros(len(left), right.shape[1], dtype=torch.int32)
    kernels.multiply(left.contiguous().numpy(), right.flatten().numpy(), product.numpy())
    return product


def _patches(synapse: Conv, below: Tensor) -> Tensor:
    """What each place of the map sees of bits (batch, row·column·channel): a row per place."""
    channels, rows, columns = synapse.input_shape
    pad, kernel = synapse.padding, synapse.values.shape[-1]
    images = F.pad(below.reshape(-1, rows, columns, channels), (0, 0, pad, pad, pad, pad))
    places = synapse.map_shape[0] * synapse.map_shape[1]
    found = torch.empty(len(below) * places, kernel**2 * channels, dtype=torch.int8)
    kernels.patches(images.numpy(), kernel, found.numpy())
    return found


def correlate(network: Network, first: Equilibrium, second: Equilibrium, factor: float) -> bool:
    """Fill every ``.grad`` with factor·(Σ r_above ⊗ r_below of the second less that of the first).

    Gradients of dense synapses are sparse in the neurons above: those left out are zero.

    Returns:
        False, and nothing is done, if these equilibria were not reached by events, or are of more
        samples than 16 bits count.
    """
    then, now = first.trace, second.trace
    if not isinstance(then, Trace) or not isinstance(now, Trace) or len(first.clamped.x) >= 2**15:
        return False
    wiring = network.wiring
    bits = [
        [wiring.part(trace.bits, k).contiguous() for trace in (then, now)]
        for k in range(len(network))
    ]
    for k, synapse in enumerate(wiring.network.synapses):
        above, below = bits[k], bits[k - 1] if k else [bits[0][0][:, :0]] * 2
        sums, touched = torch.empty(2, above[0].shape[1], dtype=torch.int32)
        kernels.compare(*(t.numpy() for t in (*below, *above, sums, touched)))
        synapse.bias.grad = factor * sums.view(-1, len(synapse.bias)).sum(dim=0).float()
        rows = touched.nonzero().flatten()
        if k == 0:
            gradient = _correlate_input(synapse, first.clamped, above, rows, factor)
        elif isinstance(synapse, Conv):
            sent = [wiring.part(trace.sent, k).contiguous() for trace in (then, now)]
            gradient = _correlate_conv(synapse, wiring.shape[k], sent, below, factor)
        else:
            gradient = _correlate_dense(synapse, above, below, rows, wiring.orders[k - 1], factor)
        synapse.values.grad = gradient
        if synapse.scale is not None and synapse.scale.requires_grad:
            synapse.scale.grad = synapse.scale.detach() * synapse.per_scale(gradient)
    return True


def _correlate_input(
    synapse: Synapse, clamped: Clamped, above: list[Tensor], rows: Tensor, factor: float
) -> Tensor:
    x = clamped.x.float()
    if isinstance(synapse, Conv):
        pad, (_, columns) = synapse.padding, synapse.map_shape
        route = clamped.route
        if route is None:
            route = torch.arange(synapse.map_shape[0] * columns).view(synapse.map_shape)
            route = route.expand(len(x), *synapse.output_shape)
        places = route.movedim(1, 3).flatten(1, 2).contiguous()
        gradient = torch.empty_like(synapse.values)
        kernels.correlate_input_conv(
            (above[1] - above[0]).view(places.shape).numpy(),
            places.numpy(),
            columns,
            F.pad(x, (pad, pad, pad, pad)).numpy(),
            np.float32(factor),
            gradient.numpy(),
        )
        return gradient
    gradient = torch.empty(len(rows), synapse.values.shape[1])
    x = x.flatten(1).contiguous()
    kernels.correlate_input(
        *(t.numpy() for t in (rows, *above, x)), np.float32(factor), gradient.numpy()
    )
    return _rows(rows, gradient, synapse)


def _correlate_dense(
    synapse: Synapse,
    above: list[Tensor],
    below: list[Tensor],
    rows: Tensor,
    order: Array,
    factor: float,
) -> Tensor:
    gradient = torch.empty(len(rows), synapse.values.shape[1])
    kernels.correlate_dense(
        *(t.numpy() for t in (rows, *above, *below)),
        order,
        np.float32(factor),
        gradient.numpy(),
    )
    return _rows(rows, gradient, synapse)


def _correlate_conv(
    synapse: Conv, layer: Array, sent: list[Tensor], below: list[Tensor], factor: float
) -> Tensor:
    channels, rows, columns = synapse.input_shape
    pad, kernel = synapse.padding, synapse.values.shape[-1]
    images = [
        F.pad(bits.view(-1, rows, columns, channels), (0, 0, pad, pad, pad, pad)) for bits in below
    ]
    gradient = torch.empty(len(synapse.values), kernel, kernel, channels)
    kernels.correlate_conv(
        layer,
        *(t.numpy() for t in (*sent, *images)),
        np.float32(factor),
        gradient.numpy(),
    )
    return gradient.movedim(3, 1).contiguous()


def _rows(rows: Tensor, gradient: Tensor, synapse: Synapse) -> Tensor:
    return torch.sparse_coo_tensor(
        rows[None], gradient, synapse.values.shape, is_coalesced=True, check_invariants=False
    )
