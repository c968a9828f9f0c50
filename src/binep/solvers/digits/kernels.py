"""Quantised updates with error feedback, compiled by numba."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from binep.solvers.primitives import (
    Array,
    inline,
    largest_magnitude,
    max_pool,
    parallel,
    update_real,
)


class Update(NamedTuple):
    """A quantised change of states.

    Attributes:
        digits: (digits, batch, neurons), uint8, of which 128 stands for 0; each digit counts in
            units a 254th as large as those of the one before.
        units: (digits, batch): what 1 in a digit is worth.
    """

    digits: Array
    units: Array


class Contribution(NamedTuple):
    """What a neighbour's update adds to a drive: scale·Σ_d units[d]·product[d].

    Attributes:
        product: signs ⋆ digits, (digits, batch, neurons); nothing without digits.
        units: (digits, batch).
        scale: the scaling factor.
    """

    product: Array
    units: Array
    scale: np.float32


class Drive(NamedTuple):
    """A layer's drive p = sums + scale·pooled + bias, with the latter two of a convolution alone.

    Attributes:
        sums: (batch, neurons).
        pooled: (batch, neurons); (batch, 0) where a dense synapse leads to the layer, whose bias
            is among the sums.
        scale, bias: of each neuron, (neurons,).
    """

    sums: Array
    pooled: Array
    scale: Array
    bias: Array


class Rule(NamedTuple):
    """How states follow their drive; see `binep.core.neurons.Real`.

    Attributes:
        omega: over-relaxation ω of each sample, (batch,).
        nudge: (batch, neurons), or (batch, 0).
        inside: whether the nudge is added before the clipping, or after it.
        clip: whether states nudged from outside are clipped again.
    """

    omega: Array
    nudge: Array
    inside: bool
    clip: bool


@inline
def _add(sums, contribution, b):
    """Add a neighbouring layer's contribution to a sample's sums."""
    product, units = contribution.product[:, b], contribution.units[:, b]
    for d in range(len(product)):
        factor, part = contribution.scale * units[d], product[d]
        if factor != 0:
            for i in range(len(sums)):
                sums[i] += factor * part[i]


@inline
def _quantise(s, sent, digits, units):
    """Write the update that brings a copy of states up to them, of one sample.

    Args:
        s: the states.
        sent: their copy at the other end: changed by what the digits say. What they are rounded by
            stays in s − sent, and so is part of the next update.
        digits: (digits, neurons); none where what moves is not sent in digits.
        units: (digits,).
    """
    if len(digits) == 0:
        return
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
def quantise(states, sent, update):
    """Write the update that brings ``sent`` up to the states, both (batch, neurons)."""
    for b in numba.prange(len(states)):
        _quantise(states[b], sent[b], update.digits[:, b], update.units[:, b])


@parallel
def quantise_unpooled(channels, route, scale, states, sent, update):
    """`quantise` of α·s of a convolution, at the places of its maxima before pooling.

    Args:
        channels: of the convolution.
        route: places of the maxima, (batch, neurons).
        scale: α of each neuron.
        states: (batch, neurons).
        sent: (batch, neurons of the map before pooling).
    """
    for b in numba.prange(len(states)):
        unpooled = np.zeros(sent.shape[1], np.float32)
        for i in range(states.shape[1]):
            unpooled[route[b, i] * channels + i % channels] = scale[i] * states[b, i]
        _quantise(unpooled, sent[b], update.digits[:, b], update.units[:, b])


@parallel
def add_flips(product, digits, to, of, change):
    """Add change[n]·digit of neuron of[n] to the product at neuron to[n], for each flip n.

    Args:
        product: (digits, batch, neurons).
        digits: (digits, batch, neurons), of an `Update`.
    """
    for b in numba.prange(product.shape[1]):
        for d in range(len(product)):
            sums, sent = product[d, b], digits[d, b]
            for n in range(len(change)):
                sums[to[n]] += change[n] * np.float32(np.int32(sent[of[n]]) - 128)


@parallel
def pool(layer, maps, contribution, pooled, route):
    """Add the contribution from below to a convolution's maps, and pool them by the maximum.

    Args:
        layer: row of the table of layers; see `primitives`.
        maps: (batch, neurons of the map before pooling).
        pooled, route: the maxima and their places, (batch, neurons).
    """
    for b in numba.prange(len(maps)):
        _add(maps[b], contribution, b)
        max_pool(layer, pooled[b], route[b], maps[b])


@parallel
def accumulate(sums, up, down):
    """Add the contributions from below and above to the sums, (batch, neurons)."""
    for b in numba.prange(len(sums)):
        _add(sums[b], up, b)
        _add(sums[b], down, b)


@parallel
def move(drive, up, down, rule, states, sent, update, residual):
    """A step of a layer: add the contributions, move the states, and write their update.

    One pass, as each sample's rows are in cache only once.

    Args:
        drive: a `Drive`.
        up, down: contributions of the layers below and above.
        rule: a `Rule`.
        states: (batch, neurons).
        sent, update: see `quantise`.
        residual: max|Δs| of each sample, (batch,), is written here.
    """
    for b in numba.prange(len(states)):
        sums = drive.sums[b]
        _add(sums, up, b)
        _add(sums, down, b)
        p = sums.copy()
        if drive.pooled.shape[1]:
            pooled = drive.pooled[b]
            for i in range(len(p)):
                p[i] += pooled[i] * drive.scale[i] + drive.bias[i]
        residual[b] = update_real(
            p, states[b], rule.omega[b], rule.nudge[b], rule.inside, rule.clip
        )
        _quantise(states[b], sent[b], update.digits[:, b], update.units[:, b])
