"""Captured steps are the plain solver's; on the CPU what would be captured is called again."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import graphs
import pytest
import torch
from torch import Tensor

from binep.core.costs import CrossEntropy
from binep.core.network import Network
from binep.core.neurons import Binary, Real
from binep.core.phases import Equilibrium, Phase
from binep.core.solvers import Loop, Plain, choose
from binep.core.speed import SHORTCUTS, Speed
from binep.core.synapses import Conv, Dense
from binep.solvers import captured
from binep.solvers.captured import AT_ONCE, CapturedSolver


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=graphs.on_gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    torch.manual_seed(0)
    with graphs.called() if request.param == "cpu" else graphs.exact():
        yield request.param


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch, device: str) -> Callable[[], int]:
    """How many graphs have been captured."""
    captures: list[object] = []

    class Counted(captured.Graphs):
        def capture(self, work: Callable[[], None]) -> Callable[[], None]:
            captures.append(work)
            return super().capture(work)

    monkeypatch.setattr(captured, "Graphs", Counted)
    return lambda: len(captures)


def _convs(**options: Any) -> list[Any]:
    return [
        Conv((2, 8, 8), 6, kernel=3, padding=1, **options),
        Conv((6, 4, 4), 7, kernel=3, padding=1, pool=2),
    ]


NETWORKS: dict[str, Callable[[], Network]] = {
    "one layer": lambda: Network([Dense(20, 6)], Real()),
    "dense": lambda: Network([Dense(20, 64), Dense(64, 30), Dense(30, 6)], Real()),
    "real weights": lambda: Network(
        [Dense(20, 64, weights="real"), Dense(64, 6, weights="real")], Real(0.5, "inside")
    ),
    "not clipped": lambda: Network([Dense(20, 64), Dense(64, 6)], Real(0.5, clip_nudged=False)),
    "bits": lambda: Network([Dense(20, 64), Dense(64, 6)], Binary(0.3)),
    "bits, held": lambda: Network([Dense(20, 64), Dense(64, 6)], Binary(0.3, hold_nudge=True)),
    "conv": lambda: Network([*_convs(), Dense((7, 2, 2), 6)], Real(0.5)),
    "conv, averaged": lambda: Network([*_convs(pooling="average"), Dense((7, 2, 2), 6)], Real(0.5)),
    "conv, bits, held": lambda: Network(
        [*_convs(), Dense((7, 2, 2), 6)], Binary(0.3, hold_nudge=True)
    ),
    "cross-entropy": lambda: Network(
        [Dense(20, 64), Dense(64, 30)], Real(), CrossEntropy(Dense(30, 6))
    ),
    "cross-entropy, maps": lambda: Network(_convs(), Real(0.5), CrossEntropy(Dense((7, 2, 2), 6))),
    "double": lambda: Network([Dense(20, 64), Dense(64, 6)], Real()).double(),
}
SPEEDS = {
    "odd-even": Speed(off=set(SHORTCUTS) - {"captured", "odd-even"}),
    "all at once": Speed(off=set(SHORTCUTS) - {"captured"}),
}
odd_even, at_once = SPEEDS.values()


def network(name: str, device: str, speed: Speed = at_once) -> Network:
    net = NETWORKS[name]().to(device)
    net.speed = speed
    return net


def batch(net: Network, size: int = 5) -> tuple[Tensor, Tensor]:
    like = net.synapses[0].values
    x = torch.rand(size, *net.synapses[0].input_shape).to(like)
    return x, net.cost.target(torch.arange(size, device=like.device) % 6)


def plainly(net: Network) -> Network:
    """The same network, of which the plain solver takes the steps."""
    plain = copy.deepcopy(net)
    plain.speed = Speed(off={*net.speed.off, "captured"})
    return plain


def assert_same(ours: Equilibrium, theirs: Equilibrium) -> None:
    """To the bit: the same kernels in the same order."""
    assert ours.by is CapturedSolver
    assert theirs.by is Plain
    assert all(map(torch.equal, ours.states, theirs.states))
    assert torch.equal(ours.moved, theirs.moved)
    assert torch.equal(ours.residual, theirs.residual)


def assert_plain(net: Network, x: Tensor, target: Tensor, beta: float = 0.5, **more: Any) -> None:
    """Both phases are the plain solver's; with a look every 8 steps, of 29 and of 11."""
    settings: dict[str, Any] = {"check_every": 8, **more}
    ends = []
    for one in (net, plainly(net)):
        free = one.relax(x, 29, **settings)
        nudged = one.relax(x, 11, start=free, target=target, beta=beta, **settings)
        ends.append((free, nudged))
    for ours, theirs in zip(*ends, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_captured_steps_are_the_plain_solvers(name: str, speed: str, device: str) -> None:
    net = network(name, device, SPEEDS[speed])
    for size, beta in ((5, 0.5), (5, -0.5), (3, 0.25), (5, 1.0)):
        assert_plain(net, *batch(net, size), beta)
    assert_plain(net, *batch(net), tolerance=0.0)
    assert_plain(net, *batch(net), tolerance=1e-3)
    assert_plain(net, *batch(net), check_every=1)
    assert_plain(net, *batch(net), check_every=20)


@pytest.mark.parametrize("name", ["dense", "conv", "bits", "cross-entropy"])
def test_parameters_may_change_in_place_or_be_replaced(name: str, device: str) -> None:
    net = network(name, device, odd_even)
    x, target = batch(net)
    assert_plain(net, x, target)
    first, last = net.synapses[0], net.learning_synapses()[-1]
    with torch.no_grad():
        first.values.neg_()
        last.bias.add_(0.25)
        assert last.scale is not None
        last.scale.mul_(0.5)
    assert_plain(net, x, target)
    last.bias = torch.nn.Parameter(last.bias.detach() + 0.25)
    assert_plain(net, x, target)
    net.synapses[-1].values.data = -net.synapses[-1].values.data  # elsewhere: it can be seen
    assert_plain(net, x, target)
    net.load_state_dict({k: v.clone() for k, v in NETWORKS[name]().state_dict().items()})
    assert_plain(net, x, target)
    net.neurons = [Real(0.25)] * len(net) if name != "bits" else [Binary(0.4)] * len(net)
    assert_plain(net, x, target)


def test_a_phase_of_a_kind_that_was_there_captures_nothing(
    count: Callable[[], int], device: str
) -> None:
    net = network("dense", device)
    for beta in (0.5, -0.5, 0.25):  # β is read from the device
        x, target = batch(net)
        free = net.relax(x, 29, tolerance=0.0)
        net.relax(x, 11, start=free, target=target, beta=beta, tolerance=0.0)
        net.relax(x, 3 * AT_ONCE, tolerance=0.0)
        assert count() == 4  # of 8 and of 5 steps, of 8 and of 3
    net.relax(x[:2], 8)
    assert count() == 5
    with torch.no_grad():
        net.synapses[0].bias.add_(1)
    net.relax(x[:2], 8)
    assert count() == 5
    net.synapses[0].bias = torch.nn.Parameter(net.synapses[0].bias.detach().clone())
    net.relax(x[:2], 8)
    assert count() == 6
    net.neurons = [Real(0.5, "inside")] * 3
    net.relax(x[:2], 8)
    assert count() == 7


def test_the_order_of_updates_may_be_switched(device: str) -> None:
    net = network("dense", device)
    for net.speed in (at_once, odd_even, at_once):
        assert_plain(net, *batch(net))


def test_few_graphs_are_kept(device: str) -> None:
    net = network("dense", device)
    for size in (*range(1, 20), 3):
        x, target = batch(net, size)
        assert_plain(net, x, target)
        solver = net.made(CapturedSolver)
        assert len(solver._frames) <= captured._KEPT


def test_an_equilibrium_stays_as_it_is(device: str) -> None:
    net = network("dense", device)
    x, _ = batch(net)
    first = net.relax(x, 29)
    kept = [t.clone() for t in (*first.states, first.moved, first.residual)]
    net.relax(x.flip(0), 29)
    assert all(map(torch.equal, (*first.states, first.moved, first.residual), kept))
    again = net.relax(x, 29, start=first)
    assert again.clamped is first.clamped
    assert again.steps == 0


def test_a_sample_that_is_nan_spoils_no_other(device: str) -> None:
    net = network("dense", device)
    x, target = batch(net)
    free = net.relax(x, 29)
    right = net.relax(x, 11, start=free, target=target, beta=0.5)
    free.states[1][2] = torch.nan
    spoilt = net.relax(x, 11, start=free, target=target, beta=0.5)
    assert not spoilt.residual.isfinite().all()
    for a, b in zip(spoilt.states, right.states, strict=True):
        assert torch.equal(a[[0, 1, 3, 4]], b[[0, 1, 3, 4]])


def test_what_settles_stops_at_a_look(device: str) -> None:
    net = network("dense", device)
    x, _ = batch(net)
    steps = []
    advance = captured._Frame.take
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            captured._Frame, "take", lambda frame, n: (steps.append(n), advance(frame, n))[1]
        )
        end = net.relax(x, 1000, check_every=8)
    assert end.steps <= sum(steps) < end.steps + 16
    assert set(steps) == {8}


class Subclass(Real):
    pass


def test_what_does_not_fit_is_left_to_the_plain_solver(device: str) -> None:
    def chosen(net: Network) -> object:
        x, _ = batch(net)
        return choose(net, Phase.of(net, x, 1))

    assert chosen(network("dense", device)) is CapturedSolver
    assert chosen(network("dense", device, Speed(off=SHORTCUTS))) is Plain
    compiled = Speed(off=at_once.off, compile=True)
    assert chosen(network("dense", device, compiled)) is Plain
    own = network("dense", device)
    own.neurons = [Subclass()] * 3
    assert chosen(own) is Plain
    half = network("dense", device).bfloat16()
    assert chosen(half) is Plain


@pytest.mark.skipif(graphs.GPU, reason="of machines without a GPU")
def test_without_a_gpu_it_never_fits() -> None:
    net = network("dense", "cpu")
    x, _ = batch(net)
    assert net.relax(x, 3).by is Plain


# On a GPU alone ----------------------------------------------------------------------------------


@pytest.fixture
def _exact() -> Iterator[None]:
    torch.manual_seed(0)
    with graphs.exact():
        yield


@pytest.mark.gpu
@graphs.needs_gpu
@pytest.mark.usefixtures("_exact")
@pytest.mark.parametrize("name", NETWORKS)
def test_no_step_makes_the_host_wait(name: str) -> None:
    for speed in SPEEDS.values():
        net = network(name, "cuda", speed)
        x, target = batch(net)
        free = Phase.of(net, x, 16, tolerance=0.0)
        end = net.settle(free)
        nudged = free.nudged(end, 3, target.to(x.dtype), 0.5)
        net.settle(nudged)

        def act(net: Network = net, free: Phase = free, nudged: Phase = nudged) -> None:
            net.settle(free)
            net.settle(nudged)
            for phase in (free, nudged):
                loop = Loop.of(phase, net.clamp(phase.x))
                loop.advance()
                loop.advance()

        with torch.no_grad():
            graphs.without_waiting(act)


@pytest.mark.gpu
@graphs.needs_gpu
@pytest.mark.usefixtures("_exact")
def test_another_stream_and_inference_mode_are_right() -> None:
    net = network("conv", "cuda")
    x, target = batch(net)
    assert_plain(net, x, target)
    for stream in (torch.cuda.Stream(), torch.cuda.default_stream()):
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            assert_plain(net, x, target)
    torch.cuda.synchronize()
    with torch.inference_mode():
        ours = net.relax(x, 16)
    assert_same(ours, plainly(net).relax(x, 16))


@pytest.mark.gpu
@graphs.needs_gpu
@pytest.mark.usefixtures("_exact")
def test_tf32_switched_on_and_off_is_followed() -> None:
    net = network("conv", "cuda")
    x, _ = batch(net, 64)
    full = net.relax(x, 16)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    assert_same(net.relax(x, 16), plainly(net).relax(x, 16))
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    assert all(map(torch.equal, net.relax(x, 16).states, full.states))


@pytest.mark.gpu
@graphs.needs_gpu
@pytest.mark.usefixtures("_exact")
def test_what_cannot_be_captured_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    advance = Loop.advance

    def waiting(loop: Loop) -> None:
        advance(loop)
        float(loop.residual.sum())  # which no capture allows

    net = network("dense", "cuda")
    x, _ = batch(net)
    monkeypatch.setattr(Loop, "advance", waiting)
    with pytest.warns(RuntimeWarning, match="steps are not captured"):
        first = net.relax(x, 24)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = net.relax(x, 24)
    assert_same(first, plainly(net).relax(x, 24))
    assert_same(again, plainly(net).relax(x, 24))
    monkeypatch.undo()
    other = network("conv", "cuda")
    assert_plain(other, *batch(other))
    assert torch.rand(3, device="cuda").isfinite().all()
