"""All steps of a sample while it stays in cache, compiled by numba."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from binep.core.overrelaxation import FIRST, LARGE, MOST, STEADY, VERY_STEADY
from binep.solvers.compiling import compiled
from binep.solvers.primitives import (
    SUMS_IN_ANY_ORDER,
    Array,
    copy_to,
    inline,
    parallel,
    update_real,
)

# What a parallel loop calls for each sample: where the loop itself writes to an array of a tuple,
# numba takes that for dead code.
one_sample = compiled(error_model="numpy")


class Synapses(NamedTuple):
    """The synapses between layers of neurons.

    Attributes:
        sizes: neurons per layer.
        weights: of one synapse after the other, each (above, below).
        scales: what each synapse's are to be multiplied by.
        biases: of the layers above the first.
    """

    sizes: Array
    weights: Array
    scales: Array
    biases: Array


class Nudge(NamedTuple):
    """β·(target − s) of the output.

    Attributes:
        target: (batch, neurons of the output); (batch, 0) without a nudge.
        beta: β.
        inside: whether it is added before the clipping, or after it.
        clip: whether states nudged from outside are clipped again.
    """

    target: Array
    beta: np.float32
    inside: bool
    clip: bool


class Until(NamedTuple):
    """When a sample stops.

    Attributes:
        steps: the most steps.
        tolerance: it stops after a step that moves nothing by more than this, unless this is 0.
        odd_even: whether odd layers move before even ones, with over-relaxation.
    """

    steps: int
    tolerance: np.float32
    odd_even: bool


class Ended(NamedTuple):
    """How samples ended, each (batch, layers).

    Attributes:
        moved: the last step that moved a layer; starts at 0.
        residual: max|Δs| of a layer in the last step.
    """

    moved: Array
    residual: Array


class Gradients(NamedTuple):
    """Of the cost, summed over the batch or a share of it; they start at 0.

    Attributes:
        drive: by what the input adds to the first layer's drive, (batch, neurons of it).
        weights: by weights·scales, (shares, weights).
        biases: (shares, neurons of the layers above the first).
    """

    drive: Array
    weights: Array
    biases: Array


@compiled(fastmath=SUMS_IN_ANY_ORDER)
def _add_up(rows, scale, low, drive):
    """Add scale·W·low of a dense synapse to ``drive``; W has a row per neuron above."""
    for i in range(len(drive)):
        row, total = rows[i * len(low) : (i + 1) * len(low)], np.float32(0)
        for j in range(len(row)):
            total += row[j] * low[j]
        drive[i] += scale * total


@inline
def _add_down(rows, scale, above, drive):
    """Add scale·Wᵀ·above to ``drive``."""
    for i in range(len(above)):
        row, sent = rows[i * len(drive) : (i + 1) * len(drive)], scale * above[i]
        for j in range(len(row)):
            drive[j] += row[j] * sent


@inline
def _drives(synapses, s, base, biases, drive, turns, turn):
    """The drives of a sample's layers: what is given, and what the synapses add.

    Of every layer, or with two turns of every second one, counted from 0: the even ones in turn 0.
    """
    sizes = synapses.sizes
    copy_to(drive[: sizes[0]], base)
    copy_to(drive[sizes[0] :], biases)
    start = at = 0
    for k in range(1, len(sizes)):
        end = start + sizes[k - 1]
        after = end + sizes[k]
        rows = synapses.weights[at : at + sizes[k - 1] * sizes[k]]
        if k % turns == turn:
            _add_up(rows, synapses.scales[k - 1], s[start:end], drive[end:after])
        if (k - 1) % turns == turn:
            _add_down(rows, synapses.scales[k - 1], s[end:after], drive[start:end])
        start, at = end, at + len(rows)


@inline
def raised_omega(omega, rate, before):
    """The next ω of a sample from its last two rates, as `OverRelaxation.update` computes it."""
    seen = max(rate, omega - 1)
    mu_squared = (seen + omega - 1) ** 2 / (seen * omega**2)
    best = 2 / (1 + np.sqrt(max(0.0, 1 - mu_squared)))
    shift = abs(rate - before)
    most = MOST if shift < VERY_STEADY * rate else LARGE
    return max(omega, min(best, most)) if shift < STEADY * rate and rate < 1 else omega


@one_sample
def _settle(synapses, s, base, target, nudge, until, moved, residual):
    """Take one sample's steps; see `settle`."""
    sizes, (steps, tolerance, odd_even) = synapses.sizes, until
    layers, total, turns = len(sizes), len(s), 2 if odd_even else 1
    drive, push = np.empty(total, np.float32), np.empty(len(target), np.float32)
    omega, change, rate = FIRST if odd_even else 1.0, np.inf, 0.0
    for step in range(steps):
        settled = True
        for turn in range(turns):
            _drives(synapses, s, base, synapses.biases, drive, turns, turn)
            for i in range(len(push)):
                push[i] = nudge.beta * (target[i] - s[total - len(push) + i])
            end = 0
            for k in range(layers):
                start, end = end, end + sizes[k]
                if k % turns != turn:
                    continue
                pushed = push if k + 1 == layers else push[:0]
                p, here = drive[start:end], s[start:end]
                moves = update_real(p, here, np.float32(omega), pushed, nudge.inside, nudge.clip)
                residual[k] = moves
                if not moves <= tolerance:  # a NaN has not settled
                    moved[k], settled = step + 1, False
        if settled and tolerance > 0:
            break
        if odd_even:
            before, last, change = rate, change, np.float64(residual.max())
            rate = change / last
            omega = raised_omega(omega, rate, before)


@parallel
def settle(synapses, states, base, nudge, until, ended):
    """Take each sample's steps until it has settled.

    Args:
        synapses: a `Synapses`.
        states: (batch, neurons), layers side by side.
        base: drive of the first layer that does not change, (batch, neurons of it).
        nudge: a `Nudge`.
        until: an `Until`.
        ended: an `Ended`, to be written.
    """
    for b in numba.prange(len(states)):
        moved, residual = ended.moved[b], ended.residual[b]
        _settle(synapses, states[b], base[b], nudge.target[b], nudge, until, moved, residual)


@inline
def _correlate_rows(gradient, slopes, states, low_slopes, low_states):
    """Gradient += slope above ⊗ state below + state above ⊗ slope below."""
    for i in range(len(states)):
        row = gradient[i * len(low_states) : (i + 1) * len(low_states)]
        slope, state = slopes[i], states[i]
        for j in range(len(row)):
            row[j] += slope * low_states[j] + state * low_slopes[j]


@inline
def _correlate(sizes, gradient, slopes, states):
    """`_correlate_rows` of every synapse between layers."""
    start = at = 0
    for k in range(1, len(sizes)):
        end = start + sizes[k - 1]
        after = end + sizes[k]
        rows = gradient[at : at + sizes[k - 1] * sizes[k]]
        above, low = slopes[end:after], slopes[start:end]
        _correlate_rows(rows, above, states[end:after], low, states[start:end])
        start, at = end, at + len(rows)


@inline
def _step(synapses, s, base, drive, slope, residual):
    """A free step of a sample, and the slopes of rho: 1 where the drive is from 0 to 1, else 0."""
    _drives(synapses, s, base, synapses.biases, drive, 1, 0)
    for i in range(len(s)):
        slope[i] = np.float32(1) if 0 <= drive[i] <= 1 else np.float32(0)
    start = 0
    for k in range(len(synapses.sizes)):
        end = start + synapses.sizes[k]
        p, here = drive[start:end], s[start:end]
        residual[k] = update_real(p, here, np.float32(1), p[:0], False, False)
        start = end


@one_sample
def _backpropagate(synapses, sent, slopes, back, gradients):
    """Backpropagate through the steps of a sample.

    Args:
        sent: states before each step, (steps, neurons).
        slopes: of rho in each step, (steps, neurons); become ∂C/∂p.
        back: ∂C/∂s after the last step; becomes that before the first.
        gradients: to be added to; of this sample's drive, and of its share's weights and biases.
    """
    first, nothing = len(gradients.drive), np.zeros(len(back), np.float32)
    for step in range(len(slopes) - 1, -1, -1):
        slope = slopes[step]
        for i in range(len(slope)):
            slope[i] *= back[i]
        for i in range(first):
            gradients.drive[i] += slope[i]
        for i in range(first, len(slope)):
            gradients.biases[i - first] += slope[i]
        _correlate(synapses.sizes, gradients.weights, slope, sent[step])
        _drives(synapses, slope, nothing[:first], nothing[first:], back, 1, 0)


@one_sample
def _unroll(synapses, s, base, target, trace, gradients, residual):
    """Take a sample's free steps and backpropagate through them; see `backpropagate`.

    Args:
        trace: room for what `_backpropagate` calls sent and slopes.
    """
    sent, slopes = trace
    drive, output = np.empty(len(s), np.float32), len(s) - len(target)
    for step in range(len(slopes)):
        copy_to(sent[step], s)
        _step(synapses, s, base, drive, slopes[step], residual)
    for i in range(len(s)):
        drive[i] = s[i] - target[i - output] if i >= output else np.float32(0)
    _backpropagate(synapses, sent, slopes, drive, gradients)


@parallel
def backpropagate(synapses, states, base, target, steps, gradients, residual):
    """Take free steps, then backpropagate ½‖s_L − target‖² through them, sample by sample.

    Synapses are symmetric: a layer's ∂C/∂p reaches its neighbours' states as its own state would
    reach their drives.

    Args:
        synapses, states, base: see `settle`.
        target: of the output, (batch, neurons of it).
        steps: how many.
        gradients: a `Gradients`, to be written.
        residual: (batch, layers): max|Δs| of the last step, to be written.
    """
    (batch, total), shares = states.shape, len(gradients.weights)
    for share in numba.prange(shares):
        trace = np.empty((steps, total), np.float32), np.empty((steps, total), np.float32)
        weights, biases = gradients.weights[share], gradients.biases[share]
        for b in range(share * batch // shares, (share + 1) * batch // shares):
            to = Gradients(gradients.drive[b], weights, biases)
            _unroll(synapses, states[b], base[b], target[b], trace, to, residual[b])
