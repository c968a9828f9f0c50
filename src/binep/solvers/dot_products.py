"""Products of integers of few bits with 8-bit digits, by AVX-512's dot products of bytes (VNNI).

One instruction multiplies 64 unsigned bytes, of 16 neurons by 4 others, with 4 signed digits of a
sample, and adds them to the sums of the 16 neurons. The bytes are weights to which 128 is added; or
they are 0 and 1, made from a word of 64 bits that stand for signs. Words are an eighth as much to
read, and stay in cache. What was added to the weights is taken away at the end: it has added the
sum of a sample's digits to each of its sums.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
import torch.nn.functional as F
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from binep.solvers.compiling import compiled
from binep.solvers.primitives import (
    SUMS_IN_ANY_ORDER,
    Array,
    inline,
    largest_magnitude,
    parallel,
)

_SAMPLES, _WORDS = 8, 2
"""Of a block: its sums are in 16 registers, enough for two additions at a time to be under way."""
_SUMS = 16
"""32-bit sums of a register."""
_BYTES = 4 * _SUMS
_NEURONS = _WORDS * _SUMS
_sums = compiled(forceinline=True, error_model="numpy", fastmath=SUMS_IN_ANY_ORDER)
_LEAST = np.float32(1e-30)
"""The least unit, so that neither its 254th nor what is in such units overflows."""
_ZEROS = 0x80808080
"""Four digits of 128, which stands for 0."""


def words(neurons: int, others: int) -> Array:
    """Signs −1 between neurons and others, (blocks of 32 neurons, fours of others, 2) words."""
    return np.zeros(_shape(neurons, others), np.uint64)


def numbers(neurons: int, others: int) -> tuple[int, ...]:
    """The shape of weights between neurons and others, uint8: as of `words`, of 64 bytes each."""
    return *_shape(neurons, others), _BYTES


def _shape(neurons: int, others: int) -> tuple[int, ...]:
    return -(-neurons // _NEURONS), -(-others // 4), _WORDS


_I32, _I64 = ir.IntType(32), ir.IntType(64)
_REGISTER = ir.VectorType(_I32, _SUMS)
_OF_BITS, _OF_BYTES = (ir.VectorType(ir.IntType(width), _BYTES) for width in (1, 8))


def _block(typing: Any, weights: Any, at: Any, digits: Any, first: Any, count: Any, to: Any) -> Any:
    """Write the products of the weights of a block with the digits of 8 samples.

    Args:
        weights: words or bytes, flat; the block's begin at ``at``.
        digits: fours of signed digits, 8 samples side by side, flat; theirs begin at ``first``.
        count: of fours.
        to: int32, (8 samples, 32 neurons), flat.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        weights_, digits_, found = (
            builder.gep(context.make_array(kind)(context, builder, array).data, [start])
            for kind, array, start in (
                (kinds[0], arguments[0], arguments[1]),
                (kinds[2], arguments[2], arguments[3]),
                (kinds[5], arguments[5], _I64(0)),
            )
        )
        registers = builder.bitcast(found, _REGISTER.as_pointer())
        places = [builder.gep(registers, [_I64(n)]) for n in range(_SAMPLES * _WORDS)]
        before, loop = builder.block, builder.append_basic_block()
        after = builder.append_basic_block()
        builder.branch(loop)
        builder.position_at_end(loop)
        four = builder.phi(_I64)
        sums = [builder.phi(_REGISTER) for _ in places]
        ends = _add_four(builder, sums, weights_, digits_, four)
        following = builder.add(four, _I64(1))
        builder.cbranch(builder.icmp_signed("<", following, arguments[4]), loop, after)
        for value, end in zip([four, *sums], [following, *ends], strict=True):
            value.add_incoming(ir.Constant(value.type, None), before)
            value.add_incoming(end, loop)
        builder.position_at_end(after)
        for place, end in zip(places, ends, strict=True):
            builder.store(end, place, align=4)
        return context.get_dummy_value()

    return types.void(weights, types.int64, digits, types.int64, types.int64, to), generate


def _add_four(builder: Any, sums: list[Any], weights: Any, digits: Any, four: Any) -> list[Any]:
    """Sums (samples, words), to which the products of one four are added."""
    name, kind = "llvm.x86.avx512.vpdpbusd.512", ir.FunctionType(_REGISTER, [_REGISTER] * 3)
    dot = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)

    def load(array: Any, width: int) -> list[Any]:
        begin = builder.mul(four, _I64(width))
        places = [builder.add(begin, _I64(n)) for n in range(width)]
        return [builder.load(builder.gep(array, [place]), align=1) for place in places]

    if weights.type.pointee == _I64:
        bits = [builder.bitcast(word, _OF_BITS) for word in load(weights, _WORDS)]
        bytes_ = [builder.zext(lanes, _OF_BYTES) for lanes in bits]
    else:
        bytes_ = load(builder.bitcast(weights, _OF_BYTES.as_pointer()), _WORDS)
    undefined = ir.Constant(_REGISTER, ir.Undefined)
    pairs = []
    for digit in load(digits, _SAMPLES):
        one = builder.insert_element(undefined, digit, _I32(0))
        every = builder.shuffle_vector(one, undefined, ir.Constant(_REGISTER, [0] * _SUMS))
        pairs += [(builder.bitcast(some, _REGISTER), every) for some in bytes_]
    return [builder.call(dot, [total, *pair]) for total, pair in zip(sums, pairs, strict=True)]


_multiply_block: Any = intrinsic(_block)


@inline
def _gather(digits, fours, totals, first):
    """Put samples from ``first`` on side by side, as signed digits, and sum up each one's.

    Args:
        digits: (samples, fours).
        fours: (fours, 8), written.
        totals: (8,), written.
    """
    for sample in range(_SAMPLES):
        total = np.int32(0)
        if first + sample >= len(digits):
            fours[:, sample] = 0
            continue
        row = digits[first + sample]
        for n in range(len(row)):
            fours[n, sample] = row[n] ^ np.uint32(_ZEROS)
        bytes_ = row.view(np.uint8)
        for n in range(len(bytes_)):
            total += np.int32(bytes_[n]) - 128
        totals[sample] = total


def product(weights: Array, digits: Tensor, neurons: int) -> Tensor:
    """`multiply` for tensors: from uint8 (…, others) to float32 (…, neurons)."""
    if digits.shape[-1] % 4:
        digits = F.pad(digits, (0, -digits.shape[-1] % 4), value=128)
    found = digits.new_empty(*digits.shape[:-1], neurons, dtype=torch.float32)
    fours = digits.contiguous().numpy().view(np.uint32)
    multiply(weights, fours.reshape(-1, fours.shape[-1]), found.view(-1, neurons).numpy())
    return found


@parallel
def multiply(weights, digits, product):
    """Signs ⋆ (digits − 128), or (weights − 128) ⋆ (digits − 128), exact where it fits in 24 bits.

    Args:
        weights: `words`, or bytes in the shape of `numbers`, between neurons and others.
        digits: bytes of the others, four to a number of 32 bits, (samples, fours).
        product: float32, (samples, neurons), written.
    """
    samples, neurons = product.shape
    factor, added, width = (2, 1, 1) if weights.ndim == 3 else (1, 128, _BYTES)
    parts, count = -(-samples // _SAMPLES), weights.shape[1]
    fours = np.empty((parts, count, _SAMPLES), np.uint32)
    totals = np.empty((parts, _SAMPLES), np.int32)
    for part in numba.prange(parts):
        _gather(digits, fours[part], totals[part], part * _SAMPLES)
    flat, flat_fours = weights.reshape(-1), fours.reshape(-1)
    for n in numba.prange(len(weights) * parts):  # a block's weights stay in cache for all parts
        block, part = n // parts, n % parts
        begin, first = block * _NEURONS, part * _SAMPLES
        sums = np.empty((_SAMPLES, _NEURONS), np.int32)
        at = block * count * _WORDS * width
        _multiply_block(flat, at, flat_fours, first * count, count, sums.reshape(-1))
        for sample in range(min(_SAMPLES, samples - first)):
            total = np.int32(added * totals[part, sample])
            row = product[first + sample, begin : min(begin + _NEURONS, neurons)]
            for i in range(len(row)):
                # Both may wrap, but not the difference, whose subtraction numba widens.
                row[i] = np.float32(np.int32(np.int32(factor * sums[sample, i]) - total))


@parallel
def load(rows, values, order, up, down):
    """Copy the signs that differ from float ``values`` (above, below) into the words of both ends.

    Args:
        rows: of ``values`` in which signs may differ.
        values: one row per neuron above.
        order: where each column of ``values`` lies among the neurons below.
        up: `words` between those above and those below.
        down: `words` between those below and those above.
    """
    listed = np.zeros(len(values), np.bool_)
    listed[rows] = True
    for block in numba.prange(len(up)):  # its neurons share words
        for above in range(block * _NEURONS, min((block + 1) * _NEURONS, len(values))):
            if not listed[above]:
                continue
            for column in range(values.shape[1]):
                below = order[column]
                if _is_plus(up, above, below) != (values[above, column] > 0):
                    _turn(up, above, below)
                    _turn(down, below, above)


@inline
def _is_plus(bits, neuron, other):
    word = bits[neuron // _NEURONS, other // 4, neuron % _NEURONS // _SUMS]
    return (word >> np.uint64(4 * (neuron % _SUMS) + other % 4)) & np.uint64(1) != 0


@inline
def _turn(bits, neuron, other):
    bit = np.uint64(1) << np.uint64(4 * (neuron % _SUMS) + other % 4)
    bits[neuron // _NEURONS, other // 4, neuron % _NEURONS // _SUMS] ^= bit


@parallel
def round_rows(weights, units, rows_left, columns_left, up, down):
    """Round weights (above, below) to 8 bits, and what is left of them to 8 bits more.

    Args:
        weights: float32.
        units: what 1 stands for in each row, (above,), written; what is left is in units a 254th as
            large.
        rows_left: sums, and sums of squares, of what is left of each row after either rounding,
            (above, 2, 2), written.
        columns_left: of each column in each block of 32 rows, (blocks, 2, 2, below), written.
        up: a pair of bytes, `numbers` between those above and those below, written.
        down: a pair of bytes, `numbers` between those below and those above, written.
    """
    to_whole = np.float32(1.5 * 2**23)  # added and taken away, it rounds
    above, below = weights.shape
    fours = up[0].shape[1]
    for block in numba.prange(len(up[0])):
        digits = np.full((2, _NEURONS, 4 * fours), 128, np.uint8)
        left, wrong = np.empty(below, np.float32), columns_left[block]
        wrong[:] = 0
        some = min(_NEURONS, above - block * _NEURONS)
        for n in range(some):
            row = weights[block * _NEURONS + n]
            for i in range(below):
                left[i] = row[i]
            unit = largest_magnitude(left) / np.float32(127)
            unit = _LEAST if unit < _LEAST else unit  # a NaN stays one
            units[block * _NEURONS + n] = unit
            for level in range(2):
                inverse, to = np.float32(1) / unit, digits[level, n]
                for i in range(below):
                    whole = (left[i] * inverse + to_whole) - to_whole
                    left[i] -= whole * unit
                    to[i] = np.uint8(np.int32(whole) + 128)
                _add_up(left, wrong[level], rows_left[block * _NEURONS + n, level])
                unit = unit / np.float32(254)
        for level in range(2):
            _pack_up(digits[level], up[level][block])
            _pack_down(digits[level], down[level], block * _NEURONS // 4)


@_sums
def _add_up(left, column_sums, sums):
    """Add what is left of a row, and its square, to those of each column; and sum them up."""
    total, squares = np.float32(0), np.float32(0)
    for i in range(len(left)):
        square = left[i] * left[i]
        column_sums[0, i] += left[i]
        column_sums[1, i] += square
        total += left[i]
        squares += square
    sums[0], sums[1] = total, squares


@inline
def _pack_up(digits, block):
    """Write rows of digits (32, others) as a block's `numbers`."""
    rows, to = digits.view(np.uint32), block.reshape(len(block), -1).view(np.uint32)
    for four in range(len(block)):
        for n in range(_NEURONS):
            to[four, n] = rows[n, four]


@inline
def _pack_down(digits, down, first):
    """Write rows of digits (32, neurons) as those of the fours of others from ``first`` on."""
    for block in range(len(down)):
        begin = block * _NEURONS
        some = min(_NEURONS, digits.shape[1] - begin)
        for n in range(min(_NEURONS // 4, down.shape[1] - first)):
            to = down[block, first + n].reshape(-1).view(np.uint32)
            a, b, c, d = (
                digits[4 * n, begin : begin + some],
                digits[4 * n + 1, begin : begin + some],
                digits[4 * n + 2, begin : begin + some],
                digits[4 * n + 3, begin : begin + some],
            )
            for i in range(some):
                low = np.uint32(a[i]) | np.uint32(b[i]) << np.uint32(8)
                to[i] = low | np.uint32(c[i]) << np.uint32(16) | np.uint32(d[i]) << np.uint32(24)
