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
    run = {"config": config.to_toml(), "data": data.identity}
    return Trained(experiment.network, data.classes, data.mean, data.std, run, data.power)


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


def _brightened(standardize: bool) -> Trained:
    rates = {"gamma": 2e-6, "threshold": 2e-7, "bias_lr": 1e-7}
    layers = {"1": Layer(200, **rates, firing_threshold=0.3), "2": Layer(100, **rates)}
    return _bits(layers, 2.0, pixel_power=0.35, standardize=standardize)


@pytest.fixture(scope="session")
def brightened() -> Trained:
    """Binary neurons whose pixels are raised to a power."""
    return _brightened(False)


@pytest.fixture(scope="session")
def brightened_and_normalised() -> Trained:
    """Binary neurons whose pixels are raised to a power, and then normalised."""
    return _brightened(True)


def _bits(
    layers: dict[str, Layer],
    beta: float,
    pixel_power: float = 1.0,
    standardize: bool = False,
    **learning: Any,
) -> Trained:
    config = Config(
        pixel_power=pixel_power,
        standardize=standardize,
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


@pytest.fixture(scope="session")
def convolutional_real() -> Trained:
    """Real neurons: a convolution and a dense layer; α is learnt, too."""
    rates = {"gamma": 1e-6, "threshold": 1e-7, "bias_lr": 0.05, "scale_lr": 1e-4}
    layers = {"1": ConvLayer(8, padding=1, pool=3, **rates), "2": Layer(10, **rates)}
    dynamics = Dynamics(initial_state=0.5, free_steps=60, nudged_steps=10)
    learning = Learning(nudging="one-sided", clip_nudged=False)
    return _learned(
        Config(layers=layers, dynamics=dynamics, learning=learning, max_batches=40, threads=1)
    )


@pytest.fixture(scope="session")
def readout() -> Trained:
    """Real weights, average pooling, and a softmax layer that reads the last one."""
    conv = ConvLayer(4, kernel=3, padding=0, pool=4, pooling="average", bias_lr=0.1)
    layers = {"1": conv, "2": Layer(20, bias_lr=0.1), "3": Layer(10, bias_lr=0.1)}
    learning = Learning(
        synapses="real", cost="cross-entropy", nudging="centred", nudge="inside", beta=0.5
    )
    dynamics = Dynamics(free_steps=40, nudged_steps=10)
    return _learned(
        Config(layers=layers, learning=learning, dynamics=dynamics, max_batches=20, threads=1)
    )
