"""Products of signs stored as bits with digits, by AVX-512's dot products of bytes (VNNI).

A word of 64 bits holds the signs between 16 neurons and 4 others, 1 for +1: it is the mask that
makes 64 bytes of 0 and 1, which one instruction multiplies with 4 digits of a sample and adds to
the sums of the 16 neurons. A sum of signs is twice that of the bits less that of all digits. Words
are an eighth of int8 to read, and stay in cache.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from binep.solvers.primitives import Array, inline, parallel

_SAMPLES, _WORDS = 8, 2
"""Of a block: its sums are in 16 registers, enough for two additions at a time to be under way."""
_SUMS = 16
"""32-bit sums of a register."""
_NEURONS = _WORDS * _SUMS
_ZEROS = 0x80808080
"""Four digits of 128, which stands for 0."""


def words(neurons: int, others: int) -> Array:
    """Signs −1 between neurons and others, (blocks of 32 neurons, fours of others, 2) words."""
    return np.zeros((-(-neurons // _NEURONS), -(-others // 4), _WORDS), np.uint64)


_I32, _I64 = ir.IntType(32), ir.IntType(64)
_REGISTER = ir.VectorType(_I32, _SUMS)
_BITS, _BYTES = (ir.VectorType(ir.IntType(width), 4 * _SUMS) for width in (1, 8))


def _block(typing: Any, bits: Any, at: Any, digits: Any, first: Any, count: Any, to: Any) -> Any:
    """Write the products of the bits of a block with the digits of 8 samples to ``to``.

    Args:
        bits: words, flat; the block's begin at ``at``.
        digits: fours of signed digits, 8 samples side by side, flat; theirs begin at ``first``.
        count: of fours.
        to: int32, flat (8 samples, 32 neurons).
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        bits_, digits_, found = (
            builder.gep(context.make_array(kind)(context, builder, array).data, [start])
            for kind, array, start in (
                (kinds[0], arguments[0], arguments[1]),
                (kinds[2], arguments[2], arguments[3]),
                (kinds[5], arguments[5], _I64(0)),
            )
        )
        before, loop = builder.block, builder.append_basic_block()
        after = builder.append_basic_block()
        builder.branch(loop)
        builder.position_at_end(loop)
        four = builder.phi(_I64)
        sums = [builder.phi(_REGISTER) for _ in range(_SAMPLES * _WORDS)]
        ends = _add_four(builder, sums, bits_, digits_, four)
        following = builder.add(four, _I64(1))
        builder.cbranch(builder.icmp_signed("<", following, arguments[4]), loop, after)
        for value, end in zip([four, *sums], [following, *ends], strict=True):
            value.add_incoming(ir.Constant(value.type, None), before)
            value.add_incoming(end, loop)
        builder.position_at_end(after)
        registers = builder.bitcast(found, _REGISTER.as_pointer())
        for n, end in enumerate(ends):
            builder.store(end, builder.gep(registers, [_I64(n)]), align=4)
        return context.get_dummy_value()

    return types.void(bits, types.int64, digits, types.int64, types.int64, to), generate


def _add_four(builder: Any, sums: list[Any], bits: Any, digits: Any, four: Any) -> list[Any]:
    """Sums (samples, words), to which the products of one four are added."""
    name, kind = "llvm.x86.avx512.vpdpbusd.512", ir.FunctionType(_REGISTER, [_REGISTER] * 3)
    dot = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)

    def load(array: Any, width: int) -> list[Any]:
        begin = builder.mul(four, _I64(width))
        places = [builder.add(begin, _I64(n)) for n in range(width)]
        return [builder.load(builder.gep(array, [place])) for place in places]

    signs = [builder.zext(builder.bitcast(word, _BITS), _BYTES) for word in load(bits, _WORDS)]
    undefined = ir.Constant(_REGISTER, ir.Undefined)
    pairs = []
    for digit in load(digits, _SAMPLES):
        one = builder.insert_element(undefined, digit, _I32(0))
        every = builder.shuffle_vector(one, undefined, ir.Constant(_REGISTER, [0] * _SUMS))
        pairs += [(builder.bitcast(sign, _REGISTER), every) for sign in signs]
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


@parallel
def multiply(bits, digits, product):
    """Signs ⋆ (digits − 128), exact as long as sums fit in 24 bits.

    Args:
        bits: `words` between neurons and others.
        digits: bytes of the others, four to a number of 32 bits, (samples, fours).
        product: float32, (samples, neurons), written.
    """
    samples, neurons = product.shape
    parts, count = -(-samples // _SAMPLES), bits.shape[1]
    fours = np.empty((parts, count, _SAMPLES), np.uint32)
    totals = np.empty((parts, _SAMPLES), np.int32)
    for part in numba.prange(parts):
        _gather(digits, fours[part], totals[part], part * _SAMPLES)
    flat_bits, flat_fours = bits.reshape(-1), fours.reshape(-1)
    for n in numba.prange(len(bits) * parts):
        block, part = n // parts, n % parts
        sums = np.empty(_SAMPLES * _NEURONS, np.int32)
        _multiply_block(
            flat_bits, block * count * _WORDS, flat_fours, part * count * _SAMPLES, count, sums
        )
        begin = block * _NEURONS
        some = min(_NEURONS, neurons - begin)
        for sample in range(min(_SAMPLES, samples - part * _SAMPLES)):
            total, at = totals[part, sample], sample * _NEURONS
            row = product[part * _SAMPLES + sample, begin : begin + some]
            for i in range(some):
                row[i] = np.float32(2 * sums[at + i] - total)


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
