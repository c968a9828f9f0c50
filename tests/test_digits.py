from __future__ import annotations

import pytest
import torch
from torch import Tensor

from binep import digits
from binep.gradients import EquilibriumPropagation
from binep.network import Equilibrium, Network, Speed
from binep.neurons import Real
from binep.synapses import Conv, Dense

EXACT = Speed(precision="exact", fused_steps=False)


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


def batch(network: Network, seed: int) -> tuple[Tensor, Tensor]:
    x = torch.rand(7, *network.synapses[0].input_shape, generator=generator(seed))
    labels = torch.randint(10, (7,), generator=generator(seed))
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


def test_alternate_layers_take_half_the_moves() -> None:
    network = dense(0)
    x, _ = batch(network, 0)
    network.speed = Speed(precision="exact", fused_steps=False, alternate=True)
    with torch.no_grad():
        states = network.initial_states(x)
        even = network.step(network.clamp(x), states, None, [0, 2])
        assert even[1] is states[1]
        first = network.relax(x, 1)
    for a, b in zip(first.states, even, strict=True):
        assert torch.equal(a, b)


def test_what_has_a_gradient_is_not_cut_into_digits() -> None:
    network = dense(0)
    x, target = batch(network, 0)
    end = network.relax(x, 3)
    network.cost.loss(end.output, target).sum().backward()
    assert network.synapses[0].values.grad is not None
