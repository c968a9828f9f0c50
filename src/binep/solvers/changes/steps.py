"""Time steps in which neurons that have moved send by how much, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from binep.core.neurons import Real
from binep.core.phases import Phase
from binep.core.products import linear
from binep.core.synapses import Conv, Synapse
from binep.solvers.changes import kernels
from binep.solvers.digits.kernels import Contribution
from binep.solvers.digits.steps import (
    Layer,
    Parameters,
    Steps,
    are_equal,
    contribution,
    no_contribution,
)
from binep.solvers.primitives import Array


class Weights:
    """A synapse's real weights as changes are multiplied with them. Never changed.

    Args:
        synapse: with real weights.
        order: see `layouts.column_order`.

    Attributes:
        up, down: of a convolution as `kernels.send_up` and `kernels.send_down` take them; of a
            dense synapse (neurons above, flat neurons below), and its transpose.
    """

    def __init__(self, synapse: Synapse, order: Tensor) -> None:
        values = synapse.values.detach()
        if isinstance(synapse, Conv):
            self.up = values.flip(2, 3).permute(2, 1, 3, 0).flatten()
            self.down = values.permute(0, 2, 3, 1).flatten()
        else:
            self.up = torch.empty_like(values, memory_format=torch.contiguous_format)
            self.up[:, order] = values
            self.down = self.up.t()


@dataclass
class ChangeLayer(Layer):
    """Samples of one layer, whose neighbours are still to receive by how much s exceeds ``sent``.

    Attributes:
        unpooled: of a convolution, s as the layer below has received it, …
        unpooled_route: … and from which places of the map.
        base: its sums before any neighbour has sent.
    """

    unpooled_route: Tensor
    base: Tensor

    def forget(self) -> None:
        """Let all neighbours send all of what they are."""
        self.sums.copy_(self.base)
        for part in (self.maps, self.sent, self.unpooled):
            part.zero_()


AGE = 128
"""Half steps after which sums are made anew: in each, rounding takes them a little further off."""
LARGE = 2
"""States that are larger, of which sums keep rounding once they have gone, leave none for longer
than a half step."""


class ChangeSteps(Steps):
    """Steps of layers that convolutions of real weights join, from one beginning; see `Steps`.

    Args:
        table, neurons, parameters: as of `Steps`.
        weights: of each layer's synapse; None for the first, whose input does not change.
    """

    def __init__(
        self,
        table: Array,
        neurons: Sequence[Real],
        parameters: Sequence[Parameters],
        weights: Sequence[Weights | None],
    ) -> None:
        super().__init__(table, neurons, parameters)
        self._weights = weights
        self._age = AGE

    def digits(self, phase: Phase) -> int:
        """No digits are sent."""
        return 0

    def first_digits(self, states: Tensor) -> int:
        """No digits are sent."""
        return 0

    def begin(self, states: Sequence[Tensor], base: Tensor) -> list[Layer]:
        """Layers whose neighbours are to receive their states in the first step."""
        layers: list[Layer] = []
        self._age = AGE
        for layer in super().begin(states, base):
            parts = {**vars(layer), "unpooled": torch.zeros_like(layer.pooled)}
            route = torch.zeros_like(layer.route)
            layers.append(ChangeLayer(**parts, unpooled_route=route, base=layer.sums.clone()))
        return layers

    def _receive(self, layers: Sequence[Layer]) -> tuple[list[Contribution], list[Contribution]]:
        """What moved adds to each layer's drive; convolutions take in what comes from below."""
        nothing = no_contribution(layers[0].states)
        ups, downs = ([nothing] * len(layers) for _ in range(2))
        anew = self._forget(layers)
        for k, layer in enumerate(layers):
            # Maps of 0 have maxima, too.
            if not anew and torch.equal(layer.states, layer.sent):
                continue
            if self.is_conv(k + 1):
                self._pool(layer, layers[k + 1], k + 1, anew and are_equal(layer.states))
            elif k + 1 < len(layers):
                ups[k + 1] = _product(layer, self._of(k + 1).up)
            if k > 0 and not self.is_conv(k):
                downs[k - 1] = _product(layer, self._of(k).down)
            layer.sent.copy_(layer.states)
        return ups, downs

    def _forget(self, layers: Sequence[Layer]) -> bool:
        """Let all sums be made anew, if it is time; whether it is."""
        self._age += 1
        if self._age <= AGE:
            return False
        large = False
        for layer in layers:
            assert isinstance(layer, ChangeLayer)
            layer.forget()
            large |= float(layer.states.abs().max()) > LARGE
        self._age = AGE if large else 0
        return True

    def _pool(self, below: Layer, layer: Layer, k: int, alike: bool) -> None:
        """Add what has moved below to a convolution's maps, and pool them; once, if all alike."""
        maps, pooled, route = layer.maps, layer.pooled, layer.route
        some = slice(0, 1) if alike else slice(None)
        kernels.send_up(
            self._table[k],
            self._of(k).up.numpy(),
            *(part[some].numpy() for part in (below.states, below.sent, maps, pooled, route)),
        )
        if alike:
            for part in (maps, pooled, route):
                part[1:] = part[0]

    def _unpool(self, layers: Sequence[Layer], k: int, digits: int) -> Contribution:
        """Nothing: what a convolution adds to the layer below is added to its sums at once."""
        layer, below = layers[k], layers[k - 1]
        assert isinstance(layer, ChangeLayer)
        kernels.send_down(
            self._table[k],
            self._of(k).down.numpy(),
            layer.states.numpy(),
            layer.route.numpy(),
            layer.unpooled.numpy(),
            layer.unpooled_route.numpy(),
            below.sums.numpy(),
        )
        return no_contribution(below.states)

    def _of(self, k: int) -> Weights:
        weights = self._weights[k]
        assert weights is not None
        return weights


def _product(layer: Layer, weights: Tensor) -> Contribution:
    """What has moved in a layer, times dense weights."""
    product = linear(layer.states - layer.sent, weights)
    return contribution(product[None], product.new_ones(1, len(product)), np.float32(1))
