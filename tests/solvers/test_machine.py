"""Whatever this machine is quick at, what the other kinds of machine do, too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import Twins, twins

from binep.core.network import Network, Speed
from binep.core.neurons import Real
from binep.core.synapses import Conv, Dense
from binep.solvers import machine
from binep.solvers.digits import solver as digits
from binep.solvers.events import solver as events

KINDS = (True, False)


def on(monkeypatch: pytest.MonkeyPatch, multiplies_integers: bool) -> None:
    monkeypatch.setattr(machine, "multiplies_integers", lambda: multiplies_integers)


both_kinds = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@both_kinds
@given(*[st.integers(1, 40)] * 3, st.integers(0, 2**32))
def test_products_are_the_same_in_integers_and_in_floats(
    monkeypatch: pytest.MonkeyPatch, batch: int, inputs: int, outputs: int, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    synapse = Dense(inputs, outputs, generator=g)
    below = torch.randint(2, (batch, inputs), generator=g, dtype=torch.int8)
    above = torch.randint(2, (batch, outputs), generator=g, dtype=torch.int8)
    x = torch.randint(256, (batch, inputs), generator=g) / 255
    signs = synapse.values.detach().to(torch.int8).t().contiguous()
    found: list[list[torch.Tensor]] = []
    for kind in KINDS:
        on(monkeypatch, kind)
        with torch.no_grad():
            up, down = synapse.up(below)[0], synapse.down(above, None)
            found.append([up, down, synapse.up_input(x)[0], events._product(below, signs)])
    assert all(map(torch.equal, *found))
    assert torch.equal(found[0][3], (below.float() @ signs.float()).int())


@both_kinds
@given(twins(activation="binary"), st.integers(1, 20), st.integers(1, 20))
def test_bits_take_the_same_steps(
    monkeypatch: pytest.MonkeyPatch, t: Twins, free_steps: int, nudged_steps: int
) -> None:
    x, found = t.x.float(), []
    for kind in KINDS:
        on(monkeypatch, kind)
        network = Network(list(t.network.synapses), t.network.neurons, t.network.cost).float()
        target = network.cost.target(t.labels)
        with torch.no_grad():
            free = network.relax(x, free_steps)
            nudged = network.relax(x, nudged_steps, start=free, target=target, beta=1.5)
        found.append([*free.states, *nudged.states, free.moved, nudged.moved])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("kind", [Dense, Conv])
def test_without_integer_products_reals_stay_floats(
    kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks(*arguments: Any) -> Any:
        raise RuntimeError("no such product here")

    monkeypatch.setattr(digits.Line, "_pack", lacks)
    assert not digits._multiplies.__wrapped__(kind)
    monkeypatch.setattr(digits, "_multiplies", lambda kind: False)
    g = torch.Generator().manual_seed(0)
    if kind is Dense:
        network = Network([Dense(8, 20, generator=g), Dense(20, 10, generator=g)], Real())
    else:
        layers = [Conv((1, 6, 6), 2, generator=g), Conv((2, 3, 3), 10, pool=3, generator=g)]
        network = Network(layers, Real())
    assert not digits.fits(network)
    x, ends = torch.rand(3, *network.synapses[0].input_shape, generator=g), []
    for precision in ("split", "exact"):
        network.speed = Speed(precision=precision, fused_steps=False)  # type: ignore[arg-type]
        with torch.no_grad():
            ends.append(network.relax(x, 20).states)
    assert all(map(torch.equal, *ends))


def test_of_two_ways_one_several_times_slower_is_not_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(machine.time, "perf_counter", lambda: clock[0])

    def takes(*seconds: float) -> Any:
        left = iter(seconds)

        def act() -> None:
            clock[0] += next(left)

        return act

    # The first call sets things up, and a slow one in between is an accident.
    assert machine.is_quicker(takes(9, 2, 9, 9), takes(1, 1, 1, 1))
    assert not machine.is_quicker(takes(1, 4, 4, 4), takes(9, 1, 9, 1))
