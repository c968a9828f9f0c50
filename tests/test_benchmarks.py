"""What speed is measured against does the same as the package: else the comparison says nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.plain import Plain, momentum_of
from binep.config import Config, Dynamics, Layer, Learning
from binep.experiment import Experiment

FLIP: dict[str, Any] = {"gamma": 1e-2, "threshold": 1e-5, "bias_lr": 0.05}
MAP: dict[str, Any] = {"kind": "conv", "kernel": 5, "padding": 1, "pool": 3, **FLIP}
LAYERS = {
    "dense": {"1": Layer(30, **FLIP), "2": Layer(20, **FLIP), "3": Layer(20, **FLIP)},
    "conv": {"1": Layer(4, **MAP), "2": Layer(6, **MAP), "3": Layer(20, **FLIP)},
}
DYNAMICS = {
    "real": Dynamics(initial_state=0.5, free_steps=150, nudged_steps=10),
    "binary": Dynamics("heaviside", 1.0, free_steps=20, nudged_steps=30, neuron_filter=0.6),
}


def small(kind: str, activation: str, **learning: Any) -> Config:
    """A tiny network."""
    return Config(
        layers=LAYERS[kind],
        dynamics=DYNAMICS[activation],
        learning=Learning(output_copies=2, **learning),
    )


@pytest.mark.parametrize(
    "config",
    [
        small("dense", "real"),
        small("conv", "real", clip_nudged=False),
        small("dense", "binary", beta=2.0, nudging="one-sided"),
        small("conv", "binary", beta=1.0, hold_nudge=True, momentum_noise=True),
    ],
    ids=["dense-real", "conv-real", "dense-binary", "conv-binary"],
)
def test_a_batch_of_the_plain_program_is_a_batch_of_binep(config: Config) -> None:
    experiment = Experiment(config)
    network, flip = experiment.network, experiment.flip
    assert flip is not None
    for synapse in network.synapses:
        # With scales that are powers of two both round alike. Else sums that tie, of which bits
        # have many, are told apart by rounding, and a maximum is pooled from another place.
        assert synapse.scale is not None
        synapse.scale.data.log2_().round_().exp2_()
    random, flipped = torch.Generator().manual_seed(0), 0
    for _ in range(3):  # the first from the initial momenta, the others from what was learnt
        x = torch.rand(8, *network.synapses[0].input_shape, generator=random)
        target = network.cost.target(torch.randint(10, (8,), generator=random))
        plain = Plain(experiment)
        done = plain.train(x, target)
        free = experiment.estimator(x, target)
        assert torch.equal(plain.generator.get_state(), experiment.nudge.get_state())
        steps = config.dynamics.nudged_steps
        nudged = network.relax(x, steps, start=free, target=target, beta=done.beta)
        torch.testing.assert_close(done.free, free.states, rtol=0, atol=1e-5)
        torch.testing.assert_close(done.nudged, nudged.states, rtol=0, atol=1e-5)
        for optimizer in experiment.optimizers:
            optimizer.step()
        for layer, synapse in zip(plain.layers, network.synapses, strict=True):
            assert torch.equal(layer.weight.sign(), synapse.values)
            torch.testing.assert_close(layer.weight, synapse.weight.detach())
            torch.testing.assert_close(layer.bias, synapse.bias.detach(), rtol=1e-5, atol=1e-5)
            momentum = momentum_of(flip, synapse.values)
            torch.testing.assert_close(layer.momentum, momentum, rtol=1e-5, atol=1e-6)
        assert [int(n) for n in done.flips] == [int(n) for n in flip.take_flips()]
        flipped += int(sum(done.flips))
    assert flipped > 100
