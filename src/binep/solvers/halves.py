"""Dense products in float16, for a GPU, whose units for it are many times faster than float32's.

A state of float32 is the sum of two float16 halves, the nearest and the nearest to what that leaves
out, to 22 bits; a bit or a sign is one float16. Products of them are exact in float32, in which the
GPU adds them up.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from binep.core.network import Network
from binep.core.neurons import Binary, Neurons, Real
from binep.core.synapses import Dense, Route
from binep.core.versions import Version

LEAST = 2**20
"""The fewest weights of a layer for which halves are quicker than float32."""

ALIGNED = 8
"""What the sizes of a layer must be multiples of, for those units to be used."""

_LARGEST = 12
"""Real weights are multiplied by the power of two that takes the largest to just below 2^this."""

_SMALLEST = -126
"""The exponent of float32's smallest power of two that has all of its digits."""


def in_halves(network: Network, count: int) -> Network:
    """The network with its wide dense layers in halves; itself if it has none.

    PyTorch adds up such products in float32 since 2.8.

    Args:
        network: whose parameters it shares, of float32.
        count: of halves of states and of real weights: 2, or 1 for 11 bits.
    """
    if not hasattr(torch.ops.aten.mm, "dtype"):
        return network
    synapses = [
        InHalves(synapse, count) if type(synapse) is Dense and _is_wide(synapse) else synapse
        for synapse in network.synapses[1:]
    ]
    if not any(isinstance(synapse, InHalves) for synapse in synapses):
        return network
    return Network([network.synapses[0], *synapses], network.neurons, network.cost)


def is_bounded(neurons: Neurons) -> bool:
    """Whether float16 holds all that they may send."""
    return type(neurons) is Binary or (type(neurons) is Real and neurons.clip_nudged)


def halved(network: Network) -> Iterator[InHalves]:
    """The layers of a network that are in halves."""
    return (synapse for synapse in network.synapses if isinstance(synapse, InHalves))


class InHalves(Dense):
    """A dense layer that multiplies in float16; its parameters are those of the layer given.

    Args:
        layer: of float32.
        count: see `in_halves`.
    """

    def __init__(self, layer: Dense, count: int) -> None:
        nn.Module.__init__(self)
        self.input_shape, self.output_shape = layer.input_shape, layer.output_shape
        self._layer = (layer,)  # in a tuple it is no submodule
        self.values, self.scale, self.bias = layer.values, layer.scale, layer.bias
        self.count = count
        parts = 1 if layer.scale is not None else count
        self._weights = layer.values.new_empty((parts, *layer.values.shape), dtype=torch.half)
        self._unit = layer.values.new_ones(())
        self._seen: Version | None = None

    def follow(self) -> None:
        """Take the weights as they are now, into the memory where they were."""
        (layer,) = self._layer
        self.values = layer.values  # another tensor's changes are counted apart
        values = self.values.detach()
        if self._seen is not None and self._seen.holds(values):
            return
        seen, self._seen = Version(values), None  # memory for what follows may be lacking
        if self.scale is None:  # powers of two change no digit
            exponent = torch.frexp(values.abs().amax()).exponent - _LARGEST
            exponent = exponent.clamp(min=_SMALLEST)
            self._unit.copy_(torch.ldexp(torch.ones_like(self._unit), exponent))
            values = values / self._unit
        self._weights.copy_(_halves(values, len(self._weights)))
        self._seen = seen

    def up(self, below: Tensor) -> tuple[Tensor, Route]:
        """W·s."""
        return self._product(below.flatten(1), self._weights.mT), None

    def down(self, above: Tensor, route: Route) -> Tensor:
        """Wᵀ·s."""
        return self._product(above, self._weights).view(-1, *self.input_shape)

    def _product(self, states: Tensor, weights: Tensor) -> Tensor:
        """The sum of the products of halves but the last, of what both leave out."""
        parts = _halves(states, self.count if states.is_floating_point() else 1)
        products = multiply(parts.flatten(0, 1), weights[0]).chunk(len(parts))
        product = sum(products[1:], start=products[0])
        for low in weights[1:]:
            product = product + multiply(parts[0], low)
        return product * (self._unit if self.scale is None else self.scale)


def multiply(halves: Tensor, weights: Tensor) -> Tensor:
    """The product of two matrices of float16, added up in float32."""
    return torch.mm(halves, weights, out_dtype=torch.float32)


def _halves(values: Tensor, count: int) -> Tensor:
    """The float16 nearest to each value, then the one nearest to what is left: (count, …)."""
    halves = values.new_empty((count, *values.shape), dtype=torch.half)
    halves[0].copy_(values)
    if count > 1:
        torch.sub(values, halves[0], out=halves[1])
    return halves


def _is_wide(synapse: Dense) -> bool:
    values = synapse.values
    return values.numel() >= LEAST and not any(size % ALIGNED for size in values.shape)
