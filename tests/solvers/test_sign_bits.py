from __future__ import annotations

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from binep.solvers import machine, sign_bits


@numba.njit
def add(total, at, count, bits, offset, starts, factors):  # type: ignore[no-untyped-def]
    sign_bits.add_rows(total, at, count, bits, offset, starts, factors)


def packed(signs: np.ndarray) -> np.ndarray:
    return np.packbits(signs > 0, axis=-1, bitorder="little")


@pytest.mark.parametrize("sums", [np.int16, np.int32])
@given(
    count=st.integers(1, 140),  # words of 32, bytes, and single ones
    parts=st.integers(1, 3),
    chosen=st.lists(st.integers(0, 5), max_size=11),  # fours, and what is left
    seed=st.integers(0, 2**32 - 1),
)
def test_rows_are_added_by_their_factors_and_nothing_beside_them(
    sums: type[np.signedinteger], count: int, parts: int, chosen: list[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1, 1], (6, parts, count))
    factors = rng.integers(-(2**11), 2**11, len(chosen), dtype=np.int32)
    total = rng.integers(-(2**12), 2**12, count + 70).astype(sums)
    part, at = int(rng.integers(parts)), int(rng.integers(70))
    expected = total.astype(np.int64)
    expected[at : at + count] += factors @ signs[chosen, part].reshape(-1, count)
    bits = packed(signs)
    size = bits.shape[2]
    starts = np.array(chosen, np.int64) * parts * size
    add(total, at, count, bits.ravel(), part * size, starts, factors)
    assert np.array_equal(total, expected.astype(sums))  # 16 bits wrap around in both


@given(
    neurons=st.integers(1, 5),
    others=st.one_of(st.integers(1, 200), st.integers(1900, 2600)),  # words, and bytes
    samples=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_products_are_sums_of_the_signs_of_what_fires(
    neurons: int, others: int, samples: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    signs, bits = rng.choice([-1, 1], (neurons, others)), rng.integers(0, 2, (samples, others))
    product = np.empty((samples, neurons), np.int32)
    machine.use_threads()
    sign_bits.multiply(packed(bits), packed(signs), product)
    assert np.array_equal(product, bits @ signs.T)


@given(
    above=st.integers(1, 40),
    low=st.integers(1, 40),
    parts=st.integers(1, 3),
    some=st.sets(st.integers(0, 39)),
    seed=st.integers(0, 2**32 - 1),
)
def test_copies_hold_the_signs_of_the_rows_that_were_loaded(
    above: int, low: int, parts: int, some: set[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    below = parts * low
    order = rng.permutation(below)
    up = np.zeros((below, 1, sign_bits.in_bytes(above)), np.uint8)
    down = np.zeros((above, parts, sign_bits.in_bytes(low)), np.uint8)
    expected = np.zeros((above, below), np.int8)
    machine.use_threads()
    for rows in (range(above), sorted(row for row in some if row < above)):
        chosen = np.array(rows, np.int64)
        values = rng.choice([-1, 1], (above, below)).astype(np.float32)
        sign_bits.load(chosen, values, order, up, down)
        expected[chosen[:, None], order] = values[chosen]
        assert np.array_equal(up[:, 0], packed(expected.T))
        assert np.array_equal(down, packed(expected.reshape(above, parts, low)))
