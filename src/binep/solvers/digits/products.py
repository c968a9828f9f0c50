"""Signs ⋆ digits in 8-bit integers, by oneDNN."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from binep.core.synapses import Conv, Synapse

_DIGITS = 1.0, 128
"""Scale and offset of what is multiplied: 128 stands for 0."""
_AS_FLOATS: tuple[Any, ...] = 1.0, 0, torch.float32, "none", [], ""
"""Products come as they are, in float32, with nothing applied to them."""
_STEP = [1, 1]


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


class Products:
    """A synapse's signs, packed for exact products upward and downward. Never changed.

    Args:
        synapse: with binary weights.
        order: see `layouts.column_order`.
    """

    def __init__(self, synapse: Synapse, order: Tensor) -> None:
        signs = synapse.values.detach().to(torch.int8).contiguous()
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

    def up(self, digits: Tensor) -> Tensor:
        """Signs ⋆ digits, from (digits, batch, neurons below) to the map above before pooling."""
        return self._up.multiply(digits)

    def down(self, digits: Tensor) -> Tensor:
        """Signsᵀ ⋆ digits, from the map above before pooling to (digits, batch, neurons below)."""
        return self._down.multiply(digits)


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
