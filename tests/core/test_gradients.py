"""Gradient estimators against the oracle, and against each other."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from networks import Twins, array, twins

from binep.core.costs import CrossEntropy, SquaredError
from binep.core.gradients import BackpropThroughTime, EquilibriumPropagation, Nudging
from binep.core.network import Network
from binep.core.neurons import Binary, Real
from binep.core.phases import Clamped, Equilibrium, Phase
from binep.core.solvers import Plain, choose
from binep.core.speed import SHORTCUTS, Speed
from binep.core.synapses import Conv, Dense, Synapse


def assert_gradients(synapses: Any, expected: list[oracle.Gradient], tolerance: float) -> None:
    """.grad is the direction to go against, the oracle's g the direction to go.

    The oracle's g of a scaling factor is α·∂/∂α from EP.
    """
    for synapse, g in zip(synapses, expected, strict=True):
        np.testing.assert_allclose(-array(synapse.values.grad), g["weight"], atol=tolerance)
        np.testing.assert_allclose(-array(synapse.bias.grad), g["bias"], atol=tolerance)
        if synapse.scale is not None:
            alpha = array(synapse.scale)
            moved = -alpha * array(synapse.scale.grad)
            np.testing.assert_allclose(moved, g["scale"], atol=tolerance)


@given(twins(), st.sampled_from((-0.3, 0.5, 2.0)), st.integers(1, 5), st.integers(1, 3))
def test_one_sided_equals_the_oracle(t: Twins, beta: float, free: int, nudged: int) -> None:
    estimator = EquilibriumPropagation(
        t.network,
        beta=beta,
        free_steps=free,
        nudged_steps=nudged,
        nudging="one-sided",
        tolerance=0,
    )
    settled = estimator(t.x, t.target)
    x, target = array(t.x), array(t.target)
    start = oracle.initial_states(t.synapses, t.dynamics, x)
    low = oracle.relax(t.synapses, t.dynamics, x, start, free)
    high = oracle.relax(t.synapses, t.dynamics, x, low, nudged, target, beta, t.force)
    expected = oracle.ep_gradient(t.synapses, t.dynamics, x, low, high, beta)
    assert_gradients(t.network.synapses, expected, 1e-9)
    cost = t.network.cost
    if isinstance(cost, CrossEntropy):
        readout = cost.readout
        g = oracle.readout_gradient(array(readout.weight), array(readout.bias), low[-1], target)
        assert readout.values.grad is not None
        np.testing.assert_allclose(-array(readout.values.grad), g["weight"], atol=1e-9)
        np.testing.assert_allclose(-array(readout.bias.grad), g["bias"], atol=1e-9)
        if readout.scale is not None:
            by_scale = (g["weight"] * array(readout.values)).sum()
            np.testing.assert_allclose(-array(readout.scale.grad), by_scale, atol=1e-9)
    np.testing.assert_allclose(array(settled.output), low[-1], atol=1e-11)


@given(twins(activation="real", cost="squared-error"), st.sets(st.integers(0, 7)), st.booleans())
def test_samples_that_the_nudge_leaves_alone_add_nothing(
    t: Twins, learnt: set[int], centred: bool
) -> None:
    """Some, all, or none: with and without their nudged phase the gradients are the same."""
    free = t.network.relax(t.x, 500, tolerance=1e-9)
    target = t.target.clone()
    for sample in learnt & set(range(len(target))):
        target[sample] = free.output[sample].view_as(target[sample])
    found = []
    for off in ((), ("zero-nudge",)):
        t.network.speed = Speed(off=off)
        EquilibriumPropagation(
            t.network,
            beta=0.5,
            free_steps=500,
            nudged_steps=10,
            nudging="centred" if centred else "one-sided",
            tolerance=1e-9,
        )(t.x, target)
        found.append([p.grad for p in t.network.parameters() if p.grad is not None])
    for some, every in zip(*found, strict=True):
        torch.testing.assert_close(some, every, atol=1e-6, rtol=0)


@pytest.mark.parametrize("learnt", [0, 1, 5, 8, 15, 16])
def test_samples_that_the_nudge_leaves_alone_are_not_settled_again(
    learnt: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network([Dense(6, 8), Dense(8, 3)], Real())
    x, seen = torch.rand(16, 6), []
    target = torch.full((16, 3), 0.5)
    target[:learnt] = network.relax(x, 2000).output[:learnt]
    settle = network.settle

    def count(phase: Phase) -> Equilibrium:
        seen.append(len(phase.x))
        return settle(phase)

    monkeypatch.setattr(network, "settle", count)
    EquilibriumPropagation(network, beta=0.5, free_steps=2000, nudged_steps=5)(x, target)
    assert seen == [16, {0: 16, 1: 16, 5: 12, 8: 8, 15: 2, 16: 2}[learnt]]  # eighths of 16


@given(twins(), st.sampled_from((0.5, 2.0)))
def test_centred_equals_the_oracle(t: Twins, beta: float) -> None:
    estimator = EquilibriumPropagation(
        t.network, beta=beta, free_steps=4, nudged_steps=3, nudging="centred", tolerance=0
    )
    estimator(t.x, t.target)
    x, target = array(t.x), array(t.target)
    start = oracle.initial_states(t.synapses, t.dynamics, x)
    free = oracle.relax(t.synapses, t.dynamics, x, start, 4)
    plus, minus = (
        oracle.relax(t.synapses, t.dynamics, x, free, 3, target, sign * beta, t.force)
        for sign in (1, -1)
    )
    expected = oracle.centred_gradient(t.synapses, t.dynamics, x, plus, minus, beta)
    assert_gradients(t.network.synapses, expected, 1e-9)


@given(twins(activation="real"), st.integers(0, 2**32))
def test_random_sign_is_one_of_both_signs(t: Twins, seed: int) -> None:
    def gradients(nudging: Nudging, beta: float) -> list[torch.Tensor]:
        EquilibriumPropagation(
            t.network,
            beta=beta,
            free_steps=4,
            nudged_steps=3,
            nudging=nudging,
            generator=torch.Generator().manual_seed(seed),
        )(t.x, t.target)
        return [s.values.grad.clone() for s in t.network.synapses if s.values.grad is not None]

    drawn = gradients("random-sign", 0.5)
    sides = [gradients("one-sided", 0.5), gradients("one-sided", -0.5)]
    assert any(all(map(torch.equal, drawn, side)) for side in sides)


def test_random_sign_draws_both_signs_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network([Dense(2, 2)], Real())
    free, drawn = network.relax(torch.rand(1, 2), 1), []

    def settle(phase: Phase) -> Equilibrium:
        drawn.append(phase.beta)
        return free

    monkeypatch.setattr(network, "settle", settle)
    generator = torch.Generator().manual_seed(0)
    estimator = EquilibriumPropagation(
        network, beta=1.0, free_steps=1, nudged_steps=1, generator=generator
    )
    for _ in range(4000):
        estimator(free.clamped.x, torch.zeros(1, 2))
    assert sorted(set(drawn)) == [-1.0, 0.0, 1.0]  # 0 in the free phases
    assert abs(drawn.count(1.0) - 2000) < 100  # 32 is the standard deviation
    assert drawn.count(1.0) + drawn.count(-1.0) == 4000


def kinks(t: Twins, steps: range) -> bool:
    """Whether a pooled maximum is all but tied, or a drive at an end of rho, in one of the steps.

    There the feedback jumps or the slope changes, and differences tell no derivative.
    """
    states = t.network.initial_states(t.x)
    clamped = t.network.clamp(t.x)
    for taken in range(steps.stop):
        for synapse, below in zip(t.network.synapses, [t.x, *states], strict=False):
            if taken in steps and isinstance(synapse, Conv) and synapse.pool > 1:
                maps = torch.nn.functional.conv2d(below, synapse.weight, padding=synapse.padding)
                windows = maps.unfold(2, synapse.pool, synapse.pool)
                windows = windows.unfold(3, synapse.pool, synapse.pool).flatten(-2)
                first, second = windows.topk(2).values.unbind(-1)
                if synapse.pooling == "max" and bool((first - second < 1e-4).any()):
                    return True
        sent = [array(state) for state in states]
        for p in oracle.preactivations(t.synapses, t.dynamics, sent, array(t.x)):
            if taken in steps and (np.minimum(abs(p), abs(p - 1)) < 1e-4).any():
                return True
        states = t.network.step(clamped, states)
    return False


@given(twins(activation="real", cost="squared-error"), st.integers(0, 3), st.integers(1, 3))
def test_bptt_equals_finite_differences(t: Twins, before: int, nudged: int) -> None:
    for neurons in t.network.neurons:
        object.__setattr__(neurons, "initial", 0.37)  # off the kinks, where differences average
    t.dynamics.initial = 0.37
    assume(not kinks(t, range(before, before + nudged)))
    estimator = BackpropThroughTime(
        t.network, free_steps=before + nudged, nudged_steps=nudged, tolerance=0
    )
    estimator(t.x, t.target)
    expected = oracle.bptt_gradient(
        t.synapses, t.dynamics, array(t.x), array(t.target), before + nudged, nudged
    )
    for synapse, g in zip(t.network.synapses, expected, strict=True):
        g["scale"] = g["scale"] * (1 if synapse.scale is None else array(synapse.scale))
        if synapse.values.grad is None:  # out of reach of the output in so few steps
            synapse.values.grad = torch.zeros_like(synapse.values)
        for parameter in (synapse.bias, synapse.scale):
            if parameter is not None and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
    assert_gradients(t.network.synapses, expected, 1e-6)


@given(twins(activation="real"), st.integers(0, 300), st.integers(1, 6), st.booleans())
def test_bptt_linearised_at_equilibria_is_bptt(
    t: Twins, before: int, nudged: int, hits: bool
) -> None:
    """Of samples that have settled, of some that have not, and of outputs that are the target."""
    target = t.target.clone().double()
    if hits and target.flatten(1).shape == t.network.relax(t.x, 1).output.flatten(1).shape:
        target[0] = t.network.relax(t.x, 500, tolerance=0).output[0].view_as(target[0])
    ends, found = [], []
    for off in ((), ("linearised",)):
        t.network.speed = Speed(off=off)
        steps = {"free_steps": before + nudged, "nudged_steps": nudged}
        ends.append(BackpropThroughTime(t.network, tolerance=1e-10, **steps)(t.x, target))
        found.append([p.grad for p in t.network.parameters() if p.requires_grad])
    for ours, autograd in zip(*found, strict=True):
        if autograd is None:  # out of reach of the output in so few steps
            assert ours is None or not ours.any()
        else:
            torch.testing.assert_close(ours, autograd, atol=1e-7, rtol=1e-6)
    assert torch.equal(ends[0].moved, ends[1].moved)
    for one, other in zip(ends[0].states, ends[1].states, strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=0)


class OwnDense(Dense):
    """Might be another one in each step."""


class OwnReal(Real):
    """Might move otherwise."""


class OwnSteps(Network):
    """Might take other steps."""

    def step(self, *given: Any, **named: Any) -> list[torch.Tensor]:
        return super().step(*given, **named)


class Fed(Clamped):
    """With something that `Network.clamp` does not give."""

    extra = 0.1


class OwnClamp(Network):
    def clamp(self, x: torch.Tensor) -> Clamped:
        clamped = super().clamp(x)
        return Fed(clamped.x, clamped.drive, clamped.route)

    def drives(self, clamped: Clamped, *arguments: Any) -> Any:
        assert isinstance(clamped, Fed)
        return super().drives(clamped, *arguments)


def test_of_steps_of_ones_own_no_sample_is_left_out() -> None:
    torch.manual_seed(0)
    net = OwnClamp([Dense(8, 6), Dense(6, 2)], Real())
    with torch.no_grad():
        net.synapses[1].bias.copy_(torch.tensor([9.0, -9.0]))  # class 0, whatever comes
    assert choose(net, Phase.of(net, torch.rand(1, 8), 1)) is Plain
    x, target = torch.rand(16, 8), net.cost.target(torch.arange(16) % 16 // 15)
    EquilibriumPropagation(net, beta=0.3, free_steps=90, nudged_steps=3)(x, target)
    assert net.synapses[1].bias.grad is not None


class OwnDrives(Network):
    """Might let something else arrive."""

    def drives(self, *given: Any, **named: Any) -> list[torch.Tensor | None]:
        return super().drives(*given, **named)


def test_bptt_records_only_samples_that_still_move(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    layers = [Dense(6, 30, generator=g), Dense(30, 20, generator=g), Dense(20, 3, generator=g)]
    network = Network(layers, Real()).double()
    x, target = torch.rand(16, 6, generator=g).double(), torch.eye(3).repeat(6, 1)[:16].double()
    taken, nudged = 30, 3
    changes = []  # of each step, layer and sample
    with torch.no_grad():
        clamped, states = network.clamp(x), network.initial_states(x)
        for _ in range(taken + nudged):
            before, states = states, network.step(clamped, states)
            pairs = zip(states, before, strict=True)
            changes.append(torch.stack([(a - b).abs().amax(1) for a, b in pairs]))
    median = float(changes[taken].amax(0).median())  # of half the samples the next step moves less
    assert median < 1e-3
    recorded: list[int] = []
    through = BackpropThroughTime._through_autograd

    def noted(self: BackpropThroughTime, x: torch.Tensor, *rest: Any) -> Equilibrium:
        recorded.append(len(x))
        return through(self, x, *rest)

    def ended(network: Network, tolerance: float, *off: str) -> Equilibrium:
        network.speed = Speed(off=("odd-even", "leaving", *off))
        return BackpropThroughTime(
            network, free_steps=taken + nudged, nudged_steps=nudged, tolerance=tolerance
        )(x, target)

    monkeypatch.setattr(BackpropThroughTime, "_through_autograd", noted)
    found, ends = [], []
    for off in ((), ("linearised",)):
        ends.append(ended(network, median / 10, *off))
        found.append([p.grad for p in network.parameters() if p.grad is not None])
    assert recorded == [8, 16]
    for ours, autograd in zip(*found, strict=True):
        assert float((ours - autograd).norm()) <= 0.02 * float(autograd.norm())
    still = changes[taken].amax(0) <= median
    for ours, autograd in zip(ends[0].states, ends[1].states, strict=True):
        torch.testing.assert_close(ours[still], autograd[still], atol=2 * median, rtol=0)
        torch.testing.assert_close(ours[~still], autograd[~still], atol=1e-12, rtol=0)
    residual = torch.where(still, changes[taken], changes[-1]).amax(1)
    torch.testing.assert_close(ends[0].residual, residual, atol=1e-12, rtol=0)
    recorded.clear()
    ended(network, 1.0)
    assert recorded == []
    for tolerance in (0.0, 1e-300):
        ended(network, tolerance)
    network.neurons[1] = OwnReal()
    ended(network, 1.0)
    for kind in (OwnSteps, OwnDrives):
        ended(kind(layers, Real()), 1.0)
    ended(Network([layers[0], OwnDense(30, 20).double(), layers[2]], Real()), 1.0)
    assert recorded == [16] * 6


@pytest.mark.parametrize("nudged", [1, 2, 3, 4])
@pytest.mark.parametrize("sizes", [(5, 4), (5, 6, 4), (5, 6, 7, 4)])
def test_bptt_leaves_out_what_is_out_of_reach_whatever_the_solver(
    sizes: tuple[int, ...], nudged: int
) -> None:
    network = Network([Dense(a, b) for a, b in pairwise(sizes)], Real(0.5))
    x, target = torch.rand(6, 5), network.cost.target(torch.arange(6) % 4)
    for network.speed in (Speed(), Speed(off=("in-cache",)), Speed(off=SHORTCUTS)):
        BackpropThroughTime(network, free_steps=50, nudged_steps=nudged)(x, target)
        filled = [synapse.values.grad is not None for synapse in network.synapses]
        assert filled == [len(network) - k <= nudged for k in range(len(network))]


@pytest.mark.parametrize("nudged", [1, 2, 4])
@pytest.mark.parametrize("frozen", ["none", "first", "synapses"])
@pytest.mark.parametrize("sizes", [(5, 4), (5, 6, 4), (5, 6, 7, 4)])
def test_bptt_linearised_fills_what_autograd_fills(
    sizes: tuple[int, ...], frozen: str, nudged: int
) -> None:
    """No gradient for what is out of reach, or needs none: None, as momenta tell it from zeros."""
    g = torch.Generator().manual_seed(1)
    layers = [Dense(a, b, generator=g) for a, b in pairwise(sizes)]
    cost = CrossEntropy(Dense(4, 3, weights="real", generator=g))
    network = Network(layers, Real(), cost).double()
    for synapse in layers[: {"none": 0, "first": 1, "synapses": len(layers)}[frozen]]:
        synapse.requires_grad_(False)
    x, target = torch.rand(6, 5, generator=g).double(), torch.eye(3).repeat(2, 1).double()
    found = []
    for off in ((), ("linearised",)):
        network.speed = Speed(off=off)
        BackpropThroughTime(network, free_steps=400 + nudged, nudged_steps=nudged)(x, target)
        found.append([p.grad for p in network.parameters()])
    for ours, autograd in zip(*found, strict=True):
        assert (ours is None) == (autograd is None)
        if autograd is not None:
            torch.testing.assert_close(ours, autograd, atol=1e-6, rtol=1e-4)


def test_no_product_is_taken_for_weights_that_do_not_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Dense] = []
    correlate = Dense.correlate

    def noted(synapse: Dense, *given: torch.Tensor) -> torch.Tensor:
        asked.append(synapse)
        return correlate(synapse, *given)

    monkeypatch.setattr(Dense, "correlate", noted)
    layers = [Dense(5, 6), Dense(6, 7), Dense(7, 3)]
    layers[0].requires_grad_(False)
    layers[1].values.requires_grad_(False)
    network = Network(layers, Real(), speed=Speed(off=("in-cache",)))
    estimator = BackpropThroughTime(network, free_steps=400, nudged_steps=4)
    estimator(torch.rand(6, 5), torch.eye(3).repeat(2, 1))
    assert asked == layers[1:]  # of the second the scaling factor learns
    assert [layer.bias.grad is None for layer in layers] == [True, False, False]
    assert [layer.values.grad is None for layer in layers] == [True, True, False]


def test_bptt_takes_a_cost_that_is_a_mean_already() -> None:
    class MeanError(SquaredError):
        def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return super().loss(output, target).mean()

    g = torch.Generator().manual_seed(2)
    layers = [Dense(5, 6, generator=g), Dense(6, 3, generator=g)]
    x, target = torch.rand(6, 5, generator=g), torch.eye(3).repeat(2, 1)
    found = []
    for cost in (SquaredError(3), MeanError(3)):
        for off in ((), ("linearised",)):
            network = Network(layers, Real(), cost, speed=Speed(off=("in-cache", *off)))
            BackpropThroughTime(network, free_steps=200, nudged_steps=4)(x, target)
            found.append(layers[0].values.grad)
    for gradient in found[1:]:
        torch.testing.assert_close(gradient, found[0], atol=1e-6, rtol=1e-4)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def dense(generator: torch.Generator) -> list[Synapse]:
    return [Dense(a, b, generator=generator) for a, b in pairwise([147, 40, 30, 10])]


def convolutional(generator: torch.Generator) -> list[Synapse]:
    first = Conv((3, 7, 7), 6, kernel=3, padding=1, pool=2, generator=generator)
    second = Conv(first.output_shape, 8, kernel=2, padding=0, pool=1, generator=generator)
    return [first, second, Dense(second.output_shape, 10, generator=generator)]


def averaged(generator: torch.Generator) -> list[Synapse]:
    first = Conv((3, 7, 7), 6, kernel=3, padding=1, pooling="average", generator=generator)
    return [first, Dense(first.output_shape, 10, generator=generator)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("nudging", ["one-sided", "centred"])
@pytest.mark.parametrize("build", [dense, convolutional, averaged])
def test_ep_and_bptt_point_the_same_way(seed: int, nudging: Nudging, build: Any) -> None:
    """Nudge inside rho, β = 0.01, random networks: cosine of at least 0.9 per layer."""
    generator = torch.Generator().manual_seed(seed)
    network = Network(build(generator), Real(0.5, "inside")).double()
    x = torch.rand(20, *(3, 7, 7), generator=generator, dtype=torch.float64)
    y = network.cost.target(torch.randint(10, (20,), generator=generator))

    def gradients(estimator: Any) -> list[torch.Tensor]:
        estimator(x, y)
        return [s.values.grad.clone() for s in network.synapses if s.values.grad is not None]

    steps: Any = {"free_steps": 150, "nudged_steps": 50, "tolerance": 0}
    ep = gradients(EquilibriumPropagation(network, beta=0.01, nudging=nudging, **steps))
    bptt = gradients(BackpropThroughTime(network, **steps))
    cosines = [cosine(a, b) for a, b in zip(ep, bptt, strict=True)]
    assert min(cosines) >= 0.9


@pytest.mark.parametrize("seed", range(3))
def test_both_estimators_mean_the_same_by_the_gradient_of_a_scaling_factor(seed: int) -> None:
    """∂C/∂α, without a factor α: α = 0.3 or so would make them a third of each other."""
    generator = torch.Generator().manual_seed(seed)
    network = Network([Dense(9, 7, generator=generator), Dense(7, 3, generator=generator)], Real())
    network.neurons[:] = [Real(0.5, "inside")] * 2
    network.double()
    x = torch.rand(6, 9, generator=generator, dtype=torch.float64)
    target = network.cost.target(torch.arange(6) % 3)
    steps: Any = {"free_steps": 200, "nudged_steps": 100, "tolerance": 0}
    found = []
    for estimator in (
        EquilibriumPropagation(network, beta=1e-3, nudging="centred", **steps),
        BackpropThroughTime(network, **steps),
    ):
        estimator(x, target)
        found.append([s.scale.grad.clone() for s in network.synapses if s.scale is not None])
    for ep, bptt in zip(*found, strict=True):
        torch.testing.assert_close(ep, bptt, rtol=0.01, atol=1e-6)


@given(twins(), st.sampled_from((0.5, 2.0)))
def test_a_second_batch_leaves_nothing_of_the_first_ones_gradient(t: Twins, beta: float) -> None:
    estimator = EquilibriumPropagation(
        t.network, beta=beta, free_steps=3, nudged_steps=2, nudging="one-sided"
    )

    def gradients() -> list[torch.Tensor]:
        estimator(t.x, t.target)
        return [p.grad.clone() for p in t.network.parameters() if p.grad is not None]

    first = gradients()
    assert len(first) == len(list(t.network.parameters()))
    assert all(map(torch.equal, first, gradients()))


def test_scale_gradients_only_where_they_are_learnt() -> None:
    network = Network([Dense(4, 5), Dense(5, 2)], Real())
    network.synapses[0].train_scale(False)
    estimators: list[Any] = [
        EquilibriumPropagation(network, beta=0.5, free_steps=5, nudged_steps=5),
        BackpropThroughTime(network, free_steps=5, nudged_steps=5),
    ]
    for estimator in estimators:
        estimator(torch.rand(3, 4), network.cost.target(torch.tensor([0, 1, 0])))
        first, second = (s.scale for s in network.synapses)
        assert first is not None
        assert second is not None
        assert first.grad is None
        assert second.grad is not None


def test_bad_settings_are_refused() -> None:
    real, binary = (Network([Dense(4, 2)], n) for n in (Real(), Binary()))
    with pytest.raises(ValueError, match="beta = 0"):
        EquilibriumPropagation(real, beta=0, free_steps=5, nudged_steps=5)
    with pytest.raises(ValueError, match="must be at least 1"):
        EquilibriumPropagation(real, beta=1, free_steps=0, nudged_steps=5)
    with pytest.raises(ValueError, match="nudging = 'both'"):
        EquilibriumPropagation(real, beta=1, free_steps=5, nudged_steps=5, nudging="both")
    with pytest.raises(ValueError, match="binary activations have none"):
        BackpropThroughTime(binary, free_steps=5, nudged_steps=5)
    with pytest.raises(ValueError, match="free_steps = 3 must be at least nudged_steps = 5"):
        BackpropThroughTime(real, free_steps=3, nudged_steps=5)
    half = Network([Dense(4, 2)], Real()).half()
    for beta in (1e5, 1e-5):
        steep = EquilibriumPropagation(half, beta=beta, free_steps=5, nudged_steps=5)
        with pytest.raises(ValueError, match=r"it and 1/beta must be finite in torch.float16"):
            steep(torch.rand(2, 4).half(), torch.eye(2).half())


def test_learning_synapses_end_with_the_readout() -> None:
    readout = Dense(5, 2)
    network = Network([Dense(4, 5)], Real(), CrossEntropy(readout))
    synapses: list[Synapse] = [*network.synapses, readout]
    assert network.learning_synapses() == synapses
