"""Whatever this machine's CPU has, what the other kinds of machine do, too."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import Twins, twins
from shelf import batch, network, same

from binep.core.network import Network
from binep.core.neurons import Binary, Real
from binep.core.phases import Phase
from binep.core.solvers import choose
from binep.core.speed import Speed
from binep.core.synapses import Conv, Dense
from binep.solvers import machine
from binep.solvers.digits.solver import DigitSolver
from binep.solvers.inputs import InputDrive

both_kinds = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def on(monkeypatch: pytest.MonkeyPatch, has_uint8_products: bool) -> None:
    monkeypatch.setattr(machine, "has_uint8_products", lambda: has_uint8_products)


@both_kinds
@given(*[st.integers(1, 40)] * 3, st.integers(0, 2**32))
def test_products_are_the_same_in_integers_and_in_floats(
    monkeypatch: pytest.MonkeyPatch, batch: int, inputs: int, outputs: int, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    synapse = Dense(inputs, outputs, generator=g)
    x = torch.randint(256, (batch, inputs), generator=g) / 255
    net, found = Network([synapse], Real()), []
    machine.use_threads()
    for kind in (True, False):
        on(monkeypatch, kind)
        with torch.no_grad():
            found.append(InputDrive(net).clamp(x).drive)
    assert torch.equal(*found)
    torch.testing.assert_close(found[0], net.clamp(x).drive.detach())


@both_kinds
@given(
    twins(activation="binary", weights="binary", cost="squared-error"),
    st.integers(1, 20),
    st.integers(1, 20),
)
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


@given(
    *[st.integers(1, 70), st.integers(1, 3), st.integers(1, 5), st.integers(0, 2)],
    st.integers(1, 3),
    st.integers(0, 2**32),
)
def test_a_convolution_of_grey_levels_is_the_plain_one(
    channels: int, low: int, kernel: int, padding: int, pool: int, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    kind = {"kernel": kernel, "padding": padding, "pool": pool}
    first = Conv((low, 8, 9), channels, **kind, generator=g)
    net = Network([first, Dense(math.prod(first.output_shape), 2, generator=g)], Binary())
    levels = torch.randint(4, (3, low, 8, 9), generator=g) * 85  # of which many sums are equal
    x = levels / 255
    with torch.no_grad():
        found, plain = InputDrive(net).clamp(x), net.clamp(x)
    assert torch.equal(found.drive, plain.drive)
    assert (found.route is None) == (pool == 1)
    if found.route is not None and plain.route is not None:
        assert torch.equal(found.route, plain.route)
    sums = F.conv2d(levels.double(), first.values.detach().double(), padding=padding)
    if pool > 1:
        sums, places = F.max_pool2d(sums, pool, return_indices=True)
        assert torch.equal(plain.route, places)
    alpha = first.scale.detach().double().view(-1, 1, 1)
    expected = sums / 255 * alpha + first.bias.detach().double().view(-1, 1, 1)
    torch.testing.assert_close(plain.drive.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:TF32")
def test_onednn_may_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_has", lambda *instructions: True)
    there = [machine.has_packed_int8] if machine.has_packed_int8() else []  # on x86 alone
    for has in [machine.has_bfloat16_products, machine.has_uint8_products, *there]:
        assert has()
        with torch.backends.mkldnn.flags(enabled=False):  # type: ignore[no-untyped-call]
            assert not has()
