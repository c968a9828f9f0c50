"""Quantised updates with error feedback, compiled by numba."""

from __future__ import annotations

import numba
import numpy as np

from binep.solvers.primitives import (
    inline,
    largest_magnitude,
    max_pool,
    parallel,
    update_real,
)


@inline
def _gather(sums, scale, product, units):
    """Sums += scale·Σ_d units[d]·product[d], of one sample."""
    for d in range(len(product)):
        factor, part = scale * units[d], product[d]
        if factor != 0:
            for i in range(len(sums)):
                sums[i] += factor * np.float32(part[i])


@inline
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
    unit = largest_magnitude(change) / np.float32(127)
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


@parallel
def send(states, sent, digits, units):
    """`_write_digits` for every sample: digits (digits, batch, neurons), units (digits, batch)."""
    for b in numba.prange(len(states)):
        _write_digits(states[b], sent[b], digits[:, b], units[:, b])


@parallel
def receive_conv(layer, maps, product, units, pooled, route):
    """Add what arrives from below to a convolution's maps, and pool them."""
    for b in numba.prange(len(maps)):
        _gather(maps[b], np.float32(1), product[:, b], units[:, b])
        max_pool(layer, pooled[b], route[b], maps[b])


@parallel
def send_unpooled(channels, route, scale, states, sent, digits, units):
    """Send α·s of a convolution at the places of its maxima; see `send`."""
    for b in numba.prange(len(states)):
        unpooled = np.zeros(sent.shape[1], np.float32)
        for i in range(states.shape[1]):
            unpooled[route[b, i] * channels + i % channels] = scale[i] * states[b, i]
        _write_digits(unpooled, sent[b], digits[:, b], units[:, b])


@parallel
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
        residual[b] = update_real(p, states[b], relaxation[b], nudge[b], inside, clip)
        _write_digits(states[b], sent[b], digits[:, b], units[:, b])
