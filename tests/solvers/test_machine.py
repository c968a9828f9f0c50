"""Whatever this machine's CPU has, what the other kinds of machine do, too."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import Twins, twins
from shelf import batch, network, same

from binep.core.network import Network
from binep.core.neurons import Real
from binep.core.phases import Phase
from binep.core.solvers import choose
from binep.core.speed import Speed
from binep.core.synapses import Dense
from binep.solvers import machine
from binep.solvers.digits.solver import DigitSolver
from binep.solvers.events import engine as events
from binep.solvers.inputs import InputDrive

both_kinds = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def on(monkeypatch: pytest.MonkeyPatch, has_int8_products: bool) -> None:
    for name in ("has_int8_products", "has_uint8_products"):
        monkeypatch.setattr(machine, name, lambda: has_int8_products)


@both_kinds
@given(*[st.integers(1, 40)] * 3, st.integers(0, 2**32))
def test_products_are_the_same_in_integers_and_in_floats(
    monkeypatch: pytest.MonkeyPatch, batch: int, inputs: int, outputs: int, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    synapse = Dense(inputs, outputs, generator=g)
    below = torch.randint(2, (batch, inputs), generator=g, dtype=torch.int8)
    x = torch.randint(256, (batch, inputs), generator=g) / 255
    signs = synapse.values.detach().to(torch.int8).t().contiguous()
    net, found = Network([synapse], Real()), []
    for kind in (True, False):
        on(monkeypatch, kind)
        with torch.no_grad():
            found.append([InputDrive(net).clamp(x).drive, events._product(below, signs)])
    assert all(map(torch.equal, *found))
    torch.testing.assert_close(found[0][0], net.clamp(x).drive.detach())
    assert torch.equal(found[0][1], (below.float() @ signs.float()).int())


@both_kinds
@given(twins(activation="binary"), st.integers(1, 20), st.integers(1, 20))
def test_bits_take_the_same_steps(
    monkeypatch: pytest.MonkeyPatch, t: Twins, free_steps: int, nudged_steps: int
) -> None:
    x, found = t.x.float(), []
    for kind in (True, False):
        on(monkeypatch, kind)
        net = Network(list(t.network.synapses), t.network.neurons, t.network.cost).float()
        target = net.cost.target(t.labels)
        free = net.relax(x, free_steps)
        nudged = net.relax(x, nudged_steps, start=free, target=target, beta=1.5)
        found.append([*free.states, *nudged.states, free.moved, nudged.moved])
    assert all(map(torch.equal, *found))


def test_without_packed_products_another_solver_settles_in_the_same_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends = []
    for has_them in (machine.has_packed_int8(), False):
        monkeypatch.setattr(machine, "has_packed_int8", lambda has_them=has_them: has_them)
        net = network("dense, real")  # convolutions have several equilibria
        net.speed = Speed(off=("in-cache",))
        x, _ = batch(net)
        assert (choose(net, Phase.of(net, x, 9)) is DigitSolver) == has_them
        ends.append(net.relax(x, 500))
    same(*ends, tolerance=1e-4)
