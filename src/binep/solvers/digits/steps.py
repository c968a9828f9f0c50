"""Time steps in which layers exchange quantised updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from binep.core.neurons import Real
from binep.core.phases import Phase
from binep.core.synapses import Conv, Synapse
from binep.solvers import layouts, primitives
from binep.solvers.digits import kernels
from binep.solvers.digits.products import Products
from binep.solvers.primitives import Array


class Update(NamedTuple):
    """As `kernels.Update`, of tensors."""

    digits: Tensor
    units: Tensor

    @classmethod
    def empty(cls, like: Tensor, count: int) -> Update:
        """To be written: so many digits of what is like (batch, neurons)."""
        digits = like.new_empty(count, *like.shape, dtype=torch.uint8)
        return cls(digits, like.new_empty(count, len(like)))

    @classmethod
    def none(cls, like: Tensor) -> Update:
        """No digits: nothing has changed."""
        units = like.new_zeros(0, len(like))
        return cls(units.new_zeros(0, len(like), 0, dtype=torch.uint8), units)

    @classmethod
    def of(cls, values: Tensor) -> Update:
        """Values (batch, neurons) in two digits."""
        update = cls.empty(values, 2)
        sent = torch.zeros_like(values)
        kernels.quantise(values.contiguous().numpy(), sent.numpy(), update.written())
        return update

    def __bool__(self) -> bool:
        """Whether anything has changed."""
        return len(self.digits) > 0

    def written(self) -> kernels.Update:
        """For kernels to write to."""
        return kernels.Update(self.digits.numpy(), self.units.numpy())


@dataclass
class Layer:
    """Samples of one layer; a row per sample, maps with channels last.

    Attributes:
        states: s.
        sums: the drive so far, without what a convolution pools.
        sent: the neighbours' copy of s, once they have received ``update``.
        update: to be received by the neighbours in the next step.
        maps: of a convolution, the sum of contributions from below, before pooling and scaling.
        pooled: the maxima of the maps.
        route: their places.
        unpooled: copy of α·s at these places, as the layer below has received it.
    """

    states: Tensor
    sums: Tensor
    sent: Tensor
    update: Update
    maps: Tensor
    pooled: Tensor
    route: Tensor
    unpooled: Tensor

    def keep(self, count: int, to: Tensor, of: Tensor) -> Layer:
        """The first ``count`` samples, once those at ``of`` have replaced those at ``to``."""
        arrays = {name: part for name, part in vars(self).items() if name != "update"}
        for array in arrays.values():
            array[to] = array[of]
        for part in self.update:
            part[:, to] = part[:, of]
        some: dict[str, Any] = {name: array[:count] for name, array in arrays.items()}
        update = Update(*(part[:, :count].contiguous() for part in self.update))
        return replace(self, **some, update=update)


@dataclass(frozen=True)
class Parameters:
    """Of the synapse that leads to a layer, as they are during a phase.

    Attributes:
        products: of the signs; None for the first layer, whose input does not change, and with real
            weights.
        scale: α of a dense synapse; 1 where α is applied otherwise: after pooling, or to the input.
        scales: α of each neuron.
        biases: b of each neuron.
    """

    products: Products | None
    scale: np.float32
    scales: Tensor
    biases: Tensor

    @classmethod
    def of(cls, synapse: Synapse, products: Products | None) -> Parameters:
        """As they are now."""
        scale = synapse.bias.new_ones(()) if synapse.scale is None else synapse.scale
        dense = products is not None and not isinstance(synapse, Conv)
        return cls(
            products,
            np.float32(scale.item() if dense else 1),
            layouts.per_neuron(scale, synapse),
            layouts.per_neuron(synapse.bias, synapse),
        )

    def up(self, update: Update) -> Tensor:
        """α·(sign ⋆ values) of a dense synapse, (batch, neurons above)."""
        assert self.products is not None
        return self._summed(update, self.products.up(update.digits))

    def down(self, update: Update) -> Tensor:
        """α·(signᵀ ⋆ values) of a dense synapse, (batch, neurons below)."""
        assert self.products is not None
        return self._summed(update, self.products.down(update.digits))

    def _summed(self, update: Update, product: Tensor) -> Tensor:
        return torch.einsum("db,dbn->bn", update.units * float(self.scale), product)


class Steps:
    """Steps of layers whose parameters do not change meanwhile. Holds no state of its own.

    Args:
        table: of the layers; see `layouts.table`. Each has arrays of its own: all starts are 0.
        neurons: of each layer.
        parameters: of each layer.
    """

    def __init__(
        self, table: Array, neurons: Sequence[Real], parameters: Sequence[Parameters]
    ) -> None:
        self._table, self._neurons, self._parameters = table, neurons, parameters

    def digits(self, phase: Phase) -> int:
        """In how many digits updates are sent."""
        # An equilibrium does not depend on its path; a nudged phase ends before it, so is followed.
        return 1 if phase.is_free or phase.network.speed.precision == "fast" else 2

    def first_digits(self, states: Tensor) -> int:
        """In how many digits the states to start from are sent."""
        # One holds those that are all equal, as at the start of a free phase.
        return 1 if _is_uniform(states) else 3

    def begin(self, states: Sequence[Tensor], base: Tensor) -> list[Layer]:
        """Layers whose neighbours are to receive their states in the first step.

        Args:
            states: to start from, each (batch, *shape).
            base: the input's drive, (batch, *shape of layer 1).
        """
        layers = []
        for k, (state, parameters) in enumerate(zip(states, self._parameters, strict=True)):
            flat = layouts.flatten(state).clone(memory_format=torch.contiguous_format)
            batch, conv = len(flat), self.is_conv(k)
            pooled, area = (flat.shape[1], map_size(self._table[k])) if conv else (0, 0)
            sums = layouts.flatten(base) if k == 0 else parameters.biases
            sums = torch.zeros_like(flat) if conv else sums.expand_as(flat)
            layer = Layer(
                flat,
                sums.clone(memory_format=torch.contiguous_format),
                torch.zeros_like(flat),
                Update.empty(flat, self.first_digits(flat)),
                flat.new_zeros(batch, area),
                flat.new_zeros(batch, pooled),
                flat.new_zeros(batch, pooled, dtype=torch.int32),
                flat.new_zeros(batch, area),
            )
            kernels.quantise(layer.states.numpy(), layer.sent.numpy(), layer.update.written())
            layers.append(layer)
        return layers

    def take(
        self,
        layers: Sequence[Layer],
        moving: Sequence[int],
        digits: int,
        nudge: Tensor | None = None,
        omega: Tensor | None = None,
    ) -> Tensor:
        """Move some layers at once, from what the others have sent.

        Args:
            layers: changed in place.
            moving: numbers of those that move, from 0.
            digits: in how many their updates are sent.
            nudge: of the output, (batch, *shape), or None.
            omega: over-relaxation ω of each sample, (batch,); 1 if None.

        Returns:
            max|Δs| per layer and sample, (L, batch); 0 for layers that do not move.
        """
        batch = len(layers[0].states)
        ups, downs = self._receive(layers)
        residual = layers[0].states.new_zeros(len(layers), batch)
        omega = layers[0].states.new_ones(batch) if omega is None else omega
        for k in moving:  # before any moves: feedback is that of this step's states and places
            if self.is_conv(k + 1):
                downs[k] = self._unpool(layers, k + 1, digits)
        for k, layer in enumerate(layers):
            if k in moving:
                rule = self._rule(k, nudge if k + 1 == len(layers) else None, omega)
                self._move(k, layer, (ups[k], downs[k]), digits, rule, residual[k])
            elif len(ups[k].product) or len(downs[k].product):
                kernels.accumulate(layer.sums.numpy(), ups[k], downs[k])
        return residual

    def _receive(
        self, layers: Sequence[Layer]
    ) -> tuple[list[kernels.Contribution], list[kernels.Contribution]]:
        """What the updates add to each layer's drive from below, and from above.

        Convolutions take in what comes from below at once; what they send down goes by
        `_unpool`.
        """
        nothing = no_contribution(layers[0].states)
        ups, downs = ([nothing] * len(layers) for _ in range(2))
        for k, layer in enumerate(layers):
            update, layer.update = layer.update, Update.none(layer.states)
            if not update:
                continue
            if k + 1 < len(layers):
                above = self._parameters[k + 1]
                assert above.products is not None
                product = above.products.up(update.digits)
                ups[k + 1] = contribution(product, update.units, above.scale)
            here = self._parameters[k]
            if here.products is not None and not self.is_conv(k):
                downs[k - 1] = contribution(
                    here.products.down(update.digits), update.units, here.scale
                )
        for k, layer in enumerate(layers):
            if self.is_conv(k) and len(ups[k].product):
                maps, pooled, route = (
                    part.numpy() for part in (layer.maps, layer.pooled, layer.route)
                )
                kernels.pool(self._table[k], maps, ups[k], pooled, route)
                ups[k] = nothing
        return ups, downs

    def _unpool(self, layers: Sequence[Layer], k: int, digits: int) -> kernels.Contribution:
        """What a convolution adds to the drive of the layer below, through this step's maxima."""
        layer, parameters = layers[k], self._parameters[k]
        assert parameters.products is not None
        update = Update.empty(layer.unpooled, digits)
        kernels.quantise_unpooled(
            self._table[k, primitives.CHANNELS],
            layer.route.numpy(),
            parameters.scales.numpy(),
            layer.states.numpy(),
            layer.unpooled.numpy(),
            update.written(),
        )
        if not update.units.any():
            return no_contribution(layer.states)
        product = parameters.products.down(update.digits)
        return contribution(product, update.units, np.float32(1))

    def _rule(self, k: int, nudge: Tensor | None, omega: Tensor) -> kernels.Rule:
        neurons, batch = self._neurons[k], len(omega)
        push = omega.new_zeros(batch, 0) if nudge is None else layouts.flatten(nudge).float()
        inside = neurons.nudge == "inside"
        return kernels.Rule(
            omega.numpy(), push.contiguous().numpy(), inside, bool(neurons.clip_nudged)
        )

    def _move(
        self,
        k: int,
        layer: Layer,
        contributions: tuple[kernels.Contribution, kernels.Contribution],
        digits: int,
        rule: kernels.Rule,
        residual: Tensor,
    ) -> None:
        """Move a layer, and make its update; of what has not moved at all there is none."""
        parameters, update = self._parameters[k], Update.empty(layer.states, digits)
        drive = kernels.Drive(
            layer.sums.numpy(),
            layer.pooled.numpy(),
            parameters.scales.numpy(),
            parameters.biases.numpy(),
        )
        kernels.move(
            drive,
            *contributions,
            rule,
            layer.states.numpy(),
            layer.sent.numpy(),
            update.written(),
            residual.numpy(),
        )
        layer.update = update if update.units.any() else Update.none(layer.states)

    def is_conv(self, k: int) -> bool:
        """Whether a convolution leads to layer k."""
        return k < len(self._table) and bool(self._table[k, primitives.CONV])


def map_size(layer: Array) -> int:
    """Neurons of a convolution's map before pooling, from its row of the table."""
    return int(layer[[primitives.CHANNELS, primitives.ROWS, primitives.COLUMNS]].prod())


def contribution(product: Tensor, units: Tensor, scale: np.float32) -> kernels.Contribution:
    """As `kernels.Contribution`, of tensors."""
    return kernels.Contribution(product.numpy(), units.numpy(), scale)


def no_contribution(like: Tensor) -> kernels.Contribution:
    """Nothing, of a batch like (batch, neurons)."""
    units = like.new_zeros(0, len(like))
    return contribution(units[:, :, None], units, np.float32(1))


def are_equal(states: Tensor) -> bool:
    """Whether all values are equal, and none is a NaN."""
    return bool((states == states[0, 0]).all())


def _is_uniform(states: Tensor) -> bool:
    """Whether all values but NaN are equal: a sample of NaN must not change others' digits."""
    if are_equal(states):
        return True
    unknown = states.isnan()
    if not unknown.any():
        return False
    known = states[~unknown]
    return bool((known == known[:1]).all())
