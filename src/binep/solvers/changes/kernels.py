"""Convolutions of changes, most of which are 0, compiled by numba.

What a neuron's change adds to the map at the other end of its synapses is a patch: a row of weights
for each row of the kernel, times the change. All neurons at one place of their maps send to the
same patch.
"""

from __future__ import annotations

import numba
import numpy as np

from binep.solvers.compiling import compiled
from binep.solvers.primitives import (
    CHANNELS,
    COLUMNS,
    KERNEL,
    LOW_CHANNELS,
    LOW_COLUMNS,
    LOW_ROWS,
    PADDING,
    POOL,
    ROWS,
    SUMS_IN_ANY_ORDER,
    inline,
    largest_magnitude,
)

_IN_CACHE = 2**14
"""Weights of one row of the kernel that stay in cache while all places of a map send."""

_ROUNDING = np.float32(2**-20)
"""What rounding leaves of what has come and gone, as a share of the largest number in a map, or of
1 where that is less."""

_sums = compiled(forceinline=True, error_model="numpy", fastmath=SUMS_IN_ANY_ORDER)


@_sums
def _add_multiples(to, weights, starts, changes):
    """Add Σ_n changes[n]·weights[starts[n] : starts[n] + len(to)], four in each pass over ``to``.

    Args:
        to: (count,).
        weights: flat.
        starts, changes: of each neuron that sends.
    """
    count = len(to)
    whole = len(starts) // 4 * 4
    for n in range(0, whole, 4):
        a, b, c, d = (
            weights[starts[n] : starts[n] + count],
            weights[starts[n + 1] : starts[n + 1] + count],
            weights[starts[n + 2] : starts[n + 2] + count],
            weights[starts[n + 3] : starts[n + 3] + count],
        )
        p, q, r, s = changes[n], changes[n + 1], changes[n + 2], changes[n + 3]
        for i in range(count):
            to[i] += p * a[i] + q * b[i] + r * c[i] + s * d[i]
    for n in range(whole, len(starts)):
        a, p = weights[starts[n] : starts[n] + count], changes[n]
        for i in range(count):
            to[i] += p * a[i]


@inline
def _add(to, total):
    """Add all that has moved at once: many small numbers, each added to a large one, are lost."""
    for i in range(len(to)):
        to[i] += total[i]


@inline
def _max_pool(layer, pooled, route, maps):
    """As `primitives.max_pool`; of maxima that rounding alone tells apart, the first one's place.

    Where nothing arrives, all are equal, and may differ by what has come and gone.
    """
    channels, pool, columns = layer[CHANNELS], layer[POOL], layer[COLUMNS]
    largest, chosen = largest_magnitude(maps), np.empty(channels, np.float32)
    margin = np.float32(0) if largest != largest else _ROUNDING * max(np.float32(1), largest)
    for window in range(layer[ROWS] // pool * (columns // pool)):
        top, left = window // (columns // pool) * pool, window % (columns // pool) * pool
        to = window * channels
        best, best_place = pooled[to : to + channels], route[to : to + channels]
        for d in range(pool * pool):
            place = (top + d // pool) * columns + left + d % pool
            here = maps[place * channels : (place + 1) * channels]
            for c in range(channels):
                unknown = here[c] != here[c]  # a NaN is the maximum
                better = d == 0 or here[c] > chosen[c] + margin or unknown
                chosen[c] = here[c] if better else chosen[c]
                best_place[c] = place if better else best_place[c]
                best[c] = here[c] if d == 0 or here[c] > best[c] or unknown else best[c]


@inline
def _overlap(corner, kernel, side):
    """Which taps of a patch that begins at ``corner`` lie inside a map: from, and up to."""
    return max(0, -corner), min(kernel, side - corner)


@compiled(parallel=True, error_model="numpy")
def send_up(layer, weights, states, sent, maps, pooled, route):
    """Add W ⋆ (states − sent) of the layer below to a convolution's maps, and pool them.

    Args:
        layer: row of the table of layers; see `binep.solvers.primitives`.
        weights: flat, of (kernel rows, channels below, kernel columns, channels): a patch's.
        states, sent: of the layer below, (batch, neurons below).
        maps: (batch, neurons of the map before pooling).
        pooled, route: the maxima and their places, (batch, neurons).
    """
    low, low_rows, low_columns = layer[LOW_CHANNELS], layer[LOW_ROWS], layer[LOW_COLUMNS]
    channels, rows, columns = layer[CHANNELS], layer[ROWS], layer[COLUMNS]
    kernel, row = layer[KERNEL], layer[KERNEL] * layer[CHANNELS]
    shift, places = layer[PADDING] - kernel + 1, low_rows * low_columns
    block = min(low, max(4, _IN_CACHE // row))
    for b in numba.prange(len(states)):
        starts, changes = np.empty(places * block, np.int64), np.empty(places * block, np.float32)
        ends, total = np.zeros(places + 1, np.int64), np.zeros(maps.shape[1], np.float32)
        for begin in range(0, low, block):
            count, some = 0, min(block, low - begin)
            for place in range(places):
                at = place * low + begin
                now, before = states[b, at : at + some], sent[b, at : at + some]
                for c in range(some):  # without a branch: written over where it has not changed
                    starts[count], changes[count] = (begin + c) * row, now[c] - before[c]
                    count += now[c] != before[c]
                ends[place + 1] = count
            for tap in range(kernel if count else 0):
                for place in range(places):
                    y, x = place // low_columns + shift + tap, place % low_columns + shift
                    first, last = _overlap(x, kernel, columns)
                    sending = slice(ends[place], ends[place + 1])
                    if 0 <= y < rows and first < last and ends[place] < ends[place + 1]:
                        at, length = (y * columns + x + first) * channels, (last - first) * channels
                        _add_multiples(
                            total[at : at + length],
                            weights[tap * low * row + first * channels :],
                            starts[sending],
                            changes[sending],
                        )
        _add(maps[b], total)
        _max_pool(layer, pooled[b], route[b], maps[b])


@inline
def _put(starts, changes, counts, place, start, change):
    """Append a neuron to those that send from a place."""
    n = counts[place]
    starts[place, n], changes[place, n] = start, change
    counts[place] = n + 1


@compiled(parallel=True, error_model="numpy")
def send_down(layer, weights, states, route, sent, sent_route, sums):
    """Add Wᵀ ⋆ (Unpool(states) − Unpool(sent)) of a convolution to the layer below.

    Args:
        layer: row of the table of layers; see `binep.solvers.primitives`.
        weights: flat, of (channels, kernel rows, kernel columns, channels below): a patch's.
        states, route: what is to have been sent, and from which place before pooling, (batch,
            neurons).
        sent, sent_route: likewise what was sent before; overwritten.
        sums: of the layer below, (batch, neurons below).
    """
    low, low_rows, low_columns = layer[LOW_CHANNELS], layer[LOW_ROWS], layer[LOW_COLUMNS]
    channels, columns, pool = layer[CHANNELS], layer[COLUMNS], layer[POOL]
    kernel, padding, row = layer[KERNEL], layer[PADDING], layer[KERNEL] * layer[LOW_CHANNELS]
    windows, inside = columns // pool, pool * pool
    for b in numba.prange(len(states)):
        starts = np.empty((inside, 2 * channels), np.int64)
        changes = np.empty((inside, 2 * channels), np.float32)
        counts, total = np.zeros(inside, np.int64), np.zeros(sums.shape[1], np.float32)
        for window in range(layer[ROWS] // pool * windows):
            top, left = window // windows * pool, window % windows * pool
            counts[:] = 0
            for c in range(channels):
                i, start = window * channels + c, c * kernel * row
                new, old, to, before = states[b, i], sent[b, i], route[b, i], sent_route[b, i]
                if new == old and (to == before or new == 0):
                    continue
                sent[b, i], sent_route[b, i] = new, to
                now = (to // columns - top) * pool + to % columns - left
                if to == before:
                    _put(starts, changes, counts, now, start, new - old)
                    continue
                if new != 0:
                    _put(starts, changes, counts, now, start, new)
                if old != 0:
                    then = (before // columns - top) * pool + before % columns - left
                    _put(starts, changes, counts, then, start, -old)
            for place in range(inside):
                if counts[place] == 0:
                    continue
                y, x = top + place // pool - padding, left + place % pool - padding
                first, last = _overlap(x, kernel, low_columns)
                some = slice(0, counts[place])
                length = (last - first) * low
                for tap in range(*_overlap(y, kernel, low_rows)):
                    at = ((y + tap) * low_columns + x + first) * low
                    if first < last:
                        _add_multiples(
                            total[at : at + length],
                            weights[tap * row + first * low :],
                            starts[place, some],
                            changes[place, some],
                        )
        _add(sums[b], total)
