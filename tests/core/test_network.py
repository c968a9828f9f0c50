"""The dynamics against the oracle, step by step and settled."""

from __future__ import annotations

from collections.abc import Callable

import networks
import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import Twins, array, twins

from binep.core.costs import Cost, SquaredError
from binep.core.network import Network
from binep.core.neurons import Binary, Neurons, Real
from binep.core.phases import Phase
from binep.core.solvers import Plain, choose
from binep.core.speed import SHORTCUTS, Speed
from binep.core.synapses import Conv, Dense, Synapse


def oracle_phases(t: Twins, free: int, nudged: int, beta: float) -> list[oracle.States]:
    x, target = array(t.x), array(t.target)
    start = oracle.initial_states(t.synapses, t.dynamics, x)
    settled = oracle.relax(t.synapses, t.dynamics, x, start, free)
    pushed = oracle.relax(t.synapses, t.dynamics, x, settled, nudged, target, beta, t.force)
    return [settled, pushed]


@given(twins(), st.integers(1, 6), st.integers(1, 4), st.sampled_from((-2.0, -0.3, 0.3, 2.0)))
def test_both_phases_equal_the_oracle(t: Twins, free: int, nudged: int, beta: float) -> None:
    first = t.network.relax(t.x, free, tolerance=0)
    second = t.network.relax(t.x, nudged, start=first, target=t.target, beta=beta, tolerance=0)
    for ours, theirs in zip((first, second), oracle_phases(t, free, nudged, beta), strict=True):
        for a, b in zip(ours.states, theirs, strict=True):
            np.testing.assert_allclose(array(a), b, atol=1e-11)


@given(twins(activation="real", convolutional=False))
def test_stopping_early_changes_nothing_beyond_the_tolerance(t: Twins) -> None:
    t.network.speed = Speed(off=("odd-even",))  # the same path, or there may be other equilibria
    early = t.network.relax(t.x, 500, tolerance=1e-9)
    full = t.network.relax(t.x, 500, tolerance=0)
    assert early.steps == int(early.moved.max()) <= full.steps == int(full.moved.max())
    if early.steps < 499:
        assert (early.residual <= 1e-9).all()
        for a, b in zip(early.states, full.states, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


@given(twins(), st.integers(1, 30), st.integers(1, 5))
def test_going_on_with_another_input_takes_the_states_alone(
    t: Twins, first: int, then: int
) -> None:
    network, given = t.network, t.x
    if not network.neurons[0].differentiable:
        network, given = network.float(), given.float()  # as events can be followed
    x = given.flip(0) / 2
    start = network.relax(given, first, tolerance=0)
    result = network.relax(x, then, start=start, tolerance=0)
    states = start.states
    for _ in range(then):
        states = network.step(network.clamp(x), states)
    assert torch.equal(result.clamped.x, x)
    for a, b in zip(result.states, states, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@given(twins(activation="binary"), st.integers(1, 3))
def test_binary_neurons_stop_only_when_nothing_moves_any_more(t: Twins, every: int) -> None:
    early = t.network.relax(t.x, 60, tolerance=1e-6, check_every=every)
    full = t.network.relax(t.x, 60, tolerance=0)
    for a, b in zip(early.states, full.states, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(early.moved, full.moved)


@given(twins(), st.integers(1, 5))
def test_moved_is_the_last_step_that_moved_a_layer(t: Twins, steps: int) -> None:
    tolerance = 1e-3
    t.network.speed = Speed(off=("odd-even",))
    result = t.network.relax(t.x, steps, tolerance=tolerance)
    states = t.network.initial_states(t.x)
    expected = [0] * len(states)
    clamped = t.network.clamp(t.x)
    for taken in range(1, steps + 1):
        following = t.network.step(clamped, states)
        for i, (new, old) in enumerate(zip(following, states, strict=True)):
            neurons = t.network.neurons[i]
            if isinstance(neurons, Binary):
                changed = bool((neurons.fire(new) != neurons.fire(old)).any())
            else:
                changed = float((new - old).abs().max().detach()) > tolerance
            if changed:
                expected[i] = taken
        states = following
    assert result.moved.tolist() == expected


def test_a_nan_never_counts_as_settled() -> None:
    network = Network([Dense(3, 4), Dense(4, 2)], Real(), speed=Speed(off=SHORTCUTS))
    with torch.no_grad():
        network.synapses[0].bias[0] = torch.nan
    result = network.relax(torch.rand(2, 3), 7)
    assert result.steps == 7
    assert result.residual.isnan().any()


def test_layers_flatten_and_mix_kinds() -> None:
    network = Network(
        [Conv((2, 6, 6), 3, kernel=3, padding=1), Dense((3, 3, 3), 5), Dense(5, 4)],
        [Real(0.5), Binary(), Real()],
    )
    states = network.relax(torch.rand(7, 2, 6, 6), 5).states
    assert [tuple(s.shape) for s in states] == [(7, 3, 3, 3), (7, 5), (7, 4)]


def test_networks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"layer 1 has shape \(4,\), but layer 2 takes \(5,\)"):
        Network([Dense(3, 4), Dense(5, 2)], Real())
    with pytest.raises(ValueError, match="2 layers of synapses, but 1 of neurons"):
        Network([Dense(3, 4), Dense(4, 2)], [Real()])
    with pytest.raises(ValueError, match="at least one"):
        Network([], Real())


@given(st.data())
def test_errors_are_read_as_the_oracle_reads_them(data: st.DataObject) -> None:
    t = data.draw(networks.twins(cost="squared-error"))
    output = t.network.relax(t.x, 3).output
    for readout in ("averaged", "single"):
        ours = t.network.cost.scores(output, readout).argmax(dim=1)
        theirs = oracle.predict(array(output), t.network.cost.classes, readout)
        assert ours.tolist() == theirs.tolist()
    copies = output.shape[1] // t.network.cost.classes
    one_hot = np.eye(t.network.cost.classes)[t.labels.numpy()]
    assert np.array_equal(array(t.target), oracle.repeat_target(one_hot, copies))


@pytest.mark.parametrize("off", [SHORTCUTS, tuple(set(SHORTCUTS) - {"odd-even"})])
def test_compiled_steps_are_the_plain_steps(
    off: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []

    def trace_only(
        step: Callable[..., object], dynamic: bool
    ) -> object:  # what torch.compile traces, without a C++ compiler
        compiled.append(step)
        return real(step, backend="aot_eager", fullgraph=True, dynamic=dynamic)

    real = torch.compile
    monkeypatch.setattr(torch, "compile", trace_only)
    generator = torch.Generator().manual_seed(0)
    layers: list[Synapse] = [
        Conv((1, 8, 8), 3, generator=generator),
        Dense((3, 4, 4), 10, generator=generator),
    ]
    x = torch.rand(4, 1, 8, 8, generator=generator)
    target = torch.eye(10)[:4]
    ends = []
    for compile in (False, True):
        speed = Speed(off=off, compile=compile)
        network = Network(layers, Real(initial=0.5), speed=speed)
        with torch.no_grad():
            free = network.relax(x, 20)
            ends.append([free, network.relax(x, 5, start=free, target=target, beta=0.3)])
    assert compiled
    for plain, fused in zip(*ends, strict=True):
        assert plain.steps == fused.steps
        for a, b in zip(plain.states, fused.states, strict=True):
            torch.testing.assert_close(a, b)


class HalfDense(Dense):
    def up(self, below: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return super().up(below)[0] / 2, None


class HalfConv(Conv):
    def up(self, below: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        drive, route = super().up(below)
        return drive / 2, route


class HalfReal(Real):
    def update(
        self, state: torch.Tensor, drive: torch.Tensor, nudge: torch.Tensor | None = None
    ) -> torch.Tensor:
        return super().update(state, drive / 2, nudge)


class HalfBinary(Binary):
    def update(
        self, state: torch.Tensor, drive: torch.Tensor, nudge: torch.Tensor | None = None
    ) -> torch.Tensor:
        return super().update(state, drive / 2, nudge)


class HalfError(SquaredError):
    def force(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return super().force(output, target) / 2


HALVES: dict[str, Callable[[], tuple[list[Synapse], Neurons, Cost]]] = {
    "dense, real": lambda: ([Dense(6, 5), HalfDense(5, 3)], Real(), SquaredError(3)),
    "dense, binary": lambda: ([Dense(6, 5), HalfDense(5, 3)], Binary(), SquaredError(3)),
    "conv": lambda: ([HalfConv((1, 6, 6), 2), Dense((2, 3, 3), 3)], Binary(), SquaredError(3)),
    "conv above": lambda: (
        [Conv((1, 8, 8), 2), HalfConv((2, 4, 4), 2), Dense((2, 2, 2), 3)],
        Real(),
        SquaredError(3),
    ),
    "real": lambda: ([Dense(6, 5), Dense(5, 3)], HalfReal(), SquaredError(3)),
    "binary": lambda: ([Dense(6, 5), Dense(5, 3)], HalfBinary(), SquaredError(3)),
    "cost, real": lambda: ([Dense(6, 5), Dense(5, 3)], Real(), HalfError(3)),
    "cost, binary": lambda: ([Dense(6, 5), Dense(5, 3)], Binary(), HalfError(3)),
}


@pytest.mark.parametrize("kind", HALVES)
def test_solvers_leave_subclasses_to_the_plain_one(kind: str) -> None:
    torch.manual_seed(0)
    network = Network(*HALVES[kind]())
    if "cost" in kind:  # that one asks the phase for its nudge, and so takes any cost
        network.speed = Speed(off=("digits", "leaving"))
    x = torch.rand(4, *network.synapses[0].input_shape)
    target = network.cost.target(torch.arange(4) % 3)
    for phase in (Phase.of(network, x, 9), Phase.of(network, x, 9, target=target, beta=0.5)):
        free = "cost" in kind and phase.is_free  # there the cost says nothing
        assert free or choose(network, phase) is Plain
        solved = network.relax(x, 9, target=phase.target, beta=phase.beta, tolerance=0)
        states = network.initial_states(x)
        for _ in range(9):
            states = network.step(network.clamp(x), states, phase.nudge(states[-1]))
        for a, b in zip(solved.states, states, strict=True):
            torch.testing.assert_close(a, b)
