"""Signs ⋆ digits, exact: by words of bits, or by 8-bit integers through oneDNN."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from binep.core.synapses import Conv, Synapse
from binep.solvers import dot_products, machine
from binep.solvers.digits import kernels

_DIGITS = 1.0, 128
"""Scale and offset of what is multiplied: 128 stands for 0."""
_AS_FLOATS: tuple[Any, ...] = 1.0, 0, torch.float32, "none", [], ""
"""Products come as they are, in float32, with nothing applied to them."""
_STEP = [1, 1]
_WEIGHTS_PER_FLIP = 2**13
"""Of a dense layer as many flips may be added to products as it has times as many weights."""
_FEW_FLIPS = 64
"""Or so many, if that is more."""


class _Flips(NamedTuple):
    """Weights whose sign is no longer the packed one.

    Attributes:
        above, below: the neurons that they connect, (flips,) int64.
        change: sign less packed sign, ±2, (flips,) float32.
    """

    above: Tensor
    below: Tensor
    change: Tensor

    @classmethod
    def none(cls) -> _Flips:
        """No weights."""
        nothing = torch.zeros(0, dtype=torch.int64, device="cpu")
        return cls(nothing, nothing, nothing.float())


class _Packed(NamedTuple):
    """One direction of a synapse.

    Attributes:
        weights: signs as oneDNN wants them, with scales 1 and offsets 0.
        padding: of a convolution.
        shape: of a sample that a convolution takes; empty for a dense product.
    """

    weights: tuple[Tensor, Tensor, Tensor]
    padding: int = 0
    shape: tuple[int, ...] = ()

    def multiply(self, digits: Tensor) -> Tensor:
        """Signs ⋆ (digits − 128), from (digits, batch, neurons) of one side to the other."""
        product: Tensor
        if not self.shape:
            product = torch.ops.onednn.qlinear_pointwise(
                digits.flatten(0, 1), *_DIGITS, *self.weights, None, *_AS_FLOATS
            )
            return product.view(*digits.shape[:2], -1)
        channels, rows, columns = self.shape
        images = digits.view(-1, rows, columns, channels).movedim(3, 1)
        window = _STEP, [self.padding] * 2, _STEP, 1
        product = torch.ops.onednn.qconv2d_pointwise(
            images, *_DIGITS, *self.weights, None, *window, *_AS_FLOATS
        )
        return product.movedim(1, 3).reshape(*digits.shape[:2], -1)


class Products(ABC):
    """A synapse's signs, packed for exact products upward and downward. Never changed."""

    @staticmethod
    def of(synapse: Synapse, order: Tensor) -> Products:
        """As they are quickest on this machine.

        Args:
            synapse: with binary weights.
            order: see `layouts.column_order`.
        """
        if isinstance(synapse, Conv) or not machine.has_byte_dot_products():
            return OnednnProducts(synapse, order)
        return BitProducts(synapse, order)

    @abstractmethod
    def up(self, digits: Tensor) -> Tensor:
        """Signs ⋆ digits, from (digits, batch, neurons below) to the map above before pooling."""

    @abstractmethod
    def down(self, digits: Tensor) -> Tensor:
        """Signsᵀ ⋆ digits, from the map above before pooling to (digits, batch, neurons below)."""

    @abstractmethod
    def flipped(self, values: Tensor, rows: Tensor) -> Products | None:
        """The products of signs of which some have flipped since: packing takes longer.

        Args:
            values: the signs as they are now.
            rows: those in which they may have flipped since these products were made.

        Returns:
            None where packing takes less time.
        """


class BitProducts(Products):
    """Of a dense synapse, in words of bits; see `dot_products`.

    Args:
        synapse, order: as of `Products.of`.
    """

    def __init__(self, synapse: Synapse, order: Tensor) -> None:
        above, below = self._shape = synapse.values.shape
        self._up, self._down = dot_products.words(above, below), dot_products.words(below, above)
        self._order = order.numpy()
        self._load(synapse.values, torch.arange(above, device="cpu"))

    def _load(self, values: Tensor, rows: Tensor) -> None:
        signs = values.detach().numpy()
        dot_products.load(rows.numpy(), signs, self._order, self._up, self._down)

    def up(self, digits: Tensor) -> Tensor:
        """See `Products.up`."""
        return dot_products.product(self._up, digits, self._shape[0])

    def down(self, digits: Tensor) -> Tensor:
        """See `Products.down`."""
        return dot_products.product(self._down, digits, self._shape[1])

    def flipped(self, values: Tensor, rows: Tensor) -> BitProducts:
        """See `Products.flipped`; packing all never takes less time."""
        products = copy.copy(self)
        products._up, products._down = self._up.copy(), self._down.copy()
        products._load(values, rows)
        return products


class OnednnProducts(Products):
    """In 8-bit integers, by oneDNN.

    Args:
        synapse, order: as of `Products.of`.
    """

    def __init__(self, synapse: Synapse, order: Tensor) -> None:
        signs = synapse.values.detach().to(torch.int8).contiguous()
        self._signs, self._order, self._flips = signs, order, _Flips.none()
        if isinstance(synapse, Conv):
            padding, kernel = synapse.padding, signs.shape[-1]
            above = (len(signs), *synapse.map_shape)
            turned = signs.flip(2, 3).transpose(0, 1).contiguous()
            self._up = _pack_conv(signs, padding, synapse.input_shape)
            self._down = _pack_conv(turned, kernel - 1 - padding, above)
        else:
            rows = torch.empty_like(signs)
            rows[:, order] = signs
            self._up, self._down = _pack_dense(rows), _pack_dense(rows.t().contiguous())

    def flipped(self, values: Tensor, rows: Tensor) -> OnednnProducts | None:
        """See `Products.flipped`; None for a convolution, and where many have flipped."""
        if values.dim() > 2:
            return None
        now = values.detach()[rows]
        row, column = (now != self._signs[rows]).nonzero(as_tuple=True)
        fresh = rows[row], self._order[column], 2 * now[row, column].float()
        changed = torch.zeros(len(values), dtype=torch.bool, device="cpu")
        changed[rows] = True
        stay = ~changed[self._flips.above]
        flips = [torch.cat([old[stay], new]) for old, new in zip(self._flips, fresh, strict=True)]
        if len(flips[0]) > max(_FEW_FLIPS, values.numel() // _WEIGHTS_PER_FLIP):
            return None
        products = copy.copy(self)
        products._flips = _Flips(*flips)
        return products

    def up(self, digits: Tensor) -> Tensor:
        """See `Products.up`."""
        above, below, change = self._flips
        return _corrected(self._up.multiply(digits), digits, above, below, change)

    def down(self, digits: Tensor) -> Tensor:
        """See `Products.down`."""
        above, below, change = self._flips
        return _corrected(self._down.multiply(digits), digits, below, above, change)


def _corrected(product: Tensor, digits: Tensor, to: Tensor, of: Tensor, change: Tensor) -> Tensor:
    """A product, to which what the flips change is added."""
    if len(change):
        kernels.add_flips(*(t.numpy() for t in (product, digits, to, of, change)))
    return product


def _pack_dense(signs: Tensor) -> _Packed:
    packed = torch.ops.onednn.qlinear_prepack(signs, [64, signs.shape[1]])
    return _Packed((packed, *_unscaled(signs)))


def _pack_conv(signs: Tensor, padding: int, shape: tuple[int, ...]) -> _Packed:
    scales, offsets = _unscaled(signs)
    window = _STEP, [padding] * 2, _STEP, 1
    packed = torch.ops.onednn.qconv_prepack(signs, scales, *_DIGITS, *window, [1, *shape])
    return _Packed((packed, scales, offsets), padding, shape)


def _unscaled(signs: Tensor) -> tuple[Tensor, Tensor]:
    offsets = signs.new_zeros(len(signs), dtype=torch.int32)
    return torch.ones_like(offsets, dtype=torch.float32), offsets
