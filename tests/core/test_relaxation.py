"""Odd/even updates with adaptive over-relaxation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from binep.core.network import Network
from binep.core.neurons import Real
from binep.core.overrelaxation import FIRST, MOST, OverRelaxation
from binep.core.phases import Equilibrium
from binep.core.speed import Speed
from binep.core.synapses import Conv, Dense

WAYS = {
    "plain": ("in-cache", "digits"),
    "in-cache": ("digits",),
    "digits": ("in-cache",),
}
"""Solvers of real neurons, and what is off to get them."""


def network(seed: int, scale: float = 1.0) -> tuple[Network, torch.Tensor]:
    """Three layers, of which the upper two are coupled more strongly by a larger scale."""
    g = torch.Generator().manual_seed(seed)
    layers = [Dense(20, 60, generator=g), Dense(60, 50, generator=g), Dense(50, 10, generator=g)]
    with torch.no_grad():
        for synapse in layers[1:]:
            assert synapse.scale is not None
            synapse.scale *= scale
    return Network(layers, Real(initial=0.5)), torch.rand(7, 20, generator=g)


@torch.no_grad()
def relaxed(net: Network, x: torch.Tensor, *off: str, steps: int = 2000) -> Equilibrium:
    net.speed = Speed(off=off)
    return net.relax(x, steps)


def test_a_step_moves_odd_layers_then_even_ones_from_what_the_odd_ones_have_become() -> None:
    net, x = network(0)
    first = relaxed(net, x, *WAYS["plain"], steps=1)
    factor = torch.full((7,), FIRST)
    with torch.no_grad():
        clamped, states = net.clamp(x), net.initial_states(x)
        odd = net.step(clamped, states, None, [0, 2], factor)  # counted from 0
        assert odd[1] is states[1]
        both = net.step(clamped, odd, None, [1], factor)
        assert both[0] is odd[0]
    assert all(map(torch.equal, first.states, both))


@pytest.mark.parametrize("scale", [1.0, 1.4])
@pytest.mark.parametrize("way", WAYS)
def test_odd_even_updates_settle_in_the_same_place_in_fewer_steps(way: str, scale: float) -> None:
    for seed in range(5):
        net, x = network(seed, scale)
        at_once = relaxed(net, x, *WAYS["plain"], "odd-even")
        in_turn = relaxed(net, x, *WAYS[way])
        assert in_turn.steps < at_once.steps < 2000
        for a, b in zip(in_turn.states, at_once.states, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4 if scale > 1 else 2e-5)


@pytest.mark.parametrize("way", ["plain", "digits"])  # the third one's is compiled
def test_over_relaxation_saves_steps_where_a_network_settles_slowly(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = network(1, 1.4)
    steps = relaxed(net, x, *WAYS[way]).steps
    monkeypatch.setattr(OverRelaxation, "update", lambda self, change: None)
    assert steps < 0.9 * relaxed(net, x, *WAYS[way]).steps


@pytest.mark.parametrize("way", WAYS)
def test_all_layers_move_at_once_in_nudged_phases_and_where_all_steps_are_taken(way: str) -> None:
    net, x = network(2)
    target, ends = torch.eye(10)[:7], []
    for off in ((), ("odd-even",)):
        net.speed = Speed(off=(*WAYS[way], *off))
        with torch.no_grad():
            free = net.relax(x, 4, tolerance=0)
            nudged = net.relax(x, 5, start=free, target=target, beta=0.3)
        ends.append([*free.states, *nudged.states])
    assert all(map(torch.equal, *ends))


class Halfway(Real):
    """Settles elsewhere under over-relaxation."""

    def update(
        self, state: torch.Tensor, drive: torch.Tensor, nudge: torch.Tensor | None = None
    ) -> torch.Tensor:
        return super().update(state, drive / 2, nudge)


def test_neurons_of_another_kind_move_at_once() -> None:
    g = torch.Generator().manual_seed(0)
    net = Network([Dense(20, 9, generator=g), Dense(9, 10, generator=g)], Halfway())
    x = torch.rand(3, 20, generator=g)
    ends = [relaxed(net, x), relaxed(net, x, "odd-even")]
    assert ends[0].steps == ends[1].steps
    assert all(map(torch.equal, ends[0].states, ends[1].states))


def test_convolutions_settle_in_the_same_place() -> None:
    g = torch.Generator().manual_seed(0)
    layers = [Conv((1, 8, 8), 3, generator=g), Dense((3, 4, 4), 10, generator=g)]
    net, x = Network(layers, Real(initial=0.5)), torch.rand(4, 1, 8, 8, generator=g)
    ends = [relaxed(net, x, *off) for off in (*WAYS.values(), ("odd-even",))]
    for end in ends[1:]:
        for a, b in zip(end.states, ends[0].states, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


@given(st.floats(0.01, 0.999))
def test_omega_follows_from_the_rate_of_settling(mu: float) -> None:
    """With the rates of Young's theory for the first ω, one step finds the best."""
    best = 2 / (1 + math.sqrt(1 - mu**2))
    discriminant = (FIRST * mu) ** 2 - 4 * (FIRST - 1)
    rate = FIRST - 1.0 if discriminant < 0 else ((FIRST * mu + math.sqrt(discriminant)) / 2) ** 2
    relaxation = OverRelaxation.of(torch.zeros(2, 1, dtype=torch.float64))
    for change in (1.0, rate, rate**2):
        relaxation.update(torch.tensor([change, math.nan], dtype=torch.float64))
    expected = min(MOST, max(FIRST, best))
    assert relaxation.omega[0].item() == pytest.approx(expected, abs=1e-6)
    assert relaxation.omega[1] == FIRST
