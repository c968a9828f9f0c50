"""The layout of layers and synapses in memory that compiled loops read.

A layer is one row of neurons per sample. Maps lie (row, column, channel), so that what one neuron
sends is a contiguous row of signs; PyTorch has the channel first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from binep.core.synapses import Conv, Synapse
from binep.solvers import primitives
from binep.solvers.primitives import Array


def flatten(layer: Tensor) -> Tensor:
    """A layer's (batch, *shape) as (batch, neurons)."""
    return layer.movedim(1, -1).flatten(1) if layer.dim() == 4 else layer.flatten(1)


def unflatten(flat: Tensor, shape: Sequence[int]) -> Tensor:
    """A layer (batch, *shape), from (batch, neurons) in the order of `flatten`."""
    if len(shape) == 1:
        return flat
    channels, rows, columns = shape
    return flat.reshape(len(flat), rows, columns, channels).movedim(-1, 1)


def per_neuron(parameter: Tensor, synapse: Synapse) -> Tensor:
    """A bias or scaling factor for each neuron of the flat layer."""
    size = torch.Size(synapse.output_shape).numel()
    values = parameter.detach()
    return (
        values.expand(size) if values.dim() == 0 else values.repeat(size // len(values))
    ).float()


def table(synapses: Sequence[Synapse]) -> Array:
    """The table of layers, (layers, FIELDS) int64, with the columns that `primitives` names.

    Where signs begin is left at 0, for whoever lays them out.
    """
    shape = np.zeros((len(synapses), primitives.FIELDS), np.int64)
    start = places = 0
    for k, (row, synapse) in enumerate(zip(shape, synapses, strict=True)):
        size = torch.Size(synapse.output_shape).numel()
        row[primitives.SIZE], row[primitives.START] = size, start
        row[primitives.MAP] = places
        start += size
        if k == 0:  # the input does not change: its drive is computed elsewhere, once
            continue
        if isinstance(synapse, Conv):
            row[primitives.CONV :] = (
                1,
                synapse.output_shape[0],
                *synapse.map_shape,
                synapse.pool,
                synapse.values.shape[-1],
                synapse.padding,
                *synapse.input_shape,
            )
            places += synapse.output_shape[0] * synapse.map_shape[0] * synapse.map_shape[1]
    return shape


def column_order(synapse: Synapse, low: Synapse) -> Tensor:
    """Where each column of ``values.flatten(1)`` lies among the flat neurons of the layer below.

    For a convolution: among the taps (row, column, channel) of its kernel.
    """
    columns = torch.arange(synapse.values[0].numel(), device="cpu")
    if isinstance(synapse, Conv):
        channels, kernel = synapse.input_shape[0], synapse.values.shape[-1]
        return columns.view(kernel, kernel, channels).movedim(2, 0).flatten()
    if len(low.output_shape) == 3:
        channels, rows, width = low.output_shape
        return columns.view(rows, width, channels).movedim(2, 0).flatten()
    return columns
