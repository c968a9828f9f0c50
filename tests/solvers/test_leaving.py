"""Samples that have settled leave the batch, and what came from below is not computed twice."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import settled
from torch import Tensor

from binep.core.certain import CertainOutputs
from binep.core.network import Network, Ups
from binep.core.neurons import Binary, Real
from binep.core.phases import Phase
from binep.core.solvers import Loop, Plain, choose
from binep.core.speed import SHORTCUTS, Speed
from binep.core.synapses import Conv, Dense
from binep.solvers.leaving import LeavingSolver, rounded

OTHERS = set(SHORTCUTS) - {"leaving", "odd-even"}


def network(**options: Any) -> Network:
    layers = [
        Conv((1, 12, 12), 4, kernel=3, padding=1, weights="real", **options),
        Conv((4, 6, 6), 5, kernel=3, padding=1, weights="real", **options),
        Dense((5, 3, 3), 3, weights="real"),
    ]
    return Network(layers, Real(0.5), speed=Speed(off=OTHERS))


def test_samples_leave_and_end_where_they_do_in_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = network(), torch.rand(40, 1, 12, 12)
    net.synapses[1].values.data *= 3  # so that some samples settle slowly
    sizes: Counter[int] = Counter()
    advance = Loop.advance

    def counted(loop: Loop) -> None:
        sizes[len(loop.states[0])] += 1
        advance(loop)

    monkeypatch.setattr(Loop, "advance", counted)
    for every in (1, 4):
        sizes.clear()
        ours = settled(net, x, OTHERS, check_every=every)
        assert ours.by is LeavingSolver
        assert len(sizes) > 2
        assert all(size % 5 == 0 for size in sizes)
        plain = settled(net, x, OTHERS | {"leaving"}, check_every=every)
        assert plain.by is Plain
        assert abs(ours.steps - plain.steps) <= 2  # by rounding
        assert ours.residual.max() <= 1e-6
        for a, b in zip(ours.states, plain.states, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    sizes.clear()
    settled(net, x, OTHERS, 400, tolerance=0.0)
    assert sizes == {40: 400}
    start, target = settled(net, x, OTHERS), torch.rand(40, 3)
    sizes.clear()
    net.relax(x, 60, start=start, target=target, beta=0.5)  # which ends before it has settled
    assert set(sizes) == {40}


@given(st.lists(st.booleans(), min_size=1, max_size=70), st.integers(1, 9))
def test_whole_parts_stay(stays: list[bool], part: int) -> None:
    mask = torch.tensor(stays)
    found = rounded(mask, part)
    assert bool((found | ~mask).all())
    count = int(found.sum())
    assert count == min(len(stays), -(-sum(stays) // part) * part)


def test_what_came_from_below_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = network(), torch.rand(6, 1, 12, 12)
    seen: list[Tensor] = []
    up = Conv.up

    def looked(conv: Conv, below: Tensor) -> Any:
        seen.append(below)
        return up(conv, below)

    monkeypatch.setattr(Conv, "up", looked)
    ours = settled(net, x, OTHERS)
    assert len(seen) <= ours.steps + 4  # of layer 2; of layer 1 once for its drive
    known, count = ours.states, len(seen)
    monkeypatch.setattr(Network, "has_own_steps", property(lambda self: True))
    again = Loop.of(Phase.of(net, x, 400), net.clamp(x))
    assert again.ups is None
    for _ in range(ours.steps):
        again.advance()
    assert len(seen) - count > 1.8 * ours.steps
    for a, b in zip(again.states, known, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_other_states_are_not_taken_for_those_known() -> None:
    net, x = network(), torch.rand(6, 1, 12, 12)
    clamped = net.clamp(x)
    ups: Ups = {}
    states = [torch.rand(6, *synapse.output_shape) for synapse in net.synapses]
    for _ in range(3):
        for layers in ([0, 2], [1], [0, 1, 2]):
            ours = net.step(clamped, states, None, layers, None, ups)
            assert all(map(torch.equal, ours, net.step(clamped, states, None, layers)))
            states = ours
    states = [torch.rand_like(state) for state in states]
    ours = net.step(clamped, states, None, [0, 2], None, ups)
    assert all(map(torch.equal, ours, net.step(clamped, states, None, [0, 2])))


def test_bits_leave_once_nothing_of_them_moves() -> None:
    net, x = network(), torch.rand(10, 1, 12, 12)
    net.neurons = [Binary(0.3)] * 3
    net.solver = Plain
    plain = net.relax(x, 100, tolerance=0.01)
    net.solver = LeavingSolver  # which is named, and so not asked whether it fits
    ours = net.relax(x, 100, tolerance=0.01)
    assert plain.residual.max() == ours.residual.max() == 0
    assert torch.equal(ours.moved, plain.moved)


def test_no_output_of_bits_is_certain() -> None:
    """A hidden neuron may creep to its threshold while no bit, and so no drive, moves at all."""
    net, x = network(), torch.rand(10, 1, 12, 12)
    net.speed, net.neurons = Speed(), [Binary(0.3)] * 3
    assert CertainOutputs.of(Phase.of(net, x, 100, output_only=True)) is None
    net.neurons = [Real()] * 3
    assert CertainOutputs.of(Phase.of(net, x, 100, output_only=True)) is not None


def test_a_sample_that_is_no_number_spoils_no_other() -> None:
    net, x = network(), torch.rand(16, 1, 12, 12)
    begun, known = net.relax(x, 2), net.relax(x, 400)
    states = [state.clone() for state in begun.states]
    for state in states:
        state[3] = torch.nan
    ours = net.relax(x, 400, start=dataclasses.replace(begun, states=states))
    others = torch.arange(16) != 3
    assert ours.by is LeavingSolver
    assert all(residual.isnan() for residual in ours.residual)
    for mine, right in zip(ours.states, known.states, strict=True):
        assert mine[3].isnan().all()
        torch.testing.assert_close(mine[others], right[others], rtol=0, atol=1e-5)


class OwnStep(Network):
    """Of a step that knows nothing of what was computed before."""

    def step(self, clamped: Any, states: Any, nudge: Any, layers: Any, omega: Any) -> list[Tensor]:  # type: ignore[override]
        return super().step(clamped, states, nudge, layers, omega)


def test_steps_of_ones_own_need_not_take_what_is_known() -> None:
    net, x = network(), torch.rand(6, 1, 12, 12)
    own = OwnStep([*net.synapses], net.neurons)
    ours = own.relax(x, 400)
    assert ours.by is Plain
    for mine, right in zip(ours.states, net.relax(x, 400).states, strict=True):
        torch.testing.assert_close(mine, right, rtol=0, atol=1e-5)


class Subclass(Dense):
    pass


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda net: None, LeavingSolver),
        (lambda net: setattr(net, "speed", Speed(off=OTHERS, compile=True)), Plain),
        (lambda net: setattr(net, "neurons", [type("Own", (Real,), {})()] * 3), Plain),
        (lambda net: net.synapses.__setitem__(2, Subclass((5, 3, 3), 3)), Plain),
    ],
)
def test_parts_of_ones_own_may_mix_samples(
    change: Callable[[Network], None], kind: type[object]
) -> None:
    net = network()
    change(net)
    assert choose(net, Phase.of(net, torch.rand(2, 1, 12, 12), 5)) is kind
