"""Samples whose output is certain leave the free phase: in training they add nothing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from binep.core.certain import CertainOutputs
from binep.core.costs import SquaredError
from binep.core.gradients import BackpropThroughTime, EquilibriumPropagation, GradientEstimator
from binep.core.network import Network
from binep.core.neurons import Binary, Real
from binep.core.phases import Equilibrium, Phase
from binep.core.solvers import Loop, Solver
from binep.core.speed import SHORTCUTS, Speed
from binep.core.synapses import Conv, Dense
from binep.experiment.training import evaluate
from binep.solvers import machine
from binep.solvers.bfloat16 import Bfloat16Solver
from binep.solvers.changes.solver import ChangeSolver
from binep.solvers.digits import engine
from binep.solvers.digits.solver import DigitSolver
from binep.solvers.int8 import Int8Solver
from binep.solvers.leaving import LeavingSolver

TOLERANCE = 1e-6
SOLVERS = {
    "leaving": LeavingSolver,
    "bfloat16": Bfloat16Solver,
    "int8": Int8Solver,
    "digits": DigitSolver,
    "changes": ChangeSolver,
}
FITS = {
    "changes": lambda: True,
    "leaving": lambda: True,
    "bfloat16": machine.has_bfloat16_products,
    "int8": Int8Solver.is_quick,
    "digits": machine.has_packed_int8,
}
GOAL = torch.tensor([1.0, 0.0, 1.0])


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Int8Solver, "least", 2**18)


def network(solver: str, kind: str) -> Network:
    """Whose outputs are 1, 0 and 1 by far for any input, before hidden layers have settled."""
    g = torch.Generator().manual_seed(4)
    weights: Any = {"weights": "binary" if solver == "digits" else "real", "generator": g}
    if kind == "conv":
        shape = (1, 12, 12)
        first = Conv(shape, 4, kernel=3, padding=1, **weights)
        second = Conv(first.output_shape, 6, kernel=3, padding=1, **weights)
        layers: list[Dense | Conv] = [first, second, Dense(second.output_shape, 3, **weights)]
    else:
        layers = [Dense(20, 512, **weights), Dense(512, 512, **weights), Dense(512, 3, **weights)]
    with torch.no_grad():
        layers[-1].bias += 6 * (GOAL - 0.5)
    network = Network(layers, Real(0.5), SquaredError(3))
    network.speed = Speed(
        off=set(SHORTCUTS) - {solver, "odd-even", "certain-outputs", "zero-nudge"}
    )
    return network


def batch(network: Network, size: int, learn: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Inputs and targets: where the output will be, but for the samples that are to learn."""
    g = torch.Generator().manual_seed(size)
    target = GOAL.repeat(size, 1)
    for sample in learn:
        target[sample] = torch.rand(3, generator=g)
    return torch.rand(size, *network.synapses[0].input_shape, generator=g), target


def cases() -> Any:
    neither = ("bfloat16", "conv"), ("int8", "conv"), ("changes", "dense")
    names = [(s, k) for s in SOLVERS for k in ("dense", "conv") if (s, k) not in neither]
    return pytest.mark.parametrize(
        ("solver", "kind"),
        [
            pytest.param(*name, marks=pytest.mark.skipif(not FITS[name[0]](), reason="no products"))
            for name in names
        ],
    )


def gradients(estimator: GradientEstimator, x: Tensor, target: Tensor) -> tuple[Any, list[Tensor]]:
    end = estimator(x, target)
    zeros = [torch.zeros_like(p) for p in estimator.network.parameters()]
    found = [p.grad for p in estimator.network.parameters()]
    return end, [z if f is None else f for z, f in zip(zeros, found, strict=True)]


def assert_equal(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).norm()) <= tolerance * float(other.norm()) + 1e-6


def change(network: Network, end: Equilibrium) -> Tensor:
    """By how much a further step moves each sample."""
    with torch.no_grad():
        after = network.step(network.clamp(end.clamped.x), end.states)
    pairs = zip(after, end.states, strict=True)
    return torch.stack([(a - b).abs().flatten(1).amax(1) for a, b in pairs]).amax(0)


def without(speed: Speed, *off: str) -> Speed:
    return dataclasses.replace(speed, off=(*speed.off, *off))


@cases()
@pytest.mark.parametrize("nudging", ["one-sided", "centred"])
@pytest.mark.parametrize("learn", [(), (2,), tuple(range(0, 40, 3)), tuple(range(40))])
def test_what_is_on_its_target_adds_nothing(
    solver: str, kind: str, nudging: Any, learn: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient is that of the other samples alone, though hidden layers have not settled."""
    if nudging == "centred":
        monkeypatch.setattr(engine, "_AT_ONCE", 2**16)  # the batch settles in parts
    net = network(solver, kind)
    x, target = batch(net, 40, learn)
    settings: Any = {"beta": 0.5, "free_steps": 300, "nudged_steps": 6, "nudging": nudging}
    end, found = gradients(EquilibriumPropagation(net, **settings), x, target)
    assert end.by is SOLVERS[solver]
    assert end.certain is not None
    assert set((~end.certain).nonzero().flatten().tolist()) == set(learn)
    moves = change(net, end)
    if learn != tuple(range(40)):
        assert moves[end.certain].max() > 2 * TOLERANCE
    assert (end.residual <= TOLERANCE).all()
    learning = list(learn)
    assert (moves[learning] <= 30 * TOLERANCE).all()  # of all layers at once, by a plain step
    torch.testing.assert_close(end.output, GOAL.expand(40, 3), atol=0, rtol=0)
    if not learn:
        assert max(float(gradient.abs().max()) for gradient in found) < 1e-5  # of rounding
        return
    net.speed = without(net.speed, "certain-outputs", "zero-nudge")
    alone, expected = gradients(
        EquilibriumPropagation(net, **settings), x[learning], target[learning]
    )
    assert alone.certain is None
    share = len(learn) / 40
    # Convolutions have several equilibria, and rounding alone may choose another.
    assert_equal(found, [share * e for e in expected], 1e-3 if kind == "dense" else 0.02)


@cases()
def test_what_is_on_its_target_adds_nothing_where_others_do_not_settle(
    solver: str, kind: str
) -> None:
    net, learn = network(solver, kind), list(range(0, 40, 3))
    x, target = batch(net, 40, learn)
    settings: Any = {"beta": 0.5, "nudged_steps": 6, "nudging": "one-sided"}
    for steps in range(4, 300):  # until those that leave have left, and not all others have settled
        estimator = EquilibriumPropagation(net, free_steps=steps, **settings)
        end, found = gradients(estimator, x, target)
        assert end.certain is not None
        if end.certain.sum() == 40 - len(learn):
            break
    assert end.residual.max() > TOLERANCE
    net.speed = without(net.speed, "certain-outputs", "zero-nudge")
    _, expected = gradients(estimator, x[learn], target[learn])
    assert_equal(found, [len(learn) / 40 * e for e in expected], 1e-2)


@cases()
@pytest.mark.parametrize("off", [(), ("linearised",)])
def test_bptt_of_what_is_on_its_target_adds_nothing(
    solver: str, kind: str, off: tuple[str, ...]
) -> None:
    """Some samples are, and the outputs of the others are not saturated."""
    names = {solver, "odd-even", "certain-outputs", "linearised"} - set(off)
    net = network(solver, kind)
    estimator = BackpropThroughTime(net, free_steps=300, nudged_steps=5)
    x, target = batch(net, 40, ())
    for _ in range(400):
        net.speed = Speed(off=set(SHORTCUTS) - names)
        end, found = gradients(estimator, x, target)
        assert end.certain is not None
        if end.certain.sum() <= 30:
            break
        with torch.no_grad():
            net.synapses[-1].bias -= 0.05 * (GOAL - 0.5)
    assert end.certain.any()
    if not off and kind == "dense":  # one more step was taken, not five
        assert change(net, end)[end.certain].max() > 2 * TOLERANCE
    assert end.residual.max() <= 10 * TOLERANCE
    net.speed = without(net.speed, "certain-outputs")
    alone, expected = gradients(estimator, x[~end.certain], target[~end.certain])
    assert alone.certain is None
    share = len(alone.output) / 40
    assert_equal(found, [share * e for e in expected], 1e-3)


def found(outputs: CertainOutputs, drive: Tensor, change: float) -> list[bool]:
    """Of outputs that follow their drive."""
    moved = torch.full((len(drive),), change)
    return outputs.find(drive.clamp(0, 1), lambda: drive, moved).tolist()


@given(
    st.floats(-0.95, 0.95),
    st.floats(0.001, 4),
    st.floats(-2, 3).filter(lambda p: not -1e-2 < p < 1.01),
    st.sampled_from((0.0, 1.0, None)),
    st.integers(1, 2),
)
def test_what_is_certain_stays(
    rate: float, size: float, end: float, goal: float | None, every: int
) -> None:
    """Of drives that approach their end at any rate, or in every second step, none comes back."""
    drives = [end + size * rate ** (step // every) for step in range(400)]
    target = None if goal is None else torch.tensor([[goal]])
    one = CertainOutputs(SquaredError(1), target, 4, torch.full((1, 1), torch.inf), torch.ones(1))
    certain = [found(one, torch.tensor([[drive]]), 1e-4)[0] for drive in drives]
    outputs = [min(max(drive, 0), 1) for drive in drives]
    for step in range(len(drives)):
        if certain[step]:
            assert all(output == outputs[-1] for output in outputs[step:])
            assert goal in (None, outputs[-1])
    assert certain[-1] == (goal in (None, outputs[-1]))


def test_what_is_not_certain() -> None:
    def certain(drive: float, moved: float, last: float, goal: float, **more: float) -> bool:
        before, wait = torch.tensor([[drive - moved]]), int(more.get("wait", 0))
        target = torch.tensor([[goal]])
        outputs = CertainOutputs(SquaredError(1), target, wait, before, torch.tensor([last]))
        output, change = torch.tensor([[more.get("output", goal)]]), more.get("change", 1e-3)
        return bool(outputs.find(output, lambda: torch.tensor([[drive]]), torch.tensor([change])))

    assert certain(1.31, 0.01, 0.01, 1)
    assert certain(-0.31, 0.01, 0.01, 0)
    assert not certain(1.31, 0.01, 0.01, 1, wait=1)  # the input may not have arrived
    assert not certain(1.31, 0.01, 0.01, 1, change=0.0011)  # other states still move
    assert not certain(1.31, 0.01, 0.01, 1, change=float("nan"))
    assert not certain(1.29, 0.01, 0.01, 1)  # the margin is less than 30 changes
    assert not certain(1.31, 0.001, 0.011, 1)  # of the step before
    assert not certain(1.31, float("inf"), 0.01, 1)  # the first step in which it is known
    assert not certain(-0.31, 0.0, 0.0, 1)  # about to leave
    assert not certain(1.31, 0.0, 0.0, 0, output=1.0)  # has something to learn
    assert not certain(1.0, 0.0, 0.0, 1)  # rho'(p) = 1: BPTT differentiates it
    assert not certain(0.5, 0.0, 0.0, 0.5)  # not saturated


def test_one_output_that_is_not_certain_keeps_the_sample() -> None:
    drives, target = torch.tensor([[1.3, -0.3], [1.3, -0.001]]), torch.tensor([[1.0, 0.0]] * 2)
    outputs = CertainOutputs(SquaredError(2), target, 0, drives - 0.001, torch.zeros(2))
    assert found(outputs, drives, 0.0) == [True, False]
    assert found(outputs.part(torch.tensor([0])), drives[:1], 0.0) == [True]
    assert found(outputs.part(torch.tensor([1])), drives[1:] - 0.1, 0.0) == [False]


def test_a_drive_is_compared_with_that_of_the_step_before() -> None:
    drive = torch.tensor([[1.3]])
    outputs = CertainOutputs(SquaredError(1), None, 0, drive, torch.zeros(1))
    assert found(outputs, drive, 0.0) == [True]
    seen = [found(outputs, drive, change)[0] for change in (1.0, 0.0, 0.0, 0.0)]
    assert seen == [False, False, False, True]


def test_a_drive_is_computed_only_where_it_may_be_certain() -> None:
    target = torch.tensor([[1.0], [0.5]])
    outputs = CertainOutputs(
        SquaredError(1), target, 0, torch.full((2, 1), torch.inf), torch.zeros(2)
    )

    def refused() -> Tensor:
        raise AssertionError

    for output, change in ((1.0, 0.1), (0.0, 0.0), (0.5, 0.0)):
        both = torch.full((2, 1), output), torch.full((2,), change)
        assert not outputs.find(both[0], refused, both[1]).any()


def test_a_signal_that_takes_many_steps_to_the_output_is_waited_for() -> None:
    """All states move by little, the output stands still, and in the end it is another."""
    for depth, kind in ((5, "binary"), (7, "real"), (8, "real")):
        sizes = [1, *[512] * (depth - 1), 1]
        layers = [Dense(a, b, weights=kind) for a, b in pairwise(sizes)]  # type: ignore[arg-type]
        with torch.no_grad():
            for i, layer in enumerate(layers):
                weight = 9e-4 if i == 0 else -10 / 512 if i == depth - 1 else 0.49 / 512
                if layer.scale is None:
                    layer.values.fill_(weight)
                else:
                    layer.values.fill_(math.copysign(1, weight))
                    layer.scale.fill_(abs(weight))
                layer.bias.zero_()
            layers[-1].bias.fill_(1.0001)
        net = Network(layers, Real(), SquaredError(1))
        x = torch.ones(8, 1)
        ends = [net.relax(x, 300, output_only=only) for only in (True, False)]
        assert not (ends[0].certain is not None and ends[0].certain.any())
        torch.testing.assert_close(ends[0].output, ends[1].output, atol=1e-6, rtol=0)


@pytest.mark.parametrize("coupling", [0.9, 0.95, 0.98, 0.99])
@pytest.mark.parametrize("off", [(), ("odd-even",)])
def test_an_output_that_leaves_slowly_is_waited_for(coupling: float, off: tuple[str, ...]) -> None:
    """Updated all at once, p moves in every second step alone."""
    n = 512
    layers = [Dense(a, b, weights="real") for a, b in pairwise([1, n, n, 1])]
    weights = (0.9 * (1 - coupling**2), coupling / n, -1e-3)
    with torch.no_grad():
        for layer, weight in zip(layers, weights, strict=True):
            layer.values.fill_(weight)
            layer.bias.zero_()
        layers[1].bias.fill_(1e-3)
        layers[2].bias.fill_(1 + n * 1e-3 * 0.9 * coupling - 0.05)  # the output ends at 0.95
    net = Network(layers, Real(), SquaredError(1), speed=Speed(off=off))
    end = net.relax(torch.ones(8, 1), 2000, output_only=True)
    assert end.certain is not None
    assert not end.certain.any()
    assert end.output.max() < 0.96


@pytest.mark.parametrize("gain", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("kind", ["real", "binary"])
@pytest.mark.parametrize("off", [("in-cache",), ("in-cache", "odd-even")])
def test_certain_outputs_of_random_networks_stay(
    gain: float, kind: Any, off: tuple[str, ...]
) -> None:
    """Also where layers are coupled so strongly that changes grow for some steps."""
    count = 0
    for seed, sizes in enumerate(([50, 64, 64, 10], [50, 64, 64, 64, 1], [50, 300, 300, 2])):
        g = torch.Generator().manual_seed(seed)
        layers = [Dense(a, b, weights=kind, generator=g) for a, b in pairwise(sizes)]
        with torch.no_grad():
            for layer in layers[1:]:
                (layer.values if layer.scale is None else layer.scale).mul_(gain)
            layers[-1].bias += 4 * (torch.rand(sizes[-1], generator=g) - 0.5)
        net = Network(layers, Real(), SquaredError(sizes[-1]), speed=Speed(off=off))
        x = torch.rand(128, 50, generator=g)
        end, settled = (net.relax(x, 400, output_only=only) for only in (True, False))
        assert end.certain is not None
        still = change(net, settled) <= 1e-4  # others never settle
        count += int((end.certain & still).sum())
        assert torch.equal(end.output[end.certain & still], settled.output[end.certain & still])
    assert count >= 20


def test_two_equilibria_of_ones_own_are_compared_without_them() -> None:
    net, learn = network("leaving", "dense"), [2, 30]
    x, target = batch(net, 40, learn)
    settings: Any = {"beta": 0.5, "free_steps": 300, "nudged_steps": 6, "nudging": "one-sided"}
    estimator = EquilibriumPropagation(net, **settings)
    free, expected = gradients(estimator, x, target)
    assert free.certain.sum() == 38
    nudged = net.relax(x, 6, start=free, target=target, beta=0.5)
    ends = [state.clone() for state in nudged.states]
    net.zero_grad()
    estimator.compare(free, nudged, 0.5)
    assert_equal([p.grad for p in net.parameters() if p.grad is not None], expected, 1e-4)
    for state, end in zip(nudged.states, ends, strict=True):
        assert torch.equal(state, end)
    torch.testing.assert_close(net.relax(x, 300, start=free, target=target).output, free.output)


def test_bptt_of_a_batch_on_its_target_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network("leaving", "dense")
    net.speed = Speed(off=set(SHORTCUTS) - {"leaving", "certain-outputs", "linearised"})
    x, target = batch(net, 40, ())
    monkeypatch.setattr(BackpropThroughTime, "_through_autograd", None)
    estimator = BackpropThroughTime(net, free_steps=300, nudged_steps=5, tolerance=1e-8)
    end, found = gradients(estimator, x, target)
    assert change(net, end).max() > 10 * estimator.tolerance
    assert end.residual.max() <= 10 * estimator.tolerance
    assert not any(gradient.any() for gradient in found)


def test_samples_leave_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network("leaving", "dense")
    x, target = batch(net, 40, (0, 7, 8))
    sizes: list[int] = []
    advance = Loop.advance

    def counted(loop: Loop) -> None:
        sizes.append(len(loop.states[0]))
        advance(loop)

    monkeypatch.setattr(Loop, "advance", counted)
    taken = {}
    for off in ((), ("certain-outputs",)):
        sizes.clear()
        net.speed = without(
            Speed(off=set(SHORTCUTS) - {"leaving", "certain-outputs", "zero-nudge"}), *off
        )
        EquilibriumPropagation(net, beta=0.5, free_steps=300, nudged_steps=5)(x, target)
        free = sizes[:-5]
        taken[off] = sum(free), len(free)
        assert free[-1] == 5
    assert taken[()][0] < 0.6 * taken["certain-outputs",][0]
    assert taken[()][1] <= taken["certain-outputs",][1]  # as long as the others take


@cases()
@pytest.mark.parametrize("free", [3, 6, 300])
def test_where_only_the_output_is_asked_for(solver: str, kind: str, free: int) -> None:
    """It is that of settled samples, whatever it is; others settle."""
    net = network(solver, kind)
    x, _ = batch(net, 40, ())
    for moderate in (False, True):
        if moderate:  # some outputs are saturated
            with torch.no_grad():
                net.synapses[-1].bias -= 5 * (GOAL - 0.5)
        end, settled = (net.relax(x, free, output_only=only) for only in (True, False))
        assert end.certain is not None
        assert settled.certain is None
        saturated = ((settled.output == 0) | (settled.output == 1)).all(1)
        if free == 300:
            assert (end.residual <= TOLERANCE).all()
            assert not (end.certain & ~saturated).any()
            assert moderate or end.certain.all()
            tolerance = 1e-4 if kind == "dense" else 0.02
            for one, other in zip(end.states, settled.states, strict=True):
                torch.testing.assert_close(
                    one[~end.certain], other[~end.certain], atol=tolerance, rtol=0
                )
            torch.testing.assert_close(end.output, settled.output, atol=tolerance, rtol=0)
        torch.testing.assert_close(
            end.output[end.certain], settled.output[end.certain], atol=0, rtol=0
        )


def test_scores_are_those_of_settled_samples() -> None:
    net = network("leaving", "dense")
    with torch.no_grad():
        net.synapses[-1].bias -= 4 * (GOAL - 0.5)
    x, _ = batch(net, 64, ())
    labels = torch.arange(64) % 3
    found = []
    for off in ((), ("certain-outputs",)):
        net.speed = without(Speed(off=("in-cache", "bfloat16", "int8")), *off)
        found.append(evaluate(net, [(x, labels)], free_steps=300))
    assert found[0].error == found[1].error
    assert abs(found[0].loss - found[1].loss) <= 1e-6
    assert found[0].settle_steps != found[1].settle_steps


def test_where_all_are_to_settle() -> None:
    """Unless asked for, without the switch, without settling, and with bits."""
    net = network("leaving", "dense")
    x, target = batch(net, 40, ())
    settings: Any = {"beta": 0.5, "free_steps": 300, "nudged_steps": 5}
    assert net.relax(x, 300).certain is None
    assert EquilibriumPropagation(net, **settings)(x, target).certain is not None
    assert EquilibriumPropagation(net, tolerance=0, **settings)(x, target).certain is None
    bits = Network(list(net.synapses), [Real(), Real(), Binary()])
    assert EquilibriumPropagation(bits, **settings)(x, target).certain is None
    net.speed = without(net.speed, "certain-outputs")
    end = EquilibriumPropagation(net, **settings)(x, target)
    assert end.certain is None
    assert change(net, end).max() <= 2 * TOLERANCE


@pytest.mark.parametrize("solver", ["leaving", "digits"])
def test_of_an_output_that_a_convolution_leads_to(solver: str) -> None:
    """Digits do not know its drive before pooling, so they say that all are to settle."""
    if not FITS[solver]():
        pytest.skip(f"{solver} does not fit this processor")
    net = network(solver, "conv")
    weights: Any = {"weights": "binary" if solver == "digits" else "real"}
    below = net.synapses[1].output_shape
    top = Conv(below, 3, kernel=below[1] - 1, padding=0, **weights)
    net = Network([*net.synapses[:2], top], Real(0.5), SquaredError(3))
    net.speed = Speed(off=set(SHORTCUTS) - {solver, "odd-even", "certain-outputs", "zero-nudge"})
    with torch.no_grad():
        top.bias += 6 * (GOAL - 0.5)
    x, _ = batch(net, 40, ())
    end = net.relax(x, 300, output_only=True)
    assert end.by is SOLVERS[solver]
    if solver == "digits":
        assert end.certain is None
        assert end.residual.max() <= TOLERANCE
    else:
        assert end.certain is not None
        assert end.certain.all()


def test_without_zero_nudge_they_add_nothing_either() -> None:
    net = network("leaving", "dense")
    x, target = batch(net, 40, ())
    net.speed = without(net.speed, "zero-nudge")
    end, found = gradients(
        EquilibriumPropagation(net, beta=0.5, free_steps=300, nudged_steps=5), x, target
    )
    assert end.certain is not None
    assert end.certain.all()
    assert max(float(gradient.abs().max()) for gradient in found) < 1e-5  # of rounding


class OwnSteps(Network):
    """Which might not depend on its drives."""

    def step(self, *given: Any, **named: Any) -> list[Tensor]:
        return super().step(*given, **named)


def test_a_network_with_steps_of_its_own_settles() -> None:
    net = network("leaving", "dense")
    own = OwnSteps(list(net.synapses), net.neurons, net.cost, speed=net.speed, solver=LeavingSolver)
    x, target = batch(net, 40, ())
    end = EquilibriumPropagation(own, beta=0.5, free_steps=300, nudged_steps=5)(x, target)
    assert end.by is LeavingSolver
    assert change(net, end).max() <= 2 * TOLERANCE


class Forgetful(Solver):
    """Knows nothing of goals."""

    name = "forgetful"

    @classmethod
    def fits(cls, network: Network, phase: Phase) -> bool:
        return True

    def solve(self, phase: Phase, memory: object) -> Equilibrium:
        plain = dataclasses.replace(phase, output_only=False, goal=None)
        return LeavingSolver(self.network).solve(plain, memory)


def test_a_solver_need_not_know_of_goals() -> None:
    net = network("leaving", "dense")
    x, target = batch(net, 40, (3, 5))
    found = []
    for solver in (None, Forgetful):
        net.solver = solver
        estimator = EquilibriumPropagation(
            net, beta=0.5, free_steps=300, nudged_steps=5, nudging="one-sided"
        )
        end, gradient = gradients(estimator, x, target)
        found.append(gradient)
    assert end.certain is None
    assert_equal(found[0], found[1], 1e-3)
