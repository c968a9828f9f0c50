from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from binep.core.gradients import EquilibriumPropagation
from binep.core.network import Equilibrium, Network, Speed
from binep.core.neurons import Real
from binep.core.synapses import Conv, Dense
from binep.solvers.digits import solver as digits

EXACT = Speed(precision="exact", fused_steps=False, alternate=False)


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


@torch.no_grad()
def phases(network: Network, speed: Speed, seed: int) -> tuple[Equilibrium, Equilibrium]:
    network.speed = speed
    x, target = batch(network, seed)
    free = network.relax(x, 300)
    return free, network.relax(x, 8, start=free, target=target, beta=0.4)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("make", [dense, conv])
def test_a_step_in_three_digits_is_a_step(make: object, seed: int) -> None:
    network = dense(seed) if make is dense else conv(seed)
    assert digits.fits(network)
    x, target = batch(network, seed)
    with torch.no_grad():
        clamped = network.clamp(x)
        states = [
            torch.rand(7, *s.output_shape, generator=generator(seed)) for s in network.synapses
        ]
        nudge = 0.4 * (target - states[-1])
        lines = digits.Lines(network)
        lines.parameters = [lines._parameters(k) for k in range(len(network))]
        layers = lines.begin(states, clamped.drive)
        lines.step(layers, range(len(network)), 3, nudge)
        expected = network.step(clamped, states, nudge)
    for layer, state in zip(layers, expected, strict=True):
        flat = state.movedim(1, -1).flatten(1) if state.dim() == 4 else state
        torch.testing.assert_close(layer.states, flat, rtol=0, atol=2e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("alternate", [False, True])
@pytest.mark.parametrize("precision", ["exact", "split", "fast"])
@pytest.mark.parametrize("nudge", ["outside", "inside"])
def test_dense_networks_settle_where_float32_does(
    precision: str, alternate: bool, seed: int, nudge: str
) -> None:
    network = dense(seed, Real(nudge=nudge))  # type: ignore[arg-type]
    speed = Speed(precision=precision, fused_steps=False, alternate=alternate)  # type: ignore
    (free, nudged), (free_, nudged_) = (phases(network, s, seed) for s in (EXACT, speed))
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
        estimator.compare(*pair, 0.4)
        gradients.append([s.values.grad for s in network.synapses])
    for a, b in zip(*gradients, strict=True):
        assert a is not None
        assert b is not None
        assert float((a - b).norm()) <= 5e-3 * float(a.norm())


@pytest.mark.parametrize("alternate", [False, True])
@pytest.mark.parametrize("make", [dense, conv])
def test_samples_that_have_settled_are_left_behind_and_come_back_in_their_rows(
    make: Callable[[int], Network], alternate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    step = digits.Lines.step

    def noted(self: digits.Lines, layers: Sequence[digits.Layer], *rest: Any) -> Tensor:
        sizes.append(len(layers[0].states))
        return step(self, layers, *rest)

    monkeypatch.setattr(digits.Lines, "step", noted)
    network = make(3)
    with torch.no_grad():
        for synapse in network.synapses[1:]:
            assert synapse.scale is not None
            synapse.scale *= 1.3  # coupled more strongly, they settle more slowly
    network.speed = Speed(fused_steps=False, alternate=alternate)
    x, target = batch(network, 3, 40)
    x[:8] *= 0.2  # some settle sooner
    with torch.no_grad():
        free = network.relax(x, 300)
        assert sizes[0] == 40
        assert sizes[-1] < 40
        assert sizes == sorted(sizes, reverse=True)
        clamped = network.clamp(x)
        # Where they are told to be is where they stay, and what the neighbours know of them.
        for a, b in zip(network.step(clamped, free.states), free.states, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=2e-5)
        nudged = network.relax(x, 3, start=free, target=target, beta=0.4)
        states = free.states
        for _ in range(3):
            states = network.step(clamped, states, 0.4 * (target - states[-1]))
    for a, b in zip(nudged.states, states, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-4)


def test_what_has_a_gradient_is_not_cut_into_digits() -> None:
    network = dense(0)
    x, target = batch(network, 0)
    end = network.relax(x, 3)
    network.cost.loss(end.output, target).sum().backward()
    assert network.synapses[0].values.grad is not None


@pytest.mark.parametrize("alternate", [False, True])
@pytest.mark.parametrize("make", [dense, conv])
def test_a_batch_may_settle_a_few_samples_at_a_time(
    make: Callable[[int], Network], alternate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = []
    for at_once, tolerance in ((2**30, 0.0), (1, 0.0), (2**30, 1e-6), (1, 1e-6)):
        monkeypatch.setattr(digits, "_AT_ONCE", at_once)
        network = make(2)
        network.speed = Speed(fused_steps=False, alternate=alternate)
        x, target = batch(network, 2)
        with torch.no_grad():
            free = network.relax(x, 60, tolerance=tolerance)
            nudged = network.relax(x, 5, start=free, target=target, beta=0.4, tolerance=tolerance)
        ends.append((free, nudged))
    for one, other in zip(ends[0], ends[1], strict=True):
        assert all(map(torch.equal, one.states, other.states))
        assert torch.equal(one.residual, other.residual)
    for one, other in zip(ends[2], ends[3], strict=True):  # one that has settled may go on or not
        assert one.steps == other.steps
        assert torch.equal(one.moved, other.moved)
        for a, b in zip(one.states, other.states, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


@pytest.mark.parametrize("make", [dense, conv])
def test_phases_may_go_on_step_by_step(make: Callable[[int], Network]) -> None:
    network = make(4)
    network.speed = Speed(fused_steps=False)
    x, _ = batch(network, 4)
    with torch.no_grad():
        settled = network.relax(x, 300)
        end = settled
        for _ in range(3):
            end = network.relax(x, 1, start=end)
            assert float(end.residual.max()) < 1e-5
    for a, b in zip(settled.states, end.states, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
