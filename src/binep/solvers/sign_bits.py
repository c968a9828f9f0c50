"""Signs stored as bits, and how compiled loops add them up.

A row of signs lies in whole bytes, eight to a byte from the lowest bit on: 1 for +1, 0 for −1. With
AVX-512 a word of 32 of them is the mask of one addition. They take an eighth of the memory of int8,
and reading is what bounds such sums. A product of bits with signs counts the bits that both have.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from binep.solvers.primitives import Array, inline, parallel


def _adder(lanes: int) -> Any:
    """A compiled function that adds ``lanes`` signs of each of some rows.

    It does total[at : at + lanes] += Σ factors[n]·(the signs from byte starts[n] on), where starts
    and factors are tuples. Each sum is read and written once.
    """
    mask = ir.VectorType(ir.IntType(1), lanes)

    def add(typing: Any, total: Any, at: Any, signs: Any, starts: Any, factors: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            sums_array, place, signs_array, *pairs = arguments
            item = context.get_value_type(total.dtype)
            vector = ir.VectorType(item, lanes)

            def pointer(kind: Any, array: Any, index: Any, to: Any) -> Any:
                data = context.make_array(kind)(context, builder, array).data
                return builder.bitcast(builder.gep(data, [index]), to.as_pointer())

            def in_all_lanes(number: Any) -> Any:
                none = ir.Constant(vector, ir.Undefined)
                zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
                first = builder.insert_element(none, number, ir.Constant(ir.IntType(32), 0))
                return builder.shuffle_vector(first, none, zeros)

            to = pointer(total, sums_array, place, vector)
            found = builder.load(to, align=item.width // 8)
            rows, by = (cgutils.unpack_tuple(builder, pair) for pair in pairs)
            for start, factor in zip(rows, by, strict=True):
                word = builder.load(pointer(signs, signs_array, start, ir.IntType(lanes)), align=1)
                number = context.cast(builder, factor, factors.dtype, total.dtype)
                plus, minus = in_all_lanes(number), in_all_lanes(builder.neg(number))
                found = builder.add(found, builder.select(builder.bitcast(word, mask), plus, minus))
            builder.store(found, to, align=item.width // 8)
            return context.get_dummy_value()

        return types.void(total, types.int64, signs, starts, factors), generate

    return intrinsic(add)


_add_word, _add_byte = _adder(32), _adder(8)


@intrinsic
def _word(typing: Any, array: Any, at: Any) -> Any:
    """Eight bytes of an array of bytes."""
    word = ir.IntType(64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        place = builder.gep(data, [arguments[1]])
        return builder.load(builder.bitcast(place, word.as_pointer()), align=1)

    return types.uint64(array, types.int64), generate


@intrinsic
def _ones(typing: Any, word: Any) -> Any:
    """How many bits of a word are 1."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate


@register_jitable
def in_bytes(signs: int) -> int:
    """Bytes of a row of so many signs."""
    return (signs + 7) // 8


def packed(bits: Array) -> Array:
    """Rows of bits, (…, columns), in bytes, (…, bytes)."""
    return np.packbits(bits, axis=-1, bitorder="little")


@inline
def add_row(total, at, count, signs, start, factor):
    """Add ``factor`` times the row of signs at byte ``start`` to ``total[at : at + count]``."""
    words, whole = count // 32 * 32, count // 8 * 8
    for i in range(0, words, 32):
        _add_word(total, at + i, signs, (start + i // 8,), (factor,))
    for i in range(words, whole, 8):
        _add_byte(total, at + i, signs, (start + i // 8,), (factor,))
    for i in range(whole, count):
        total[at + i] += factor * (2 * np.int32((signs[start + i // 8] >> (i % 8)) & 1) - 1)


@inline
def add_rows(total, at, count, signs, offset, starts, factors):
    """`add_row` of each of some rows, at bytes ``starts`` + offset, by its own factor.

    Four are added in each pass over ``total``.
    """
    words, whole = count // 32 * 32, count // 8 * 8
    fours = len(starts) // 4 * 4
    for n in range(0, fours, 4):
        rows = (
            starts[n] + offset,
            starts[n + 1] + offset,
            starts[n + 2] + offset,
            starts[n + 3] + offset,
        )
        by = (factors[n], factors[n + 1], factors[n + 2], factors[n + 3])
        for i in range(0, words, 32):
            _add_word(total, at + i, signs, _further(rows, i // 8), by)
        for i in range(words, whole, 8):
            _add_byte(total, at + i, signs, _further(rows, i // 8), by)
        for m in range(4):
            rest = rows[m] + whole // 8
            add_row(total, at + whole, count - whole, signs, rest, by[m])
    for n in range(fours, len(starts)):
        add_row(total, at, count, signs, starts[n] + offset, factors[n])


@inline
def _further(starts, bytes_):
    """Four places, so many bytes on."""
    a, b, c, d = starts
    return a + bytes_, b + bytes_, c + bytes_, d + bytes_


@parallel
def multiply(bits, signs, product):
    """For each sample and neuron, the sum of the signs of what fires.

    Args:
        bits: what fires, (samples, bytes).
        signs: a row for each neuron, (neurons, bytes).
        product: int32, (samples, neurons), written.
    """
    samples, neurons = product.shape
    size, flat_bits, flat_signs = bits.shape[1], bits.reshape(-1), signs.reshape(-1)
    fired = np.empty(samples, np.int32)
    for b in range(samples):
        fired[b] = _common(flat_bits, b * size, b * size, flat_bits, b * size, b * size, size)[0]
    for n in numba.prange((neurons + 1) // 2):
        one, other = 2 * n, min(2 * n + 1, neurons - 1)
        for b in range(0, samples, 2):
            c = min(b + 1, samples - 1)
            rows = b * size, c * size, flat_signs, one * size, other * size, size
            b_one, b_other, c_one, c_other = _common(flat_bits, *rows)
            product[b, one], product[b, other] = 2 * b_one - fired[b], 2 * b_other - fired[b]
            product[c, one], product[c, other] = 2 * c_one - fired[c], 2 * c_other - fired[c]


@inline
def _common(bits, b, c, signs, one, other, size):
    """How many 1 two rows of bits, at bytes b and c, have in common with each of two of signs."""
    b_one = b_other = c_one = c_other = 0
    for i in range(size // 8):
        at_b, at_c = _word(bits, b + 8 * i), _word(bits, c + 8 * i)
        at_one, at_other = _word(signs, one + 8 * i), _word(signs, other + 8 * i)
        b_one += _ones(at_b & at_one)
        b_other += _ones(at_b & at_other)
        c_one += _ones(at_c & at_one)
        c_other += _ones(at_c & at_other)
    for i in range(size // 8 * 8, size):
        at_b, at_c = np.uint64(bits[b + i]), np.uint64(bits[c + i])
        at_one, at_other = np.uint64(signs[one + i]), np.uint64(signs[other + i])
        b_one += _ones(at_b & at_one)
        b_other += _ones(at_b & at_other)
        c_one += _ones(at_c & at_one)
        c_other += _ones(at_c & at_other)
    return b_one, b_other, c_one, c_other


@parallel
def load(rows, values, order, up, down):
    """Copy the signs that differ from float ``values`` (above, below) into both orders.

    Args:
        rows: of ``values`` in which signs may differ.
        values: one row per neuron or channel above.
        order: where each column of ``values`` lies among the inputs of ``up`` and ``down``.
        up: bits, (below, 1, bytes).
        down: bits, each row in parts of whole bytes, (above, parts, bytes).
    """
    listed = np.zeros(len(values), np.bool_)
    listed[rows] = True
    part = values.shape[1] // down.shape[1]
    for byte in numba.prange(up.shape[2]):  # its neurons above share bytes of ``up``
        for above in range(8 * byte, min(8 * byte + 8, len(values))):
            if not listed[above]:
                continue
            for column in range(values.shape[1]):
                below = order[column]
                i = below % part
                row = down[above, below // part]
                if (row[i // 8] >> (i % 8)) & 1 != (values[above, column] > 0):
                    row[i // 8] ^= np.uint8(1 << (i % 8))
                    up[below, 0, above // 8] ^= np.uint8(1 << (above % 8))
