"""The kernels, in Triton, which comes with PyTorch for GPUs.

A batch is cut into groups of `GROUP` samples. What a layer has to send of a group are the *rows* of
weights of its neurons whose bit has changed in any of the group's samples: how many, `counts`
(groups,), which, `rows` (groups, neurons) in any order, and by how much, `changes` (groups,
neurons, GROUP) of −1, 0 and 1. Sums of them are whole numbers, exact in any order.
"""

from __future__ import annotations

import triton
import triton.language as tl

GROUP = tl.constexpr(64)
"""Samples in a group."""
COLUMNS = tl.constexpr(64)
"""Neurons that a program of `send` sums up at."""
ROWS = tl.constexpr(128)
"""Rows that it multiplies at once."""
SHARES = tl.constexpr(4)
"""Programs that share the rows of a group."""
NEURONS = tl.constexpr(32)
"""Neurons that a program of `update` moves."""
SIDE = tl.constexpr(64)
"""Of the square of weights that a program of `pack` copies."""
WEIGHTS = tl.constexpr(4096)
"""Weights that a program of `flip` visits."""


@triton.jit(do_not_specialize=["height"])
def send(weights, changes, rows, counts, sums, height, width):
    """Add to ``sums`` (groups·GROUP, width) what a layer's changes send through its weights.

    ``weights``: (height, width), int8, a row for each neuron of the layer.
    """
    group = tl.program_id(1)
    share = tl.program_id(2)
    count = tl.load(counts + group)
    if share * ROWS < count:
        column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        sample = tl.arange(0, GROUP)
        total = tl.zeros((GROUP, COLUMNS), tl.float32)
        for first in range(share * ROWS, count, ROWS * SHARES):
            place = first + tl.arange(0, ROWS)
            row = tl.load(rows + group * height + place, mask=place < count, other=0)
            there = (place < count)[:, None]
            at = (group * height + row).to(tl.int64)[:, None] * GROUP + sample[None, :]
            change = tl.load(changes + at, mask=there, other=0)
            at = row.to(tl.int64)[:, None] * width + column[None, :]
            weight = tl.load(weights + at, mask=(column < width)[None, :], other=0)
            total = tl.dot(tl.trans(change.to(tl.float16)), weight.to(tl.float16), total)
        at = (group * GROUP + sample).to(tl.int64)[:, None] * width + column[None, :]
        tl.atomic_add(sums + at, total, mask=(column < width)[None, :], sem="relaxed")


@triton.jit(do_not_specialize=["batch", "width"])
def update(
    states, drive, below, below_scale, bias, above, above_scale, nudge, beta, changes, rows, counts,
    largest, batch, width, threshold, keep, take,
    moves: tl.constexpr, first: tl.constexpr, last: tl.constexpr, nudged: tl.constexpr,
):  # fmt: skip
    """Move a layer's states (batch, width) by a step, and note which bits have changed.

    s ← clip(keep·s + take·(p + nudge), 0, 1), with p the ``drive`` in the first layer, else
    below·α + bias, and above·α added, but in the last one. If it does not move, all bits are noted
    as if they had been 0.
    """
    neuron = tl.program_id(0) * NEURONS + tl.arange(0, NEURONS)
    group = tl.program_id(1)
    sample = group * GROUP + tl.arange(0, GROUP)
    inside = (sample < batch)[:, None] & (neuron < width)[None, :]
    at = sample.to(tl.int64)[:, None] * width + neuron[None, :]
    state = tl.load(states + at, mask=inside, other=0)
    fires = (state >= threshold) & inside
    if moves:
        if first:
            p = tl.load(drive + at, mask=inside, other=0)
        else:
            p = tl.load(below + at, mask=inside, other=0) * tl.load(below_scale)
            p += tl.load(bias + neuron, mask=neuron < width, other=0)[None, :]
        if not last:
            p += tl.load(above + at, mask=inside, other=0) * tl.load(above_scale)
        if nudged == "held":
            p += tl.load(nudge + at, mask=inside, other=0)
        elif nudged == "target":
            p += tl.load(beta) * (tl.load(nudge + at, mask=inside, other=0) - state)
        new = keep * state + take * p
        new = tl.clamp(new, 0.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
        tl.store(states + at, new, mask=inside)
        moved = tl.where(new == new, tl.abs(new - state), float("inf"))
        moved = tl.where(inside, moved, 0.0)
        tl.atomic_max(largest, tl.max(tl.max(moved, 1), 0), sem="relaxed")
        fire = (new >= threshold) & inside
        change = fire.to(tl.int8) - fires.to(tl.int8)
    else:
        change = fires.to(tl.int8)
    # One bit more than the sum of the neurons before: where each row is to be written.
    changed = tl.max(tl.abs(change.to(tl.int32)), 0)
    before = tl.cumsum(changed, 0) - changed
    slot = tl.atomic_add(counts + group, tl.sum(changed, 0), sem="relaxed") + before
    tl.store(rows + group * width + slot, neuron, mask=changed > 0)
    at = (group * width + neuron).to(tl.int64)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    tl.store(changes + at, tl.trans(change), mask=(changed > 0)[:, None])


@triton.jit(do_not_specialize=["height", "width"])
def pack(signs, down, up, height, width):
    """Copy signs (height, width) as int8 into ``down``, and turned into ``up`` (width, height)."""
    row = tl.program_id(0) * SIDE + tl.arange(0, SIDE)
    column = tl.program_id(1) * SIDE + tl.arange(0, SIDE)
    inside = (row < height)[:, None] & (column < width)[None, :]
    at = row.to(tl.int64)[:, None] * width + column[None, :]
    values = tl.load(signs + at, mask=inside, other=0).to(tl.int8)
    tl.store(down + at, values, mask=inside)
    turned = (column < width)[:, None] & (row < height)[None, :]
    at = column.to(tl.int64)[:, None] * height + row[None, :]
    tl.store(up + at, tl.trans(values), mask=turned)


@triton.jit
def flip(
    signs, momentum, writes, gradient, flips, count, rate, threshold,
    most: tl.constexpr,
):  # fmt: skip
    """Of some weights: see `binep.core.optim.Flip`."""
    at = tl.program_id(0).to(tl.int64) * WEIGHTS + tl.arange(0, WEIGHTS)
    inside = at < count
    sign = tl.load(signs + at, mask=inside, other=0)
    new = tl.load(momentum + at, mask=inside, other=0)
    new += tl.load(gradient + at, mask=inside, other=0) * rate
    tl.store(momentum + at, new, mask=inside)
    flipped = (sign * new > threshold) & inside
    tl.store(signs + at, -sign, mask=flipped)
    written = tl.load(writes + at, mask=flipped, other=most)
    tl.store(writes + at, written + 1, mask=written < most)
    tl.atomic_add(flips, tl.sum(flipped.to(tl.int64), 0), sem="relaxed")
