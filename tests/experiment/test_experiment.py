"""A configuration turned into a network and its training."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from binep.experiment.build import build_network
from binep.experiment.config import Config, ConvLayer, Dynamics, Layer, Learning
from binep.experiment.experiment import Experiment


def small(**settings: Any) -> Config:
    """784-30-10 on MNIST-5k, a few batches an epoch."""
    layers = {
        "1": Layer(30, gamma=1e-3, threshold=1e-5, bias_lr=0.05),
        "2": Layer(10, gamma=1e-3, threshold=1e-6, bias_lr=0.02),
    }
    config = Config(layers=layers, threads=1, max_batches=3, epochs=2)
    return dataclasses.replace(config, **settings)


def state(experiment: Experiment) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in experiment.network.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


def test_a_seed_fixes_everything() -> None:
    first, second, other = (Experiment(small(seed=seed)) for seed in (1, 1, 2))
    assert equal(state(first), state(second))
    assert not equal(state(first), state(other))
    torch.rand(3)  # the global generator has no part in it
    results = [e.train_epoch() for e in (first, second)]
    assert equal(state(first), state(second))
    assert results[0].train.loss == results[1].train.loss
    assert results[0].layers == results[1].layers


def test_every_epoch_has_an_order_of_its_own() -> None:
    experiment = Experiment(small())
    batches = [
        next(experiment._batches(experiment.data.train, 64, experiment.order))[1] for _ in range(2)
    ]
    assert not torch.equal(*batches)


def test_the_rate_of_the_scaling_factors_decays() -> None:
    layers = {n: dataclasses.replace(layer, scale_lr=0.08) for n, layer in small().layers.items()}
    learning = Learning(scale_lr_decay=10, scale_lr_decay_epochs=2)
    experiment = Experiment(small(layers=layers, learning=learning, max_batches=1))
    rates = []
    for _ in range(5):
        experiment.train_epoch()
        rates.append(experiment.descent.param_groups[-1]["lr"])
    assert rates == pytest.approx([0.08, 0.08, 0.008, 0.008, 0.0008])


def learnt(config: Config, epochs: int = 4) -> float:
    experiment = Experiment(config.replace(max_batches=None))
    for _ in range(epochs):
        result = experiment.train_epoch()
    return result.test.error


MAP = {"kernel": 5, "padding": 0, "pool": 3}


@pytest.mark.parametrize(
    "config",
    [
        small(),
        small(learning=Learning(estimator="bptt")),
        small(learning=Learning(nudge="inside", nudging="centred")),
        small(learning=Learning(synapses="real")),
        small(learning=Learning(cost="cross-entropy", nudge="inside")),
        small(
            layers={
                "1": ConvLayer(8, **MAP, pooling="average", gamma=1e-3, threshold=1e-5),
                "2": Layer(10, gamma=1e-3, threshold=1e-6, bias_lr=0.02),
            },
            dynamics=Dynamics(initial_state=0.5),
        ),
    ],
    ids=["ep", "bptt", "centred-inside", "real-weights", "cross-entropy", "average-pooling"],
)
def test_each_kind_of_experiment_learns_digits(config: Config) -> None:
    assert learnt(config) < 45  # chance is 90


def test_a_configuration_decides_the_shapes() -> None:
    config = small(
        layers={
            "1": ConvLayer(4, kernel=3, padding=1, pool=2),
            "2": ConvLayer(5, kernel=3, padding=0, pool=1),
            "3": Layer(20, scale_lr=0.1),
            "4": Layer(20),
        },
        learning=Learning(output_copies=2),
    )
    network = build_network(config, (3, 9, 8), 10)
    shapes = [s.output_shape for s in network.synapses]
    assert shapes == [(4, 4, 4), (5, 2, 2), (20,), (20,)]
    learn = [s.scale.requires_grad for s in network.synapses if s.scale is not None]
    assert learn == [False, False, True, False]
