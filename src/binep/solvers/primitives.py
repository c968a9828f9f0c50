"""Loops that several solvers share, compiled by numba.

Arrays are C-ordered. Maps of convolutions are stored (row, column, channel), so that what
one neuron sends is a contiguous row of signs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from binep.solvers.compiling import compiled

Array = np.ndarray[Any, Any]

inline: Any = compiled(forceinline=True, error_model="numpy")
parallel: Any = compiled(parallel=True, error_model="numpy")
SUMS_IN_ANY_ORDER = {"reassoc", "contract"}

(
    SIZE,  # neurons of the layer
    START,  # where the layer begins among a sample's neurons
    SIGNS_UP,  # where the bits of the synapse that leads to it begin, (below, above)
    SIGNS_DOWN,  # and in the other order
    MAP,  # where its map before pooling begins
    CONV,  # 1 for a convolution, 0 for a dense synapse; all below are of convolutions
    CHANNELS,
    ROWS,  # of the map before pooling
    COLUMNS,
    POOL,
    KERNEL,
    PADDING,
    LOW_CHANNELS,  # of the layer below
    LOW_ROWS,
    LOW_COLUMNS,
    FIELDS,
) = range(16)
"""Columns of a table of layers, which has a row for each."""


@inline
def copy_to(to, source):
    """Copy an array: several times quicker as a loop than as numba assigns arrays."""
    for i in range(len(to)):
        to[i] = source[i]


@inline
def count_changes(fired, bits):
    """How many bits differ; added up in 16 bits, of which a register holds the most."""
    count = 0
    for block in range(0, len(fired), 2**14):
        some, others = fired[block : block + 2**14], bits[block : block + 2**14]
        part = np.int16(0)
        for i in range(len(some)):
            part = np.int16(part + np.int16(some[i] ^ others[i]))
        count += part
    return count


@inline
def list_changes(bits, now, places, count):
    """Append the places of bits that differ to ``places``, which holds ``count`` already.

    Returns:
        How many places there are then.
    """
    for block in range(0, len(bits), 256):
        old, new = bits[block : block + 256], now[block : block + 256]
        if count_changes(new, old):
            for i in range(len(new)):
                if new[i] != old[i]:
                    places[count] = block + i
                    count += 1
    return count


@inline
def largest_magnitude(x):
    """max|x|: the bits of positive floats are in the order of integers, which vectorize."""
    whole, largest = x.view(np.int32), np.zeros(1, np.int32)
    most = np.int32(0)
    for i in range(len(whole)):
        size = whole[i] & np.int32(0x7FFFFFFF)
        most = size if size > most else most
    largest[0] = most
    return largest.view(np.float32)[0]


@inline
def max_pool(layer, up, route, maps):
    """The maximum of each window, and its place: the first one among equals."""
    channels, pool = layer[CHANNELS], layer[POOL]
    rows, columns = layer[ROWS] // pool, layer[COLUMNS] // pool
    for y in range(rows):
        for x in range(columns):
            to = layer[START] + (y * columns + x) * channels
            best, best_place = up[to : to + channels], route[to : to + channels]
            for d in range(pool * pool):
                place = (y * pool + d // pool) * layer[COLUMNS] + x * pool + d % pool
                at = layer[MAP] + place * channels
                here = maps[at : at + channels]
                for c in range(channels):
                    better = d == 0 or here[c] > best[c]
                    best[c] = here[c] if better else best[c]
                    best_place[c] = place if better else best_place[c]


@inline
def clip_to_unit(x):
    """Every element clipped to [0, 1], in place; a NaN stays one."""
    low, high = np.float32(0), np.float32(1)
    for i in range(len(x)):
        v = low if x[i] < low else x[i]  # so written, a NaN stays one
        x[i] = high if v > high else v


@inline
def update_real(p, s, relaxation, nudge, inside, clip):
    """Update states, s ← rho(s + ω(p − s)), nudged; return max|Δs|.

    Args:
        p: the drive; overwritten.
        s: the states, changed in place.
        relaxation: ω.
        nudge: β·(−∂C/∂s); empty without a nudge.
        inside: whether it is added before the clipping, or after it.
        clip: whether states nudged from outside are clipped again.
    """
    if relaxation != 1:
        for i in range(len(p)):
            p[i] = s[i] + relaxation * (p[i] - s[i])
    if len(nudge) and inside:
        for i in range(len(p)):
            p[i] += nudge[i]
    clip_to_unit(p)
    if len(nudge) and not inside:
        for i in range(len(p)):
            p[i] += nudge[i]
        if clip:
            clip_to_unit(p)
    for i in range(len(p)):
        new = p[i]
        p[i] -= s[i]
        s[i] = new
    return largest_magnitude(p)
