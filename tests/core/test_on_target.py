"""Samples that are on their target for certain leave the free phase, and add nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from binep.core.costs import SquaredError
from binep.core.gradients import BackpropThroughTime, EquilibriumPropagation, GradientEstimator
from binep.core.network import Network
from binep.core.neurons import Binary, Real
from binep.core.on_target import OnTarget
from binep.core.phases import Equilibrium, Phase
from binep.core.solvers import Loop, Solver
from binep.core.speed import SHORTCUTS, Speed
from binep.core.synapses import Conv, Dense
from binep.solvers import machine
from binep.solvers.bfloat16 import Bfloat16Solver
from binep.solvers.digits import engine
from binep.solvers.digits.solver import DigitSolver
from binep.solvers.leaving import LeavingSolver

TOLERANCE = 1e-6
SOLVERS = {"leaving": LeavingSolver, "bfloat16": Bfloat16Solver, "digits": DigitSolver}
FITS = {
    "leaving": lambda: True,
    "bfloat16": machine.has_bfloat16_products,
    "digits": machine.has_packed_int8,
}
GOAL = torch.tensor([1.0, 0.0, 1.0])


def network(solver: str, kind: str) -> Network:
    """Whose outputs are 1, 0 and 1 by far for any input, before hidden layers have settled."""
    g = torch.Generator().manual_seed(3)
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
    network.speed = Speed(off=set(SHORTCUTS) - {solver, "odd-even", "on-target", "zero-nudge"})
    return network


def batch(network: Network, size: int, learn: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Inputs and targets: where the output will be, but for the samples that are to learn."""
    g = torch.Generator().manual_seed(size)
    target = GOAL.repeat(size, 1)
    for sample in learn:
        target[sample] = torch.rand(3, generator=g)
    return torch.rand(size, *network.synapses[0].input_shape, generator=g), target


def cases() -> Any:
    names = [(s, k) for s in SOLVERS for k in ("dense", "conv") if (s, k) != ("bfloat16", "conv")]
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
    assert end.on_target is not None
    assert set((~end.on_target).nonzero().flatten().tolist()) == set(learn)
    moves = change(net, end)
    if learn != tuple(range(40)):
        assert moves[end.on_target].max() > 100 * TOLERANCE
    assert (end.residual <= TOLERANCE).all()
    learning = list(learn)
    assert (moves[learning] <= 30 * TOLERANCE).all()  # of all layers at once, by a plain step
    torch.testing.assert_close(end.output, GOAL.expand(40, 3), atol=0, rtol=0)
    if not learn:
        assert max(float(gradient.abs().max()) for gradient in found) < 1e-5  # of rounding
        return
    net.speed = without(net.speed, "on-target", "zero-nudge")
    alone, expected = gradients(
        EquilibriumPropagation(net, **settings), x[learning], target[learning]
    )
    assert alone.on_target is None
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
        assert end.on_target is not None
        if end.on_target.sum() == 40 - len(learn):
            break
    assert end.residual.max() > TOLERANCE
    net.speed = without(net.speed, "on-target", "zero-nudge")
    _, expected = gradients(estimator, x[learn], target[learn])
    assert_equal(found, [len(learn) / 40 * e for e in expected], 1e-2)


@cases()
@pytest.mark.parametrize("off", [(), ("linearised",)])
def test_bptt_of_what_is_on_its_target_adds_nothing(
    solver: str, kind: str, off: tuple[str, ...]
) -> None:
    """Some samples are, and the outputs of the others are not saturated."""
    names = {solver, "odd-even", "on-target", "linearised"} - set(off)
    net = network(solver, kind)
    estimator = BackpropThroughTime(net, free_steps=300, nudged_steps=5)
    x, target = batch(net, 40, ())
    for _ in range(400):
        net.speed = Speed(off=set(SHORTCUTS) - names)
        end, found = gradients(estimator, x, target)
        assert end.on_target is not None
        if end.on_target.sum() <= 30:
            break
        with torch.no_grad():
            net.synapses[-1].bias -= 0.05 * (GOAL - 0.5)
    assert end.on_target.any()
    if not off and kind == "dense":  # one more step was taken, not five
        assert change(net, end)[end.on_target].max() > 10 * TOLERANCE
    if not off:
        assert end.residual.max() <= 10 * TOLERANCE
    net.speed = without(net.speed, "on-target")
    alone, expected = gradients(estimator, x[~end.on_target], target[~end.on_target])
    assert alone.on_target is None
    share = len(alone.output) / 40
    assert_equal(found, [share * e for e in expected], 1e-3)


@given(
    st.floats(-0.95, 0.95),
    st.floats(0.001, 4),
    st.floats(-2, 3).filter(lambda p: not -1e-3 < p < 1.001),
    st.sampled_from((0.0, 1.0)),
)
def test_what_is_certain_stays(rate: float, size: float, end: float, target: float) -> None:
    """Of drives that approach their end at any rate none comes back to where it would learn."""
    drives = [end + size * rate**step for step in range(60)]
    one = OnTarget.of(SquaredError(1), torch.tensor([[target]]), torch.zeros(1, 1))
    certain = []
    for drive, before in zip(drives, [0.0, *drives], strict=False):
        p = torch.tensor([[drive]])
        moved = torch.tensor([abs(min(max(drive, 0), 1) - min(max(before, 0), 1))])
        certain.append(bool(one.certain(p.clamp(0, 1), p, moved)))
    for step in range(len(drives)):
        if certain[step]:
            assert all(min(max(drive, 0), 1) == target for drive in drives[step:])
    assert certain[-1] == (min(max(end, 0), 1) == target)


def test_what_is_not_certain() -> None:
    def certain(drive: float, before: float, output: float, target: float, moved: float) -> bool:
        aims = OnTarget(SquaredError(1), torch.tensor([[target]]), torch.tensor([[before]]))
        s, p, change = torch.tensor([[output]]), torch.tensor([[drive]]), torch.tensor([moved])
        return bool(aims.certain(s, p, change))

    assert certain(1.31, 1.30, 1.0, 1.0, 0.05)
    assert not certain(1.31, 1.30, 1.0, 1.0, 0.11)  # other states still move far
    assert not certain(1.31, 1.30, 1.0, 1.0, float("nan"))
    assert not certain(1.28, 1.30, 1.0, 1.0, 0.05)  # the margin is less than 30 changes
    assert not certain(1.3, float("inf"), 1.0, 1.0, 0.05)  # the first step
    assert not certain(-0.3, -0.3, 1.0, 1.0, 0.05)  # about to leave
    assert not certain(1.3, 1.3, 1.0, 0.0, 0.05)  # has something to learn
    assert not certain(1.0, 1.0, 1.0, 1.0, 0.0)  # rho'(p) = 1: BPTT differentiates it
    assert not certain(0.5, 0.5, 0.5, 0.5, 0.0)  # not saturated


def test_one_output_that_is_not_certain_keeps_the_sample() -> None:
    drives, target = torch.tensor([[1.3, -0.3], [1.3, -0.001]]), torch.tensor([[1.0, 0.0]] * 2)
    aims = OnTarget(SquaredError(2), target, drives - 0.001)
    found = aims.certain(drives.clamp(0, 1), drives, torch.zeros(2))
    assert found.tolist() == [True, False]
    assert aims.part(torch.tensor([1])).certain(drives[1:].clamp(0, 1), drives[1:], torch.zeros(1))


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
    for off in ((), ("on-target",)):
        sizes.clear()
        net.speed = without(
            Speed(off=set(SHORTCUTS) - {"leaving", "on-target", "zero-nudge"}), *off
        )
        EquilibriumPropagation(net, beta=0.5, free_steps=300, nudged_steps=5)(x, target)
        free = sizes[:-5]
        taken[off] = sum(free), len(free)
        assert free[-1] == 5
    assert taken[()][0] < 0.6 * taken["on-target",][0]
    assert taken[()][1] <= taken["on-target",][1]  # as long as the others take


def test_where_all_are_to_settle() -> None:
    """Without the switches, without settling, in evaluation, and with bits."""
    net = network("leaving", "dense")
    x, target = batch(net, 40, ())
    everything = net.speed
    settings: Any = {"beta": 0.5, "free_steps": 300, "nudged_steps": 5}
    assert net.relax(x, 300).on_target is None
    assert EquilibriumPropagation(net, **settings)(x, target).on_target is not None
    for off in ("on-target", "zero-nudge"):
        net.speed = without(everything, off)
        end = EquilibriumPropagation(net, **settings)(x, target)
        assert end.on_target is None
        assert change(net, end).max() <= 2 * TOLERANCE
    net.speed = everything
    assert EquilibriumPropagation(net, tolerance=0, **settings)(x, target).on_target is None
    bits = Network(list(net.synapses), [Real(), Real(), Binary()])
    assert EquilibriumPropagation(bits, **settings)(x, target).on_target is None


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
        plain = dataclasses.replace(phase, goal=None)
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
    assert end.on_target is None
    assert_equal(found[0], found[1], 1e-3)
