"""All steps of a sample while it stays in cache, compiled by numba."""

from __future__ import annotations

import numba
import numpy as np

from binep.core.overrelaxation import FIRST, MOST, STEADY
from binep.solvers.primitives import (
    SUMS_IN_ANY_ORDER,
    copy_to,
    inline,
    parallel,
    update_real,
)


@numba.njit(cache=True, fastmath=SUMS_IN_ANY_ORDER)
def _up(rows, scale, low, drive):
    """What a dense synapse sends up; a row of weights per neuron above."""
    for i in range(len(drive)):
        row, arrived = rows[i * len(low) : (i + 1) * len(low)], np.float32(0)
        for j in range(len(row)):
            arrived += row[j] * low[j]
        drive[i] += scale * arrived


@inline
def _down(rows, scale, above, drive):
    """What it sends down."""
    for i in range(len(above)):
        row, sent = rows[i * len(drive) : (i + 1) * len(drive)], scale * above[i]
        for j in range(len(row)):
            drive[j] += row[j] * sent


@inline
def _drive_fused(sizes, s, base, weights, scales, biases, drive, turns, turn):
    """The drives of a sample's layers: what is given, and what the synapses add.

    Of every layer, or with two turns of every second one: the even ones in turn 0.
    """
    copy_to(drive[: sizes[0]], base)
    copy_to(drive[sizes[0] :], biases)
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


@inline
def further(factor, rate, before):
    """What `Relaxation.follow` makes of ω, from two rates of a sample."""
    seen = max(rate, factor - 1)
    mu_squared = (seen + factor - 1) ** 2 / (seen * factor**2)
    best = 2 / (1 + np.sqrt(max(0.0, 1 - mu_squared)))
    steady = abs(rate - before) < STEADY * rate
    return max(factor, min(best, MOST)) if steady and rate < 1 else factor


@parallel
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
                    moves = update_real(p, states_k, np.float32(factor), push, inside, clip)
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


@inline
def _correlate_rows(gradient, slopes, states, low_slopes, low_states):
    """Gradient += slope above ⊗ state below + state above ⊗ slope below."""
    for i in range(len(states)):
        row = gradient[i * len(low_states) : (i + 1) * len(low_states)]
        slope, state = slopes[i], states[i]
        for j in range(len(row)):
            row[j] += slope * low_states[j] + state * low_slopes[j]


@parallel
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
                copy_to(sent[step], s)
                _drive_fused(sizes, s, base[b], weights, scales, biases, drive, 1, 0)
                slope = slopes[step]
                for i in range(total):  # of rho
                    slope[i] = np.float32(1) if 0 <= drive[i] <= 1 else np.float32(0)
                start = 0
                for k in range(len(sizes)):
                    end = start + sizes[k]
                    p, here = drive[start:end], s[start:end]
                    residual[b, k] = update_real(p, here, np.float32(1), nothing[:0], False, False)
                    start = end
            back, output = drive, total - target.shape[1]
            copy_to(back, nothing)
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
