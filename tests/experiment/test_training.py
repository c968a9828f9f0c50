"""Whole batches of training against the oracle, and what an epoch reports."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import Twins, array, twins
from torch.optim import SGD

from binep.core.costs import SquaredError
from binep.core.gradients import EquilibriumPropagation
from binep.core.network import Network
from binep.core.neurons import Binary, Real
from binep.core.optim import SCALE_FLOOR, BinaryFlip, GradientDescent
from binep.core.synapses import Dense
from binep.experiment import kinds
from binep.experiment.config import Config, ConfigError, Layer, Learning
from binep.experiment.training import Meter, evaluate, layer_changes, train_epoch

# Odd enough that no momentum, made of few bits, ties with the threshold.
RATES = {"gamma": 0.3141, "threshold": 0.0527, "bias": 0.1, "scale": 0.02}


@given(
    twins(cost="squared-error", weights="binary"),
    st.sampled_from((-0.5, 0.3, 2.0)),
    st.integers(1, 4),
    st.booleans(),
)
def test_batches_of_training_equal_the_oracle(
    t: Twins, beta: float, batches: int, learn_scale: bool
) -> None:
    """States of both phases, gradients, momenta, flips, biases and scaling factors."""
    network = t.network
    for synapse in network.synapses:
        synapse.train_scale(learn_scale)
    estimator = EquilibriumPropagation(
        network, beta=beta, free_steps=5, nudged_steps=3, nudging="one-sided", tolerance=0
    )
    flip = BinaryFlip(
        [s.values for s in network.synapses], gamma=RATES["gamma"], threshold=RATES["threshold"]
    )
    scales = [s.scale for s in network.synapses if learn_scale and s.scale is not None]
    optimizers = [flip, SGD([s.bias for s in network.synapses], lr=RATES["bias"])]
    optimizers += (
        [GradientDescent(scales, lr=RATES["scale"], floor=SCALE_FLOOR, relative=True)]
        if scales
        else []
    )
    synapses, count = t.synapses, len(t.synapses)
    momenta = [np.zeros_like(s.sign) for s in synapses]
    flips = [0] * count
    for _ in range(batches):
        train_epoch(network, estimator, optimizers, [(t.x, t.labels)])
        batch = oracle.one_batch(
            synapses,
            t.dynamics,
            array(t.x),
            array(t.target),
            beta,
            5,
            3,
            *([RATES[name]] * count for name in ("gamma", "threshold", "bias")),
            momenta,
            [RATES["scale"]] * count if learn_scale else None,
        )
        synapses, momenta = batch.synapses, batch.momenta
        flips = [a + b for a, b in zip(flips, batch.flips, strict=True)]
        pairs = zip(network.synapses, flip.momenta(), synapses, momenta, strict=True)
        for ours, momentum, theirs, m in pairs:
            np.testing.assert_array_equal(array(ours.values), theirs.sign)
            np.testing.assert_allclose(array(ours.bias), theirs.bias, atol=1e-9)
            np.testing.assert_allclose(-array(momentum), m, atol=1e-9)
            assert ours.scale is not None
            np.testing.assert_allclose(array(ours.scale), theirs.scale, atol=1e-9)
    assert [c.flips for c in layer_changes(network, flip, batches) if c] == flips


@given(twins())
def test_scores_add_up_over_batches(t: Twins) -> None:
    whole = evaluate(t.network, [(t.x, t.labels)], free_steps=4, tolerance=0)
    each = [(t.x[i : i + 1], t.labels[i : i + 1]) for i in range(len(t.x))]
    parts = evaluate(t.network, each, free_steps=4, tolerance=0)
    assert parts.errors == whole.errors
    assert parts.loss == pytest.approx(whole.loss)
    assert parts.samples == whole.samples == len(t.labels)
    ends = [t.network.relax(x, 4, tolerance=0) for x, _ in each]
    steps = torch.stack([end.moved for end in ends]).double().mean(dim=0)
    assert parts.settle_steps == pytest.approx(steps.tolist())
    assert parts.residual == torch.stack([end.residual for end in ends]).amax(dim=0).tolist()


@given(twins(cost="squared-error"))
def test_errors_and_loss_equal_the_oracle(t: Twins) -> None:
    scores = evaluate(t.network, [(t.x, t.labels)], free_steps=4, tolerance=0)
    x = array(t.x)
    start = oracle.initial_states(t.synapses, t.dynamics, x)
    output = oracle.relax(t.synapses, t.dynamics, x, start, 4)[-1]
    bits = oracle.fire(t.dynamics, output)
    classes = t.network.cost.classes
    expected = {
        "error": oracle.predict(output, classes, "averaged"),
        "error_single": oracle.predict(output, classes, "single"),
        "error_bits": oracle.predict(bits, classes, "averaged"),
        "error_bits_single": oracle.predict(bits, classes, "single"),
    }
    for name, value in scores.errors.items():
        assert value == pytest.approx(100 * np.mean(expected[name] != t.labels.numpy()))
    assert scores.loss == pytest.approx(oracle.loss(output, array(t.target)))
    copies = output.shape[1] // classes
    binary = t.dynamics.activation == "binary"
    assert set(scores.errors) == {
        name
        for name in expected
        if ("bits" not in name or binary) and ("single" not in name or copies > 1)
    }


def test_a_network_learns_a_task_that_it_can_represent() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(256, 20, generator=generator)
    labels = (x[:, :10].sum(dim=1) > x[:, 10:].sum(dim=1)).long()
    network = Network(
        [Dense(20, 100, generator=generator), Dense(100, 2, generator=generator)], Real()
    )
    estimator = EquilibriumPropagation(
        network, beta=0.3, free_steps=30, nudged_steps=10, generator=generator
    )
    optimizers = [
        BinaryFlip([s.values for s in network.synapses], gamma=1e-2, threshold=1e-3),
        SGD([s.bias for s in network.synapses], lr=0.02),
    ]
    batches = [(x[i : i + 32], labels[i : i + 32]) for i in range(0, 256, 32)]
    errors = [train_epoch(network, estimator, optimizers, batches).error for _ in range(20)]
    assert errors[-1] < 12 < 30 < errors[0]
    for synapse in network.synapses:
        assert synapse.scale is not None
        assert (synapse.weight.abs() == synapse.scale).all()


def test_no_batches_are_an_error() -> None:
    network = Network([Dense(2, 2)], Binary())
    with pytest.raises(ValueError, match="no batches"):
        evaluate(network, [], free_steps=3)
    assert Meter(network).samples == 0


class Numbers(SquaredError):  # noqa: N818
    """Of a regression: y is any number."""

    classifies = False

    def labels(self, labels: object, batch: int | None = None) -> torch.Tensor:
        return torch.as_tensor(labels)

    def target(self, labels: torch.Tensor) -> torch.Tensor:
        return labels


def test_a_regression_reports_its_loss_and_no_error() -> None:
    network = Network([Dense(3, 2)], Real(), Numbers(2)).double()
    x, y = torch.rand(5, 3).double(), torch.rand(5, 2).double()
    scores = evaluate(network, [(x[:3], y[:3]), (x[3:], y[3:])], free_steps=20)
    output = network.relax(x, 20).output
    assert scores.loss == pytest.approx(float((output - y).square().sum()) / 2 / 5)
    assert scores.errors == {}
    assert np.isnan(scores.error)
    assert scores.samples == 5


def test_a_configuration_takes_costs_of_classes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds.COSTS, "_kinds", dict(kinds.COSTS._kinds))
    kinds.cost("numbers")(Numbers)
    config = Config(layers={"1": Layer(10)}, learning=Learning(cost="numbers"))
    with pytest.raises(ConfigError, match="cost = numbers: must be of classes"):
        config.check()
