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
    SIGNS_DOWN,
    SIGNS_UP,
    SIZE,
    START,
    copy_to,
    count_changes,
    inline,
    largest_magnitude,
    list_changes,
    max_pool,
    parallel,
)
from binep.solvers.sign_bits import add_row, add_rows, in_bytes


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
        signs_up: bits of each layer (below, above), one layer after the other; see `sign_bits`.
        signs_down: bits of each layer (above, below); a row of each place of a kernel.
        fixed: of a convolution's neurons α in units of ``feedback``, int32.
        scale, bias: α and b of each neuron.
        feedback: of each layer, what a unit of ``down`` is worth.
        thresholds: of each layer, from where it fires.
        filter: how far a state moves towards its drive in a step.
    """

    shape: Any
    signs_up: Any
    signs_down: Any
    fixed: Any
    scale: Any
    bias: Any
    feedback: Any
    thresholds: Any
    filter: Any


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
        changes: of each of a layer's 1 where it fires now, or −1.
        starts: and where its row of signs begins.
        ends: where each layer's part of ``changed`` begins, and the last one's ends.
        stale: layers whose ``drive`` is out of date.
    """

    drive: Any
    before: Any
    fired: Any
    changed: Any
    changes: Any
    starts: Any
    ends: Any
    stale: Any


@inline
def _starts(rows, first, size, starts):
    """Where rows of signs begin, written to the begin of ``starts``."""
    for n in range(len(rows)):
        starts[n] = first + rows[n] * size
    return starts[: len(rows)]


@inline
def _send_up(layer, neurons, changes, sums, signs, starts):
    """Add (change = 1) or subtract (−1) the signs of neurons below that switched on or off."""
    channels = layer[CHANNELS]
    if layer[CONV] == 0:
        starts = _starts(neurons, layer[SIGNS_UP], in_bytes(layer[SIZE]), starts)
        add_rows(sums, layer[START], layer[SIZE], signs, 0, starts, changes)
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
                at = layer[MAP] + (row * layer[COLUMNS] + column) * channels
                tap = (ky * layer[KERNEL] + kx) * layer[LOW_CHANNELS] + c
                start = layer[SIGNS_UP] + tap * in_bytes(channels)
                add_row(sums, at, channels, signs, start, changes[n])


@inline
def _send_down(layer, place, starts, factors, below, down, signs):
    """Add ±α of channels at a place of a convolution's map to the sums of the layer below.

    Args:
        starts: where each channel's signs begin.
        factors: its α, or −α to take away what it sent.
    """
    kernel, low = layer[KERNEL], layer[LOW_CHANNELS]
    top = place // layer[COLUMNS] - layer[PADDING]
    left = place % layer[COLUMNS] - layer[PADDING]
    for ky in range(max(0, -top), min(kernel, layer[LOW_ROWS] - top)):
        for kx in range(max(0, -left), min(kernel, layer[LOW_COLUMNS] - left)):
            at = below + ((top + ky) * layer[LOW_COLUMNS] + left + kx) * low
            tap = (ky * kernel + kx) * in_bytes(low)
            add_rows(down, at, low, signs, tap, starts, factors)


@inline
def _wanted(sample, i):
    """The place that a convolution's neuron is to send from, or −1 where it is silent."""
    return sample.route[i] if sample.bits[i] else -1


@inline
def _resend(layer, below, sample, parameters):
    """Bring what a convolution's neurons send down up to their bits and routes."""
    channels, size = layer[CHANNELS], layer[KERNEL] ** 2 * in_bytes(layer[LOW_CHANNELS])
    places, factors = np.empty((2, 2 * channels), np.int32)
    starts = np.empty(2 * channels, np.int64)
    for first in range(layer[START], layer[START] + layer[SIZE], channels):  # a pooling window
        count = 0
        for c in range(channels):
            i = first + c
            wanted = _wanted(sample, i)
            if wanted == sample.sent[i]:
                continue
            alpha = parameters.fixed[i]
            if sample.sent[i] >= 0:
                places[count], starts[count], factors[count] = sample.sent[i], c, -alpha
                count += 1
            if wanted >= 0:
                places[count], starts[count], factors[count] = wanted, c, alpha
                count += 1
            sample.sent[i] = wanted
        _starts(starts[:count], layer[SIGNS_DOWN], size, starts)
        done = 0
        while done < count:  # those of one place together
            place, end = places[done], done
            for n in range(done, count):
                if places[n] == place:
                    _swap(places, n, end)
                    _swap(factors, n, end)
                    _swap(starts, n, end)
                    end += 1
            some, by = starts[done:end], factors[done:end]
            _send_down(layer, place, some, by, below, sample.down, parameters.signs_down)
            done = end


@inline
def _swap(array, i, j):
    array[i], array[j] = array[j], array[i]


@inline
def _forget(layer, low, sample):
    """Take away all that a convolution sends down, where to send it anew costs less."""
    changes, fired = 0, 0
    for i in range(layer[START], layer[START] + layer[SIZE]):
        wanted = _wanted(sample, i)
        fired += wanted >= 0
        if wanted != sample.sent[i]:
            changes += (wanted >= 0) + (sample.sent[i] >= 0)
    if changes > fired:
        sample.down[low[START] : low[START] + low[SIZE]] = 0
        sample.sent[layer[START] : layer[START] + layer[SIZE]] = -1


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
                _forget(shape[k], shape[k - 1], sample)
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
def _move(drive, states, fired, threshold, filter):
    """Update states, s ← clip((1 − filter)·s + filter·p, 0, 1), and their bits."""
    keep, filter = np.float32(1.0 - filter), np.float32(filter)
    low, high = np.float32(0), np.float32(1)
    for i in range(len(drive)):
        s = keep * states[i] + filter * drive[i]
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
        settings: steps, threshold, filter.

    Returns:
        max|Δs| of the last step; −1 if a bit would change.
    """
    steps, threshold, filter = settings
    keep, filter = np.float32(1.0 - filter), np.float32(filter)
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
            looks = step % 32 == 31
            if looks or step + 1 == steps:
                copy_to(before, s)
            if len(push):
                goal = push[start : start + count]
                for i in range(count):
                    q = p[i] + beta * (goal[i] - s[i])
                    v = keep * s[i] + filter * q
                    v = low if v < low else v
                    s[i] = high if v > high else v
                    differ |= (s[i] >= threshold) != bits[i]
            else:
                for i in range(count):
                    v = keep * s[i] + filter * p[i]
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
    shape, filter = parameters.shape, parameters.filter
    layers = len(shape)
    # Layers whose drive stays the same: all but an output whose nudge follows its state.
    free = layers if nudge.held or len(nudge.push) == 0 else layers - 1
    if free < layers:  # without the nudge
        _drive(free, work.drive[shape[free, START] :], sample, parameters, base)
    for k in range(free):
        start, end = shape[k, START], shape[k, START] + shape[k, SIZE]
        margin = np.float32(1e-6 / filter)
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
            (steps, parameters.thresholds[k], filter),
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
        _move(p, s, a, parameters.thresholds[k], parameters.filter)
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
        if ends[k + 1] == ends[k]:
            continue
        start, end = shape[k, START], shape[k, START] + shape[k, SIZE]
        bits, fired = sample.bits[start:end], work.fired[start:end]
        list_changes(bits, fired, work.changed, ends[k])
        copy_to(bits, fired)
        work.stale[max(k - 1, 0)] = True
        work.stale[min(k + 1, layers - 1)] = True
        neurons = work.changed[ends[k] : ends[k + 1]]
        changes = work.changes[: len(neurons)]
        for n in range(len(neurons)):
            changes[n] = 1 if fired[neurons[n]] else -1
        if k + 1 < layers:
            sums = sample.maps if shape[k + 1, CONV] else sample.up
            _send_up(shape[k + 1], neurons, changes, sums, parameters.signs_up, work.starts)
        if k > 0 and not shape[k, CONV]:
            low, signs = shape[k - 1], parameters.signs_down
            starts = _starts(neurons, shape[k, SIGNS_DOWN], in_bytes(low[SIZE]), work.starts)
            add_rows(sample.down, low[START], low[SIZE], signs, 0, starts, changes)
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
        np.empty(total, np.int32),
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
