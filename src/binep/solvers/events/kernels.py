"""Event-driven updates of binary neurons, compiled by numba."""

from __future__ import annotations

import numba
import numpy as np

from binep.solvers.primitives import (
    CHANNELS,
    COLUMNS,
    CONV,
    KERNEL,
    LOW_CHANNELS,
    LOW_COLUMNS,
    LOW_ROWS,
    MAP,
    PADDING,
    ROWS,
    SIGNS,
    SIZE,
    START,
    add_multiple,
    add_rows,
    copy_to,
    count_changes,
    inline,
    largest_magnitude,
    list_changes,
    max_pool,
    parallel,
)


@parallel
def multiply(bits, signs, product):
    """Product += bits (batch, low) times signs, low rows of them one after the other."""
    for b in numba.prange(len(bits)):
        add_rows(product[b], signs, 0, np.nonzero(bits[b])[0], 1)


@inline
def _send_up(layer, neurons, change, up, maps, signs):
    """Some neurons of the layer below have switched on (change = 1) or off (−1)."""
    if layer[CONV] == 0:
        sums = up[layer[START] : layer[START] + layer[SIZE]]
        add_rows(sums, signs, layer[SIGNS], neurons, change)
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
                add_multiple(maps, at, signs, start, layer[CHANNELS], change)


@inline
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
            add_multiple(down, at, signs, layer[SIGNS] + tap * low, low, factor)


@inline
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


@parallel
def resend(samples, shape, bits, up, down, sent, route, maps, signs_down, fixed):
    """Pool the maps of some samples and send down what follows from it."""
    for n in numba.prange(len(samples)):
        b = samples[n]
        for k in range(1, len(shape)):
            if shape[k, CONV]:
                max_pool(shape[k], up[b], route[b], maps[b])
                below = shape[k - 1, START]
                _resend(shape[k], below, bits[b], route[b], sent[b], down[b], signs_down, fixed)


@inline
def _drive(k, drive, shape, up, down, base, scale, bias, feedback):
    """The drive p of a layer, without the nudge, in one pass over memory."""
    start, end = shape[k, START], shape[k, START] + shape[k, SIZE]
    above, alpha, b = up[start:end], scale[start:end], bias[start:end]
    sums, factor = down[start:end], feedback[k]
    last = k + 1 == len(shape)
    if k == 0 and last:
        copy_to(drive, base)
    elif k == 0:
        for i in range(len(drive)):
            drive[i] = base[i] + np.float32(sums[i]) * factor
    elif last:
        for i in range(len(drive)):
            drive[i] = np.float32(above[i]) * alpha[i] + b[i]
    else:
        for i in range(len(drive)):
            drive[i] = np.float32(above[i]) * alpha[i] + b[i] + np.float32(sums[i]) * factor


@inline
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


@inline
def _decided(drive, fired, threshold, margin):
    """Whether every bit stays as it is under this drive, towards which s moves without turning."""
    open_ = False
    for i in range(len(drive)):
        distance = drive[i] - threshold
        open_ |= distance < margin if fired[i] else distance > -margin
    return not open_


@inline
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
        copy_to(p[:count], drive[start : start + count])
        copy_to(s[:count], states[start : start + count])
        bits = fired[start : start + count]
        differ = False
        for step in range(steps):
            if step + 1 == steps:
                copy_to(before, s)
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
        largest = largest_magnitude(before[:count])
        residual = residual if largest <= residual else largest  # so written, a NaN stays one
        copy_to(ends[start : start + count], s[:count])
    return residual


@inline
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


@parallel
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
                copy_to(before, states[b])
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
                changes = count_changes(a, bits[b, start:end])
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
                    residual[b, k] = largest_magnitude(change)
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
                    copy_to(states[b], before)
                    taken[b] = steps
                    break
            if cost > budget:
                copy_to(bits[b], fired)
                taken[b] += steps + 1  # marks a sample that has stopped
                break
            for k in range(layers):
                if ends[k + 1] > ends[k]:
                    start, end = shape[k, START], shape[k, START] + shape[k, SIZE]
                    list_changes(bits[b, start:end], fired[start:end], start, events, ends[k])
                    copy_to(bits[b, start:end], fired[start:end])
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
                        add_rows(sums, signs_down, shape[k, SIGNS], rows[:count], change)
            for k in range(1, layers):
                if shape[k, CONV] and ends[k + 1] > ends[k - 1]:
                    if ends[k] > ends[k - 1]:
                        max_pool(shape[k], up[b], route[b], maps[b])
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


@parallel
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


@parallel
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
