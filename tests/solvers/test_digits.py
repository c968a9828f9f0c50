"""Quantised updates with error feedback: they settle where steps in float32 do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import byte_dot_products
from torch import Tensor

import binep.solvers  # noqa: F401
from binep.core.costs import CrossEntropy
from binep.core.gradients import BackpropThroughTime, EquilibriumPropagation
from binep.core.network import Network
from binep.core.neurons import Real
from binep.core.optim import BinaryFlip
from binep.core.phases import Equilibrium, Phase
from binep.core.speed import Speed
from binep.core.synapses import Conv, Dense
from binep.solvers import machine
from binep.solvers.digits import engine
from binep.solvers.digits.engine import DigitEngine
from binep.solvers.digits.products import BitProducts, OnednnProducts, Products
from binep.solvers.digits.solver import DigitSolver
from binep.solvers.digits.steps import Steps

pytestmark = pytest.mark.skipif(
    not machine.has_packed_int8(), reason="oneDNN has no packed int8 products on this CPU"
)

AT_ONCE = Speed(("events", "in-cache", "odd-even"), "exact")
Make = Callable[[int], Network]


def speed(odd_even: bool = True, precision: Any = "split") -> Speed:
    """By digits."""
    return Speed(("in-cache",) if odd_even else ("in-cache", "odd-even"), precision)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dense(seed: int, neurons: Real | None = None) -> Network:
    g = generator(seed)
    layers = [Dense(20, 60, generator=g), Dense(60, 50, generator=g), Dense(50, 10, generator=g)]
    return Network(layers, neurons or Real())


def conv(seed: int) -> Network:
    g = generator(seed)
    return Network(
        [
            Conv((1, 12, 12), 6, generator=g),
            Conv((6, 6, 6), 5, kernel=3, padding=1, pool=2, generator=g),
            Conv((5, 3, 3), 4, kernel=3, padding=1, pool=1, generator=g),
            Dense((4, 3, 3), 10, generator=g),
        ],
        Real(initial=0.5, clip_nudged=False),
    )


def batch(network: Network, seed: int, size: int = 7) -> tuple[Tensor, Tensor]:
    x = torch.rand(size, *network.synapses[0].input_shape, generator=generator(seed))
    labels = torch.randint(10, (size,), generator=generator(seed))
    return x, network.cost.target(labels)


def phases(network: Network, by: Speed, seed: int) -> tuple[Equilibrium, Equilibrium]:
    network.speed = by
    x, target = batch(network, seed)
    free = network.relax(x, 300)
    return free, network.relax(x, 8, start=free, target=target, beta=0.4)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("make", [dense, conv])
def test_a_step_in_three_digits_is_a_step(make: Make, seed: int) -> None:
    network = make(seed)
    x, target = batch(network, seed)
    states = [torch.rand(7, *s.output_shape, generator=generator(seed)) for s in network.synapses]
    nudge = 0.4 * (target - states[-1])
    machine.use_threads()
    with torch.no_grad():
        clamped = network.clamp(x)
        steps = DigitEngine(network)._steps()
        layers = steps.begin(states, clamped.drive)
        steps.take(layers, range(len(network)), 3, nudge)
        expected = network.step(clamped, states, nudge)
    for layer, state in zip(layers, expected, strict=True):
        flat = state.movedim(1, -1).flatten(1) if state.dim() == 4 else state
        torch.testing.assert_close(layer.states, flat, rtol=0, atol=2e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("odd_even", [False, True])
@pytest.mark.parametrize("precision", ["split", "fast"])
@pytest.mark.parametrize("nudge", ["outside", "inside"])
def test_dense_networks_settle_where_float32_does(
    precision: str, odd_even: bool, seed: int, nudge: Any
) -> None:
    network = dense(seed, Real(nudge=nudge))
    free, nudged = phases(network, AT_ONCE, seed)
    free_, nudged_ = phases(network, speed(odd_even, precision), seed)
    assert free_.by is nudged_.by is DigitSolver
    assert free.steps < 300
    assert free_.steps < 300
    near = 3e-4 if precision == "fast" else 2e-5
    for a, b in zip(free.states, free_.states, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)
    for a, b in zip(nudged.states, nudged_.states, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=near)
    estimator = EquilibriumPropagation(network, beta=0.4, free_steps=300, nudged_steps=8)
    gradients = []
    for pair in ((free, nudged), (free_, nudged_)):
        network.zero_grad()
        estimator.compare(*pair, 0.4)
        gradients.append([s.values.grad for s in network.synapses])
    for a, b in zip(*gradients, strict=True):
        assert a is not None
        assert b is not None
        assert float((a - b).norm()) <= 5e-3 * float(a.norm())


@pytest.mark.parametrize("odd_even", [False, True])
@pytest.mark.parametrize("make", [dense, conv])
def test_samples_that_have_settled_leave_the_batch_and_end_in_their_rows(
    make: Make, odd_even: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    take = Steps.take

    def noted(self: Steps, layers: Any, *rest: Any) -> Tensor:
        sizes.append(len(layers[0].states))
        return take(self, layers, *rest)

    monkeypatch.setattr(Steps, "take", noted)
    network = make(3)
    with torch.no_grad():
        for synapse in network.synapses[1:]:
            assert synapse.scale is not None
            synapse.scale *= 1.3  # coupled more strongly, they settle more slowly
    network.speed = speed(odd_even)
    x, target = batch(network, 3, 40)
    x[:8] *= 0.2  # some settle sooner
    free = network.relax(x, 300)
    assert sizes[0] == 40
    assert sizes[-1] < 40
    assert sizes == sorted(sizes, reverse=True)
    with torch.no_grad():
        clamped = network.clamp(x)
        for a, b in zip(network.step(clamped, free.states), free.states, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=2e-5)
        nudged = network.relax(x, 3, start=free, target=target, beta=0.4)
        states = list(free.states)
        for _ in range(3):
            states = network.step(clamped, states, 0.4 * (target - states[-1]))
    for a, b in zip(nudged.states, states, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-4)


@pytest.mark.parametrize("odd_even", [False, True])
@pytest.mark.parametrize("make", [dense, conv])
def test_a_batch_may_settle_in_parts(
    make: Make, odd_even: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = []
    for at_once, tolerance in ((2**30, 0.0), (1, 0.0), (2**30, 1e-6), (1, 1e-6)):
        monkeypatch.setattr(engine, "_AT_ONCE", at_once)
        network = make(2)
        network.speed = speed(odd_even)
        x, target = batch(network, 2)
        free = network.relax(x, 60, tolerance=tolerance)
        nudged = network.relax(x, 5, start=free, target=target, beta=0.4, tolerance=tolerance)
        ends.append((free, nudged))
    for one, other in zip(ends[0], ends[1], strict=True):
        assert all(map(torch.equal, one.states, other.states))
        assert torch.equal(one.residual, other.residual)
    for one, other in zip(ends[2], ends[3], strict=True):  # one that has settled may go on or not
        assert torch.equal(one.moved, other.moved)
        for a, b in zip(one.states, other.states, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


@pytest.mark.parametrize("make", [dense, conv])
def test_phases_may_go_on_step_by_step(make: Make) -> None:
    network = make(4)
    network.speed = speed()
    x, _ = batch(network, 4)
    settled = end = network.relax(x, 300)
    for _ in range(3):
        end = network.relax(x, 1, start=end)
        assert float(end.residual.max()) < 1e-5
    for a, b in zip(settled.states, end.states, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [dense, conv])
def test_signs_stored_in_another_order_of_memory_are_the_same_signs(make: Make) -> None:
    network = make(5)
    expected = phases(network, speed(), 5)
    for synapse in network.synapses:
        values = synapse.values.detach()
        turned = values.movedim(0, -1).contiguous().movedim(-1, 0)
        assert not turned.is_contiguous()
        synapse.values = torch.nn.Parameter(turned)
    for a, b in zip(expected, phases(network, speed(), 5), strict=True):
        for state, other in zip(a.states, b.states, strict=True):
            torch.testing.assert_close(state, other, rtol=0, atol=2e-5)


@pytest.mark.parametrize("make", [dense, conv])
def test_a_sample_that_is_not_a_number_changes_no_other(make: Make) -> None:
    network = make(6)
    network.speed = speed()
    x, target = batch(network, 6)
    others = torch.arange(7) != 4
    free = network.relax(x, 60)
    ends = []
    for value in (0.7, torch.nan):
        states = [state.clone() for state in free.states]
        states[0].fill_(0.7)  # all the same, which takes fewer digits
        states[0][4] = value
        start = Equilibrium(free.clamped, states, free.moved, free.residual)
        ends.append(network.relax(x, 6, start=start, target=target, beta=0.4, tolerance=0))
    for a, b in zip(ends[0].states, ends[1].states, strict=True):
        assert torch.equal(a[others], b[others])
        assert b[4].isnan().any()
    assert ends[1].residual.isnan().all()


def test_one_synapse_in_two_layers_gets_the_sum_of_both_gradients() -> None:
    found = []
    for by in (AT_ONCE, speed(odd_even=False)):
        g = generator(7)
        tied = Dense(30, 30, generator=g)
        layers = [Dense(20, 30, generator=g), tied, tied, Dense(30, 10, generator=g)]
        network = Network(layers, Real(), speed=by)
        x, target = batch(network, 7)
        free = EquilibriumPropagation(
            network, beta=0.4, free_steps=200, nudged_steps=5, nudging="one-sided"
        )(x, target)
        assert tied.values.grad is not None
        found.append((free, tied.values.grad))
    assert found[1][0].by is DigitSolver
    assert float((found[0][1] - found[1][1]).norm()) <= 5e-3 * float(found[0][1].norm())


def test_any_cost_nudges_an_output_of_maps() -> None:
    g = generator(8)
    maps = Conv((6, 6, 6), 5, kernel=3, padding=1, pool=1, generator=g)
    readout = Dense(maps.output_shape, 10, generator=g)
    network = Network([Conv((1, 12, 12), 6, generator=g), maps], Real(), CrossEntropy(readout))
    ends = [phases(network, by, 8) for by in (AT_ONCE, speed(odd_even=False))]
    assert ends[1][1].by is DigitSolver
    assert not torch.equal(ends[1][0].output, ends[1][1].output)
    for a, b in zip(ends[0][1].states, ends[1][1].states, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


class OtherReal(Real):
    """Might move otherwise."""


class OtherDense(Dense):
    """Might multiply otherwise."""


def test_what_digits_cannot_stand_for_is_left_to_other_solvers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fits(network: Network) -> bool:
        x = torch.zeros(1, *network.synapses[0].input_shape, dtype=network.synapses[0].bias.dtype)
        return DigitSolver.fits(network, Phase.of(network, x, 1))

    assert fits(dense(0))
    assert fits(conv(0))
    assert not fits(dense(0, OtherReal()))
    assert not fits(Network([OtherDense(2, 3)], Real()))
    assert not fits(Network([Dense(2, 3), Dense(3, 2, weights="real")], Real()))
    assert not fits(dense(0).double())
    narrow = Conv((6, 6, 6), 5, kernel=1, padding=1)  # its transpose has a negative padding
    assert not fits(Network([Conv((1, 12, 12), 6), narrow], Real()))
    exact = dense(0)
    exact.speed = Speed(precision="exact")
    assert not fits(exact)
    monkeypatch.setattr(machine, "has_packed_int8", lambda: False)
    assert not fits(dense(0))


KINDS = pytest.mark.parametrize("in_bits", [False, pytest.param(True, marks=byte_dot_products)])


@KINDS
@given(
    sizes=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    rounds=st.lists(st.integers(0, 12), min_size=1, max_size=5),
    digits=st.integers(1, 3),
    batch=st.integers(1, 9),
    seed=st.integers(0, 2**32),
)
def test_products_are_exact_and_follow_flips(
    in_bits: bool,
    sizes: tuple[int, int],
    rounds: list[int],
    digits: int,
    batch: int,
    seed: int,
) -> None:
    g = generator(seed)
    synapse, order = Dense(*sizes, generator=g), torch.randperm(sizes[0], generator=g)
    below, above = (
        torch.randint(0, 256, (digits, batch, size), generator=g, dtype=torch.uint8)
        for size in sizes
    )
    values = synapse.values.detach()
    machine.use_threads()
    make = BitProducts if in_bits else OnednnProducts
    kept: list[Products] = [make(synapse, order)]
    ends = []
    for count in rounds:
        ends.append((kept[-1].up(below), kept[-1].down(above)))
        flips = torch.randint(values.numel(), (count,), generator=g)
        values.view(-1)[flips] *= -1
        rows = (flips // sizes[0]).unique()
        followed = kept[-1].flipped(synapse.values, rows)
        assert followed is not None
        kept.append(followed)
    assert torch.equal(kept[-1].up(below), (below[..., order].float() - 128) @ values.t())
    down = torch.empty_like(below, dtype=torch.float32)
    down[..., order] = (above.float() - 128) @ values
    assert torch.equal(kept[-1].down(above), down)
    for products, (up, down) in zip(kept, ends, strict=False):  # a phase may still use them
        assert torch.equal(products.up(below), up)
        assert torch.equal(products.down(above), down)


def test_signs_are_packed_anew_where_many_have_flipped() -> None:
    synapse = Dense(30, 20, generator=generator(0))
    products = OnednnProducts(synapse, torch.arange(30))
    values = synapse.values.detach().view(-1)
    values[:64] *= -1
    assert products.flipped(synapse.values, torch.arange(20)) is not None
    values[64] *= -1
    assert products.flipped(synapse.values, torch.arange(20)) is None
    values[:60] *= -1  # they are as they were packed: no flips
    assert products.flipped(synapse.values, torch.arange(20)) is not None
    conv = Conv((2, 6, 6), 3, kernel=3, padding=1, pool=1)
    order = torch.arange(conv.values[0].numel())
    assert OnednnProducts(conv, order).flipped(conv.values, torch.arange(3)) is None


@KINDS
@pytest.mark.parametrize("make", [dense, conv])
def test_training_follows_flips_bit_for_bit(
    make: Make, in_bits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "has_byte_dot_products", lambda: in_bits)
    kind = BitProducts if in_bits else OnednnProducts
    followed: list[bool] = []
    flipped = kind.flipped

    def noted(self: Any, values: Tensor, rows: Tensor) -> Products | None:
        products = flipped(self, values, rows)
        followed.append(products is not None)
        return products

    def trained() -> list[Tensor]:
        network = make(9)
        network.speed = speed()
        estimator = EquilibriumPropagation(
            network, beta=0.4, free_steps=60, nudged_steps=6, nudging="one-sided"
        )
        optimizer = BinaryFlip([s.values for s in network.synapses], gamma=0.3, threshold=1e-3)
        for seed in range(6):
            assert estimator(*batch(network, seed)).by is DigitSolver
            optimizer.step()
        return [s.values.detach() for s in network.synapses]

    monkeypatch.setattr(kind, "flipped", noted)
    ends = trained()
    assert any(followed)
    monkeypatch.setattr(kind, "flipped", lambda *_: None)
    assert all(map(torch.equal, ends, trained()))


def maps_below(seed: int) -> Network:
    g = generator(seed)
    maps = Conv((1, 12, 12), 6, generator=g)
    shape = maps.output_shape
    layers = [maps, Dense(shape, 30, generator=g), Dense(30, 10, generator=g)]
    return Network(layers, Real())


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", [dense, maps_below, conv])
def test_adjoints_go_back_in_digits(
    make: Make, seed: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []
    go_back = DigitSolver.go_back

    def noted(self: DigitSolver, *given: Any) -> Any:
        found.append(go_back(self, *given))
        return found[-1]

    monkeypatch.setattr(DigitSolver, "go_back", noted)
    network = make(seed)
    x, target = batch(network, seed, 16)
    estimator = BackpropThroughTime(network, free_steps=300 + steps, nudged_steps=steps)
    gradients = []
    for off in (("in-cache",), ("in-cache", "linearised")):
        network.speed = Speed(off)
        estimator(x, target)
        gradients.append([p.grad for p in network.parameters()])
    assert len(found) == steps - 1
    if make is conv:
        assert found == [None] * (steps - 1)
    else:  # the output reaches every second layer, one further down in each step
        for taken, adjoints in enumerate(found, start=1):
            reached = [taken >= 2 - k and (taken - k) % 2 == 0 for k in range(3)]
            assert [adjoint is not None for adjoint in adjoints] == reached
    for ours, autograd in zip(*gradients, strict=True):
        if autograd is None:
            assert ours is None
        else:
            assert ours is not None
            assert float((ours - autograd).norm()) <= 2e-4 * float(autograd.norm())
