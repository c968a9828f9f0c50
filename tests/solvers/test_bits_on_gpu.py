"""Sent by bits that have changed, what a GPU settles in is the plain solver's, to the bit.

Without a GPU, Triton's interpreter runs the kernels, slowly.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import graphs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from binep.core.costs import CrossEntropy
from binep.core.gradients import EquilibriumPropagation
from binep.core.network import Network
from binep.core.neurons import Binary, Real
from binep.core.optim import MOST_WRITES, flip_plainly
from binep.core.phases import Equilibrium, Phase
from binep.core.solvers import Plain, choose
from binep.core.speed import SHORTCUTS, Speed
from binep.core.synapses import Conv, Dense
from binep.solvers.bits_on_gpu.solver import BitsOnGpuSolver

pytest.importorskip("triton")

from binep.solvers.bits_on_gpu import kernels
from binep.solvers.bits_on_gpu.flips import flip

ONLY = Speed(off=set(SHORTCUTS) - {"bits-on-gpu"})
NEURONS = {
    "one threshold": [Binary(0.3)] * 3,
    "own thresholds": [Binary(0.1, 0.75), Binary(0.5, 1.0), Binary(0.02, 0.25, initial=0.0)],
    "held": [Binary(0.3, hold_nudge=True)] * 3,
}


@pytest.fixture(
    params=[
        pytest.param("cpu", marks=graphs.interpreted),
        pytest.param("cuda", marks=graphs.on_gpu),
    ]
)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    with graphs.called() if request.param == "cpu" else graphs.exact():
        yield request.param


def network(neurons: Any, device: str, sizes: tuple[int, ...] = (20, 70, 40, 6)) -> Network:
    layers = [Dense(*pair) for pair in pairwise(sizes)]
    return Network(layers, neurons, speed=ONLY).to(device)


def batch(net: Network, size: int) -> tuple[Tensor, Tensor]:
    like = net.synapses[0].values
    x = torch.rand(size, 20).to(like)
    return x, net.cost.target(torch.arange(size, device=like.device) % 6)


def assert_plain(net: Network, x: Tensor, target: Tensor, *steps: int) -> None:
    """Both phases, and the gradient of the second, are the plain solver's."""
    plain = copy.deepcopy(net)
    plain.speed = Speed(off=SHORTCUTS)
    ends: list[list[Equilibrium]] = []
    for one in (net, plain):
        free = one.relax(x, steps[0], check_every=8)
        nudged = one.relax(x, steps[1], start=free, target=target, beta=-0.5, check_every=8)
        ends.append([free, nudged])
        one.zero_grad()
        estimator = EquilibriumPropagation(one, beta=-0.5, free_steps=1, nudged_steps=1)
        estimator.compare(free, nudged, -0.5)
    for ours, theirs in zip(*ends, strict=True):
        assert (ours.by, theirs.by) == (BitsOnGpuSolver, Plain)
        assert all(map(torch.equal, ours.states, theirs.states))
        assert torch.equal(ours.moved, theirs.moved)
        assert torch.equal(ours.residual, theirs.residual)
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)  # sums of 1/(β·batch)


@pytest.mark.parametrize("name", NEURONS)
def test_phases_are_the_plain_solvers(name: str, device: str) -> None:
    net = network(NEURONS[name], device)
    with torch.no_grad():
        net.synapses[1].scale.mul_(3)  # type: ignore[union-attr]
    for size, steps in ((3, (9, 3)), (kernels.GROUP.value + 1, (2, 2))):
        x, target = batch(net, size)
        assert_plain(net, x, target, *steps)
        moved = net.relax(x, steps[0]).moved
        assert int(moved.max()) > 1


def test_weights_may_change_in_place_or_be_replaced(device: str) -> None:
    net = network(Binary(0.3), device, (20, 24, 6))
    x, target = batch(net, 3)
    assert_plain(net, x, target, 2, 2)
    with torch.no_grad():
        net.synapses[1].values[::2].neg_()
        net.synapses[1].bias.add_(0.1)
    assert_plain(net, x, target, 2, 2)
    net.synapses[1].values = torch.nn.Parameter(-net.synapses[1].values.data)
    net.neurons = [Binary(0.2), Binary(0.4)]
    assert_plain(net, x, target, 2, 2)


def test_an_equilibrium_survives_copying(device: str) -> None:
    net = network(Binary(0.3), device, (20, 24, 6))
    end = net.relax(torch.rand(2, 20, device=device), 2)
    assert end.memory is not None
    for twin in (copy.deepcopy(end), pickle.loads(pickle.dumps(end))):
        assert twin.memory is None
        assert all(map(torch.equal, twin.states, end.states))
        start = [net.relax(end.clamped.x, 2, start=one) for one in (end, twin)]
        assert all(map(torch.equal, start[0].states, start[1].states))


def test_a_phase_goes_on_from_any_equilibrium(device: str) -> None:
    """What another phase has overwritten since is sent anew."""
    net = network(Binary(0.3), device, (20, 24, 6))
    x, target = batch(net, 3)
    first = net.relax(x, 3)
    other = net.relax(x.flip(0), 3)
    plain = copy.deepcopy(net)
    plain.speed = Speed(off=SHORTCUTS)
    for start in (first, other, first):
        ours = net.relax(x, 2, start=start, target=target, beta=0.5)
        theirs = plain.relax(x, 2, start=start, target=target, beta=0.5)
        assert ours.by is BitsOnGpuSolver
        assert all(map(torch.equal, ours.states, theirs.states))


def test_what_is_not_a_number_does_not_settle(device: str) -> None:
    net = network(Binary(0.3), device, (20, 24, 6))
    start = net.relax(torch.rand(2, 20, device=device), 1)
    start.states[0][0, 0] = torch.nan
    with torch.no_grad():
        net.synapses[0].bias[0] = torch.nan
    end = net.relax(start.clamped.x, 2, start=start)
    assert end.states[0][:, 0].isnan().all()
    assert not bool(end.residual[0] <= 0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Network([Dense(20, 6)], Binary()),
        lambda: Network([Dense(20, 24), Dense(24, 6)], [Binary(), Real()]),
        lambda: Network([Dense(20, 24), Dense(24, 6, weights="real")], Binary()),
        lambda: Network([Dense(20, 24), Dense(24, 6)], Binary(), CrossEntropy(Dense(6, 3))),
        lambda: Network([Conv((5, 2, 2), 4, kernel=1, padding=0), Dense(4, 6)], Binary()),
        lambda: Network([Dense(20, 24), Dense(24, 6)], Binary()).double(),
    ],
)
def test_others_are_left_to_others(make: Any, device: str) -> None:
    net = make().to(device)
    x = torch.rand(2, *net.synapses[0].input_shape).to(net.synapses[0].values)
    net.speed = ONLY
    assert choose(net, Phase.of(net, x, 1)) is Plain


def test_a_bias_that_has_no_memory_of_its_own_is_left_to_others(device: str) -> None:
    net = network(Binary(), device, (20, 24, 6))
    x = torch.rand(2, 20, device=device)
    assert choose(net, Phase.of(net, x, 1)) is not Plain
    bias = torch.full((1,), 0.3, device=device).expand(6)
    net.synapses[1].bias = torch.nn.Parameter(bias, requires_grad=False)
    assert choose(net, Phase.of(net, x, 1)) is Plain


@settings(max_examples=20)
@given(
    st.sampled_from([(1, 1), (3, 5), (70, 130)]),
    st.floats(1e-7, 1e-5),
    st.floats(0, 1e-6),
    st.integers(0, 2**31),
)
def test_flips_are_the_plain_ones(
    shape: tuple[int, int], rate: float, threshold: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    device = "cuda" if graphs.GPU else "cpu"
    signs = torch.where(torch.rand(shape, generator=generator) < 0.5, -1.0, 1.0)
    momentum = torch.randn(shape, generator=generator) * 1e-6
    writes = torch.randint(MOST_WRITES - 1, MOST_WRITES + 1, shape, generator=generator).short()
    start = [tensor.to(device) for tensor in (signs, momentum, writes)]
    ours, theirs = ([tensor.clone() for tensor in start] for _ in range(2))
    for _ in range(2):
        grad = torch.randn(shape, generator=generator).to(device)
        flips, rows = flip(*ours, None, grad, rate, threshold)
        wanted, _ = flip_plainly(*theirs, None, grad, rate, threshold)
        assert rows is None
        assert int(flips) == int(wanted)
        assert all(map(torch.equal, ours, theirs))
