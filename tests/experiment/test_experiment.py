"""A configuration turned into a network and its training."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from binep.core.speed import Speed
from binep.experiment.build import build_network
from binep.experiment.config import Config, ConvLayer, Dynamics, Layer, Learning
from binep.experiment.experiment import Experiment
from binep.experiment.training import class_scores, evaluate, train_epoch


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


def test_gamma_decays() -> None:
    learning = Learning(gamma_decay=10, gamma_decay_epochs=2)
    experiment = Experiment(small(learning=learning, max_batches=1))
    assert experiment.flip is not None
    initial = [layer.gamma for layer in experiment.config.layers.values()]
    for share in (1, 1, 0.1, 0.1, 0.01):
        experiment.train_epoch()
        rates = [group["gamma"] for group in experiment.flip.param_groups]
        assert rates == pytest.approx([share * gamma for gamma in initial])


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


# ---- what it keeps, and what it leaves alone


def moved(experiment: Experiment) -> list[torch.Tensor]:
    """All that an epoch leaves behind."""
    result = experiment.train_epoch()
    scores = torch.tensor([result.train.loss, result.test.loss, result.test.error])
    return [scores, *state(experiment).values()]


BITS = Dynamics("heaviside", 1.0, free_steps=12, nudged_steps=6)


@pytest.mark.parametrize(
    "config",
    [
        small(),
        small(dynamics=BITS, learning=Learning(momentum_noise=True, beta=2.0)),
        small(learning=Learning(synapses="real")),
    ],
    ids=["real", "bits, noise", "real weights"],
)
@pytest.mark.parametrize("epochs", [0, 1])
def test_a_kept_state_is_a_copy_from_which_the_same_bits_follow(
    config: Config, epochs: int
) -> None:
    experiment = Experiment(config)
    for _ in range(epochs):
        experiment.train_epoch()
    kept = experiment.state()
    before = {k: v.clone() for k, v in kept.items()}
    first = [moved(experiment) for _ in range(2)]
    assert equal(kept, before)
    experiment.restore(kept)
    assert equal(experiment.state(), before)
    again = [moved(experiment) for _ in range(2)]
    assert equal(kept, before)
    for a, b in zip(first, again, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_state_kept_within_an_epoch_is_one_too() -> None:
    experiment, states = Experiment(small()), []
    whole = experiment.train_epoch(lambda meter: states.append(experiment.state()))
    after = state(experiment)
    experiment.restore(states[1])
    assert (experiment.epoch, experiment.batch) == (0, 2)
    again = experiment.train_epoch()
    assert equal(state(experiment), after)
    assert (again.train.errors, again.train.loss) == (whole.train.errors, whole.train.loss)


def test_a_state_of_another_experiment_changes_nothing() -> None:
    experiment, other = Experiment(small()), Experiment(small(learning=Learning(synapses="real")))
    other.train_epoch()
    before = experiment.state()
    with pytest.raises(ValueError, match="not of this network"):
        experiment.restore(other.state())
    assert equal(experiment.state(), before)


def process() -> dict[str, Any]:
    """What an experiment may set of the whole process."""
    return {
        "threads": torch.get_num_threads(),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cublas": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    }


NEWER = """
import torch
from binep.experiment.config import preset
from binep.experiment.experiment import Experiment

def now():
    parts = [torch.backends, torch.backends.cuda.matmul, torch.backends.cudnn]
    parts += [torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.mkldnn.matmul]
    return [part.fp32_precision for part in parts]

SETTING
before = now()
experiment = Experiment(preset("quickstart"))
with experiment.working():
    assert now()[1:] != before[1:]
assert now() == before
READ
"""


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="PyTorch before 2.9")
@pytest.mark.parametrize(
    ("setting", "read"),
    [
        ("torch.backends.fp32_precision = 'tf32'", ""),
        ("torch.backends.cudnn.conv.fp32_precision = 'tf32'", ""),
        (
            "torch.set_float32_matmul_precision('medium')",
            "assert torch.get_float32_matmul_precision() == 'medium'",
        ),
        ("torch.backends.cuda.matmul.allow_tf32 = True", "torch.backends.cudnn.allow_tf32"),
    ],
)
def test_settings_of_either_kind_are_left_as_they_were(setting: str, read: str) -> None:
    script = NEWER.replace("SETTING", setting).replace("READ", read)
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.fixture(params=[False, True], ids=["usual", "unusual"])
def found(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A process as Python starts it, or as somebody has set it."""
    usual = process()
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if request.param:
        torch.set_num_threads(3)
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = True, False
        torch.use_deterministic_algorithms(True)
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    yield process()
    torch.set_num_threads(usual["threads"])
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = usual["tf32"]
    torch.use_deterministic_algorithms(usual["deterministic"], warn_only=usual["warn only"])


def test_the_process_is_left_as_it_was_found(found: dict[str, Any]) -> None:
    config = small(threads=2, deterministic=True, speed=Speed(precision="fast"))
    seen: list[dict[str, Any]] = []
    experiment = Experiment(config)
    assert process() == found
    experiment.train_epoch(lambda meter: seen.append(process()))
    assert process() == found
    experiment.evaluate()
    assert process() == found
    experiment.class_scores()
    assert process() == found
    with experiment.working():
        seen.append(process())
    assert process() == found
    cublas = found["cublas"] or ":4096:8"
    expected = {"threads": 2, "tf32": (True, True), "deterministic": True, "warn only": True}
    assert all(during == {**expected, "cublas": cublas} for during in seen)
    assert len(seen) == 4


def test_the_process_is_left_as_it_was_found_after_an_error(
    found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(threads=2, deterministic=True, speed=Speed(precision="fast"))
    experiment = Experiment(config)

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        experiment.train_epoch(fail)
    assert process() == found
    monkeypatch.setattr(experiment.network.cost, "labels", fail)
    for work in (experiment.train_epoch, experiment.evaluate, experiment.class_scores):
        with pytest.raises(RuntimeError, match="broken"):
            work()
        assert process() == found
    monkeypatch.setattr("binep.experiment.experiment.initial_network", fail)
    with pytest.raises(RuntimeError, match="broken"):
        Experiment(config)
    assert process() == found


# ---- labels


@pytest.mark.parametrize(
    "kind",
    [torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.byte, torch.Tensor.int],
    ids=["list", "numpy", "uint8", "int32"],
)
def test_labels_of_any_whole_kind_are_the_same(kind: Any) -> None:
    experiment = Experiment(small())
    network, (x, labels) = experiment.network, next(experiment._test_batches())
    expected = evaluate(network, [(x, labels)], free_steps=5)
    given = evaluate(network, [(x, kind(labels))], free_steps=5)
    assert (given.errors, given.loss) == (expected.errors, expected.loss)
    assert torch.equal(class_scores(network, [(x, kind(labels))], free_steps=5)[1], labels)
    losses = []
    for either in (labels, kind(labels)):
        again = Experiment(small())
        losses.append(train_epoch(again.network, again.estimator, [], [(x, either)]).loss)
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda labels: labels[:, None],
        lambda labels: labels[:1],
        lambda labels: labels.float(),
        lambda labels: torch.eye(10)[labels],
        lambda labels: labels + 10,
        lambda labels: labels - 1,
    ],
    ids=["(B, 1)", "one", "float", "one-hot", "too large", "negative"],
)
def test_labels_that_are_none_are_refused(spoil: Any) -> None:
    experiment = Experiment(small())
    x, labels = next(experiment._test_batches())
    batches = [(x, spoil(labels))]
    with pytest.raises((TypeError, ValueError), match=r"^labels "):
        evaluate(experiment.network, batches, free_steps=5)
    with pytest.raises((TypeError, ValueError), match=r"^labels "):
        class_scores(experiment.network, batches, free_steps=5)
    with pytest.raises((TypeError, ValueError), match=r"^labels "):
        train_epoch(experiment.network, experiment.estimator, [], batches)
