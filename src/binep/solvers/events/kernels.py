"""Event-driven updates of binary neurons, compiled by numba."""

from __future__ import annotations

from typing import Any, NamedTuple

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


class Samples(NamedTuple):
    """Samples during a phase; a row each, or one sample's rows. Layers lie side by side.

    Attributes:
        states: pre-activations s, float32.
        bits: what fires, int8.
        up: sums of signs from below, after pooling: int16 where they fit, or int32.
        down: sums from above, int16 or int32, in units of the layer's feedback.
        sent: the place in its map that a convolution's neuron sends from, or −1 where it is silent.
        route: the place of its window's maximum.
        maps: sums of signs before pooling, int16 or int32.
    """

    states: Any
    bits: Any
    up: Any
    down: Any
    sent: Any
    route: Any
    maps: Any


class Parameters(NamedTuple):
    """A network's parameters as the loops read them.

    Attributes:
        shape: the table of layers; see `binep.solvers.layouts.table`.
        signs_up: int8, of each layer (below, above); one layer after the other.
        signs_down: int8, of each layer (above, below).
        fixed: of a convolution's neurons α in units of ``feedback``, int32.
        scale, bias: α and b of each neuron.
        feedback: of each layer, what a unit of ``down`` is worth.
        thresholds: of each layer, from where it fires.
        gamma: how far a state moves towards its drive in a step.
    """

    shape: Any
    signs_up: Any
    signs_down: Any
    fixed: Any
    scale: Any
    bias: Any
    feedback: Any
    thresholds: Any
    gamma: Any


class Nudge(NamedTuple):
    """Of the output: a constant ``push`` if held, else beta·(push − s); none if push is empty."""

    push: Any
    beta: Any
    held: Any


class Limits(NamedTuple):
    """When a sample stops.

    Attributes:
        steps: the most time steps.
        budget: additions that a step may cost; the sample stops where it would cost more.
        may_skip: whether to take all steps that are left at once where no bit will change in them.
    """

    steps: Any
    budget: Any
    may_skip: Any


class Outcome(NamedTuple):
    """Of each sample: steps taken, (batch,); per layer the last that changed a bit, and max|Δs|."""

    taken: Any
    moved: Any
    residual: Any


class _Work(NamedTuple):
    """A sample's scratch memory.

    Attributes:
        drive: p of each neuron.
        before: states of the step before, or the states that a skip leads to.
        fired: bits after the step.
        changed: neurons whose bit changed, layer by layer.
        rows: some of them, counted within their layer.
        ends: where each layer's part of ``changed`` begins, and the last one's ends.
        stale: layers whose ``drive`` is out of date.
    """

    drive: Any
    before: Any
    fired: Any
    changed: Any
    rows: Any
    ends: Any
    stale: Any


@parallel
def multiply(bits, signs, product):
    """Add bits (batch, low) times signs (low, high), flattened, to ``product`` (batch, high)."""
    for b in numba.prange(len(bits)):
        add_rows(product[b], signs, 0, np.nonzero(bits[b])[0], 1)


@inline
def _send_up(layer, neurons, change, up, maps, signs):
    """Add (change = 1) or subtract (−1) the signs of neurons below that switched on or off."""
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
    """Add ±α of channel c, at a place of a convolution's map, to the sums of the layer below."""
    row, column = place // layer[COLUMNS], place % layer[COLUMNS]
    low, left = layer[LOW_CHANNELS], column - layer[PADDING]
    first, end = max(0, -left), min(layer[KERNEL], layer[LOW_COLUMNS] - left)  # kx that are inside
    for ky in range(layer[KERNEL]):
        y = row + ky - layer[PADDING]
        if y < 0 or y >= layer[LOW_ROWS]:
            continue
        at = below + (y * layer[LOW_COLUMNS] + left + first) * low
        tap = (c * layer[KERNEL] + ky) * layer[KERNEL] + first
        add_multiple(down, at, signs, layer[SIGNS] + tap * low, (end - first) * low, factor)


@inline
def _resend(layer, below, sample, parameters):
    """Bring what a convolution's neurons send down up to their bits and routes."""
    fixed, sent = parameters.fixed, sample.sent
    for i in range(layer[START], layer[START] + layer[SIZE]):
        wanted = sample.route[i] if sample.bits[i] else -1
        if wanted != sent[i]:
            c = (i - layer[START]) % layer[CHANNELS]
            down, signs = sample.down, parameters.signs_down
            if sent[i] >= 0:
                _send_down(layer, c, sent[i], -fixed[i], below, down, signs)
            if wanted >= 0:
                _send_down(layer, c, wanted, fixed[i], below, down, signs)
            sent[i] = wanted


@inline
def _sample(samples, b):
    """The rows of one sample."""
    return Samples(
        samples.states[b],
        samples.bits[b],
        samples.up[b],
        samples.down[b],
        samples.sent[b],
        samples.route[b],
        samples.maps[b],
    )


@parallel
def resend(chosen, samples, parameters):
    """Pool the maps of some samples and send down what follows from it."""
    shape = parameters.shape
    for n in numba.prange(len(chosen)):
        sample = _sample(samples, chosen[n])
        for k in range(1, len(shape)):
            if shape[k, CONV]:
                max_pool(shape[k], sample.up, sample.route, sample.maps)
                _resend(shape[k], shape[k - 1, START], sample, parameters)


@inline
def _drive(k, drive, sample, parameters, base):
    """The drive p of a layer, without the nudge, in one pass over memory."""
    shape = parameters.shape
    start, end = shape[k, START], shape[k, START] + shape[k, SIZE]
    above, alpha = sample.up[start:end], parameters.scale[start:end]
    b = parameters.bias[start:end]
    sums, factor = sample.down[start:end], parameters.feedback[k]
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
    """Update states, s ← clip((1 − gamma)·s + gamma·p, 0, 1), and their bits."""
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
    """Whether no bit will change under this drive, towards which s moves monotonically."""
    open_ = False
    for i in range(len(drive)):
        distance = drive[i] - threshold
        open_ |= distance < margin if fired[i] else distance > -margin
    return not open_


@inline
def _are_equal(a, b):
    for i in range(len(a)):  # noqa: SIM110 — numba inlines no generators
        if a[i] != b[i]:
            return False
    return True


@inline
def _forward(drive, push, beta, states, ends, fired, settings):
    """Many steps of neurons whose drive stays the same, apart from beta·(push − s).

    Args:
        ends: the states that they lead to.
        settings: steps, threshold, gamma.

    Returns:
        max|Δs| of the last step; −1 if a bit would change.
    """
    steps, threshold, gamma = settings
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
            looks = step % 64 == 63
            if looks or step + 1 == steps:
                copy_to(before, s)
            if len(push):
                goal = push[start : start + count]
                for i in range(count):
                    q = p[i] + beta * (goal[i] - s[i])
                    v = keep * s[i] + gamma * q
                    v = low if v < low else v
                    s[i] = high if v > high else v
                    differ |= (s[i] >= threshold) != bits[i]
            else:
                for i in range(count):
                    v = keep * s[i] + gamma * p[i]
                    v = low if v < low else v
                    s[i] = high if v > high else v
            if looks and _are_equal(before[:count], s[:count]):
                break  # as it stays in all steps that are left
        if differ:
            return np.float32(-1)
        for i in range(count):
            before[i] -= s[i]
        largest = largest_magnitude(before[:count])
        residual = residual if largest <= residual else largest  # so written, a NaN stays one
        copy_to(ends[start : start + count], s[:count])
    return residual


@inline
def _skip(sample, parameters, base, nudge, work, steps, residual):
    """Take so many steps at once, if no bit will change in them; returns whether it was so.

    The states that they lead to are in ``work.before``.
    """
    shape, gamma = parameters.shape, parameters.gamma
    layers = len(shape)
    # Layers whose drive stays the same: all but an output whose nudge follows its state.
    free = layers if nudge.held or len(nudge.push) == 0 else layers - 1
    if free < layers:  # without the nudge
        _drive(free, work.drive[shape[free, START] :], sample, parameters, base)
    for k in range(free):
        start, end = shape[k, START], shape[k, START] + shape[k, SIZE]
        margin = np.float32(1e-6 / gamma)
        fired = work.fired[start:end]
        if not _decided(work.drive[start:end], fired, parameters.thresholds[k], margin):
            return False
    for k in range(layers - 1, -1, -1):  # the output first, where a bit may change after all
        start, end = shape[k, START], shape[k, START] + shape[k, SIZE]
        residual[k] = _forward(
            work.drive[start:end],
            nudge.push if k >= free else nudge.push[:0],
            nudge.beta,
            sample.states[start:end],
            work.before[start:end],
            work.fired[start:end],
            (steps, parameters.thresholds[k], gamma),
        )
        if residual[k] < 0:
            return False
    return True


@inline
def _move_layers(sample, parameters, base, nudge, work, step, moved):
    """Update all layers; return how many additions the changed bits will cost."""
    shape, cost = parameters.shape, 0
    layers = len(shape)
    for k in range(layers):
        start, end = shape[k, START], shape[k, START] + shape[k, SIZE]
        p, s, a = work.drive[start:end], sample.states[start:end], work.fired[start:end]
        if work.stale[k]:
            _drive(k, p, sample, parameters, base)
            work.stale[k] = False
        if k + 1 == layers and len(nudge.push) > 0:
            push = nudge.push
            work.stale[k] = True
            if nudge.held:
                for i in range(len(p)):
                    p[i] += push[i]
            else:
                for i in range(len(p)):
                    p[i] += nudge.beta * (push[i] - s[i])
        _move(p, s, a, parameters.thresholds[k], parameters.gamma)
        changes = count_changes(a, sample.bits[start:end])
        work.ends[k + 1] = work.ends[k] + changes
        if changes:
            moved[k] = step
        if k + 1 < layers:
            above = shape[k + 1]
            row = above[KERNEL] ** 2 * above[CHANNELS] if above[CONV] else above[SIZE]
            cost += changes * row
        if k > 0 and not shape[k, CONV]:
            cost += changes * shape[k - 1, SIZE]
    return cost


@inline
def _send_changes(sample, parameters, work):
    """Add or subtract the rows of signs of the bits that changed."""
    shape, ends = parameters.shape, work.ends
    layers = len(shape)
    for k in range(layers):
        start = shape[k, START]
        if ends[k + 1] > ends[k]:
            end = start + shape[k, SIZE]
            bits, fired = sample.bits[start:end], work.fired[start:end]
            list_changes(bits, fired, start, work.changed, ends[k])
            copy_to(bits, fired)
            work.stale[max(k - 1, 0)] = True
            work.stale[min(k + 1, layers - 1)] = True
        for change in (1, -1):
            count = 0
            for n in range(ends[k], ends[k + 1]):
                if work.fired[work.changed[n]] == (change + 1) // 2:
                    work.rows[count] = work.changed[n] - start
                    count += 1
            rows = work.rows[:count]
            if k + 1 < layers:
                signs = parameters.signs_up
                _send_up(shape[k + 1], rows, change, sample.up, sample.maps, signs)
            if k > 0 and not shape[k, CONV]:
                low = shape[k - 1]
                sums = sample.down[low[START] : low[START] + low[SIZE]]
                add_rows(sums, parameters.signs_down, shape[k, SIGNS], rows, change)
    for k in range(1, layers):
        if shape[k, CONV] and ends[k + 1] > ends[k - 1]:
            if ends[k] > ends[k - 1]:
                max_pool(shape[k], sample.up, sample.route, sample.maps)
                work.stale[k - 1] = True
            _resend(shape[k], shape[k - 1, START], sample, parameters)


@inline
def _settle(sample, parameters, base, nudge, limits, taken, moved, residual):
    """Take one sample's steps; return its entry of ``taken``, see `settle`."""
    shape, total = parameters.shape, len(sample.states)
    layers = len(shape)
    work = _Work(
        np.empty(total, np.float32),
        np.empty(total, np.float32),
        np.empty(total, np.int8),
        np.empty(total, np.int64),
        np.empty(total, np.int64),
        np.zeros(layers + 1, np.int64),
        np.ones(layers, np.bool_),
    )
    while taken < limits.steps:
        final = taken + 1 == limits.steps
        if final:
            copy_to(work.before, sample.states)
        cost = _move_layers(sample, parameters, base, nudge, work, taken + 1, moved)
        taken += 1
        if final:
            for k in range(layers):
                start, end = shape[k, START], shape[k, START] + shape[k, SIZE]
                change, now = work.before[start:end], sample.states[start:end]
                for i in range(len(change)):
                    change[i] -= now[i]
                residual[k] = largest_magnitude(change)
        if limits.may_skip and not final and work.ends[layers] == 0:
            left = limits.steps - taken
            if _skip(sample, parameters, base, nudge, work, left, residual):
                copy_to(sample.states, work.before)
                return limits.steps
        if cost > limits.budget:
            copy_to(sample.bits, work.fired)
            return taken + limits.steps + 1
        _send_changes(sample, parameters, work)
    return taken


@parallel
def settle(samples, parameters, base, nudge, limits, outcome):
    """Take each sample's steps to the last, or to one in which more bits change than the budget.

    Such a sample stops after that step with its sums out of date, and ``taken`` is its step plus
    ``steps`` + 1: the caller forms its sums anew.

    Args:
        base: the input's drive, (batch, neurons of layer 1).
    """
    taken = outcome.taken  # numba loses what a prange assigns to a field's elements
    for b in numba.prange(len(samples.states)):
        taken[b] = _settle(
            _sample(samples, b),
            parameters,
            base[b],
            Nudge(nudge.push[b], nudge.beta, nudge.held),
            limits,
            taken[b],
            outcome.moved[b],
            outcome.residual[b],
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
