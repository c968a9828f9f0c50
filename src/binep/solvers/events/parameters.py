"""A network's parameters in the forms that event-driven updates read."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from binep.core.network import Network
from binep.core.neurons import Binary
from binep.core.synapses import Conv, Synapse
from binep.core.versions import Version, flipped_rows
from binep.solvers import layouts, primitives, sign_bits
from binep.solvers.events import kernels
from binep.solvers.primitives import Array

_FIXED_BITS = 20
"""Scaling factors of a convolution's channels are added up in units of 2^-20 of the largest, or in
larger ones where their sum would not fit in 32 bits."""


class SignCopies:
    """The signs of all layers but the first, in both orders, and the other parameters.

    Args:
        network: for which `EventSolver.fits` holds.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.shape = layouts.table(network.synapses)
        self.sizes = [int(size) for size in self.shape[:, primitives.SIZE]]
        pairs = zip(network.synapses[1:], network.synapses[:-1], strict=True)
        self.orders = [layouts.column_order(*pair).numpy() for pair in pairs]
        shapes = [synapse.values.flatten(1).shape for synapse in network.synapses[1:]]
        parts = [s.values[0, 0].numel() if isinstance(s, Conv) else 1 for s in network.synapses[1:]]
        self._up, up, starts_up = _zeros([(below, above, 1) for above, below in shapes])
        downs = [(*shape, part) for shape, part in zip(shapes, parts, strict=True)]
        self._down, down, starts_down = _zeros(downs)
        self.shape[1:, primitives.SIGNS_UP] = starts_up
        self.shape[1:, primitives.SIGNS_DOWN] = starts_down
        self._signs = list(zip(up, down, strict=True))
        self._versions: list[Version | None] = [None] * len(network)
        self._lock = threading.Lock()

    def current(self) -> kernels.Parameters:
        """As the network's are now."""
        total, count = sum(self.sizes), len(self.sizes)
        scale, bias = np.zeros((2, total), np.float32)
        fixed = np.zeros(total, np.int32)
        feedback = np.zeros(count, np.float32)
        for k, synapse in enumerate(self.network.synapses):
            if k == 0:  # it acts through the input's drive alone
                continue
            start = self.shape[k, primitives.START]
            where = slice(start, start + self.sizes[k])
            assert synapse.scale is not None
            alpha = layouts.per_neuron(synapse.scale, synapse)
            scale[where], bias[where] = alpha, layouts.per_neuron(synapse.bias, synapse)
            if isinstance(synapse, Conv):
                feedback[k - 1], fixed[where] = _in_fixed_point(synapse, alpha)
            else:
                feedback[k - 1] = float(alpha[0])
            self._update_signs(k, synapse.values.detach())
        neurons = [n for n in self.network.neurons if isinstance(n, Binary)]
        thresholds = np.array([n.threshold for n in neurons], np.float32)
        signs, filter = (self._up, self._down), neurons[0].filter
        of_neurons = (fixed, scale, bias, feedback, thresholds)
        return kernels.Parameters(self.shape, *signs, *of_neurons, filter)

    def signs(self, k: int) -> tuple[Array, Array]:
        """The signs of the synapse to layer k: bits that each neuron sends up, and down.

        (neurons, parts, bytes): what a convolution's channel sends down in a part for each place of
        its kernel.
        """
        return self._signs[k - 1]

    def _update_signs(self, k: int, values: Tensor) -> None:
        """Bring a layer's copies up to its signs; after flips only the rows that hold them."""
        with self._lock:
            version = self._versions[k]
            if version is not None and version.holds(values):
                return
            synapse = self.network.synapses[k]
            rows = None if version is None else flipped_rows(synapse.values, version)
            if rows is None:
                rows = torch.arange(len(values), device="cpu")
            flat = values.flatten(1).contiguous().numpy()
            up, down = self.signs(k)
            sign_bits.load(rows.numpy(), flat, self.orders[k - 1], up, down)
            self._versions[k] = Version(values)


def _zeros(shapes: Sequence[tuple[int, int, int]]) -> tuple[Array, list[Array], list[int]]:
    """Bits of signs of these shapes (from, to, parts of a row), all −1.

    Returns:
        All in one array, those of each shape, and where each begin.
    """
    sizes = [(rows, parts, sign_bits.in_bytes(columns // parts)) for rows, columns, parts in shapes]
    *starts, end = itertools.accumulate((math.prod(size) for size in sizes), initial=0)
    whole = np.zeros(end, np.uint8)
    signs = [
        whole[start : start + math.prod(size)].reshape(size)
        for size, start in zip(sizes, starts, strict=True)
    ]
    return whole, signs, starts


def _in_fixed_point(synapse: Conv, alpha: Tensor) -> tuple[float, Array]:
    """A unit, and each neuron's α in that unit, so that no sum of feedback overflows 32 bits.

    A neuron below receives each channel from as many pooling windows a side as the places of one
    kernel can lie in, at most.
    """
    kernel = synapse.values.shape[-1]
    windows = (kernel + synapse.pool - 2) // synapse.pool + 1
    channels = alpha[: len(synapse.values)].double()  # maps lie (row, column, channel)
    alpha_max = float(channels.max())
    largest = math.ceil(math.log2(alpha_max)) if alpha_max > 0 else 0
    for bits in range(_FIXED_BITS, -1, -1):
        unit = 2.0 ** (largest - bits)
        fixed = (channels / unit).round().long()
        if windows**2 * int(fixed.sum()) < 2**31:
            break
    whole = (alpha.double() / unit).round().int().numpy()
    return unit, whole


def widest(network: Network) -> int:
    """The largest number of signs, or of neurons, that are added up anywhere."""
    return max(*map(_numel, network.synapses), *(s.values[0].numel() for s in network.synapses))


def _numel(synapse: Synapse) -> int:
    return torch.Size(synapse.output_shape).numel()
