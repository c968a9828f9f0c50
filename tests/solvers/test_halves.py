"""Dense products in float16 halves are those of float32, to 22 bits; of bits and signs, all."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import graphs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from binep.core.network import Network
from binep.core.neurons import Binary, Neurons, Real
from binep.core.speed import Speed
from binep.core.synapses import Dense, Weights
from binep.solvers import halves
from binep.solvers.captured import CapturedSolver
from binep.solvers.halves import InHalves, halved, in_halves

CPU = ("events", "digits", "in-cache", "bits-on-gpu")
"""Solvers that are quicker, on a CPU or of bits."""
SIZES = (24, 64, 32, 16)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=graphs.on_gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(halves, "LEAST", 1)
    with graphs.called() if request.param == "cpu" else graphs.exact():
        yield request.param


def network(neurons: Neurons, weights: Weights, device: str, *, sizes: tuple[int, ...]) -> Network:
    layers = [Dense(*pair, weights=weights) for pair in pairwise(sizes)]
    return Network(layers, neurons, speed=Speed(off=CPU)).to(device)


@given(
    st.sampled_from(["binary", "real"]),
    st.integers(1, 6).map(lambda n: 8 * n),
    st.integers(1, 6).map(lambda n: 8 * n),
    st.integers(-20, 20),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_products_are_those_of_float64(
    weights: Weights, inputs: int, outputs: int, exponent: int, bits: bool, seed: int
) -> None:
    with graphs.called():
        torch.manual_seed(seed)
        layer = Dense(inputs, outputs, weights=weights)
        if weights == "real":
            layer.values.data *= 2.0**exponent
        ours, below, above = InHalves(layer, 2), torch.rand(3, inputs), torch.rand(3, outputs)
        if bits:
            below, above = ((s < 0.5).to(torch.int8) for s in (below, above))
        ours.follow()
        exact = copy.deepcopy(layer).double()
        error = 2**-20 * float(exact.weight.detach().abs().max()) * max(inputs, outputs) ** 0.5
        for mine, right in (
            (ours.up(below)[0], exact.up(below)[0]),
            (ours.down(above, None), exact.down(above, None)),
        ):
            assert float((mine.double() - right).detach().abs().max()) <= error


def settled(net: Network, x: Tensor, target: Tensor) -> list[Tensor]:
    free = net.relax(x, 200)
    return [*free.states, *net.relax(x, 20, start=free, target=target, beta=0.5).states]


@pytest.mark.parametrize("weights", ["binary", "real"])
@pytest.mark.parametrize("neurons", [Real(), Binary(0.3)], ids=["real", "bits"])
def test_phases_end_where_those_of_float32_do(
    neurons: Neurons, weights: Weights, device: str
) -> None:
    net = network(neurons, weights, device, sizes=SIZES)
    x = torch.rand(9, 24, device=device)
    target = net.cost.target(torch.arange(9, device=device) % 16)
    for change in range(3):
        ours = settled(net, x, target)
        assert len([*halved(net.made(CapturedSolver)._stepping["split"])]) == 2
        exact = copy.deepcopy(net)
        exact.speed = Speed(CPU, precision="exact")
        for mine, right in zip(ours, settled(exact, x, target), strict=True):
            if weights == "binary" and neurons != Real():
                assert torch.equal(mine, right)
            else:
                torch.testing.assert_close(mine, right, rtol=0, atol=1e-5)
        with torch.no_grad():  # seen in the next phase
            if weights == "real":
                net.synapses[1].values.add_(0.05)
            else:
                net.synapses[1].values[::3].neg_()
            if change == 1:
                net.synapses[2].values = torch.nn.Parameter(-net.synapses[2].values)


def test_weights_that_lie_where_others_lay_are_followed(device: str) -> None:
    net, x = network(Real(), "real", device, sizes=SIZES), torch.rand(9, 24, device=device)
    net.relax(x, 200)
    layer = net.synapses[1]
    layer.values = torch.nn.Parameter(layer.values.data)  # whose changes are counted apart
    net.relax(x, 200)
    with torch.no_grad():
        layer.values.add_(0.1)
    fresh = copy.deepcopy(net)
    for mine, right in zip(net.relax(x, 200).states, fresh.relax(x, 200).states, strict=True):
        assert torch.equal(mine, right)


def test_weights_that_could_not_be_taken_are_taken_later(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Dense(16, 8, weights="real")
    ours, x = InHalves(layer, 2), torch.rand(3, 16)

    def full(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError

    with graphs.called():
        with monkeypatch.context() as patch:
            patch.setattr(halves, "_halves", full)
            with pytest.raises(torch.OutOfMemoryError):
                ours.follow()
        ours.follow()
        torch.testing.assert_close(ours.up(x), layer.up(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-40, 3.4e38])
def test_weights_of_any_size(size: float) -> None:
    layer, x = Dense(16, 8, weights="real"), torch.full((3, 16), 2.0**-4)
    with torch.no_grad():
        layer.values.copy_(size * layer.values.sign())
    with graphs.called():
        ours = InHalves(layer, 2)
        ours.follow()
        torch.testing.assert_close(ours.up(x), layer.up(x), rtol=0, atol=1e-6 * size + 1e-44)


class OwnDense(Dense):
    def up(self, below: Tensor) -> tuple[Tensor, None]:
        return 2 * super().up(below)[0], None


class OwnStep(Network):
    def step(self, clamped: Any, states: Sequence[Tensor], *more: Any) -> list[Tensor]:
        return [state / 2 for state in super().step(clamped, states, *more)]


def test_parts_of_ones_own_do_as_they_do_without(device: str) -> None:
    layers = [Dense(24, 64), Dense(64, 16)]
    for kind, second in ((Network, OwnDense(64, 16)), (OwnStep, Dense(64, 16))):
        net = kind([layers[0], second], Real()).to(device)
        net.solver = CapturedSolver  # which is named, and so not asked whether it fits
        exact = copy.deepcopy(net)
        exact.speed = Speed(precision="exact")
        x = torch.rand(9, 24, device=device)
        for mine, right in zip(net.relax(x, 9).states, exact.relax(x, 9).states, strict=True):
            assert torch.equal(mine, right)


def test_what_float16_cannot_hold_is_sent_in_float32(device: str) -> None:
    net, x = network(Real(), "binary", device, sizes=SIZES), torch.rand(9, 24, device=device)
    target = torch.rand(9, 16, device=device)
    net.relax(x, 9)
    net.neurons = [Real(clip_nudged=False)] * 3
    free = net.relax(x, 200)
    nudged = net.relax(x, 3, start=free, target=target, beta=1e6)
    assert all(state.isfinite().all() for state in nudged.states)
    assert float(nudged.output.abs().max()) > torch.finfo(torch.half).max


def test_precision_says_how_many(device: str) -> None:
    net = network(Real(), "real", device, sizes=SIZES)
    x = torch.rand(9, 24, device=device)
    ends = {}
    for precision in ("exact", "split", "fast", "exact"):
        net.speed = Speed(CPU, precision)  # type: ignore[arg-type]
        ends[precision] = net.relax(x, 200)
        assert ends[precision].by is CapturedSolver
    far = {
        name: max(
            float((a - b).abs().max())
            for a, b in zip(end.states, ends["exact"].states, strict=True)
        )
        for name, end in ends.items()
    }
    assert 0 == far["exact"] < far["split"] < 1e-5 < far["fast"] < 1e-2
    net = net.double()
    assert net.relax(x.double(), 3).by is CapturedSolver
    assert not net.made(CapturedSolver)._stepping


@pytest.mark.parametrize(
    ("why", "make"),
    [
        ("few weights", lambda: network(Real(), "binary", "cpu", sizes=SIZES)),
        ("not aligned", lambda: network(Real(), "binary", "cpu", sizes=(8, 2**11 + 4, 2**10))),
    ],
)
def test_other_layers_stay_as_they_are(why: str, make: Callable[[], Network]) -> None:
    net = make()
    assert in_halves(net, 2) is net
    wide = network(Real(), "binary", "cpu", sizes=(8, 2**10, 2**10))
    assert [type(s) for s in in_halves(wide, 2).synapses] == [Dense, InHalves]
