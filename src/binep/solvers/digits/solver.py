"""Real activations on a CPU: changes sent as digits of eight bits.

A state that settles changes ever less. So each layer sends how far it has moved from what its
neighbours know of it, rounded to 8 bits of the largest such change of the sample (or to 16: two
digits), and what was lost in rounding is part of the next change. Signs times digits are exact
products of integers, and the error of a state known next door shrinks with the changes: the
network settles where `Network.step` settles, to the rounding of float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from binep.core.neurons import Real
from binep.core.overrelaxation import Relaxation
from binep.core.synapses import Conv, Dense, Synapse, Version, version_of
from binep.solvers import kernels, layouts, machine

if TYPE_CHECKING:
    from binep.core.network import Network, Task
    from binep.solvers.events.solver import Settled


class Line:
    """The synapse to layer k, for digits: exact products upward and downward."""

    def __init__(self, synapse: Synapse, order: Tensor) -> None:
        self.synapse = synapse
        signs = synapse.values.detach().to(torch.int8)
        if isinstance(synapse, Conv):
            kernel, padding = signs.shape[-1], synapse.padding
            self.shapes = (synapse.input_shape, (len(signs), *synapse.map_shape))
            self.paddings = (padding, kernel - 1 - padding)
            turned = signs.flip(2, 3).transpose(0, 1).contiguous()
            self.packed = [self._pack(i, w) for i, w in enumerate((signs, turned))]
        else:
            rows = torch.empty_like(signs)
            rows[:, order] = signs
            self.packed = [self._pack(i, w) for i, w in enumerate((rows, rows.t().contiguous()))]

    def _pack(self, way: int, signs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ones, zeros = torch.ones(len(signs)), torch.zeros(len(signs), dtype=torch.int32)
        if signs.dim() == 2:
            packed = torch.ops.onednn.qlinear_prepack(signs, [64, signs.shape[1]])
            return packed, ones, zeros
        pad = [self.paddings[way]] * 2
        shape = [1, *self.shapes[way]]
        packed = torch.ops.onednn.qconv_prepack(
            signs, ones, 1.0, 128, [1, 1], pad, [1, 1], 1, shape
        )
        return packed, ones, zeros

    def _multiply(self, way: int, digits: Tensor) -> Tensor:
        packed, ones, zeros = self.packed[way]
        if not isinstance(self.synapse, Conv):
            product: Tensor = torch.ops.onednn.qlinear_pointwise(
                digits.flatten(0, 1), 1.0, 128, packed, ones, zeros, None, 1.0, 0,
                torch.float32, "none", [], "",
            )  # fmt: skip
            return product.view(*digits.shape[:2], -1)
        channels, rows, columns = self.shapes[way]
        images = digits.view(-1, rows, columns, channels).movedim(3, 1)
        pad = [self.paddings[way]] * 2
        product = torch.ops.onednn.qconv2d_pointwise(
            images, 1.0, 128, packed, ones, zeros, None, [1, 1], pad, [1, 1], 1, 1.0, 0,
            torch.float32, "none", [], "",
        )  # fmt: skip
        return product.movedim(1, 3).reshape(*digits.shape[:2], -1)

    def up(self, digits: Tensor) -> Tensor:
        """Signs ⋆ digits, (digits, batch, neurons below) to the map above."""
        return self._multiply(0, digits)

    def down(self, digits: Tensor) -> Tensor:
        """The reverse."""
        return self._multiply(1, digits)


Digits = tuple[Tensor, Tensor]
"""Digits (digits, batch, neurons), uint8 around 128, and what a step of each is worth, (digits,
batch)."""


_EIGHTHS = 8
"""Samples that have settled are left behind an eighth of them all at a time: oneDNN compiles its
convolutions for each size."""

_AT_ONCE = 2**22
"""Numbers that layers hold while they settle: samples beyond these settle after the others."""


def _rounded(going: Tensor, part: int) -> Tensor:
    """The same mask with some more samples, in as many whole parts as it needs."""
    wanted = -(-int(going.sum()) // part) * part
    return going | (going.logical_not().cumsum(0) <= wanted - going.sum())


def _nothing(batch: int) -> Digits:
    return torch.zeros(0, batch, 0, dtype=torch.uint8), torch.zeros(0, batch)


@dataclass
class Layer:
    """Samples of one layer on their way; a row per sample, maps with channels last.

    Attributes:
        states: s.
        sums: drive that has arrived, but for what a convolution pools.
        sent: what the neighbours know of s.
        news: digits that bring ``sent`` up to ``states``, on their way to the neighbours.
        maps: of a convolution, what has arrived from below, before pooling and scaling.
        pooled: the maxima of the maps.
        route: their places.
        unpooled: what the layer below knows of α·s at these places.
    """

    states: Tensor
    sums: Tensor
    sent: Tensor
    news: Digits
    maps: Tensor
    pooled: Tensor
    route: Tensor
    unpooled: Tensor

    def keep(self, count: int, to: Tensor, of: Tensor) -> Layer:
        """So many samples, in the same arrays, after some have taken the rows of others."""
        arrays = {name: part for name, part in vars(self).items() if isinstance(part, Tensor)}
        digits, units = self.news
        for array in arrays.values():
            array[to] = array[of]
        for array in (digits, units):
            array[:, to] = array[:, of]
        some: dict[str, Any] = {name: array[:count] for name, array in arrays.items()}
        return replace(self, **some, news=(digits[:, :count], units[:, :count]))


class Lines:
    """A network of real neurons and binary synapses, as digits travel through it.

    Args:
        network: for which `fits` holds.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.shape = layouts.table(network.synapses)
        self.shape[:, [kernels.START, kernels.MAP]] = 0  # every layer has arrays of its own
        self._made: list[tuple[Version, Line] | None] = [None] * len(network)
        self.at_once = max(1, _AT_ONCE // sum(self._numbers(k) for k in range(len(network))))

    def relax(self, task: Task, trace: object) -> Settled:
        """Take a phase's steps; `Network.relax` says what for.

        Args:
            task: what to do.
            trace: not needed to go on: the states say all.
        """
        kernels.use_threads()
        count, batch = len(self.shape), len(task.clamped.drive)
        self.parameters = [self._parameters(k) for k in range(count)]
        ends = [torch.empty(batch, size) for size in self.shape[:, kernels.SIZE]]
        taken, residual = 0, torch.zeros(count)
        moved = torch.zeros(count, dtype=torch.int64)
        for start in range(0, batch, self.at_once):
            some = slice(start, start + self.at_once)
            steps, last, change = self._settle(task, some, [end[some] for end in ends])
            taken = max(taken, steps)
            moved, residual = moved.maximum(last), residual.maximum(change)
        shapes = [synapse.output_shape for synapse in self.network.synapses]
        states = [layouts.unflatten(end, shape) for end, shape in zip(ends, shapes, strict=True)]
        return states, taken, moved, residual, None

    def _settle(
        self, task: Task, some: slice, ends: Sequence[Tensor]
    ) -> tuple[int, Tensor, Tensor]:
        """Take a phase's steps with some samples of the batch.

        Args:
            task: what to do.
            some: the samples.
            ends: per layer where their states are to go in the end.

        Returns:
            Steps, and per layer the last step that moved it and max|Δs|.
        """
        layers = self.begin([state[some] for state in task.states], task.clamped.drive[some])
        free, count, rows = task.target is None, len(layers), torch.arange(len(ends[0]))
        part = -(-len(rows) // _EIGHTHS)
        # An equilibrium does not depend on how it was reached; a nudged phase is cut short.
        digits = 1 if free or self.network.speed.precision == "fast" else 2
        # Neighbours that are to hear more than a digit holds hear all of it before the first step.
        told = max(digits, *(len(layer.news[0]) for layer in layers))
        relaxation = Relaxation.of(layers[0].states) if task.alternate else None
        moved, settled = torch.zeros(count, dtype=torch.int64), torch.zeros(count)
        taken = 0
        while taken < task.steps:
            residual = torch.zeros(count, len(rows))
            for which in task.turns:
                output = layouts.unflatten(layers[-1].states, task.states[-1].shape[1:])
                nudge, factor = task.nudge(output, some), relaxation.factor if relaxation else None
                residual += self.step(layers, which, digits if taken else told, nudge, factor)
            if relaxation is not None:
                relaxation.follow(residual.amax(dim=0))
            taken += 1
            moving = ~(residual <= task.tolerance)  # a NaN has not settled
            moved[moving.any(dim=1)] = taken
            if not task.tolerance > 0:
                continue
            if not moving.any():
                break
            stays = _rounded(moving.any(dim=0), part)
            if free and not stays.all():
                for end, layer in zip(ends, layers, strict=True):
                    end[rows[~stays]] = layer.states[~stays]
                settled = settled.maximum(residual[:, ~stays].amax(dim=1))
                left = int(stays.sum())
                to, of = (~stays[:left]).nonzero()[:, 0], left + stays[left:].nonzero()[:, 0]
                rows[to], residual[:, to] = rows[of], residual[:, of]
                rows, residual = rows[:left], residual[:, :left]
                layers = [layer.keep(left, to, of) for layer in layers]
                if relaxation is not None:
                    relaxation.keep(left, to, of)
        for end, layer in zip(ends, layers, strict=True):
            end[rows] = layer.states
        return taken, moved, settled.maximum(residual.amax(dim=1))

    def _numbers(self, k: int) -> int:
        """How many a sample of layer k holds: see `Layer`."""
        each = 5 if self._is_conv(k) else 3
        return each * int(self.shape[k, kernels.SIZE]) + 2 * self._area(k)

    def _area(self, k: int) -> int:
        """Neurons of the map of layer k before pooling; 0 if what leads to it is dense."""
        synapse = self.network.synapses[k]
        if not isinstance(synapse, Conv) or not self._is_conv(k):
            return 0
        return synapse.output_shape[0] * synapse.map_shape[0] * synapse.map_shape[1]

    def _line(self, k: int) -> Line:
        """The synapse that leads to layer k, made anew when its signs have changed."""
        synapse = self.network.synapses[k]
        version = version_of(synapse.values)
        made = self._made[k]
        if made is None or made[0] != version:
            order = layouts.column_order(synapse, self.network.synapses[k - 1])
            made = self._made[k] = (version, Line(synapse, order))
        return made[1]

    def _is_conv(self, k: int) -> bool:
        return k < len(self.shape) and bool(self.shape[k, kernels.CONV])

    def begin(self, states: Sequence[Tensor], base: Tensor) -> list[Layer]:
        """Samples at these states, of which the neighbours are about to hear.

        Args:
            states: of each layer.
            base: the input's drive.
        """
        kernels.use_threads()
        layers = []
        for k, (state, synapse) in enumerate(zip(states, self.network.synapses, strict=True)):
            flat = layouts.flatten(state).clone(memory_format=torch.contiguous_format)
            batch, conv, area = len(flat), self._is_conv(k), self._area(k)
            # One digit holds states that are all the same, as at the start of a free phase.
            uniform = bool((flat == flat[0, 0]).all())
            sums = layouts.flatten(base) if k == 0 else layouts.per_neuron(synapse.bias, synapse)
            sums = torch.zeros_like(flat) if conv else sums.expand_as(flat).clone()
            layer = Layer(
                flat,
                sums,
                torch.zeros_like(flat),
                self._digits(flat, 1 if uniform else 3),
                torch.zeros(batch, area),
                torch.zeros(batch, flat.shape[1] if conv else 0),
                torch.zeros(batch, flat.shape[1] if conv else 0, dtype=torch.int32),
                torch.zeros(batch, area),
            )
            kernels.send(*_numpy(layer.states, layer.sent, *layer.news))
            layers.append(layer)
        return layers

    @staticmethod
    def _digits(like: Tensor, count: int) -> Digits:
        return (
            torch.empty(count, *like.shape, dtype=torch.uint8),
            torch.empty(count, len(like)),
        )

    def step(
        self,
        layers: Sequence[Layer],
        which: Sequence[int],
        digits: int,
        nudge: Tensor | None = None,
        relaxation: Tensor | None = None,
    ) -> Tensor:
        """Move some layers at once, from what the others have sent.

        Args:
            layers: changed in place.
            which: their numbers, from 0.
            digits: in how many a state is sent.
            nudge: of the output.
            relaxation: see `Network.step`.

        Returns:
            max|Δs| per layer and sample; 0 for the other layers.
        """
        nothing = _nothing(len(layers[0].states))
        ups, downs = ([nothing] * len(layers) for _ in range(2))
        for k, layer in enumerate(layers):
            if not len(layer.news[0]):
                continue
            news, units = layer.news
            layer.news = nothing
            if k + 1 < len(layers):
                ups[k + 1] = self._line(k + 1).up(news), units
            if k > 0 and not self._is_conv(k):
                downs[k - 1] = self._line(k).down(news), units
        for k, layer in enumerate(layers):
            if self._is_conv(k) and len(ups[k][0]):
                kernels.receive_conv(
                    self.shape[k], *_numpy(layer.maps, *ups[k], layer.pooled, layer.route)
                )
                ups[k] = nothing
        for k in which:
            if self._is_conv(k + 1):
                downs[k] = self._unpool(layers[k + 1], k + 1, digits)
        batch = len(layers[0].states)
        residual = torch.zeros(len(layers), batch)
        relaxation = torch.ones(batch) if relaxation is None else relaxation
        for k, layer in enumerate(layers):
            moves = k in which
            if moves or len(ups[k][0]) or len(downs[k][0]):
                told, moved = digits if moves else 0, residual[k]
                self._follow(k, layer, ups[k], downs[k], told, relaxation, nudge, moved)
        return residual

    def _follow(
        self,
        k: int,
        layer: Layer,
        up: Digits,
        down: Digits,
        digits: int,
        relaxation: Tensor,
        nudge: Tensor | None,
        residual: Tensor,
    ) -> None:
        """Let what has arrived add up; with digits, let the states follow and send the news."""
        synapses, conv = self.network.synapses, self._is_conv(k)
        neurons = self.network.neurons[k]
        assert isinstance(neurons, Real)
        if k + 1 == len(synapses) or self._is_conv(k + 1):
            down_scale = 1.0
        else:
            down_scale = float(_scale(synapses[k + 1]))
        news = self._digits(layer.states, digits)
        nothing = torch.zeros(len(layer.states), 0)
        push = layouts.flatten(nudge) if nudge is not None and k + 1 == len(synapses) else nothing
        kernels.follow(
            *_numpy(layer.sums, *up),
            np.float32(1.0 if conv or k == 0 else float(_scale(synapses[k]))),
            *_numpy(*down),
            np.float32(down_scale),
            *_numpy(layer.pooled),
            *_numpy(*self.parameters[k]),
            *_numpy(layer.states, relaxation, push),
            neurons.nudge == "inside",
            neurons.clip_nudged,
            *_numpy(layer.sent, *news),
            *_numpy(residual),
        )
        if digits:  # of what has not moved at all there is no news
            layer.news = news if news[1].any() else _nothing(len(layer.states))

    def _parameters(self, k: int) -> tuple[Tensor, Tensor]:
        """α and bias per neuron."""
        synapse = self.network.synapses[k]
        return layouts.per_neuron(_scale(synapse), synapse), layouts.per_neuron(
            synapse.bias, synapse
        )

    def _unpool(self, layer: Layer, k: int, digits: int) -> Digits:
        """What a convolution sends down: arrives at once, at the places of this very step."""
        scale, _ = self.parameters[k]
        sent, units = self._digits(layer.unpooled, digits)
        channels = self.shape[k, kernels.CHANNELS]
        arrays = _numpy(layer.route, scale, layer.states, layer.unpooled, sent, units)
        kernels.send_unpooled(channels, *arrays)
        if not units.any():
            return _nothing(len(units[0]))
        return self._line(k).down(sent), units


def _numpy(*tensors: Tensor) -> list[kernels.Array]:
    return [tensor.detach().numpy() for tensor in tensors]


def _scale(synapse: Synapse) -> Tensor:
    assert synapse.scale is not None
    return synapse.scale.detach()


def fits(network: Network) -> bool:
    """Whether digits can stand for this network's states."""
    return (
        all(type(neurons) is Real for neurons in network.neurons)
        and all(layouts.is_compiled(synapse) for synapse in network.synapses)
        and all(multiplies(synapse) for synapse in network.synapses[1:])
    )


def multiplies(synapse: Synapse) -> bool:
    """Whether oneDNN has the integer products of a synapse, and this machine is quick at them."""
    if isinstance(synapse, Conv):
        return synapse.padding < synapse.values.shape[-1] and _multiplies(Conv)
    return _multiplies(Dense)


@cache
@torch.no_grad()
def _multiplies(kind: type[Dense] | type[Conv]) -> bool:
    """Whether digits are multiplied quicker than floats, tried with a synapse of this kind."""
    random = torch.Generator()  # not the one that networks are drawn from
    if kind is Dense:
        synapse: Synapse = Dense(512, 512, generator=random)
    else:
        synapse = Conv((32, 8, 8), 32, generator=random)
    size = torch.Size(synapse.input_shape).numel()
    digits = torch.zeros(1, 32, size, dtype=torch.uint8)
    below = torch.zeros(32, *synapse.input_shape)
    try:
        line = Line(synapse, torch.arange(synapse.values[0].numel()))
        return machine.is_quicker(lambda: line.up(digits), lambda: synapse.up(below))
    except (AttributeError, RuntimeError):  # a PyTorch without oneDNN, or without this product
        return False
