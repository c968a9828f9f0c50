"""Odd/even updates, and their adaptive over-relaxation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from operator import mul

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import binep.solvers  # noqa: F401
from binep.core import overrelaxation
from binep.core.network import Network
from binep.core.neurons import Real
from binep.core.overrelaxation import FIRST, LARGE, MOST, OverRelaxation
from binep.core.phases import Equilibrium
from binep.core.speed import Speed
from binep.core.synapses import Conv, Dense, Synapse
from binep.solvers import machine
from binep.solvers.in_cache.kernels import raised_omega

SOLVERS = {
    "plain": ("digits", "in-cache", "leaving"),
    "in-cache": (),
    "digits": ("in-cache",),
    "leaving": ("digits", "in-cache"),
}
"""What is off where each of them takes the steps."""
if not machine.has_packed_int8():
    del SOLVERS["digits"]


def only(solver: str, odd_even: bool = True) -> Speed:
    return Speed((*SOLVERS[solver], *(() if odd_even else ("odd-even",))))


def network(seed: int, scale: float = 1.0) -> tuple[Network, torch.Tensor]:
    """Three layers, of which the upper two are coupled more strongly by a larger scale."""
    g = torch.Generator().manual_seed(seed)
    layers = [Dense(20, 60, generator=g), Dense(60, 50, generator=g), Dense(50, 10, generator=g)]
    with torch.no_grad():
        for synapse in layers[1:]:
            assert synapse.scale is not None
            synapse.scale *= scale
    return Network(layers, Real(initial=0.5)), torch.rand(7, 20, generator=g)


def relaxed(net: Network, x: torch.Tensor, speed: Speed, steps: int = 2000) -> Equilibrium:
    net.speed = speed
    return net.relax(x, steps)


def test_a_step_moves_the_even_layers_then_the_odd_ones_from_what_those_have_become() -> None:
    net, x = network(0)
    first = relaxed(net, x, only("plain"), steps=1)
    omega = torch.full((7,), FIRST)
    with torch.no_grad():
        clamped, states = net.clamp(x), net.initial_states(x)
        even = net.step(clamped, states, None, [0, 2], omega)
        assert even[1] is states[1]
        both = net.step(clamped, even, None, [1], omega)
        assert both[0] is even[0]
    assert all(map(torch.equal, first.states, both))


@pytest.mark.parametrize("scale", [1.0, 1.4])
@pytest.mark.parametrize("solver", SOLVERS)
def test_odd_even_updates_settle_in_the_same_place_in_fewer_steps(
    solver: str, scale: float
) -> None:
    for seed in range(5):
        net, x = network(seed, scale)
        at_once = relaxed(net, x, only("plain", odd_even=False))
        odd_even = relaxed(net, x, only(solver))
        assert odd_even.by is not None
        assert odd_even.by.name == solver
        assert odd_even.steps < at_once.steps < 2000
        for a, b in zip(odd_even.states, at_once.states, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4 if scale > 1 else 2e-5)


@pytest.mark.parametrize("solver", [s for s in SOLVERS if s != "in-cache"])  # which is compiled
def test_what_settles_slowly_is_over_relaxed_more(
    solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = network(1, 1.4)
    steps = relaxed(net, x, only(solver)).steps
    monkeypatch.setattr(OverRelaxation, "update", lambda self, change: None)
    assert steps < 0.9 * relaxed(net, x, only(solver)).steps


def test_with_the_largest_omega_fewer_steps_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    for most in (LARGE, MOST):
        monkeypatch.setattr(overrelaxation, "MOST", most)
        nets = (network(seed, scale) for seed in range(10) for scale in (1.4, 1.6))
        steps.append(sum(relaxed(*net, only("plain")).steps for net in nets))
    assert steps[1] < 0.9 * steps[0]


@pytest.mark.parametrize("solver", SOLVERS)
def test_layers_move_at_once_where_all_steps_are_taken_and_where_they_are_nudged(
    solver: str,
) -> None:
    net, x = network(2)
    target, ends = torch.eye(10)[:7], []
    for odd_even in (False, True):
        net.speed = only(solver, odd_even)
        free = net.relax(x, 4, tolerance=0)
        nudged = net.relax(x, 5, start=free, target=target, beta=0.3)
        ends.append([*free.states, *nudged.states])
    assert all(map(torch.equal, *ends))


class Own(Dense):
    """May send something else."""


JOINED: list[Synapse] = [Dense(3, 3), Dense(3, 3)]
POOLED: list[Synapse] = [Conv((1, 8, 8), 3), Conv((3, 4, 4), 3), Dense((3, 2, 2), 3)]


def raised(*changes: float, synapses: Sequence[Synapse] = JOINED) -> list[float]:
    """ω of a sample after each of its changes."""
    relaxation, found = OverRelaxation.of(torch.zeros(1, 3), synapses), []
    for change in changes:
        relaxation.update(torch.tensor([change]))
        found.append(float(relaxation.omega))
    return found


@pytest.mark.parametrize(
    ("synapses", "most"),
    [(JOINED, 1.7), (POOLED, 1.5), (POOLED[1:], 1.7), (POOLED[:2], 1.5), ([Own(3, 3)] * 2, 1.5)],
)
def test_omega_is_raised_by_steady_rates_below_1_alone_and_never_above_the_most(
    synapses: list[Synapse], most: float
) -> None:
    growing, slow, unsteady = (
        raised(*(rate**i for i in range(6)), synapses=synapses) for rate in (1.5, 0.99, 1.0)
    )
    assert growing == unsteady == [pytest.approx(1.2)] * 6
    assert slow[-1] == pytest.approx(most)
    assert raised(1.0, 0.5, 0.4, 0.1, 0.01) == [pytest.approx(1.2)] * 5
    uneven = raised(*itertools.accumulate([0.95, 0.9] * 5, mul), synapses=synapses)
    assert uneven[-1] == pytest.approx(1.5)
    assert 1.2 < raised(*(0.55**i for i in range(6)))[-1] < 1.5


class Halfway(Real):
    """Settles elsewhere with another ω."""

    def update(
        self, state: torch.Tensor, drive: torch.Tensor, nudge: torch.Tensor | None = None
    ) -> torch.Tensor:
        return super().update(state, drive / 2, nudge)


def test_neurons_of_another_kind_move_at_once() -> None:
    g = torch.Generator().manual_seed(0)
    net = Network([Dense(20, 9, generator=g), Dense(9, 10, generator=g)], Halfway())
    x = torch.rand(3, 20, generator=g)
    ends = [relaxed(net, x, Speed(off)) for off in (("odd-even",), ())]
    assert ends[0].steps == ends[1].steps
    assert all(map(torch.equal, ends[0].states, ends[1].states))


def test_convolutions_take_odd_even_updates_too() -> None:
    g = torch.Generator().manual_seed(0)
    layers = [Conv((1, 8, 8), 3, generator=g), Dense((3, 4, 4), 10, generator=g)]
    net, x = Network(layers, Real(initial=0.5)), torch.rand(4, 1, 8, 8, generator=g)
    ends = [relaxed(net, x, speed) for speed in (*map(only, SOLVERS), only("plain", False))]
    assert ends[0].steps < ends[-1].steps
    for end in ends[1:]:
        for a, b in zip(end.states, ends[0].states, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


@given(st.floats(0.01, 0.999))
def test_omega_follows_from_the_rate_of_settling(mu: float) -> None:
    """With the rates of Young's theory for the first ω, one step finds the best."""
    best = 2 / (1 + math.sqrt(1 - mu**2))
    discriminant = (FIRST * mu) ** 2 - 4 * (FIRST - 1)
    rate = FIRST - 1.0 if discriminant < 0 else ((FIRST * mu + math.sqrt(discriminant)) / 2) ** 2
    relaxation = OverRelaxation.of(torch.zeros(2, 1, dtype=torch.float64), JOINED)
    for change in (1.0, rate, rate**2):
        relaxation.update(torch.tensor([change, math.nan], dtype=torch.float64))
    expected = min(MOST, max(FIRST, best))
    assert relaxation.omega[0].item() == pytest.approx(expected, abs=1e-6)
    assert relaxation.omega[1] == FIRST


rates = st.floats(0, 1.5) | st.just(math.nan)


@given(st.floats(FIRST, MOST), rates, rates)
def test_the_compiled_rule_is_the_same(omega: float, rate: float, before: float) -> None:
    relaxation = OverRelaxation(
        *(torch.tensor([v], dtype=torch.float64) for v in (omega, 1.0, before)), MOST
    )
    relaxation.update(torch.tensor([rate], dtype=torch.float64))
    assert relaxation.omega.item() == pytest.approx(raised_omega(omega, rate, before))
