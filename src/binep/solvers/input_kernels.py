"""Convolution of images of 256 grey levels, compiled by numba."""

from __future__ import annotations

import numba
import numpy as np

from binep.solvers.primitives import inline, parallel
from binep.solvers.sign_bits import add_row, in_bytes


@inline
def _correlate(image, y, x, kernel, signs, total):
    """Total[channel] = Σ signs·levels of the patch at a place of an image."""
    channels, low = len(total), image.shape[2]
    for c in range(channels):
        total[c] = 0
    for ky in range(kernel):
        for kx in range(kernel):
            for c in range(low):
                level = np.int32(image[y + ky, x + kx, c])
                if level:
                    start = ((ky * kernel + kx) * low + c) * in_bytes(channels)
                    add_row(total, 0, channels, signs, start, level)


@parallel
def convolve(images, signs, sums, route, kernel, pool):
    """The largest sums of signs times levels in each pooling window: the first among equals.

    Args:
        images: padded, uint8, (batch, row, column, channel below).
        signs: bits, a row for each of (row, column, channel below); see `sign_bits`.
        sums: the maxima, int16, (batch, row, column, channel).
        route: their places in the map before pooling, likewise.
        kernel, pool: sides.
    """
    rows, columns, channels = sums.shape[1:]
    width = images.shape[2] - kernel + 1
    for b in numba.prange(len(images)):
        here = np.empty(channels, np.int16)
        for y in range(rows):
            for x in range(columns):
                best, places = sums[b, y, x], route[b, y, x]
                for d in range(pool * pool):
                    row, column = y * pool + d // pool, x * pool + d % pool
                    _correlate(images[b], row, column, kernel, signs, here)
                    place = np.int32(row * width + column)
                    for c in range(channels):
                        better = d == 0 or here[c] > best[c]
                        best[c] = here[c] if better else best[c]
                        places[c] = place if better else places[c]
