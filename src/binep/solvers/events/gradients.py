"""Gradients from bits: what changed between two equilibria, correlated with what is below it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from binep.core import memory
from binep.core.grey_levels import GREY_LEVEL, grey_levels
from binep.core.phases import Clamped
from binep.core.synapses import Conv, Synapse
from binep.solvers.events import gradient_kernels as kernels
from binep.solvers.primitives import Array


def of_bias(
    synapse: Synapse, below: Sequence[Tensor], above: Sequence[Tensor], factor: float
) -> tuple[Tensor, Tensor]:
    """A layer's ∂/∂b, and the neurons above whose weights can have a gradient.

    Args:
        synapse: that leads to the layer.
        below, above: bits at its ends, (batch, neurons), of the first equilibrium and the second.
        factor: what the sums are multiplied by.
    """
    sums, touched = above[0].new_empty(2, above[0].shape[1], dtype=torch.int32)
    kernels.compare(*(t.numpy() for t in (*below, *above, sums, touched)))
    bias = factor * sums.view(-1, len(synapse.bias)).sum(dim=0).float()
    return bias, touched.nonzero().flatten()


def of_input(
    synapse: Synapse, clamped: Clamped, above: Sequence[Tensor], rows: Tensor, factor: float
) -> Tensor:
    """∂/∂W of the first layer; of a dense one sparse, in some rows."""
    x, whole = clamped.x, grey_levels(clamped.x)
    if whole is not None:  # sums of whole numbers are exact
        x, factor = whole.to(x.dtype), factor * GREY_LEVEL
    if not isinstance(synapse, Conv):
        gradient = synapse.bias.new_empty(len(rows), synapse.values.shape[1])
        arrays = (rows, *above, x.flatten(1).contiguous())
        kernels.correlate_input(*(t.numpy() for t in arrays), np.float32(factor), gradient.numpy())
        return _rows(rows, gradient, synapse)
    pad, (_, columns) = synapse.padding, synapse.map_shape
    route = clamped.route
    if route is None:
        route = torch.arange(synapse.map_shape[0] * columns, device="cpu")
        route = route.view(synapse.map_shape)
        route = route.expand(len(x), *synapse.output_shape)
    places = route.movedim(1, 3).flatten(1, 2).contiguous()
    gradient = torch.empty_like(synapse.values, memory_format=torch.contiguous_format)
    kernels.correlate_input_conv(
        (above[1] - above[0]).view(places.shape).numpy(),
        places.numpy(),
        columns,
        F.pad(x, (pad, pad, pad, pad)).contiguous().numpy(),
        np.float32(factor),
        gradient.numpy(),
    )
    return gradient


def of_dense(
    synapse: Synapse,
    above: Sequence[Tensor],
    below: Sequence[Tensor],
    rows: Tensor,
    order: Array,
    factor: float,
) -> Tensor:
    """∂/∂W between bits, sparse in some rows."""
    gradient = memory.empty(*synapse.values.shape)[: len(rows)]
    bits = [t.numpy() for t in (rows, *above, *below)]
    kernels.correlate_dense(*bits, order, np.float32(factor), gradient.numpy())
    return _rows(rows, gradient, synapse)


def of_conv(
    synapse: Conv, layer: Array, sent: Sequence[Tensor], below: Sequence[Tensor], factor: float
) -> Tensor:
    """∂/∂W between bits, through a pooled convolution."""
    channels, rows, columns = synapse.input_shape
    pad, kernel = synapse.padding, synapse.values.shape[-1]
    images = [
        F.pad(bits.view(-1, rows, columns, channels), (0, 0, pad, pad, pad, pad)) for bits in below
    ]
    gradient = synapse.bias.new_empty(len(synapse.values), kernel, kernel, channels)
    places = [t.numpy() for t in (*sent, *images)]
    kernels.correlate_conv(layer, *places, np.float32(factor), gradient.numpy())
    return gradient.movedim(3, 1).contiguous()


def _rows(rows: Tensor, gradient: Tensor, synapse: Synapse) -> Tensor:
    return torch.sparse_coo_tensor(
        rows[None],
        gradient,
        synapse.values.shape,
        device=gradient.device,
        is_coalesced=True,
        check_invariants=False,
    )
