"""Products of rounded weights and changes of states, in 8-bit integers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from networks import exact_int8
from torch import Tensor

from binep.core.network import Network
from binep.core.neurons import Real
from binep.core.phases import Phase
from binep.core.solvers import choose
from binep.core.speed import SHORTCUTS, Speed
from binep.core.synapses import Dense
from binep.solvers import int8
from binep.solvers.following import _Product
from binep.solvers.int8 import Int8, Int8Solver
from binep.solvers.leaving import LeavingSolver


@exact_int8
@given(
    st.integers(0, 2**31),
    st.integers(2, 200),
    st.integers(2, 200),
    st.sampled_from([1.0, 30.0]),
    st.sampled_from([1e-6, 1.0]),
    st.sampled_from(["normal", "alike", "signs"]),
    st.booleans(),
)
@example(0, 200, 3, 1.0, 1.0, "alike", True)
def test_products_are_wrong_by_no_more_than_is_said(
    seed: int,
    above: int,
    below: int,
    outlier: float,
    largest: float,
    kind: str,
    upward: bool,
) -> None:
    """With weights that round alike, too, and neurons that all move the same way."""
    torch.manual_seed(seed)
    weights = torch.randn(above, below) / math.sqrt(max(above, below))
    if kind == "alike":
        weights = torch.full((above, below), float(torch.rand(())) / max(above, below))
        weights[:, 0] *= 20
    elif kind == "signs":
        weights = weights.sign()
    weights[0, 0] *= outlier
    weights[-1] = 0
    rounded = Int8(weights)
    for multiply, right, size in (
        (rounded.up, weights.t(), below),
        (rounded.down, weights, above),
    ):
        change = largest * (torch.rand(5, size) if upward else 2 * torch.rand(5, size) - 1)
        product, sent = multiply(change)
        wrong = (product.double() - sent.double() @ right.double()).abs().max()
        assert wrong <= 1.01 * rounded.error * largest + 1e-6 * float(product.abs().max())


def test_signs_are_right() -> None:
    assert Int8(torch.tensor([[1.0, -1.0], [1.0, 0.0]])).error < 1e-7


@exact_int8
@given(st.integers(0, 2**31))
def test_each_row_has_units_of_its_own(seed: int) -> None:
    torch.manual_seed(seed)
    weights = torch.randn(40, 30) * torch.logspace(-12, 6, 40)[:, None]
    rounded, change = Int8(weights), torch.rand(7, 30)
    product, sent = rounded.up(change)
    right = sent.double() @ weights.t().double()
    largest = weights.abs().amax(1) / 254 * sent.sum(1, keepdim=True) + 1e-30
    assert ((product - right).abs() <= 1.01 * largest).all()


@exact_int8
def test_what_rounding_leaves_out_of_a_change_is_part_of_the_next_one() -> None:
    torch.manual_seed(0)
    weights, states = torch.randn(20, 9), torch.zeros(1, 9)

    def exactly(now: Tensor) -> Tensor:
        return now @ weights.t()

    product = _Product(exactly, Int8(weights).up)
    product(states)
    product.exact = False
    for step in range(100):  # one moves to and fro, the others by less than a 254th of that
        states = states + torch.tensor([(-1.0) ** step, *[1e-3] * 8])
        sums = product(states)
    assert abs(float(states[0, 1]) - 0.1) < 1e-6
    torch.testing.assert_close(sums, exactly(states), rtol=0, atol=0.03)
    assert float(exactly(states).abs().max()) > 0.3


@pytest.mark.parametrize("shape", [(300, 301), (301, 300)])
def test_sums_beyond_32_bits_are_of_floats(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Int8Solver, "least", 200)
    monkeypatch.setattr(Int8Solver, "is_quick", lambda: True)
    above, below = shape
    layers = [Dense(3, below, weights="real"), Dense(below, above, weights="real")]
    net = Network(layers, Real(), speed=Speed(off=set(SHORTCUTS) - {"int8", "leaving"}))
    phase = Phase.of(net, torch.rand(40, 3), 9)
    assert choose(net, phase) is Int8Solver
    monkeypatch.setattr(int8, "MOST", 300)
    assert choose(net, phase) is LeavingSolver


@pytest.mark.parametrize("weight", [math.nan, math.inf, 1e3])
def test_weights_that_cannot_be_rounded_well_are_multiplied_as_they_are(
    weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Int8Solver, "least", 200)
    monkeypatch.setattr(Int8Solver, "is_quick", lambda: True)
    layers = [Dense(3, 300, weights="real"), Dense(300, 300, weights="real")]
    with torch.no_grad():
        layers[1].values[7, 9] = weight
    net, x = Network(layers, Real(0.5)), torch.rand(40, 3)
    net.speed = Speed(off=set(SHORTCUTS) - {"int8", "leaving"})
    ours = net.relax(x, 50)
    net.speed = Speed(off=set(SHORTCUTS) - {"leaving"})
    right = net.relax(x, 50)
    assert (ours.by, right.by) == (Int8Solver, LeavingSolver)
    assert ours.steps == right.steps
    for a, b in zip(ours.states, right.states, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@exact_int8
def test_sums_of_the_largest_layer_fit_in_32_bits() -> None:
    most = torch.full((32, int8.MOST), 127, dtype=torch.int8)
    assert (torch._int_mm(most, most[:2].t()) == int8.MOST * 127**2).all()
