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


_SHORT = 256
"""Bytes of rows of which words of several neurons are counted at a time, in the place of one's."""


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
    if size <= _SHORT:
        words = np.empty(((size + 7) // 8, neurons), np.uint64)
        for n in range(neurons):
            for i in range(len(words)):
                words[i, n] = _word_of(flat_signs, n * size, size, i)
        for b in numba.prange(samples):
            row = product[b]
            for n in range(neurons):
                row[n] = -fired[b]
            for i in range(len(words)):
                word, column = _word_of(flat_bits, b * size, size, i), words[i]
                for n in range(neurons):
                    row[n] += np.int32(2 * _ones(word & column[n]))
        return
    for pair in numba.prange((neurons + 1) // 2):
        n, m = 2 * pair, min(2 * pair + 1, neurons - 1)
        for b in range(0, samples, 2):
            c = min(b + 1, samples - 1)
            rows = b * size, c * size, flat_signs, n * size, m * size, size
            bn, bm, cn, cm = _common(flat_bits, *rows)
            product[b, n], product[b, m] = 2 * bn - fired[b], 2 * bm - fired[b]
            product[c, n], product[c, m] = 2 * cn - fired[c], 2 * cm - fired[c]


@inline
def _common(bits, b, c, signs, n, m, size):
    """How many 1 two rows of bits, at bytes b and c, have in common with each of two of signs."""
    bn = bm = cn = cm = 0
    for i in range(size // 8):
        x, y = _word(bits, b + 8 * i), _word(bits, c + 8 * i)
        w, v = _word(signs, n + 8 * i), _word(signs, m + 8 * i)
        bn, bm = bn + _ones(x & w), bm + _ones(x & v)
        cn, cm = cn + _ones(y & w), cm + _ones(y & v)
    if size % 8:
        last = size // 8
        x, y = _word_of(bits, b, size, last), _word_of(bits, c, size, last)
        w, v = _word_of(signs, n, size, last), _word_of(signs, m, size, last)
        bn, bm = bn + _ones(x & w), bm + _ones(x & v)
        cn, cm = cn + _ones(y & w), cm + _ones(y & v)
    return bn, bm, cn, cm


@inline
def _word_of(array, row, size, i):
    """Word i of a row that begins at byte ``row``; the last one may be of fewer bytes."""
    if 8 * i + 8 <= size:
        return _word(array, row + 8 * i)
    if size > 8:
        return _word(array, row + size - 8) >> np.uint64(64 - 8 * (size % 8))
    word = np.uint64(0)
    for k in range(size):
        word |= np.uint64(array[row + k]) << np.uint64(8 * k)
    return word


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
    columns = values.shape[1]
    part = columns // down.shape[1]
    places, bits = np.empty(columns, np.int64), np.empty(columns, np.uint8)  # divided once for all
    for column in range(columns):
        i = order[column] % part
        places[column] = order[column] // part * down.shape[2] + i // 8
        bits[column] = 1 << (i % 8)
    for byte in numba.prange(up.shape[2]):  # its neurons above share bytes of ``up``
        for above in range(8 * byte, min(8 * byte + 8, len(values))):
            if not listed[above]:
                continue
            row = down[above].reshape(-1)
            for column in range(columns):
                bit = bits[column]
                if (row[places[column]] & bit != 0) != (values[above, column] > 0):
                    row[places[column]] ^= bit
                    up[order[column], 0, above // 8] ^= np.uint8(1 << (above % 8))
