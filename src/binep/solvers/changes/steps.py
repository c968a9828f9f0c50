"""Time steps in which neurons that have moved send by how much, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from binep.core.neurons import Real
from binep.core.phases import Phase
from binep.core.synapses import Conv, Synapse
from binep.solvers.changes import kernels
from binep.solvers.digits.kernels import Contribution
from binep.solvers.digits.steps import Layer, Parameters, Steps, contribution, no_contribution
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
    """

    unpooled_route: Tensor


class ChangeSteps(Steps):
    """Steps of layers that convolutions of real weights join; see `Steps`.

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

    def digits(self, phase: Phase) -> int:
        """None."""
        return 0

    def first_digits(self, states: Tensor) -> int:
        """None."""
        return 0

    def begin(self, states: Sequence[Tensor], base: Tensor) -> list[Layer]:
        """Layers whose neighbours are to receive their states in the first step."""
        layers: list[Layer] = []
        for k, layer in enumerate(super().begin(states, base)):
            if self.is_conv(k):  # maps of 0 have maxima, too, if no neuron below sends any more
                self._pool(layers[k - 1].sent, layers[k - 1].sent, layer, k)
            parts = {**vars(layer), "unpooled": torch.zeros_like(layer.pooled)}
            layers.append(ChangeLayer(**parts, unpooled_route=layer.route.clone()))
        return layers

    def _receive(self, layers: Sequence[Layer]) -> tuple[list[Contribution], list[Contribution]]:
        """What moved adds to each layer's drive; convolutions take in what comes from below."""
        nothing = no_contribution(layers[0].states)
        ups, downs = ([nothing] * len(layers) for _ in range(2))
        for k, layer in enumerate(layers):
            if torch.equal(layer.states, layer.sent):
                continue
            change = layer.states - layer.sent
            if self.is_conv(k + 1):
                self._pool(layer.states, layer.sent, layers[k + 1], k + 1)
            elif k + 1 < len(layers):
                ups[k + 1] = _product(change, self._of(k + 1).up)
            if k > 0 and not self.is_conv(k):
                downs[k - 1] = _product(change, self._of(k).down)
            layer.sent.copy_(layer.states)
        return ups, downs

    def _pool(self, states: Tensor, sent: Tensor, layer: Layer, k: int) -> None:
        """Add what has moved below to a convolution's maps, and pool them."""
        kernels.send_up(
            self._table[k],
            self._of(k).up.numpy(),
            states.numpy(),
            sent.numpy(),
            layer.maps.numpy(),
            layer.pooled.numpy(),
            layer.route.numpy(),
        )

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


def _product(change: Tensor, weights: Tensor) -> Contribution:
    product = F.linear(change, weights)
    return contribution(product[None], product.new_ones(1, len(product)), np.float32(1))
