"""Small networks that have learnt digits, and digits that they have not seen."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from binep.experiment.config import Config, ConvLayer, Dynamics, Layer, Learning
from binep.experiment.experiment import Experiment
from binep.export.packed import Trained


def _learned(config: Config) -> Trained:
    experiment = Experiment(config)
    experiment.train_epoch()
    data = experiment.data
    return Trained(experiment.network, data.classes, data.mean, data.std)


@pytest.fixture(scope="session")
def digits() -> Tensor:
    """1,000 test images, (1000, 1, 28, 28) uint8."""
    images: Tensor = Experiment(Config(layers={"1": Layer(10)})).data.test.images[:1000]
    assert len(images) == 1000
    return images


@pytest.fixture(scope="session")
def real() -> Trained:
    """Real neurons: 784-128-10."""
    layers = {
        "1": Layer(128, gamma=1e-4, threshold=5e-7, bias_lr=0.05),
        "2": Layer(10, gamma=1e-5, threshold=5e-7, bias_lr=0.025),
    }
    dynamics = Dynamics(free_steps=50, nudged_steps=10)
    return _learned(Config(layers=layers, dynamics=dynamics, max_batches=30, threads=1))


def _bits(layers: dict[str, Layer], beta: float, **learning: Any) -> Trained:
    config = Config(
        dynamics=Dynamics("heaviside", 1.0, free_steps=20, nudged_steps=10),
        learning=Learning(output_copies=10, beta=beta, nudging="random-sign", **learning),
        layers=layers,
        max_batches=40,
        threads=1,
    )
    return _learned(config)


@pytest.fixture(scope="session")
def bits() -> Trained:
    """Binary neurons: 784-300-100, widths that are no multiples of 64."""
    rates = {"gamma": 2e-6, "threshold": 2e-7, "bias_lr": 1e-7}
    return _bits({"1": Layer(300, **rates), "2": Layer(100, **rates)}, 2.0)


@pytest.fixture(scope="session")
def convolutional_bits() -> Trained:
    """Binary neurons: two convolutions and a dense layer."""
    rates = {"gamma": 2e-6, "threshold": 2e-7, "bias_lr": 1e-6}
    conv = {"padding": 1, "pool": 3, **rates}
    layers = {"1": ConvLayer(6, **conv), "2": ConvLayer(8, **conv), "3": Layer(100, **rates)}
    return _bits(layers, 1.0, hold_nudge=True, momentum_noise=True, zero_bias=True)
