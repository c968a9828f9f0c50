"""Correlations of bits, compiled by numba."""

from __future__ import annotations

import numba
import numpy as np

from binep.solvers.primitives import (
    CHANNELS,
    COLUMNS,
    KERNEL,
    LOW_CHANNELS,
    count_changes,
    inline,
    list_changes,
    parallel,
)


@inline
def _add(total, at, bits, start, count, factor):
    """Add ``factor·bits[start : start + count]`` to ``total[at : at + count]``."""
    # Slices: indices that cannot be negative let the loop be vectorized.
    to, row = total[at : at + count], bits[start : start + count]
    if factor == 1:
        for i in range(count):
            to[i] += row[i]
    else:
        for i in range(count):
            to[i] -= row[i]


@parallel
def compare(below, below_now, above, above_now, sums, touched):
    """Compare the bits of two equilibria, (batch, neurons).

    Args:
        sums: per neuron above, Σ_b (above_now − above).
        touched: whether it changed, or fired in a sample in which something below changed.
    """
    moved = np.zeros(len(below), np.bool_)
    for b in numba.prange(len(below)):
        moved[b] = count_changes(below_now[b], below[b]) > 0
    for part in numba.prange((len(sums) + 255) // 256):
        total, any_ = sums[part * 256 : part * 256 + 256], touched[part * 256 : part * 256 + 256]
        total[:] = 0
        any_[:] = 0
        for b in range(len(above)):
            old = above[b, part * 256 : part * 256 + 256]
            new = above_now[b, part * 256 : part * 256 + 256]
            ever = np.int8(moved[b])
            for i in range(len(total)):
                total[i] += np.int32(new[i]) - np.int32(old[i])
                any_[i] |= np.int32((new[i] ^ old[i]) | (old[i] & ever))


@inline
def _places(bits, now):
    """Where bits (batch, neurons) changed, and where each sample's part of that list begins."""
    starts, places = np.zeros(len(bits) + 1, np.int64), np.empty(bits.size, np.int32)
    for b in range(len(bits)):
        starts[b + 1] = list_changes(bits[b], now[b], places, starts[b])
    return starts, places


@parallel
def correlate_input(rows, above, above_now, x, factor, gradient):
    """Gradient[n] = factor·Σ_b (above_now − above)[b, rows[n]]·x[b], with bits and real x."""
    for n in numba.prange(len(rows)):
        gradient[n] = 0
        for b in range(len(x)):
            c = np.float32(above_now[b, rows[n]] - above[b, rows[n]])
            if c != 0:
                for i in range(x.shape[1]):
                    gradient[n, i] += c * x[b, i]
        for i in range(x.shape[1]):
            gradient[n, i] *= factor


@parallel
def correlate_dense(rows, above, above_now, below, below_now, order, factor, gradient):
    """Gradient[n] = factor·Σ_b (above_now·below_now − above·below), in bits, at row rows[n].

    Args:
        order: where the weights' inputs lie among the bits below; empty where in their own order.
    """
    size = below.shape[1]
    changed, places = _places(below, below_now)
    for n in numba.prange(len(rows)):
        row = rows[n]
        total = np.zeros(size, np.int16)
        for b in range(len(below)):
            change = np.int32(above_now[b, row]) - np.int32(above[b, row])
            if change != 0:
                _add(total, 0, below_now[b], 0, size, change)
            if above[b, row]:
                for e in range(changed[b], changed[b + 1]):
                    i = places[e]
                    total[i] += np.int32(below_now[b, i]) - np.int32(below[b, i])
        if len(order):
            for i in range(size):
                gradient[n, i] = factor * np.float32(total[order[i]])
        else:
            for i in range(size):
                gradient[n, i] = factor * np.float32(total[i])


@parallel
def correlate_input_conv(change, route, columns, x, factor, gradient):
    """∂/∂W of a convolution of the input: factor·Σ_b change ⊗ x at the places of the maxima.

    Args:
        change: bits now less bits before, (batch, places, channels).
        route: the places in the map where the input's maxima are, (batch, places, channels).
        columns: of the map.
        x: the padded input, (batch, channels, height, width).
        gradient: (channels, input channels, kernel, kernel).
    """
    for c in numba.prange(len(gradient)):
        gradient[c] = 0
        for b in range(len(x)):
            for n in range(change.shape[1]):
                d = np.float32(change[b, n, c])
                if d != 0:
                    row, column = route[b, n, c] // columns, route[b, n, c] % columns
                    for low in range(gradient.shape[1]):
                        for ky in range(gradient.shape[2]):
                            for kx in range(gradient.shape[3]):
                                gradient[c, low, ky, kx] += d * x[b, low, row + ky, column + kx]
        gradient[c] *= factor


@parallel
def correlate_conv(layer, sent, sent_now, below, below_now, factor, gradient):
    """∂/∂W of a convolution of bits: factor·Σ_b (sent_now ⊗ below_now − sent ⊗ below), pooled.

    Args:
        layer: a row of the table of layers.
        sent: (batch, places·channels): from where in the map each neuron sends, or −1.
        below: (batch, height + 2·padding, width + 2·padding, channels): padded with zeros.
        gradient: (channels, kernel, kernel, input channels).
    """
    kernel, low, wide = layer[KERNEL], layer[LOW_CHANNELS], below.shape[2]
    flat, flat_now = below.reshape(len(below), -1), below_now.reshape(len(below), -1)
    changed, places = _places(flat, flat_now)
    for c in numba.prange(len(gradient)):
        total = np.zeros(kernel * kernel * low, np.int32)
        for b in range(len(below)):
            for n in range(c, sent.shape[1], layer[CHANNELS]):
                old, new = sent[b, n], sent_now[b, n]
                if old != new:
                    for ky in range(kernel):
                        if old >= 0:
                            row, column = old // layer[COLUMNS] + ky, old % layer[COLUMNS]
                            at = (row * wide + column) * low
                            _add(total, ky * kernel * low, flat[b], at, kernel * low, -1)
                        if new >= 0:
                            row, column = new // layer[COLUMNS] + ky, new % layer[COLUMNS]
                            at = (row * wide + column) * low
                            _add(total, ky * kernel * low, flat_now[b], at, kernel * low, 1)
                elif old >= 0:
                    row, column = old // layer[COLUMNS], old % layer[COLUMNS]
                    for e in range(changed[b], changed[b + 1]):
                        i = places[e]
                        ky, kx = i // low // wide - row, i // low % wide - column
                        if 0 <= ky < kernel and 0 <= kx < kernel:
                            change = np.int32(flat_now[b, i]) - np.int32(flat[b, i])
                            total[(ky * kernel + kx) * low + i % low] += change
        for ky in range(kernel):
            for kx in range(kernel):
                for i in range(low):
                    at = (ky * kernel + kx) * low + i
                    gradient[c, ky, kx, i] = factor * np.float32(total[at])
