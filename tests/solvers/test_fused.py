"""Samples that settle one by one: what the plain steps and the oracle give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import Twins, array, twins

from binep.core.gradients import BackpropThroughTime
from binep.core.network import Network, Speed
from binep.core.neurons import Real
from binep.core.synapses import Conv, Dense, Synapse
from binep.solvers.in_cache import solver as fused

PLAIN = Speed(precision="exact", fused_steps=False, alternate=False)

fitting = twins(activation="real", cost="squared-error").filter(
    lambda t: fused.fits(t.network.float())
)


@torch.no_grad()
def phases(t: Twins, speed: Speed, steps: int, beta: float, tolerance: float = 0.0) -> list:
    network = t.network.float()
    network.speed = speed
    target = t.target.float()
    free = network.relax(t.x.float(), steps, tolerance=tolerance)
    options = {"start": free, "target": target, "beta": beta, "tolerance": tolerance}
    return [free, network.relax(t.x.float(), steps, **options)]


@given(fitting, st.integers(1, 5), st.sampled_from((-0.5, 0.3)))
def test_both_phases_equal_the_oracle(t: Twins, steps: int, beta: float) -> None:
    ours = phases(t, Speed(), steps, beta)
    x = array(t.x)
    start = oracle.initial_states(t.synapses, t.dynamics, x)
    free = oracle.relax(t.synapses, t.dynamics, x, start, steps)
    nudged = oracle.relax(t.synapses, t.dynamics, x, free, steps, array(t.target), beta, None)
    for phase, expected in zip(ours, (free, nudged), strict=True):
        assert phase.steps == steps
        for a, b in zip(phase.states, expected, strict=True):
            np.testing.assert_allclose(array(a), b, atol=1e-4)


@given(fitting, st.integers(1, 8), st.sampled_from((-0.5, 0.3)), st.booleans())
def test_what_is_told_of_settling_is_that_of_plain_steps(
    t: Twins, steps: int, beta: float, alternate: bool
) -> None:
    tolerance = 1e-30 if alternate else 0.0  # they take turns only until they have settled
    plain = phases(t, replace(PLAIN, alternate=alternate), steps, beta, tolerance)
    ours = phases(t, Speed(alternate=alternate), steps, beta, tolerance)
    for a, b in zip(ours, plain, strict=True):
        for state, expected in zip(a.states, b.states, strict=True):
            torch.testing.assert_close(state, expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(a.residual, b.residual, rtol=0, atol=1e-4)
        sure = (b.residual > 1e-4) | (b.residual == 0)  # else rounding decides
        assert torch.equal(
            a.moved[sure & (b.moved == b.steps)], b.moved[sure & (b.moved == b.steps)]
        )


def settling() -> tuple[Network, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    layers = [Dense(20, 40, generator=g), Dense(40, 30, generator=g), Dense(30, 10, generator=g)]
    with torch.no_grad():
        for synapse in layers[1:]:
            assert synapse.scale is not None
            synapse.scale *= 1.3  # coupled more strongly, they settle more slowly
    # Sixteenths: their sums are exact, in whichever order.
    return Network(layers, Real()), torch.randint(16, (9, 20), generator=g) / 16


@torch.no_grad()
def test_every_sample_stops_where_it_has_settled() -> None:
    network, x = settling()
    all_of_them = network.relax(x, 500)
    assert all_of_them.steps < 500
    assert (all_of_them.residual <= 1e-6).all()
    alone = [network.relax(sample[None], 500) for sample in x]
    assert len({e.steps for e in alone}) > 1
    assert all_of_them.steps == max(e.steps for e in alone)
    for k, states in enumerate(all_of_them.states):
        assert torch.equal(states, torch.cat([e.states[k] for e in alone]))
        assert all_of_them.moved[k] == max(int(e.moved[k]) for e in alone)


@torch.no_grad()
def test_a_sample_that_is_not_a_number_stays_one_and_is_no_other_s_business() -> None:
    network, x = settling()
    expected = network.relax(x, 30)
    x[4] = torch.nan
    ours = network.relax(x, 30)
    assert ours.steps == 30  # it never settles
    assert ours.residual.isnan().all()
    others = torch.arange(9) != 4
    for a, b in zip(ours.states, expected.states, strict=True):
        assert a[4].isnan().all()
        assert torch.equal(a[others], b[others])


def test_large_networks_are_left_to_other_ways() -> None:
    assert not fused.fits(Network([Dense(2, 300), Dense(300, 500)], Real()))
    assert not fused.fits(settling()[0].double())


def shallow(g: torch.Generator, weights: str) -> list[Synapse]:
    return [Dense((2, 3, 5), 40, weights=weights, generator=g), Dense(40, 10, generator=g)]


def deep(g: torch.Generator, weights: str) -> list[Synapse]:
    sizes = [Dense(20, 30, generator=g), Dense(30, 20, weights=weights, generator=g)]
    return [*sizes, Dense(20, 20, generator=g), Dense(20, 10, weights=weights, generator=g)]


def on_convolutions(g: torch.Generator, weights: str) -> list[Synapse]:
    first = Conv((2, 8, 8), 3, kernel=3, padding=1, weights=weights, generator=g)
    return [first, Dense((3, 4, 4), 10, weights=weights, generator=g)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("weights", ["binary", "real"])
@pytest.mark.parametrize("make", [shallow, deep, on_convolutions])
def test_what_is_unrolled_has_the_gradient_of_autograd(
    make: Callable[[torch.Generator, str], list[Synapse]], weights: str, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    layers = make(g, weights)
    for synapse in layers:
        synapse.train_scale(True)
    network = Network(layers, Real(initial=0.5))
    assert fused.fits(network)
    x = torch.rand(9, *layers[0].input_shape, generator=g)
    target = network.cost.target(torch.randint(10, (9,), generator=g))
    estimator = BackpropThroughTime(network, free_steps=30, nudged_steps=7)
    found = []
    for speed in (PLAIN, Speed(alternate=False)):
        network.speed = speed
        free = estimator(x, target)
        found.append((free, [(k, p.grad) for k, p in network.named_parameters()]))
    (plain, expected), (ours, gradients) = found
    assert (ours.steps, ours.states[0].requires_grad) == (plain.steps, False)
    for a, b in zip(ours.states, plain.states, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert any(bool(gradient.any()) for _, gradient in expected if gradient is not None)
    for (name, a), (_, b) in zip(gradients, expected, strict=True):
        assert a is not None, name
        assert b is not None, name
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
