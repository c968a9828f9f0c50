"""Small networks, one for each solver and some more, to try one thing on all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from binep.core.gradients import BackpropThroughTime, EquilibriumPropagation, GradientEstimator
from binep.core.network import Network
from binep.core.neurons import Binary, Real
from binep.core.optim import BinaryFlip
from binep.core.phases import Equilibrium
from binep.core.speed import SHORTCUTS, Speed
from binep.core.synapses import Conv, Dense, Synapse

CLASSES = 3


def _dense() -> list[Synapse]:
    return [Dense(20, 50), Dense(50, CLASSES)]


def _conv() -> list[Synapse]:
    return [Conv((1, 8, 6), 4), Dense((4, 4, 3), CLASSES)]


def _convs() -> list[Synapse]:
    return [Conv((1, 8, 8), 4), Conv((4, 4, 4), 4), Dense((4, 2, 2), CLASSES)]


_PLAIN = Speed(off=SHORTCUTS)
SHELF: dict[str, Callable[[], Network]] = {
    "dense, real": lambda: Network(_dense(), Real()),
    "dense, real, plain": lambda: Network(_dense(), Real(), speed=_PLAIN),
    "dense, binary": lambda: Network(_dense(), Binary(0.2)),
    "dense, binary, plain": lambda: Network(_dense(), Binary(0.2), speed=_PLAIN),
    "conv, real": lambda: Network(_conv(), Real(0.5)),
    "conv, binary": lambda: Network(_conv(), Binary(0.2, hold_nudge=True)),
    "convs, real": lambda: Network(_convs(), Real(0.5)),
    "convs, binary": lambda: Network(_convs(), Binary(0.2)),
}
on_each = pytest.mark.parametrize("name", SHELF)


def network(name: str, seed: int = 0) -> Network:
    """A new one off the shelf; the same seed gives the same weights."""
    torch.manual_seed(seed)
    return SHELF[name]()


def batch(net: Network, size: int = 6, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Inputs, for dense layers of 256 grey levels, and labels.

    In maps sums of grey levels tie, and rounding then picks the maximum.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (size, *net.synapses[0].input_shape)
    x = torch.rand(shape, generator=generator)
    if x.dim() == 2:
        x = (255 * x).round() / 255
    return x, torch.arange(size) % CLASSES


def fresh(name: str, like: Network) -> Network:
    """A network that was never used, with the parameters of another one."""
    net = network(name)
    net.load_state_dict({key: value.clone() for key, value in like.state_dict().items()})
    return net


def ep(net: Network, **options: Any) -> EquilibriumPropagation:
    settings: dict[str, Any] = {"beta": 0.5, "free_steps": 20, "nudged_steps": 10}
    return EquilibriumPropagation(net, **{**settings, "nudging": "one-sided", **options})


def estimators(net: Network) -> list[GradientEstimator]:
    """Those that the neurons allow."""
    found: list[GradientEstimator] = [ep(net), ep(net, nudging="centred"), ep(net, row_sparse=True)]
    if all(neurons.differentiable for neurons in net.neurons):
        found += [BackpropThroughTime(net, free_steps=n, nudged_steps=10) for n in (10, 30)]
    return found


def flips(net: Network, **options: Any) -> BinaryFlip:
    return BinaryFlip([s.values for s in net.synapses], **{"gamma": 0.5, "threshold": 0, **options})


def train(net: Network, steps: int = 1) -> BinaryFlip:
    """Flip signs by EP for some steps."""
    x, labels = batch(net)
    beta = 0.5 if net.neurons[0].differentiable else 2.0
    estimator, flip = ep(net, beta=beta), flips(net, threshold=1e-4)
    for _ in range(steps):
        estimator(x, net.cost.target(labels))
        flip.step()
    assert sum(int(n) for n in flip.flips())
    return flip


def gradients(net: Network) -> dict[str, Tensor]:
    """Those that are there, dense."""
    pairs = net.named_parameters()
    return {name: p.grad.to_dense().clone() for name, p in pairs if p.grad is not None}


def same(one: Equilibrium, other: Equilibrium, tolerance: float = 1e-6) -> None:
    """The states of two equilibria agree."""
    assert len(one.states) == len(other.states)
    for a, b in zip(one.states, other.states, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def same_gradients(
    one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 1e-5
) -> None:
    """The same parameters have gradients, and they agree."""
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name], rtol=1e-4, atol=tolerance)


def refused(attempt: Callable[[], object], kind: type[Exception], words: str) -> None:
    """With one line, of one kind, from every door."""
    with pytest.raises(kind, match=words) as caught:
        attempt()
    assert "\n" not in str(caught.value)
