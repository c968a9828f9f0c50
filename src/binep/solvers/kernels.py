"""Loops that PyTorch has no single operation for, compiled for the CPU by numba.

Arrays are C-ordered; a sample's neurons lie one layer after the other. Maps of convolutions are
stored (row, column, channel), so that what one bit sends is a contiguous row of signs.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch

from binep.core.overrelaxation import FIRST, MOST, STEADY

Array = np.ndarray[Any, Any]

_inline: Any = numba.njit(cache=True)
_parallel: Any = numba.njit(parallel=True, cache=True, error_model="numpy")
_sums_in_any_order = {"reassoc", "contract"}


def use_threads() -> None:
    """Let numba use as many threads as PyTorch does."""
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    if torch.get_num_threads() != threads:  # numba's start resets what OpenMP tells PyTorch
        torch.set_num_threads(threads)


# Events ------------------------------------------------------------------------------------------

(
    SIZE,  # neurons of the layer
    START,  # where the layer begins among a sample's neurons
    SIGNS,  # where the signs of the synapse that leads to it begin
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
) = range(15)
"""Columns of `shape`, which has a row per layer."""


@_inline
def _add(total, at, signs, start, count, factor):
    """Total[at:] += factor·signs[start:], so many of them."""
    # Slices: indices that cannot be negative let the loop be vectorized.
    to, row = total[at : at + count], signs[start : start + count]
    if factor == 1:
        for i in range(count):
            to[i] += row[i]
    elif factor == -1:
        for i in range(count):
            to[i] -= row[i]
    else:
        for i in range(count):
            to[i] += np.int32(factor) * np.int32(row[i])


@_inline
def _add_rows(to, signs, start, rows, change):
    """Add (change = 1) or take away (−1) rows of signs; several at once, to pass over less."""
    count = len(to)
    whole = len(rows) // 4 * 4
    for n in range(0, whole, 4):
        a, b, c, d = (
            signs[start + rows[n] * count : start + (rows[n] + 1) * count],
            signs[start + rows[n + 1] * count : start + (rows[n + 1] + 1) * count],
            signs[start + rows[n + 2] * count : start + (rows[n + 2] + 1) * count],
            signs[start + rows[n + 3] * count : start + (rows[n + 3] + 1) * count],
        )
        if change > 0:
            for i in range(count):
                to[i] += np.int16(a[i]) + np.int16(b[i]) + np.int16(c[i]) + np.int16(d[i])
        else:
            for i in range(count):
                to[i] -= np.int16(a[i]) + np.int16(b[i]) + np.int16(c[i]) + np.int16(d[i])
    for n in range(whole, len(rows)):
        at = start + rows[n] * count
        _add(to, 0, signs, at, count, change)


@_parallel
def multiply(bits, signs, product):
    """Product += bits (batch, low) times signs, low rows of them one after the other."""
    for b in numba.prange(len(bits)):
        _add_rows(product[b], signs, 0, np.nonzero(bits[b])[0], 1)


@_inline
def _send_up(layer, neurons, change, up, maps, signs):
    """Some neurons of the layer below have switched on (change = 1) or off (−1)."""
    if layer[CONV] == 0:
        sums = up[layer[START] : layer[START] + layer[SIZE]]
        _add_rows(sums, signs, layer[SIGNS], neurons, change)
        return
    for n in range(len(neurons)):
        place, c = neurons[n] // layer[LOW_CHANNELS], neurons[n] % layer[LOW_CHANNELS]
        y, x = place // layer[LOW_COLUMNS], place % layer[LOW_COLUMNS]
        for ky in range(layer[KERNEL]):
            row = y + layer[PADDING] - ky
            if row < 0 or row >= layer[ROWS]:
                continue
            for kx in range(layer[KERNEL]):
                column = x + layer[PADDING] - kx
                if column < 0 or column >= layer[COLUMNS]:
                    continue
                at = layer[MAP] + (row * layer[COLUMNS] + column) * layer[CHANNELS]
                tap = (ky * layer[KERNEL] + kx) * layer[LOW_CHANNELS] + c
                start = layer[SIGNS] + tap * layer[CHANNELS]
                _add(maps, at, signs, start, layer[CHANNELS], change)


@_inline
def _send_down(layer, c, place, factor, below, down, signs):
    """Channel c at a place of a convolution's map sends to the layer below."""
    row, column = place // layer[COLUMNS], place % layer[COLUMNS]
    low = layer[LOW_CHANNELS]
    for ky in range(layer[KERNEL]):
        y = row + ky - layer[PADDING]
        if y < 0 or y >= layer[LOW_ROWS]:
            continue
        for kx in range(layer[KERNEL]):
            x = column + kx - layer[PADDING]
            if x < 0 or x >= layer[LOW_COLUMNS]:
                continue
            at = below + (y * layer[LOW_COLUMNS] + x) * low
            tap = (c * layer[KERNEL] + ky) * layer[KERNEL] + kx
            _add(down, at, signs, layer[SIGNS] + tap * low, low, factor)


@_inline
def _pool(layer, up, route, maps):
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


@_inline
def _resend(layer, below, bits, route, sent, down, signs, fixed):
    """Bring what a convolution's neurons send down up to their bits and routes."""
    for i in range(layer[START], layer[START] + layer[SIZE]):
        wanted = route[i] if bits[i] else -1
        if wanted != sent[i]:
            c = (i - layer[START]) % layer[CHANNELS]
            if sent[i] >= 0:
                _send_down(layer, c, sent[i], -fixed[i], below, down, signs)
            if wanted >= 0:
                _send_down(layer, c, wanted, fixed[i], below, down, signs)
            sent[i] = wanted


@_parallel
def resend(samples, shape, bits, up, down, sent, route, maps, signs_down, fixed):
    """Pool the maps of some samples and send down what follows from it."""
    for n in numba.prange(len(samples)):
        b = samples[n]
        for k in range(1, len(shape)):
            if shape[k, CONV]:
                _pool(shape[k], up[b], route[b], maps[b])
                below = shape[k - 1, START]
                _resend(shape[k], below, bits[b], route[b], sent[b], down[b], signs_down, fixed)


@_inline
def _copy(to, source):
    """To[:] = source: several times quicker as a loop than as numba assigns arrays."""
    for i in range(len(to)):
        to[i] = source[i]


@_inline
def _drive(k, drive, shape, up, down, base, scale, bias, feedback):
    """The drive p of a layer, without the nudge, in one pass over memory."""
    start, end = shape[k, START], shape[k, START] + shape[k, SIZE]
    above, alpha, b = up[start:end], scale[start:end], bias[start:end]
    sums, factor = down[start:end], feedback[k]
    last = k + 1 == len(shape)
    if k == 0 and last:
        _copy(drive, base)
    elif k == 0:
        for i in range(len(drive)):
            drive[i] = base[i] + np.float32(sums[i]) * factor
    elif last:
        for i in range(len(drive)):
            drive[i] = np.float32(above[i]) * alpha[i] + b[i]
    else:
        for i in range(len(drive)):
            drive[i] = np.float32(above[i]) * alpha[i] + b[i] + np.float32(sums[i]) * factor


@_inline
def _move(drive, states, fired, threshold, gamma):
    """S ← clip((1 − gamma)·s + gamma·p, 0, 1), and the bits that follow."""
    keep, gamma = np.float32(1.0 - gamma), np.float32(gamma)
    low, high = np.float32(0), np.float32(1)
    for i in range(len(drive)):
        s = keep * states[i] + gamma * drive[i]
        s = low if s < low else s  # so written, a NaN stays one
        s = high if s > high else s
        states[i] = s
        fired[i] = np.int8(1) if s >= threshold else np.int8(0)


@_inline
def _count(fired, bits):
    """How many bits differ."""
    count = 0
    for i in range(len(fired)):
        count += np.int32(fired[i] ^ bits[i])
    return count


@_inline
def _changes(bits, now, start, places, count):
    """Append the places of the bits that differ, counted from ``start``, behind so many others.

    Returns:
        How many places there are.
    """
    for block in range(0, len(bits), 256):
        old, new = bits[block : block + 256], now[block : block + 256]
        if _count(new, old):
            for i in range(len(new)):
                if new[i] != old[i]:
                    places[count] = start + block + i
                    count += 1
    return count


@_inline
def _largest(x):
    """max|x|: the bits of positive floats are in the order of integers, which vectorize."""
    whole, largest = x.view(np.int32), np.zeros(1, np.int32)
    most = np.int32(0)
    for i in range(len(whole)):
        size = whole[i] & np.int32(0x7FFFFFFF)
        most = size if size > most else most
    largest[0] = most
    return largest.view(np.float32)[0]


@_inline
def _decided(drive, fired, threshold, margin):
    """Whether every bit stays as it is under this drive, towards which s moves without turning."""
    open_ = False
    for i in range(len(drive)):
        distance = drive[i] - threshold
        open_ |= distance < margin if fired[i] else distance > -margin
    return not open_


@_inline
def _forward(drive, nudge, pull, states, ends, fired, steps, threshold, gamma):
    """Many steps of neurons whose drive stays the same, apart from pull·(nudge − s).

    Returns:
        max|Δs| of the last step; the states are in `ends`. −1 if a bit would change.
    """
    keep, gamma = np.float32(1.0 - gamma), np.float32(gamma)
    low, high = np.float32(0), np.float32(1)
    p, s, before = np.empty(128, np.float32), np.empty(128, np.float32), np.empty(128, np.float32)
    residual = np.float32(0)
    for start in range(0, len(drive), 128):
        count = min(128, len(drive) - start)
        _copy(p[:count], drive[start : start + count])
        _copy(s[:count], states[start : start + count])
        bits = fired[start : start + count]
        differ = False
        for step in range(steps):
            if step + 1 == steps:
                _copy(before, s)
            if len(nudge):
                goal = nudge[start : start + count]
                for i in range(count):
                    q = p[i] + pull * (goal[i] - s[i])
                    v = keep * s[i] + gamma * q
                    v = low if v < low else v
                    s[i] = high if v > high else v
                    differ |= (s[i] >= threshold) != bits[i]
            else:
                for i in range(count):
                    v = keep * s[i] + gamma * p[i]
                    v = low if v < low else v
                    s[i] = high if v > high else v
        if differ:
            return np.float32(-1)
        for i in range(count):
            before[i] -= s[i]
        largest = _largest(before[:count])
        residual = residual if largest <= residual else largest  # so written, a NaN stays one
        _copy(ends[start : start + count], s[:count])
    return residual


@_inline
def _skip(free, shape, drive, push, pull, states, ends, fired, steps, thresholds, gamma, residual):
    """Take so many steps at once, if no bit will change in them; returns whether it was so.

    Args:
        free: layers whose drive stays the same; the one after it is nudged towards ``push``.
    """
    layers = len(shape)
    for k in range(free):
        start, end = shape[k, START], shape[k, START] + shape[k, SIZE]
        margin = np.float32(1e-6 / gamma)
        if not _decided(drive[start:end], fired[start:end], thresholds[k], margin):
            return False
    for k in range(layers - 1, -1, -1):  # the output first, where a bit may change after all
        start, end = shape[k, START], shape[k, START] + shape[k, SIZE]
        residual[k] = _forward(
            drive[start:end],
            push if k >= free else push[:0],
            pull,
            states[start:end],
            ends[start:end],
            fired[start:end],
            steps,
            thresholds[k],
            gamma,
        )
        if residual[k] < 0:
            return False
    return True


@_parallel
def settle(
    shape,
    states,
    bits,
    up,
    down,
    sent,
    route,
    maps,
    signs_up,
    signs_down,
    fixed,
    base,
    scale,
    bias,
    feedback,
    thresholds,
    gamma,
    push,
    beta,
    push_held,
    steps,
    budget,
    taken,
    moved,
    residual,
    may_skip,
):
    """Let every sample run on to its last step, or to one in which too many bits change.

    Such a sample stops behind that step with its sums out of date: ``taken`` tells its step, and
    the caller forms its sums anew.

    Args:
        may_skip: take the steps that are left at once in a sample in which no bit will change.
        push: the output's nudge where ``push_held``, else its target, of which β·(push − s) is the
            nudge; without neurons there is none.
        budget: additions that a step may ask for before a sample stops.
    """
    layers, total = len(shape), states.shape[1]
    for b in numba.prange(len(states)):
        drive = np.empty(total, np.float32)
        before = np.empty(total, np.float32)
        fired = np.empty(total, np.int8)
        events, rows = np.empty(total, np.int64), np.empty(total, np.int64)
        ends = np.zeros(layers + 1, np.int64)
        stale = np.ones(layers, np.bool_)  # layers whose drive in `drive` is out of date
        while taken[b] < steps:
            final = taken[b] + 1 == steps
            if final:
                _copy(before, states[b])
            cost = 0
            for k in range(layers):
                start, end = shape[k, START], shape[k, START] + shape[k, SIZE]
                p, s, a = drive[start:end], states[b, start:end], fired[start:end]
                if stale[k]:
                    _drive(k, p, shape, up[b], down[b], base[b], scale, bias, feedback)
                    stale[k] = False
                if k + 1 == layers and push.shape[1] > 0:
                    nudge = push[b]
                    stale[k] = True
                    if push_held:
                        for i in range(len(p)):
                            p[i] += nudge[i]
                    else:
                        for i in range(len(p)):
                            p[i] += beta * (nudge[i] - s[i])
                _move(p, s, a, thresholds[k], gamma)
                changes = _count(a, bits[b, start:end])
                ends[k + 1] = ends[k] + changes
                if changes:
                    moved[b, k] = taken[b] + 1
                if k + 1 < layers:
                    above = shape[k + 1]
                    row = above[KERNEL] ** 2 * above[CHANNELS] if above[CONV] else above[SIZE]
                    cost += changes * row
                if k > 0 and not shape[k, CONV]:
                    cost += changes * shape[k - 1, SIZE]
            taken[b] += 1
            if final:
                for k in range(layers):
                    start, end = shape[k, START], shape[k, START] + shape[k, SIZE]
                    change, now = before[start:end], states[b, start:end]
                    for i in range(len(change)):
                        change[i] -= now[i]
                    residual[b, k] = _largest(change)
            if may_skip and not final and ends[layers] == 0:
                free = layers if push_held or push.shape[1] == 0 else layers - 1
                if free < layers:  # without the nudge, which follows the state
                    p = drive[shape[free, START] :]
                    _drive(free, p, shape, up[b], down[b], base[b], scale, bias, feedback)
                left = steps - taken[b]
                if _skip(
                    free,
                    shape,
                    drive,
                    push[b],
                    beta,
                    states[b],
                    before,
                    fired,
                    left,
                    thresholds,
                    gamma,
                    residual[b],
                ):
                    _copy(states[b], before)
                    taken[b] = steps
                    break
            if cost > budget:
                _copy(bits[b], fired)
                taken[b] += steps + 1  # marks a sample that has stopped
                break
            for k in range(layers):
                if ends[k + 1] > ends[k]:
                    start, end = shape[k, START], shape[k, START] + shape[k, SIZE]
                    _changes(bits[b, start:end], fired[start:end], start, events, ends[k])
                    _copy(bits[b, start:end], fired[start:end])
                    stale[max(k - 1, 0)] = True
                    stale[min(k + 1, layers - 1)] = True
                for change in (1, -1):
                    count = 0
                    for n in range(ends[k], ends[k + 1]):
                        if fired[events[n]] == (change + 1) // 2:
                            rows[count] = events[n] - shape[k, START]
                            count += 1
                    if k + 1 < layers:
                        _send_up(shape[k + 1], rows[:count], change, up[b], maps[b], signs_up)
                    if k > 0 and not shape[k, CONV]:
                        low = shape[k - 1]
                        sums = down[b, low[START] : low[START] + low[SIZE]]
                        _add_rows(sums, signs_down, shape[k, SIGNS], rows[:count], change)
            for k in range(1, layers):
                if shape[k, CONV] and ends[k + 1] > ends[k - 1]:
                    if ends[k] > ends[k - 1]:
                        _pool(shape[k], up[b], route[b], maps[b])
                        stale[k - 1] = True
                    _resend(
                        shape[k],
                        shape[k - 1, START],
                        bits[b],
                        route[b],
                        sent[b],
                        down[b],
                        signs_down,
                        fixed,
                    )


@_parallel
def patches(images, kernel, found):
    """What each place of a map sees of padded images (batch, row, column, channel): its row."""
    rows, columns = images.shape[1] - kernel + 1, images.shape[2] - kernel + 1
    width = kernel * images.shape[3]
    for b in numba.prange(len(images)):
        for y in range(rows):
            for x in range(columns):
                for ky in range(kernel):
                    part = images[b, y + ky, x : x + kernel].reshape(-1)
                    at = ((b * rows + y) * columns + x, ky * width)
                    found[at[0], at[1] : at[1] + width] = part


@_parallel
def load_signs(rows, values, order, up, down):
    """Copy the signs that differ from float ``values`` (above, below) into both orders of int8.

    Args:
        rows: of ``values`` in which signs may differ.
        values: one row per neuron or channel above.
        order: where each column of ``values`` lies among the inputs of ``up`` and ``down``.
        up: (below, above).
        down: (above, below).
    """
    for n in numba.prange(len(rows)):
        above = rows[n]
        for column in range(values.shape[1]):
            sign = np.int8(values[above, column])
            below = order[column]
            if down[above, below] != sign:
                down[above, below] = sign
                up[below, above] = sign


# Correlations ------------------------------------------------------------------------------------


@_parallel
def compare(below, below_now, above, above_now, sums, touched):
    """Compare the bits of two equilibria, (batch, neurons).

    Args:
        sums: per neuron above, Σ_b (above_now − above).
        touched: whether it changed, or fired in a sample in which something below changed.
    """
    moved = np.zeros(len(below), np.bool_)
    for b in numba.prange(len(below)):
        moved[b] = _count(below_now[b], below[b]) > 0
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


@_inline
def _places(bits, now):
    """Where bits (batch, neurons) changed, and where each sample's part of that list begins."""
    starts, places = np.zeros(len(bits) + 1, np.int64), np.empty(bits.size, np.int32)
    for b in range(len(bits)):
        starts[b + 1] = _changes(bits[b], now[b], 0, places, starts[b])
    return starts, places


@_parallel
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


@_parallel
def correlate_dense(rows, above, above_now, below, below_now, order, factor, gradient):
    """Gradient[n] = factor·Σ_b (above_now·below_now − above·below), in bits, at row rows[n]."""
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
        for i in range(size):
            gradient[n, i] = factor * np.float32(total[order[i]])


@_parallel
def correlate_input_conv(change, route, columns, x, factor, gradient):
    """The same for a convolution of the input: change (batch, places, channels).

    Args:
        change: bits now less bits before.
        route: the places in the map where the input's maxima are, likewise.
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


@_parallel
def correlate_conv(layer, sent, sent_now, below, below_now, factor, gradient):
    """The same between bits, through a pooled convolution.

    Args:
        layer: a row of `shape`.
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


# Optimizer ---------------------------------------------------------------------------------------


@_parallel
def flip(signs, momentum, rows, gradient, rate, threshold, flips):
    """``momentum`` += rate·gradient in some rows, then flip where sign·momentum > threshold.

    Args:
        flips: how many flipped in each of the rows.
    """
    for n in numba.prange(len(rows)):
        row, count = rows[n], 0
        for i in range(signs.shape[1]):
            m = momentum[row, i] + rate * gradient[n, i]
            momentum[row, i] = m
            if signs[row, i] * m > threshold:
                signs[row, i] = -signs[row, i]
                count += 1
        flips[n] = count


# Digits ------------------------------------------------------------------------------------------


@_inline
def _gather(sums, scale, product, units):
    """Sums += scale·Σ_d units[d]·product[d], of one sample."""
    for d in range(len(product)):
        factor, part = scale * units[d], product[d]
        if factor != 0:
            for i in range(len(sums)):
                sums[i] += factor * np.float32(part[i])


@_inline
def _clip(x):
    low, high = np.float32(0), np.float32(1)
    for i in range(len(x)):
        v = low if x[i] < low else x[i]  # so written, a NaN stays one
        x[i] = high if v > high else v


@_inline
def _follow(p, s, relaxation, nudge, inside, clip):
    """S ← rho(s + relaxation·(p − s)), nudged, with p in the way; returns max|Δs|."""
    if relaxation != 1:
        for i in range(len(p)):
            p[i] = s[i] + relaxation * (p[i] - s[i])
    if len(nudge) and inside:
        for i in range(len(p)):
            p[i] += nudge[i]
    _clip(p)
    if len(nudge) and not inside:
        for i in range(len(p)):
            p[i] += nudge[i]
        if clip:
            _clip(p)
    for i in range(len(p)):
        new = p[i]
        p[i] -= s[i]
        s[i] = new
    return _largest(p)


@_inline
def _write_digits(s, sent, digits, units):
    """Send the change since what was sent last, in digits of eight bits, 128 of which stands for 0.

    Args:
        s: what is to be known at the other end.
        sent: what is known there; brought up to date.
        digits: (digits, neurons): the change, each digit a 254th of the one before.
        units: (digits,): what a step of each digit is worth.
    """
    change = np.empty(len(s), np.float32)
    for i in range(len(s)):
        change[i] = s[i] - sent[i]
    unit = _largest(change) / np.float32(127)
    to_whole = np.float32(1.5 * 2**23)  # added and taken away, it rounds
    for d in range(len(digits)):
        units[d] = unit
        inverse = np.float32(1) / unit if unit > np.float32(1e-30) else np.float32(0)
        row = digits[d]
        for i in range(len(s)):
            whole = (change[i] * inverse + to_whole) - to_whole
            change[i] -= whole * unit
            sent[i] += whole * unit
            row[i] = np.uint8(np.int32(whole) + 128)
        unit = unit / np.float32(254)


@_parallel
def send(states, sent, digits, units):
    """`_write_digits` for every sample: digits (digits, batch, neurons), units (digits, batch)."""
    for b in numba.prange(len(states)):
        _write_digits(states[b], sent[b], digits[:, b], units[:, b])


@_parallel
def receive_conv(layer, maps, product, units, pooled, route):
    """Add what arrives from below to a convolution's maps, and pool them."""
    for b in numba.prange(len(maps)):
        _gather(maps[b], np.float32(1), product[:, b], units[:, b])
        _pool(layer, pooled[b], route[b], maps[b])


@_parallel
def send_unpooled(channels, route, scale, states, sent, digits, units):
    """Send α·s of a convolution at the places of its maxima; see `send`."""
    for b in numba.prange(len(states)):
        unpooled = np.zeros(sent.shape[1], np.float32)
        for i in range(states.shape[1]):
            unpooled[route[b, i] * channels + i % channels] = scale[i] * states[b, i]
        _write_digits(unpooled, sent[b], digits[:, b], units[:, b])


@_parallel
def follow(
    sums,
    up,
    up_units,
    up_scale,
    down,
    down_units,
    down_scale,
    pooled,
    scale,
    bias,
    states,
    relaxation,
    nudge,
    inside,
    clip,
    sent,
    digits,
    units,
    residual,
):
    """A step of a layer, and the digits that it sends.

    Args:
        sums: the drive that has arrived, (batch, neurons).
        up: what arrives from below, (digits, batch, neurons); without digits, nothing does.
        up_units: (digits, batch).
        up_scale: the scaling factor.
        down, down_units, down_scale: the same from above.
        pooled: of a convolution, to be scaled and biased, (batch, neurons); or without neurons.
        scale, bias: of each neuron.
        relaxation: (batch,), see `Network.step`.
        nudge: (batch, neurons), or without neurons.
        inside: whether the nudge stands inside rho.
        clip: whether a nudged state is clipped again.
        sent, digits, units: see `send`.
        residual: (batch,): max|Δs|.
    """
    for b in numba.prange(len(states)):
        _gather(sums[b], up_scale, up[:, b], up_units[:, b])
        _gather(sums[b], down_scale, down[:, b], down_units[:, b])
        if not len(digits):
            continue
        p = sums[b].copy()
        if pooled.shape[1]:
            part = pooled[b]
            for i in range(len(p)):
                p[i] += part[i] * scale[i] + bias[i]
        residual[b] = _follow(p, states[b], relaxation[b], nudge[b], inside, clip)
        _write_digits(states[b], sent[b], digits[:, b], units[:, b])


# Fused steps -------------------------------------------------------------------------------------


@numba.njit(cache=True, fastmath=_sums_in_any_order)
def _up(rows, scale, low, drive):
    """What a dense synapse sends up; a row of weights per neuron above."""
    for i in range(len(drive)):
        row, arrived = rows[i * len(low) : (i + 1) * len(low)], np.float32(0)
        for j in range(len(row)):
            arrived += row[j] * low[j]
        drive[i] += scale * arrived


@_inline
def _down(rows, scale, above, drive):
    """What it sends down."""
    for i in range(len(above)):
        row, sent = rows[i * len(drive) : (i + 1) * len(drive)], scale * above[i]
        for j in range(len(row)):
            drive[j] += row[j] * sent


@_inline
def _drive_fused(sizes, s, base, weights, scales, biases, drive, turns, turn):
    """The drives of a sample's layers: what is given, and what the synapses add.

    Of every layer, or with two turns of every second one: the even ones in turn 0.
    """
    _copy(drive[: sizes[0]], base)
    _copy(drive[sizes[0] :], biases)
    start = at = 0
    for k in range(1, len(sizes)):
        end = start + sizes[k - 1]
        after = end + sizes[k]
        rows = weights[at : at + sizes[k - 1] * sizes[k]]
        if k % turns == turn:
            _up(rows, scales[k - 1], s[start:end], drive[end:after])
        if (k - 1) % turns == turn:
            _down(rows, scales[k - 1], s[end:after], drive[start:end])
        start, at = end, at + len(rows)


@_inline
def further(factor, rate, before):
    """What `Relaxation.follow` makes of ω, from two rates of a sample."""
    seen = max(rate, factor - 1)
    mu_squared = (seen + factor - 1) ** 2 / (seen * factor**2)
    best = 2 / (1 + np.sqrt(max(0.0, 1 - mu_squared)))
    steady = abs(rate - before) < STEADY * rate
    return max(factor, min(best, MOST)) if steady and rate < 1 else factor


@_parallel
def settle_fused(
    sizes,
    states,
    base,
    weights,
    scales,
    biases,
    target,
    beta,
    inside,
    clip,
    steps,
    tolerance,
    alternate,
    taken,
    moved,
    residual,
):
    """Let every sample take its steps, until it has settled.

    Args:
        sizes: neurons per layer.
        states: (batch, neurons), layers side by side.
        base: drive of the first layer that does not change, (batch, neurons of it).
        weights: of the synapses between layers, one after the other, each (above, below).
        scales: what each of these is to be multiplied by.
        biases: of the layers above the first.
        target: of the output, (batch, neurons of it), or without neurons.
        beta, inside, clip: of the nudge β·(target − s).
        alternate: whether even and odd layers move in turn, and further: see `Relaxation`.
        taken: (batch,): steps taken.
        moved, residual: (batch, layers): last step that moved, and how far the last one did.
    """
    layers, total, turns = len(sizes), states.shape[1], 2 if alternate else 1
    for b in numba.prange(len(states)):
        s, drive = states[b], np.empty(total, np.float32)
        nudge = np.empty(target.shape[1], np.float32)
        factor, change, rate = FIRST if alternate else 1.0, np.inf, 0.0
        for step in range(steps):
            settled = True
            for turn in range(turns):
                _drive_fused(sizes, s, base[b], weights, scales, biases, drive, turns, turn)
                for i in range(len(nudge)):
                    nudge[i] = beta * (target[b, i] - s[total - len(nudge) + i])
                end = 0
                for k in range(layers):
                    start, end = end, end + sizes[k]
                    if k % turns != turn:
                        continue
                    push = nudge if k + 1 == layers else nudge[:0]
                    p, states_k = drive[start:end], s[start:end]
                    moves = _follow(p, states_k, np.float32(factor), push, inside, clip)
                    residual[b, k] = moves
                    if not moves <= tolerance:  # a NaN has not settled
                        moved[b, k], settled = step + 1, False
            taken[b] = step + 1
            if settled and tolerance > 0:
                break
            if alternate:
                before, last, change = rate, change, np.float64(residual[b].max())
                rate = change / last
                factor = further(factor, rate, before)


@_inline
def _correlate_rows(gradient, slopes, states, low_slopes, low_states):
    """Gradient += slope above ⊗ state below + state above ⊗ slope below."""
    for i in range(len(states)):
        row = gradient[i * len(low_states) : (i + 1) * len(low_states)]
        slope, state = slopes[i], states[i]
        for j in range(len(row)):
            row[j] += slope * low_states[j] + state * low_slopes[j]


@_parallel
def backpropagate(
    sizes,
    states,
    base,
    weights,
    scales,
    biases,
    target,
    steps,
    base_gradient,
    weight_gradient,
    bias_gradient,
    residual,
):
    """Take free steps, then backpropagate ½‖s_L − target‖² through them, sample by sample.

    Synapses are symmetric: what a layer sends back is what its slope would send as a state.

    Args:
        sizes, states, base, weights, scales, biases, target: see `settle_fused`.
        steps: how many.
        base_gradient: by the first layer's drive, (batch, neurons of it); starts at 0.
        weight_gradient: by weights·scales, summed over a share of the batch, (shares, weights);
            starts at 0.
        bias_gradient: (shares, neurons of the other layers); likewise.
        residual: (batch, layers): max|Δs| of the last step.
    """
    (batch, total), shares, first = states.shape, len(weight_gradient), sizes[0]
    for share in numba.prange(shares):
        sent, slopes = np.empty((steps, total), np.float32), np.empty((steps, total), np.float32)
        drive, nothing = np.empty(total, np.float32), np.zeros(total, np.float32)
        for b in range(share * batch // shares, (share + 1) * batch // shares):
            s = states[b]
            for step in range(steps):
                _copy(sent[step], s)
                _drive_fused(sizes, s, base[b], weights, scales, biases, drive, 1, 0)
                slope = slopes[step]
                for i in range(total):  # of rho
                    slope[i] = np.float32(1) if 0 <= drive[i] <= 1 else np.float32(0)
                start = 0
                for k in range(len(sizes)):
                    end = start + sizes[k]
                    p, here = drive[start:end], s[start:end]
                    residual[b, k] = _follow(p, here, np.float32(1), nothing[:0], False, False)
                    start = end
            back, output = drive, total - target.shape[1]
            _copy(back, nothing)
            for i in range(output, total):
                back[i] = s[i] - target[b, i - output]
            for step in range(steps - 1, -1, -1):
                slope, before = slopes[step], sent[step]
                for i in range(total):
                    slope[i] *= back[i]
                for i in range(first):
                    base_gradient[b, i] += slope[i]
                for i in range(first, total):
                    bias_gradient[share, i - first] += slope[i]
                start = at = 0
                for k in range(1, len(sizes)):
                    end = start + sizes[k - 1]
                    after = end + sizes[k]
                    rows = weight_gradient[share, at : at + sizes[k - 1] * sizes[k]]
                    above, low = slope[end:after], slope[start:end]
                    _correlate_rows(rows, above, before[end:after], low, before[start:end])
                    start, at = end, at + len(rows)
                base_of_slopes, biases_of_slopes = nothing[:first], nothing[first:]
                _drive_fused(
                    sizes, slope, base_of_slopes, weights, scales, biases_of_slopes, back, 1, 0
                )
