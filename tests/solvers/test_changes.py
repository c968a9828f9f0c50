"""Convolutions of what has moved: the drives are those of `Network.step`."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from networks import assert_still_in_float64, settled
from torch import Tensor

from binep.core.gradients import EquilibriumPropagation
from binep.core.network import Network
from binep.core.neurons import Binary, Neurons, Real
from binep.core.phases import Phase
from binep.core.solvers import choose
from binep.core.speed import SHORTCUTS, Speed
from binep.core.synapses import Conv, Dense, Synapse
from binep.solvers import layouts, machine, primitives
from binep.solvers.changes import kernels, steps
from binep.solvers.changes.engine import ChangeEngine
from binep.solvers.changes.solver import ChangeSolver
from binep.solvers.changes.steps import Weights
from binep.solvers.digits import engine
from binep.solvers.leaving import LeavingSolver

OTHERS = set(SHORTCUTS) - {"changes", "odd-even"}
PLAIN = OTHERS | {"changes"}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(seed: int = 0, gain: float = 0.6, neurons: Neurons | None = None) -> Network:
    options: Any = {"weights": "real", "generator": generator(seed)}
    layers: list[Synapse] = [
        Conv((1, 12, 12), 6, **options),
        Conv((6, 6, 6), 5, kernel=3, padding=1, pool=2, **options),
        Conv((5, 3, 3), 4, kernel=2, padding=1, pool=2, **options),
        Dense((4, 2, 2), 30, **options),
        Dense(30, 10, **options),
    ]
    with torch.no_grad():
        for layer in layers[1:]:
            layer.values *= gain
    return Network(layers, neurons or Real(0.5), speed=Speed(off=OTHERS))


def inputs(net: Network, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.rand(size, *net.synapses[0].input_shape, generator=generator(seed))
    return x, net.cost.target(torch.randint(10, (size,), generator=generator(seed)))


def random_states(net: Network, size: int, seed: int) -> list[Tensor]:
    """Most of them 0 or 1, as in trained networks."""
    g = generator(seed)
    shapes = [(size, *synapse.output_shape) for synapse in net.synapses]
    return [(3 * torch.rand(shape, generator=g) - 1).clamp(0, 1) for shape in shapes]


def assert_near(found: Any, expected: Any, tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@given(
    seed=st.integers(0, 2**31),
    side=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    channels=st.tuples(st.integers(1, 11), st.integers(1, 11)),
    kernel=st.integers(1, 5),
    padding=st.integers(0, 6),
    pool=st.integers(1, 4),
)
@example(seed=0, side=(4, 5), channels=(60, 64), kernel=5, padding=2, pool=2)  # channels in blocks
def test_what_has_moved_in_turn_adds_up_to_the_products(
    seed: int,
    side: tuple[int, int],
    channels: tuple[int, int],
    kernel: int,
    padding: int,
    pool: int,
) -> None:
    """Whatever moves: states of either sign, and the places of the maxima; to 0 in the end."""
    g, (low, high) = generator(seed), channels
    kernel = min(kernel, min(side) + 2 * padding)
    pool = min(pool, min(side) + 2 * padding - kernel + 1)
    options: Any = {"weights": "real", "generator": g}
    conv = Conv((low, *side), high, kernel=kernel, padding=padding, pool=pool, **options)
    first = Conv((1, *side), low, kernel=1, padding=0, pool=1, **options)
    row = layouts.table([first, conv])[1]
    row[[primitives.START, primitives.MAP]] = 0
    weights = Weights(conv, layouts.column_order(conv, first))
    below, above = (torch.Size(shape).numel() for shape in (conv.input_shape, conv.output_shape))
    area = high * conv.map_shape[0] * conv.map_shape[1]
    sent, maps, sums = torch.zeros(2, below), torch.zeros(2, area), torch.zeros(2, below)
    pooled, unpooled = torch.zeros(2, above), torch.zeros(2, above)
    route, unpooled_route = (torch.zeros(2, above, dtype=torch.int32) for _ in range(2))
    machine.use_threads()
    states = torch.zeros(2, *conv.input_shape)
    s = torch.zeros(2, *conv.output_shape)
    for last in (False, False, False, True):
        states, s = (_moved(t, g) * (not last) for t in (states, s))
        flat = layouts.flatten(states).contiguous()
        kernels.send_up(row, *(t.numpy() for t in (weights.up, flat, sent, maps, pooled, route)))
        sent = flat
        with torch.no_grad():
            drive, places = conv.up(states)
            index = layouts.unflatten(route, conv.output_shape).long()
            there = torch.nn.functional.conv2d(states, conv.values, padding=padding).flatten(2)
            chosen = there.gather(2, index.flatten(2)).view_as(drive)
        for found in (layouts.unflatten(pooled, conv.output_shape), chosen):
            torch.testing.assert_close(found, drive, rtol=0, atol=1e-5)
        flat = layouts.flatten(s).contiguous()
        kernels.send_down(
            row,
            *(t.numpy() for t in (weights.down, flat, route, unpooled, unpooled_route, sums)),
        )
        with torch.no_grad():
            down = conv.down(s, index if conv.has_route else None)
        torch.testing.assert_close(sums, layouts.flatten(down), rtol=0, atol=2e-5)
    # Where nothing arrives, all places are equal, and the first one sends.
    assert places is None or torch.equal(index, places)


def _moved(states: Tensor, g: torch.Generator) -> Tensor:
    """States of which about a third have moved, many of them to 0."""
    anywhere = 2 * torch.rand(states.shape, generator=g) - 1
    anywhere *= torch.rand(states.shape, generator=g) < 0.6
    return torch.where(torch.rand(states.shape, generator=g) < 0.3, anywhere, states)


@pytest.mark.parametrize("seed", range(10))
def test_steps_from_anywhere_are_those_of_the_network(seed: int) -> None:
    """All layers at once, three steps; nothing decides between nearly equal maxima here."""
    net = network(seed, 2.0)
    x, target = inputs(net, 7, seed)
    states = random_states(net, 7, seed)
    with torch.no_grad():
        clamped = net.clamp(x)
        steps = ChangeEngine(net)._steps()
        layers = steps.begin(states, clamped.drive)
        for _ in range(3):
            nudge = 0.4 * (target - states[-1])
            steps.take(layers, range(len(net)), 0, nudge)
            states = net.step(clamped, states, nudge)
            assert_near([layer.states for layer in layers], map(layouts.flatten, states), 1e-5)


def test_what_all_samples_send_alike_is_convolved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    send_up = kernels.send_up

    def counted(layer: Any, weights: Any, states: Any, *more: Any) -> None:
        sizes.append(len(states))
        send_up(layer, weights, states, *more)

    monkeypatch.setattr(kernels, "send_up", counted)
    net = network(neurons=Real(0.5))
    x, _ = inputs(net, 20)
    ends = [settled(net, x, OTHERS).states]
    assert sizes[:3] == [1, 1, 20]  # both convolutions between layers, then the first again
    sizes.clear()
    monkeypatch.setattr(steps, "are_equal", lambda states: False)
    ends.append(settled(net, x, OTHERS).states)
    assert sizes[:3] == [20, 20, 20]
    for a, b in zip(*ends, strict=True):
        assert torch.equal(a, b)


@given(st.integers(0, 2**31), st.floats(0.2, 0.7), st.booleans())
def test_states_settle_where_steps_in_float64_leave_them(
    seed: int, gain: float, odd_even: bool
) -> None:
    net = network(seed, gain)
    x, _ = inputs(net, 24, seed)
    more = set() if odd_even else {"odd-even"}
    ours = settled(net, x, OTHERS | more)
    assert ours.by is ChangeSolver
    assert ours.residual.max() <= 1e-6
    assert_still_in_float64(net, x, ours, 5e-6)


@pytest.mark.parametrize("odd_even", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_phases_and_gradients_are_those_of_float32(seed: int, odd_even: bool) -> None:
    net, ends, gradients = network(seed), [], []
    x, target = inputs(net, 12, seed)
    more = set() if odd_even else {"odd-even"}
    for off in (OTHERS | more, PLAIN | more):
        free = settled(net, x, off, tolerance=1e-8)
        nudged = settled(net, x, off, 8, start=free, target=target, beta=0.4)
        net.zero_grad()
        estimator = EquilibriumPropagation(net, beta=0.4, free_steps=600, nudged_steps=8)
        estimator.compare(free, nudged, 0.4)
        ends.append((free, nudged))
        gradients.append([synapse.values.grad for synapse in net.synapses])
    assert ends[0][0].by is ends[0][1].by is ChangeSolver
    for ours, right in zip(*ends, strict=True):
        assert_near(ours.states, right.states, 2e-5)
    for a, b in zip(*gradients, strict=True):
        assert a is not None
        assert b is not None
        assert float((a - b).norm()) <= 1e-3 * float(b.norm()) + 1e-5


def test_few_neurons_send(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has not moved is not multiplied: neurons that stay at 1 send in the first step alone."""
    net = network()
    x, _ = inputs(net, 12)
    with torch.no_grad():
        for synapse in net.synapses[:2]:
            synapse.bias[1:] = 50
    end = settled(net, x, OTHERS)
    sent: defaultdict[int, list[int]] = defaultdict(list)  # by the neurons of the layer
    send_up = kernels.send_up

    def counted(row: Any, weights: Any, states: Any, before: Any, *more: Any) -> None:
        sent[states.shape[1]].append(int((states != before).sum()))
        send_up(row, weights, states, before, *more)

    monkeypatch.setattr(kernels, "send_up", counted)
    settled(net, x, OTHERS, 5, start=end, tolerance=0)
    for synapse in net.synapses[:2]:
        neurons = torch.Size(synapse.output_shape).numel()
        first, *later = sent[neurons]
        assert first >= 12 * neurons * 0.8
        assert max(later) <= 12 * neurons // synapse.output_shape[0]


def test_a_batch_may_settle_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    net, ends = network(), []
    x, target = inputs(net, 20)
    for at_once in (2**30, 1):
        monkeypatch.setattr(engine, "_AT_ONCE", at_once)
        net.made(ChangeSolver)._engine = ChangeEngine(net)
        free = settled(net, x, OTHERS, 40, tolerance=0)
        nudged = net.relax(x, 5, start=free, target=target, beta=0.4, tolerance=0)
        ends.append((free, nudged))
    for one, other in zip(*ends, strict=True):
        assert_near(one.states, other.states, 1e-6)


@pytest.mark.parametrize(("seed", "gain"), [(1, 1.5), (2, 2.5), (4, 2.5)])
def test_many_steps_go_where_they_do_in_float64(seed: int, gain: float) -> None:
    """Rounding does not add up from step to step; all but the second settle."""
    net = network(seed, gain)
    x, _ = inputs(net, 8, seed)
    ours = settled(net, x, OTHERS | {"odd-even"}, 1000, tolerance=0)
    assert ours.by is ChangeSolver
    right = settled(net.double(), x.double(), PLAIN | {"odd-even"}, 1000, tolerance=0)
    assert_near([state.double() for state in ours.states], right.states, 3e-5)


@pytest.mark.parametrize("size", [1e3, 1e6, 1e20])
def test_large_states_to_start_from_leave_nothing_behind(size: float) -> None:
    net = network()
    x, _ = inputs(net, 8)
    start = settled(net, x, OTHERS)
    for state in start.states:
        state *= size
    ends = [settled(net, x, off, start=start).states for off in (OTHERS, PLAIN)]
    assert_near(*ends, 1e-5)


@pytest.mark.parametrize("place", range(4))
def test_what_is_not_a_number_is_a_maximum(place: int) -> None:
    net = network()
    x, _ = inputs(net, 4)
    start = settled(net, x, OTHERS)
    start.states[0][2, 0, place // 2, place % 2] = torch.nan
    ours, right = (settled(net, x, off, 1, start=start) for off in (OTHERS, PLAIN))
    assert right.states[1][2].isnan().any()
    for a, b in zip(ours.states, right.states, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5, equal_nan=True)


def test_weights_are_followed() -> None:
    net = network()
    x, _ = inputs(net, 8)
    settled(net, x, OTHERS)
    for k in (1, 3):
        with torch.no_grad():
            net.synapses[k].values.mul_(-1)
        assert_near(settled(net, x, OTHERS).states, settled(net, x, PLAIN).states, 2e-5)
        net.synapses[k].values = torch.nn.Parameter(net.synapses[k].values.detach() / 2)
        assert_near(settled(net, x, OTHERS).states, settled(net, x, PLAIN).states, 2e-5)


def test_layers_below_may_send_nothing() -> None:
    """Maps of 0 have their maxima at the first place of each window, through which s goes down."""
    net = network()
    x, _ = inputs(net, 4)
    with torch.no_grad():
        net.synapses[0].bias.fill_(-5)
    states = random_states(net, 4, 0)
    states[0].zero_()
    with torch.no_grad():
        layers = (steps := ChangeEngine(net)._steps()).begin(states, net.clamp(x).drive)
        for _ in range(2):
            steps.take(layers, range(len(net)), 0)
            states = net.step(net.clamp(x), states)
            assert_near([layer.states for layer in layers], map(layouts.flatten, states), 1e-5)
            net.synapses[0].bias.fill_(0)  # from now on they do
            layers[0].sums += 5


class OtherConv(Conv):
    """Might multiply otherwise."""


@pytest.mark.parametrize("second", [Conv, OtherConv])
@pytest.mark.parametrize(
    "settings", [{}, {"pooling": "average"}, {"weights": "binary"}, {"pool": 1}]
)
@pytest.mark.parametrize("precision", ["split", "fast", "exact"])
def test_what_does_not_fit_is_left_to_other_solvers(
    second: type[Conv], settings: dict[str, Any], precision: Any
) -> None:
    options: Any = {"weights": "real", **settings}
    layers: list[Synapse] = [
        Conv((1, 12, 12), 6, weights="binary"),
        second((6, 6, 6), 5, **options),
    ]
    layers.append(Dense(layers[-1].output_shape, 3, weights="real"))
    net = Network(layers, Real(), speed=Speed(off=OTHERS, precision=precision))
    wanted = (second, settings) == (Conv, {}) and precision != "exact"
    x = torch.rand(2, 1, 12, 12)
    assert (choose(net, Phase.of(net, x, 9)) is ChangeSolver) == wanted
    assert not ChangeSolver.fits(net.double(), Phase.of(net, x.double(), 9))


def test_networks_without_such_convolutions_are_left_to_other_solvers() -> None:
    dense = Network([Dense(9, 8, weights="real"), Dense(8, 2, weights="real")], Real())
    assert not ChangeSolver.fits(dense, Phase.of(dense, torch.rand(2, 9), 9))
    bits = network(neurons=Binary())
    assert not ChangeSolver.fits(bits, Phase.of(bits, inputs(bits, 2)[0], 9))
    net = network()
    x, _ = inputs(net, 2)
    net.speed = Speed(off=OTHERS - {"leaving"})
    assert choose(net, Phase.of(net, x, 9)) is ChangeSolver
    net.speed = Speed(off=PLAIN - {"leaving"})
    assert choose(net, Phase.of(net, x, 9)) is LeavingSolver
