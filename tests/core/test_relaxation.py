"""Layers that move in turn, and how far they go."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from binep.core.network import Equilibrium, Network, Speed
from binep.core.neurons import Real
from binep.core.overrelaxation import FIRST, MOST, Relaxation
from binep.core.synapses import Conv, Dense
from binep.solvers import kernels

WAYS = {
    "plain": Speed("exact", fused_steps=False),
    "sample by sample": Speed("exact"),
    "digits": Speed(fused_steps=False),
}


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
def relaxed(net: Network, x: torch.Tensor, speed: Speed, steps: int = 2000) -> Equilibrium:
    net.speed = speed
    return net.relax(x, steps)


def test_a_step_moves_the_even_layers_then_the_odd_ones_from_what_those_have_become() -> None:
    net, x = network(0)
    first = relaxed(net, x, WAYS["plain"], steps=1)
    factor = torch.full((7,), FIRST)
    with torch.no_grad():
        clamped, states = net.clamp(x), net.initial_states(x)
        even = net.step(clamped, states, None, [0, 2], factor)
        assert even[1] is states[1]
        both = net.step(clamped, even, None, [1], factor)
        assert both[0] is even[0]
    assert all(map(torch.equal, first.states, both))


@pytest.mark.parametrize("scale", [1.0, 1.4])
@pytest.mark.parametrize("way", WAYS)
def test_layers_in_turn_settle_in_the_same_place_in_fewer_steps(way: str, scale: float) -> None:
    for seed in range(5):
        net, x = network(seed, scale)
        at_once = relaxed(net, x, Speed("exact", fused_steps=False, alternate=False))
        in_turn = relaxed(net, x, WAYS[way])
        assert in_turn.steps < at_once.steps < 2000
        for a, b in zip(in_turn.states, at_once.states, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4 if scale > 1 else 2e-5)


@pytest.mark.parametrize("way", ["plain", "digits"])  # the third is compiled: not to be patched
def test_what_settles_slowly_goes_further(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = network(1, 1.4)
    steps = relaxed(net, x, WAYS[way]).steps
    monkeypatch.setattr(Relaxation, "follow", lambda self, change: None)
    assert steps < 0.9 * relaxed(net, x, WAYS[way]).steps


@pytest.mark.parametrize("way", WAYS)
def test_layers_move_at_once_where_all_steps_are_taken_and_where_they_are_nudged(way: str) -> None:
    net, x = network(2)
    target, ends = torch.eye(10)[:7], []
    for alternate in (False, True):
        net.speed = replace(WAYS[way], alternate=alternate)
        with torch.no_grad():
            free = net.relax(x, 4, tolerance=0)
            nudged = net.relax(x, 5, start=free, target=target, beta=0.3)
        ends.append([*free.states, *nudged.states])
    assert all(map(torch.equal, *ends))


class Halfway(Real):
    """Settles elsewhere if it is told to go further."""

    def update(
        self, state: torch.Tensor, drive: torch.Tensor, nudge: torch.Tensor | None = None
    ) -> torch.Tensor:
        return super().update(state, drive / 2, nudge)


def test_neurons_of_another_kind_move_at_once() -> None:
    g = torch.Generator().manual_seed(0)
    net = Network([Dense(20, 9, generator=g), Dense(9, 10, generator=g)], Halfway())
    x = torch.rand(3, 20, generator=g)
    ends = [relaxed(net, x, Speed(alternate=alternate)) for alternate in (False, True)]
    assert ends[0].steps == ends[1].steps
    assert all(map(torch.equal, ends[0].states, ends[1].states))


def test_convolutions_move_in_turn_too() -> None:
    g = torch.Generator().manual_seed(0)
    layers = [Conv((1, 8, 8), 3, generator=g), Dense((3, 4, 4), 10, generator=g)]
    net, x = Network(layers, Real(initial=0.5)), torch.rand(4, 1, 8, 8, generator=g)
    ends = [relaxed(net, x, speed) for speed in (*WAYS.values(), Speed(alternate=False))]
    for end in ends[1:]:
        for a, b in zip(end.states, ends[0].states, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


@given(st.floats(0.01, 0.999))
def test_from_how_fast_it_settles_follows_how_far_to_go(mu: float) -> None:
    """With the rates of Young's theory for the first ω, one step finds the best."""
    best = 2 / (1 + math.sqrt(1 - mu**2))
    discriminant = (FIRST * mu) ** 2 - 4 * (FIRST - 1)
    rate = FIRST - 1.0 if discriminant < 0 else ((FIRST * mu + math.sqrt(discriminant)) / 2) ** 2
    relaxation = Relaxation.of(torch.zeros(2, 1, dtype=torch.float64))
    for change in (1.0, rate, rate**2):
        relaxation.follow(torch.tensor([change, math.nan], dtype=torch.float64))
    expected = min(MOST, max(FIRST, best))
    assert relaxation.factor[0].item() == pytest.approx(expected, abs=1e-6)
    assert relaxation.factor[1] == FIRST


rates = st.floats(0, 1.5) | st.just(math.nan)


@given(st.floats(FIRST, MOST), rates, rates)
def test_the_compiled_rule_is_the_same(factor: float, rate: float, before: float) -> None:
    of = [torch.tensor([v], dtype=torch.float64) for v in (factor, 1.0, before)]
    relaxation = Relaxation(*of)
    relaxation.follow(torch.tensor([rate], dtype=torch.float64))
    assert relaxation.factor.item() == pytest.approx(kernels.further(factor, rate, before))
