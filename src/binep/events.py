"""Binary activations on a CPU: work that follows the bits that change.

While no bit changes around a layer, its drive stays the same number. So the sums of what arrives
are kept as integers, and every bit that changes adds or takes away its row of signs. A sample in
which many bits change at once has its sums formed anew by a dense product. What is computed is
what `Network.step` computes, to the last bit, step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from binep import kernels
from binep.costs import SquaredError
from binep.kernels import Array
from binep.neurons import Binary
from binep.synapses import Conv, Dense, Synapse

if TYPE_CHECKING:
    from binep.network import Clamped, Equilibrium, Network

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
        self.sizes = [torch.Size(s.output_shape).numel() for s in network.synapses]
        starts = np.cumsum([0, *self.sizes])
        self.total = int(starts[-1])
        self.shape = np.zeros((len(network), kernels.FIELDS), np.int64)
        self.shape[:, kernels.SIZE] = self.sizes
        self.shape[:, kernels.START] = starts[:-1]
        self.orders: list[Array] = []
        signs = places = 0
        for row, low, synapse in zip(
            self.shape, [None, *network.synapses], network.synapses, strict=False
        ):
            if low is None:
                continue
            row[kernels.SIGNS], row[kernels.MAP] = signs, places
            signs += synapse.values.numel()
            self.orders.append(_order(synapse, low))
            if isinstance(synapse, Conv):
                channels, low_rows, low_columns = synapse.input_shape
                kernel = synapse.values.shape[-1]
                row[kernels.CONV :] = (
                    1,
                    synapse.output_shape[0],
                    *synapse.map_shape,
                    synapse.pool,
                    kernel,
                    synapse.padding,
                    channels,
                    low_rows,
                    low_columns,
                )
                places += synapse.output_shape[0] * synapse.map_shape[0] * synapse.map_shape[1]
        self.places = places
        self.signs_up = torch.zeros(signs, dtype=torch.int8)
        self.signs_down = torch.zeros(signs, dtype=torch.int8)
        self._loaded: list[tuple[int, int]] = [(0, -1)] * len(network)
        additions = [
            synapse.values.numel()
            * (synapse.map_shape[0] * synapse.map_shape[1] if isinstance(synapse, Conv) else 2)
            for synapse in network.synapses[1:]
        ]
        self.budget = sum(additions) // _DENSE_ADVANTAGE
        self.refresh()

    def refresh(self) -> None:
        """Take over the network's signs, scaling factors and biases."""
        kernels.use_threads()
        self.scale = np.zeros(self.total, np.float32)
        self.bias = np.zeros(self.total, np.float32)
        self.fixed = np.zeros(self.total, np.int32)
        self.feedback = np.zeros(len(self.sizes), np.float32)
        for l, synapse in enumerate(self.network.synapses):
            where = slice(self.shape[l, kernels.START], self.shape[l, kernels.START] + self.sizes[l])
            assert synapse.scale is not None
            scale, bias = synapse.scale.detach(), synapse.bias.detach()
            if l == 0:
                continue
            repeats = 1 if isinstance(synapse, Dense) else self.sizes[l] // len(bias)
            self.scale[where] = scale.numpy() if scale.dim() == 0 else scale.repeat(repeats)
            self.bias[where] = bias.repeat(repeats)
            if scale.dim() == 0:
                self.feedback[l - 1] = float(scale)
            else:
                unit = 2.0 ** (np.ceil(np.log2(float(scale.max()))) - _FIXED_BITS)
                self.feedback[l - 1] = unit
                self.fixed[where] = (scale.double() / unit).round().int().repeat(repeats)
            version = (synapse.values.data_ptr(), synapse.values._version)
            if version != self._loaded[l]:
                up, down = self._signs(l)
                values = synapse.values.detach().flatten(1).numpy()
                kernels.load_signs(values, self.orders[l - 1], up.numpy(), down.numpy())
                self._loaded[l] = version

    def _signs(self, l: int) -> tuple[Tensor, Tensor]:
        """The signs of the synapse to layer l, (below, above) and (above, below)."""
        values = self.network.synapses[l].values
        where = slice(self.shape[l, kernels.SIGNS], self.shape[l, kernels.SIGNS] + values.numel())
        rows = values.shape[0]
        return self.signs_up[where].view(-1, rows), self.signs_down[where].view(rows, -1)

    def part(self, flat: Tensor, l: int) -> Tensor:
        """A layer's part of a flat tensor."""
        start = self.shape[l, kernels.START]
        return flat[:, start : start + self.sizes[l]]

    def layer(self, flat: Tensor, l: int) -> Tensor:
        """A layer's part of a flat tensor, in the network's own order of neurons."""
        part = self.part(flat, l)
        shape = self.network.synapses[l].output_shape
        if len(shape) == 1:
            return part
        return part.unflatten(1, (shape[1], shape[2], shape[0])).movedim(3, 1)

    def flatten(self, layers: Sequence[Tensor]) -> Tensor:
        """The reverse of `layer`, for all layers."""
        return torch.cat(
            [t.movedim(1, 3).flatten(1) if t.dim() == 4 else t for t in layers], dim=1
        ).contiguous()

    def begin(self, states: Sequence[Tensor]) -> Trace:
        """Samples at these states, with all their sums."""
        flat = self.flatten(states).float()
        batch, uniform = len(flat), bool((flat == flat[0]).all())
        if uniform:  # such as at the start of the free phase: one sample serves for all
            flat = flat[:1]
        network = self.network
        fired = [n.fire(self.layer(flat, l)) for l, n in enumerate(network.neurons)]
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
        for l in range(1, len(shape)):
            synapse = self.network.synapses[l]
            up, down = self._signs(l)
            low, here = shape[l - 1 : l + 1, kernels.START]
            low_size, size = self.sizes[l - 1 : l + 1]
            below = trace.bits[chosen, low : low + low_size]
            if isinstance(synapse, Conv):
                at = shape[l, kernels.MAP]
                product = _product(_patches(synapse, below), up).view(len(samples), -1)
                trace.maps[chosen, at : at + product.shape[1]] = product.to(trace.maps.dtype)
            else:
                above = trace.bits[chosen, here : here + size]
                for sums, place, sent, signs in (
                    (trace.up, slice(here, here + size), below, up),
                    (trace.down, slice(low, low + low_size), above, down),
                ):
                    sums[chosen, place] = _product(sent, signs).to(sums.dtype)
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

    def run(
        self,
        trace: Trace,
        base: Tensor,
        steps: int,
        push: Tensor | None,
        beta: float,
        held: bool,
        may_skip: bool,
    ) -> tuple[Tensor, Tensor]:
        """Advance all samples by so many steps.

        Args:
            trace: changed in place.
            base: the input's drive, (batch, *first layer).
            steps: how many.
            push: the nudge if ``held``, else the output's target; None in the free phase.
            beta: of a nudge that is not held.
            held: see ``push``.
            may_skip: take the steps that are left at once where no bit will change any more.

        Returns:
            Per sample and layer the last step in which a bit changed, and max|Δs| of the last.
        """
        neurons = self.network.neurons[0]
        assert isinstance(neurons, Binary)
        batch = len(trace.states)
        moved = torch.zeros(batch, len(self.sizes), dtype=torch.int64)
        residual = torch.zeros(batch, len(self.sizes))
        taken = torch.zeros(batch, dtype=torch.int64)
        if push is None:
            push = torch.zeros(batch, 0)
        base = base.detach()
        flat = base.movedim(1, 3).flatten(1) if base.dim() == 4 else base
        while True:
            kernels.settle(
                self.shape,
                *(t.numpy() for t in vars(trace).values()),
                self.signs_up.numpy(),
                self.signs_down.numpy(),
                self.fixed,
                flat.contiguous().numpy(),
                self.scale,
                self.bias,
                self.feedback,
                np.float32(neurons.threshold),
                np.float32(neurons.filter),
                push.float().contiguous().numpy(),
                np.float32(beta),
                held,
                steps,
                self.budget,
                taken.numpy(),
                moved.numpy(),
                residual.numpy(),
                may_skip,
            )
            stopped = (taken > steps).nonzero().flatten()
            if not len(stopped):
                return moved, residual
            taken[stopped] -= steps + 1
            self.sum_up(trace, stopped)


def fits(network: Network) -> bool:
    """Whether events can follow this network: bits, signs, a CPU, and pooling by the maximum."""
    first = network.neurons[0]
    return (
        isinstance(first, Binary)
        and all(neurons == first for neurons in network.neurons)
        and (first.hold_nudge or isinstance(network.cost, SquaredError))
        and network.synapses[0].values.device.type == "cpu"
        and all(_fits(synapse) for synapse in network.synapses)
    )


def _fits(synapse: Synapse) -> bool:
    return (
        synapse.scale is not None
        and synapse.values.dtype == torch.float32
        and (isinstance(synapse, Dense) or (isinstance(synapse, Conv) and synapse.max_pooled))
    )


def _order(synapse: Synapse, low: Synapse) -> Array:
    """Where each column of ``values.flatten(1)`` lies: maps are stored with channels last."""
    columns = torch.arange(synapse.values[0].numel())
    if isinstance(synapse, Conv):
        channels, kernel = synapse.input_shape[0], synapse.values.shape[-1]
        order = columns.view(kernel, kernel, channels).movedim(2, 0)
    elif len(low.output_shape) == 3:
        channels, rows, width = low.output_shape
        order = columns.view(rows, width, channels).movedim(2, 0)
    else:
        order = columns
    return order.flatten().numpy()


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Exact product of int8 matrices, in int32."""
    if left.shape[1] == 1:  # torch._int_mm is wrong for sums of one term (torch 2.13)
        return left.int() * right.int()
    return torch._int_mm(left.contiguous(), right)


def _patches(synapse: Conv, below: Tensor) -> Tensor:
    """What each place of the map sees of bits (batch, row·column·channel): a row per place."""
    channels, rows, columns = synapse.input_shape
    pad, kernel = synapse.padding, synapse.values.shape[-1]
    images = F.pad(below.reshape(-1, rows, columns, channels), (0, 0, pad, pad, pad, pad))
    places = synapse.map_shape[0] * synapse.map_shape[1]
    found = torch.empty(len(below) * places, kernel**2 * channels, dtype=torch.int8)
    kernels.patches(images.numpy(), kernel, found.numpy())
    return found


def correlate(wiring: Wiring, first: Equilibrium, second: Equilibrium, factor: float) -> None:
    """Fill every ``.grad`` with factor·(Σ r_above ⊗ r_below of the second less that of the first).

    Gradients of dense synapses are sparse in the neurons above: those left out are zero.
    """
    then, now = first.trace, second.trace
    assert then is not None
    assert now is not None
    for l, synapse in enumerate(wiring.network.synapses):
        before, after = (wiring.part(trace.bits, l) for trace in (then, now))
        change = after - before
        if isinstance(synapse, Conv):
            channels = synapse.output_shape[0]
            change = change.view(len(change), -1, channels)
            sums = change.sum(dim=(0, 1))
        else:
            sums = change.sum(dim=0)
        synapse.bias.grad = factor * sums.float()
        if l == 0:
            gradient = _correlate_input(synapse, first.clamped, change, factor)
        else:
            below = [wiring.part(trace.bits, l - 1).contiguous() for trace in (then, now)]
            if isinstance(synapse, Conv):
                sent = [wiring.part(trace.sent, l).contiguous() for trace in (then, now)]
                gradient = _correlate_conv(synapse, wiring.shape[l], sent, below, factor)
            else:
                order = wiring.orders[l - 1]
                gradient = _correlate_dense(synapse, (before, after), below, order, factor)
        synapse.values.grad = gradient
        if synapse.scale is not None and synapse.scale.requires_grad:
            synapse.scale.grad = synapse.scale.detach() * synapse.per_scale(gradient)


def _correlate_input(synapse: Synapse, clamped: Clamped, change: Tensor, factor: float) -> Tensor:
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
            change.contiguous().numpy(),
            places.numpy(),
            columns,
            F.pad(x, (pad, pad, pad, pad)).numpy(),
            np.float32(factor),
            gradient.numpy(),
        )
        return gradient
    rows = change.any(dim=0).nonzero().flatten()
    gradient = torch.empty(len(rows), synapse.values.shape[1])
    x = x.flatten(1).contiguous()
    kernels.correlate_input(
        rows.numpy(), change.numpy(), x.numpy(), np.float32(factor), gradient.numpy()
    )
    return _rows(rows, gradient, synapse)


def _correlate_dense(
    synapse: Synapse, above: tuple[Tensor, Tensor], below: list[Tensor], order: Array, factor: float
) -> Tensor:
    before, after = above
    moved = (below[0] != below[1]).any(dim=1)
    touched = (before != after).any(dim=0) | before[moved].any(dim=0)
    rows = touched.nonzero().flatten()
    gradient = torch.empty(len(rows), synapse.values.shape[1])
    kernels.correlate_dense(
        rows.numpy(),
        *(t.numpy() for t in (before, after, *below)),
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
