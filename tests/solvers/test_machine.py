"""Whatever this machine's CPU has, what the other kinds of machine do, too."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import Twins, twins

from binep.core.network import Network
from binep.core.neurons import Real
from binep.core.phases import Phase
from binep.core.solvers import choose
from binep.core.speed import Speed
from binep.core.synapses import Conv, Dense, Synapse
from binep.solvers import machine
from binep.solvers.digits.solver import DigitSolver
from binep.solvers.events import engine
from binep.solvers.inputs import InputDrive

KINDS = (True, False)


def on(monkeypatch: pytest.MonkeyPatch, int8: bool) -> None:
    monkeypatch.setattr(machine, "has_int8_products", lambda: int8)


both_kinds = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@both_kinds
@given(*[st.integers(1, 40)] * 3, st.integers(0, 2**32))
def test_products_are_the_same_in_integers_and_in_floats(
    monkeypatch: pytest.MonkeyPatch, batch: int, inputs: int, outputs: int, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    network = Network([Dense(inputs, outputs, generator=g)], Real())
    below = torch.randint(2, (batch, inputs), generator=g, dtype=torch.int8)
    x = torch.randint(256, (batch, inputs), generator=g) / 255
    signs = network.synapses[0].values.detach().to(torch.int8).t().contiguous()
    found: list[list[torch.Tensor]] = []
    for kind in KINDS:
        on(monkeypatch, kind)
        with torch.no_grad():
            found.append([InputDrive(network).clamp(x).drive, engine._product(below, signs)])
    assert all(map(torch.equal, *found))
    assert torch.equal(found[0][1], (below.float() @ signs.float()).int())
    torch.testing.assert_close(found[0][0], network.clamp(x).drive, rtol=1e-5, atol=1e-5)


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
        free = network.relax(x, free_steps)
        nudged = network.relax(x, nudged_steps, start=free, target=target, beta=1.0)
        found.append([*free.states, *nudged.states])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("layer", [lambda: Dense(600, 600), lambda: Conv((4, 8, 8), 8)])
def test_digits_are_left_to_cpus_that_have_their_products(
    layer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(layer)
    synapse: Synapse = layer()
    first = Conv((1, 16, 16), 4) if isinstance(synapse, Conv) else Dense(20, 600)
    network = Network([first, synapse, Dense(synapse.output_shape, 3)], Real())
    network.speed = Speed(off=("in-cache",))
    x = torch.rand(1, *first.input_shape)
    for packed in KINDS:
        monkeypatch.setattr(machine, "has_packed_int8", lambda packed=packed: packed)
        assert (choose(network, Phase.of(network, x, 1)) is DigitSolver) == packed
