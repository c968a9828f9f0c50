"""Small networks sample by sample: what the plain steps and the oracle give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import Twins, array, twins

import binep.solvers  # noqa: F401
from binep.core.gradients import BackpropThroughTime, EquilibriumPropagation
from binep.core.network import Network
from binep.core.neurons import Real
from binep.core.phases import Equilibrium, Phase
from binep.core.speed import Speed
from binep.core.synapses import Conv, Dense, Synapse
from binep.solvers.in_cache.solver import InCacheSolver


def plain(odd_even: bool = False) -> Speed:
    return Speed(("in-cache",) if odd_even else ("in-cache", "odd-even"), "exact")


def fits(network: Network) -> bool:
    first = network.synapses[0]
    x = torch.zeros(1, *first.input_shape, dtype=first.values.dtype)
    return InCacheSolver.fits(network, Phase.of(network, x, 1))


fitting = twins(activation="real", cost="squared-error").filter(lambda t: fits(t.network.float()))


def phases(
    t: Twins, speed: Speed, steps: int, beta: float, tolerance: float = 0.0
) -> list[Equilibrium]:
    network, x = t.network.float(), t.x.float()
    network.speed = speed
    free = network.relax(x, steps, tolerance=tolerance)
    options: dict[str, Any] = {"target": t.target.float(), "beta": beta, "tolerance": tolerance}
    return [free, network.relax(x, steps, start=free, **options)]


@given(fitting, st.integers(1, 5), st.sampled_from((-0.5, 0.3)))
def test_both_phases_equal_the_oracle(t: Twins, steps: int, beta: float) -> None:
    ours = phases(t, Speed(), steps, beta)
    x = array(t.x)
    start = oracle.initial_states(t.synapses, t.dynamics, x)
    free = oracle.relax(t.synapses, t.dynamics, x, start, steps)
    nudged = oracle.relax(t.synapses, t.dynamics, x, free, steps, array(t.target), beta, None)
    for phase, expected in zip(ours, (free, nudged), strict=True):
        assert phase.by is InCacheSolver
        for a, b in zip(phase.states, expected, strict=True):
            np.testing.assert_allclose(array(a), b, atol=1e-4)


@given(fitting, st.integers(1, 8), st.sampled_from((-0.5, 0.3)), st.booleans())
def test_states_residuals_and_steps_are_those_of_plain_steps(
    t: Twins, steps: int, beta: float, odd_even: bool
) -> None:
    tolerance = 1e-30 if odd_even else 0.0  # odd/even updates only until all has settled
    expected = phases(t, plain(odd_even), steps, beta, tolerance)
    ours = phases(t, Speed(() if odd_even else ("odd-even",)), steps, beta, tolerance)
    for a, b in zip(ours, expected, strict=True):
        assert a.by is InCacheSolver
        for state, other in zip(a.states, b.states, strict=True):
            torch.testing.assert_close(state, other, rtol=0, atol=1e-4)
        torch.testing.assert_close(a.residual, b.residual, rtol=0, atol=1e-4)
        last = (b.residual > 1e-4) & (b.moved == steps)  # else rounding decides
        assert torch.equal(a.moved[last], b.moved[last])


def settling() -> tuple[Network, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    layers = [Dense(20, 40, generator=g), Dense(40, 30, generator=g), Dense(30, 10, generator=g)]
    with torch.no_grad():
        for synapse in layers[1:]:
            assert synapse.scale is not None
            synapse.scale *= 1.3  # coupled more strongly, they settle more slowly
    # Sixteenths: their sums are exact, in whichever order.
    return Network(layers, Real()), torch.randint(16, (9, 20), generator=g) / 16


def test_every_sample_stops_where_it_has_settled() -> None:
    network, x = settling()
    all_of_them = network.relax(x, 500)
    assert all_of_them.by is InCacheSolver
    assert all_of_them.steps < 500
    assert (all_of_them.residual <= 1e-6).all()
    alone = [network.relax(sample[None], 500) for sample in x]
    assert len({e.steps for e in alone}) > 1
    assert all_of_them.steps == max(e.steps for e in alone)
    for k, states in enumerate(all_of_them.states):
        assert torch.equal(states, torch.cat([e.states[k] for e in alone]))
        assert all_of_them.moved[k] == max(int(e.moved[k]) for e in alone)


def test_a_sample_that_is_not_a_number_stays_one_and_changes_no_other() -> None:
    network, x = settling()
    expected = network.relax(x, 30)
    states = [state.clone() for state in network.initial_states(x)]
    for state in states:
        state[4] = torch.nan
    start = Equilibrium(expected.clamped, states, expected.moved, expected.residual)
    ours = network.relax(x, 30, start=start)
    assert ours.steps == 30  # it never settles
    assert ours.residual.isnan().all()
    others = torch.arange(9) != 4
    for a, b in zip(ours.states, expected.states, strict=True):
        assert a[4].isnan().all()
        assert torch.equal(a[others], b[others])


@pytest.mark.parametrize("largest", [1e30, 3e38])
def test_a_drive_that_overflows_is_that_sample_s_alone(largest: float) -> None:
    network, x = settling()
    expected = network.relax(x, 30)
    x[4] = largest
    ours = network.relax(x, 30)
    others = torch.arange(9) != 4
    for a, b in zip(ours.states, expected.states, strict=True):
        assert torch.equal(a[others], b[others])


def test_weights_stored_by_columns_and_replaced_ones_are_taken_as_they_are() -> None:
    network, x = settling()
    expected = network.relax(x, 30)
    for synapse in network.synapses:
        synapse.values = torch.nn.Parameter(synapse.values.detach().t().contiguous().t())
    for a, b in zip(network.relax(x, 30).states, expected.states, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    with torch.no_grad():
        network.synapses[1].values.neg_()
    negated = network.relax(x, 30)
    network.speed = plain()
    for a, b in zip(negated.states, network.relax(x, 200).states, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_large_networks_and_other_kinds_are_left_to_other_solvers() -> None:
    class OtherReal(Real):
        pass

    assert fits(settling()[0])
    assert not fits(Network([Dense(2, 300), Dense(300, 500)], Real()))
    assert not fits(Network([Dense(2, 3), Dense(3, 2)], OtherReal()))
    assert not fits(Network([Conv((1, 4, 4), 2), Conv((2, 2, 2), 2)], Real()))
    assert not fits(settling()[0].double())


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
    x = torch.rand(9, *layers[0].input_shape, generator=g)
    target = network.cost.target(torch.randint(10, (9,), generator=g))
    assert fits(network)
    compare_with_autograd(network, x, target)


def compare_with_autograd(network: Network, x: torch.Tensor, target: torch.Tensor) -> None:
    estimator = BackpropThroughTime(network, free_steps=30, nudged_steps=7)
    found = []
    for speed in (plain(), Speed(("odd-even",))):
        network.speed = speed
        free = estimator(x, target)
        found.append((free, [(k, p.grad) for k, p in network.named_parameters()]))
    (expected, autograd), (ours, gradients) = found
    assert not ours.output.requires_grad
    for a, b in zip(ours.states, expected.states, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.residual, expected.residual, rtol=0, atol=1e-5)
    assert any(bool(gradient.any()) for _, gradient in autograd if gradient is not None)
    for (name, a), (_, b) in zip(gradients, autograd, strict=True):
        assert a is not None, name
        assert b is not None, name
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_unrolling_is_not_left_to_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = settling()
    monkeypatch.setattr(Network, "step", None)
    target = network.cost.target(torch.arange(9))
    BackpropThroughTime(network, free_steps=9, nudged_steps=4)(x, target)
    assert network.synapses[0].values.grad is not None


@pytest.mark.parametrize("learn", ["equilibrium", "time"])
def test_one_synapse_in_two_layers_gets_the_sum_of_both_gradients(learn: str) -> None:
    g = torch.Generator().manual_seed(7)
    tied = Dense(30, 30, generator=g)
    network = Network(
        [Dense(20, 30, generator=g), tied, tied, Dense(30, 10, generator=g)], Real(0.5)
    )
    x = torch.rand(9, 20, generator=g)
    target = network.cost.target(torch.arange(9))
    if learn == "time":
        for synapse in network.synapses:
            synapse.train_scale(True)
        compare_with_autograd(network, x, target)
        return
    estimator = EquilibriumPropagation(
        network, beta=0.4, free_steps=50, nudged_steps=5, nudging="one-sided"
    )
    gradients = []
    for speed in (plain(), Speed(("odd-even",))):
        network.speed = speed
        estimator(x, target)
        assert tied.values.grad is not None
        gradients.append(tied.values.grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)
