"""Products of rounded weights and changes of states, in 8-bit integers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from networks import byte_dot_products
from torch import Tensor

from binep.core.network import Network
from binep.core.neurons import Real
from binep.core.phases import Phase
from binep.core.solvers import choose
from binep.core.speed import SHORTCUTS, Speed
from binep.core.synapses import Dense
from binep.solvers import int8, machine
from binep.solvers.following import _Product
from binep.solvers.int8 import Int8, Int8Solver
from binep.solvers.leaving import LeavingSolver


@byte_dot_products
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
    rounded = int8_of(weights)
    assert rounded.rest is not None
    assert rounded.rest.error <= 5.1 * max(above, below) * float(rounded.units.max()) / 508
    for way, right, size in (("up", weights.t(), below), ("down", weights, above)):
        change = largest * (torch.rand(5, size) if upward else 2 * torch.rand(5, size) - 1)
        product, sent = getattr(rounded, way)(change)
        assert (sent - change).abs().max() <= 1.01 * rounding(change, weights, way)
        rounding_errors = 1e-6 * float(product.abs().max())
        wrong = product.double() - sent.double() @ right.double()
        assert wrong.abs().max() <= 1.01 * rounded.error * largest + rounding_errors
        more, sent_more = getattr(rounded.rest, way)(sent)
        left_out = (sent - sent_more).abs().max() * rounded.error
        wrong += more
        assert wrong.abs().max() <= 1.01 * rounded.rest.error * largest + left_out + rounding_errors


def int8_of(weights: Tensor) -> Int8:
    layer = Dense(weights.shape[1], len(weights), weights="real")
    layer.values.data = weights
    return Int8.of(layer)


def rounding(change: Tensor, weights: Tensor, way: str) -> float:
    """By how much what is sent may differ from a change: half a unit, of the largest weights."""
    units = weights.abs().amax(1).clamp_min(1e-30) if way == "down" else torch.ones(())
    in_units = change * units
    return float((in_units.abs().amax(1, keepdim=True) / 254 / units).max())


@byte_dot_products
def test_signs_are_right() -> None:
    assert int8_of(torch.tensor([[1.0, -1.0], [1.0, 0.0]])).error < 1e-7


@byte_dot_products
@given(st.integers(0, 2**31))
def test_each_row_has_units_of_its_own(seed: int) -> None:
    torch.manual_seed(seed)
    weights = torch.randn(40, 30) * torch.logspace(-12, 6, 40)[:, None]
    rounded, change = int8_of(weights), torch.rand(7, 30)
    product, sent = rounded.up(change)
    right = sent.double() @ weights.t().double()
    largest = weights.abs().amax(1) / 254 * sent.sum(1, keepdim=True) + 1e-30
    assert ((product - right).abs() <= 1.01 * largest).all()


@byte_dot_products
def test_what_rounding_leaves_out_of_a_change_is_part_of_the_next_one() -> None:
    torch.manual_seed(0)
    weights, states = torch.randn(20, 9), torch.zeros(1, 9)

    def exactly(now: Tensor) -> Tensor:
        return now @ weights.t()

    product = _Product(exactly, int8_of(weights).up)
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


@byte_dot_products
@pytest.mark.parametrize("weight", [1, -1])
@pytest.mark.parametrize("state", [1, -1])
@pytest.mark.parametrize("neurons", [67_000, 100_000, int8.MOST])
def test_sums_of_the_largest_layers_fit_in_32_bits(neurons: int, state: int, weight: int) -> None:
    """Those of bytes, from 0 to 255, do not."""
    weights = torch.full((2, neurons), float(weight))
    weights[1, 0] *= -1
    product, sent = int8_of(weights).up(state * torch.ones(3, neurons))
    assert (sent == state).all()
    right = state * weight * torch.tensor([neurons, neurons - 2.0]).expand(3, 2)
    torch.testing.assert_close(product, right, rtol=1e-6, atol=0)


@byte_dot_products
def test_each_phase_sets_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads are numba's own in each thread, and none are left in a forked process."""
    network = Network([Dense(4, 1024), Dense(1024, 1024), Dense(1024, 4)], Real())
    network.solver = Int8Solver
    counts: list[int] = []
    monkeypatch.setattr(machine, "use_threads", lambda: counts.append(1))
    for phase in range(1, 4):
        network.relax(torch.rand(8, 4), 3)
        assert len(counts) == phase
