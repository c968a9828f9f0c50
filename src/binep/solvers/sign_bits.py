"""Signs stored as bits, and how compiled loops add them up.

A row of signs lies in whole bytes, eight to a byte from the lowest bit on: 1 for +1, 0 for −1. With
AVX-512 a word of 32 of them is the mask of one addition. They take an eighth of the memory of int8,
and reading is what bounds such sums.
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


@register_jitable
def in_bytes(signs: int) -> int:
    """Bytes of a row of so many signs."""
    return (signs + 7) // 8


def packed(signs: Array) -> Array:
    """Rows of signs, (rows, columns), as bits, (rows, bytes)."""
    return np.packbits(signs > 0, axis=1, bitorder="little")


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
def load(rows, values, order, up, down, up_bits, down_bits):
    """Copy the signs that differ from float ``values`` (above, below) into both orders.

    Args:
        rows: of ``values`` in which signs may differ.
        values: one row per neuron or channel above.
        order: where each column of ``values`` lies among the inputs of ``up`` and ``down``.
        up: int8, (below, above).
        down: int8, (above, below).
        up_bits: the rows of ``up`` as bits, (below, 1, bytes).
        down_bits: those of ``down``, each in parts of whole bytes, (above, parts, bytes).
    """
    listed = np.zeros(len(values), np.bool_)
    listed[rows] = True
    part = values.shape[1] // down_bits.shape[1]
    for byte in numba.prange(up_bits.shape[2]):  # its neurons above share bytes of up_bits
        for above in range(8 * byte, min(8 * byte + 8, len(values))):
            if not listed[above]:
                continue
            for column in range(values.shape[1]):
                value = np.int8(values[above, column])
                below = order[column]
                if down[above, below] != value:
                    down[above, below] = value
                    up[below, above] = value
                    _set(up_bits[below, 0], above, value)
                    _set(down_bits[above, below // part], below % part, value)


@inline
def _set(bits, i, value):
    one = np.uint8(1 << (i % 8))
    bits[i // 8] = bits[i // 8] | one if value > 0 else bits[i // 8] & ~one
