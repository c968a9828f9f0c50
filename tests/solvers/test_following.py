"""Dense products that follow states, in bfloat16 or int8, end where those of float32 do."""

from __future__ import annotations

import copy
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import assert_still_in_float64, byte_dot_products, settled
from torch import Tensor

from binep.core.network import Network
from binep.core.neurons import Real
from binep.core.phases import Equilibrium, Phase
from binep.core.solvers import Solver, choose
from binep.core.speed import SHORTCUTS, Speed
from binep.core.synapses import Conv, Dense
from binep.solvers import following, machine
from binep.solvers.bfloat16 import Bfloat16Solver
from binep.solvers.following import _Product
from binep.solvers.int8 import Int8Solver
from binep.solvers.leaving import LeavingSolver

ROUGH = {"bfloat16", "int8"}
OTHERS = set(SHORTCUTS) - ROUGH - {"leaving", "odd-even"}
IN_FLOAT32 = OTHERS | ROUGH


@pytest.fixture(autouse=True, params=["bfloat16", pytest.param("int8", marks=byte_dot_products)])
def _on_any_machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one with instructions for bfloat16, and on one that has them for int8 alone."""
    for solver in Bfloat16Solver, Int8Solver:
        monkeypatch.setattr(solver, "least", 2**14)
        monkeypatch.setattr(solver, "samples", 6)
    monkeypatch.setattr(following, "NARROWEST", 2)
    monkeypatch.setattr(machine, "has_bfloat16_products", lambda: request.param == "bfloat16")
    monkeypatch.setattr(machine, "has_byte_dot_products", lambda: request.param == "int8")


def rough() -> type[Solver]:
    """The solver that is to be used on this machine."""
    return Bfloat16Solver if machine.has_bfloat16_products() else Int8Solver


def network(gain: float = 1.0, sizes: tuple[int, ...] = (30, 200, 150, 10)) -> Network:
    layers = [Dense(*pair, weights="real") for pair in pairwise(sizes)]
    for layer in layers[1:]:
        layer.values.data *= gain
    return Network(layers, Real(), speed=Speed(off=OTHERS))


def furthest(one: Equilibrium, other: Equilibrium) -> float:
    pairs = zip(one.states, other.states, strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


@given(st.integers(0, 2**31), st.floats(0.2, 1.2), st.booleans(), st.booleans())
def test_states_settle_where_they_do_in_float64(
    seed: int, gain: float, all_at_once: bool, anywhere: bool
) -> None:
    """Steps of float64 leave them."""
    torch.manual_seed(seed)
    net, x = network(gain), torch.rand(24, 30)
    start: Equilibrium | None = None
    if anywhere:
        states = [torch.rand(24, *synapse.output_shape) for synapse in net.synapses]
        none = torch.zeros(3)
        start = Equilibrium(net.clamp(x), states, none.long(), none)
    ours = settled(net, x, OTHERS | ({"odd-even"} if all_at_once else set()), start=start)
    assert ours.by is rough()
    assert ours.residual.max() <= 1e-6
    assert_still_in_float64(net, x, ours, 4e-6)


def test_most_products_are_of_few_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: Counter[bool] = Counter()
    multiply = _Product.__call__

    def counted(product: _Product, states: Tensor) -> Tensor:
        taken[product.exact] += len(states)
        return multiply(product, states)

    monkeypatch.setattr(_Product, "__call__", counted)
    torch.manual_seed(0)
    net, x = network(1.3), torch.rand(40, 30)
    ours = settled(net, x, OTHERS)
    assert ours.steps > 40
    assert taken[False] > 4 * taken[True] > 0
    assert sum(taken.values()) < 1.6 * 40 * ours.steps  # those that have settled left


@pytest.mark.parametrize("sooner", [9, 39])
def test_samples_that_settle_sooner_are_as_right_and_hold_up_no_other(sooner: int) -> None:
    torch.manual_seed(0)
    net, x = network(1.3), torch.rand(40, 30)
    x[:sooner] *= 300  # which saturates most of the first layer
    ours, right = settled(net, x, OTHERS), settled(net, x, IN_FLOAT32)
    assert furthest(ours, right) <= 2e-5
    assert float((ours.states[2][:sooner] - right.states[2][:sooner]).abs().max()) <= 2e-6
    assert ours.steps <= 1.2 * right.steps


def test_what_no_longer_moves_has_not_settled_before_float32_says_so() -> None:
    torch.manual_seed(0)
    net, x = network(), 300 * torch.rand(40, 30)  # which saturates the first layer
    net.synapses[2].values.data.zero_()  # and nothing comes back to the second
    ours, right = (settled(net, x, off | {"odd-even"}) for off in (OTHERS, IN_FLOAT32))
    last_digit = 2e-6  # of drives from 16 to 32, in float32
    assert furthest(ours, right) <= 2e-6 + last_digit


def test_samples_that_have_settled_are_right_beside_others_that_never_do() -> None:
    torch.manual_seed(0)
    net, x = network(2.0, (30, 512, 512, 10)), torch.rand(40, 30)
    x[:4] *= 300
    ours, right = (settled(net, x, off | {"odd-even"}, 100) for off in (OTHERS, IN_FLOAT32))
    assert right.residual.max() > 1e-3
    for a, b in zip(ours.states, right.states, strict=True):
        assert float((a - b)[:4].abs().max()) <= 1e-4


@given(
    st.integers(0, 2**31),
    st.floats(0.5, 1.1),
    st.sampled_from([1, 2, 5, 10, 17, 30]),
    st.booleans(),
)
def test_a_phase_that_ends_early_is_not_further_off_than_it_still_moves(
    seed: int, gain: float, steps: int, all_at_once: bool
) -> None:
    torch.manual_seed(seed)
    net, x = network(gain), torch.rand(24, 30)
    more = {"odd-even"} if all_at_once else set()
    right = settled(net, x, IN_FLOAT32 | more, steps)
    ours = settled(net, x, OTHERS | more, steps)
    assert ours.by is rough()
    steps_off = 1 if rough() is Bfloat16Solver else 2
    assert furthest(ours, right) <= max(1e-5, steps_off * float(right.residual.max()))


@pytest.mark.parametrize("current", [True, False])
def test_gradients_are_those_of_float32(current: bool) -> None:
    torch.manual_seed(2)
    net, x, target = network(1.2), torch.rand(40, 30), torch.eye(10)[torch.randint(10, (40,))]
    free = settled(net, x, IN_FLOAT32)
    nudged: dict[str, Any] = {"target": target, "beta": 0.3}
    nudged["start"] = free if current else copy.deepcopy(free)
    ends = [settled(net, x, off, 10, **nudged) for off in (OTHERS, IN_FLOAT32)]
    assert ends[0].by is rough()
    ours, right = (net.made(LeavingSolver).compare(free, end, 1.0, False) for end in ends)
    for mine, known in zip(ours, right, strict=True):
        assert (mine.weight - known.weight).norm() <= 1e-3 * known.weight.norm()


def test_weights_are_followed() -> None:
    torch.manual_seed(3)
    net, x = network(), torch.rand(8, 30)
    settled(net, x, OTHERS)
    for _ in range(2):
        with torch.no_grad():
            net.synapses[1].values.mul_(-1)
        assert furthest(settled(net, x, OTHERS), settled(net, x, IN_FLOAT32)) <= 1e-5
        net.synapses[1].values = torch.nn.Parameter(torch.randn(150, 200) / 20)
        assert furthest(settled(net, x, OTHERS), settled(net, x, IN_FLOAT32)) <= 1e-5


class OwnStep(Network):
    """Of a step that moves nothing."""

    def step(self, clamped: Any, states: Any, *more: Any) -> list[Tensor]:
        return list(states)


def test_a_step_of_ones_own_is_taken() -> None:
    net, x = network(), torch.rand(6, 30)
    own = OwnStep([*net.synapses], net.neurons, solver=rough())
    assert not any(state.any() for state in own.relax(x, 9).states)


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({"off": IN_FLOAT32}, 1e-6),
        ({"off": OTHERS, "precision": "exact"}, 1e-6),
        ({"off": OTHERS}, 0.0),
    ],
)
def test_float32_where_it_is_asked_for(settings: dict[str, Any], tolerance: float) -> None:
    net, x = network(), torch.rand(6, 30)
    net.speed = Speed(**settings)
    assert choose(net, Phase.of(net, x, 9, tolerance=tolerance)) is LeavingSolver


def test_float32_where_that_is_quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = Conv((1, 20, 20), 16, weights="real"), Conv((16, 10, 10), 64, weights="real")
    for net in (
        Network([*conv, Dense((64, 5, 5), 3, weights="real")], Real()),
        network(sizes=(400, 200, 50)),
        network().double(),
    ):
        net.speed = Speed(off=OTHERS)
        x = torch.rand(6, *net.synapses[0].input_shape)
        assert choose(net, Phase.of(net, x, 9)) is LeavingSolver
    net = network()
    assert choose(net, Phase.of(net, torch.rand(5, 30), 9)) is LeavingSolver
    assert choose(net, Phase.of(net, torch.rand(6, 30), 9)) is rough()
    with monkeypatch.context() as patch:
        patch.setattr(following, "NARROWEST", 151)
        assert choose(net, Phase.of(net, torch.rand(6, 30), 9)) is LeavingSolver
    for name in "has_bfloat16_products", "has_byte_dot_products":
        monkeypatch.setattr(machine, name, lambda: False)
    assert choose(net, Phase.of(net, torch.rand(6, 30), 9)) is LeavingSolver
