"""Thresholds from the first batches: as many weights flip as were to, whatever the network."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from binep import auto_threshold
from binep.cli import main as cli
from binep.experiment.config import Config, ConfigError, ConvLayer, Dynamics, Layer, Learning
from binep.experiment.experiment import Experiment

RATES: dict[str, Any] = {"gamma": 1e-3, "threshold": 1.0, "bias_lr": 0.05}


def data(features: tuple[int, ...] = (1, 12, 12)) -> list[Any]:
    """Three classes, each a lit stripe in noise."""
    rng = np.random.default_rng(0)
    y = np.arange(240) % 3
    x = rng.random((240, *features)).astype(np.float32) * 0.3
    for image, label in zip(x, y, strict=True):
        image[..., 4 * label : 4 * label + 4] += 0.6
    return [x[:180], y[:180], x[180:], y[180:]]


def config(*layers: Layer, **changed: Any) -> Config:
    numbered = {str(number): layer for number, layer in enumerate(layers, start=1)}
    dynamics = Dynamics(free_steps=20, nudged_steps=5)
    whole = Config(layers=numbered, dynamics=dynamics, batch_size=6, epochs=1, threads=1)
    return whole.replace(**changed)


DENSE = config(Layer(40, **RATES), Layer(3, **RATES))
CONV = config(ConvLayer(6, kernel=3, padding=1, pool=2, **RATES), Layer(3, **RATES))
BITS = config(
    Layer(40, **RATES),
    Layer(12, **RATES),
    dynamics=Dynamics("heaviside", 1.0, 12, 4),
    learning=Learning(output_copies=4, beta=1.0, hold_nudge=True),
)
READOUT = config(
    Layer(30, **RATES), Layer(3, **RATES), learning=Learning(cost="cross-entropy", beta=0.5)
)


@pytest.mark.parametrize(
    "setting", [DENSE, CONV, BITS, READOUT], ids=["dense", "conv", "bits", "readout"]
)
def test_as_many_weights_flip_as_were_to(setting: Config) -> None:
    """In the epoch of 30 batches that follows, within a factor of 3, or 2 flips."""
    chosen = auto_threshold(setting, data(), flip_rate=3e-3, batches=30)
    assert all(0 < layer.threshold < 0.1 for layer in chosen.layers.values())
    experiment = Experiment(chosen, data())
    result = experiment.train_epoch()
    for change, synapse in zip(result.layers, experiment.network.learning_synapses(), strict=True):
        assert change is not None
        wanted = 3e-3 * 30 * synapse.values.numel()
        assert wanted / 3 - 2 < change.flips < wanted * 3 + 2


def test_momenta_may_decay_as_fast_as_they_like() -> None:
    fast = {n: dataclasses.replace(at, gamma=0.05) for n, at in DENSE.layers.items()}
    chosen = auto_threshold(DENSE.replace(layers=fast), data(), batches=50)
    assert all(0 < layer.threshold < 0.1 for layer in chosen.layers.values())


def test_the_thresholds_before_do_not_matter_and_all_else_is_kept() -> None:
    chosen = auto_threshold(DENSE, data(), batches=10)
    layers = {n: dataclasses.replace(at, threshold=0.0) for n, at in DENSE.layers.items()}
    assert auto_threshold(DENSE.replace(layers=layers), data(), batches=10) == chosen
    kept = {n: dataclasses.replace(at, threshold=1.0) for n, at in chosen.layers.items()}
    assert chosen.replace(layers=kept, dataset="mnist5k") == DENSE


def test_more_flips_need_lower_thresholds() -> None:
    few, many = (auto_threshold(DENSE, data(), flip_rate=rate, batches=20) for rate in (1e-3, 1e-2))
    for number in DENSE.layers:
        assert many.layers[number].threshold < few.layers[number].threshold


def test_the_default_share_is_a_tenth_with_bits() -> None:
    chosen = auto_threshold(BITS, data(), batches=20)
    assert chosen == auto_threshold(BITS, data(), flip_rate=1e-4, batches=20)
    chosen = auto_threshold(DENSE, data(), batches=20)
    assert chosen == auto_threshold(DENSE, data(), flip_rate=1e-3, batches=20)


@pytest.mark.parametrize(("epochs", "looked"), [(1, 6), (3, 18), (100, 50)])
def test_of_a_short_run_a_fifth_is_looked_at(epochs: int, looked: int) -> None:
    chosen, wanted = (
        auto_threshold(DENSE.replace(epochs=epochs), data(), batches=n) for n in (None, looked)
    )
    assert chosen == wanted


@pytest.mark.parametrize(
    ("setting", "options", "refusal"),
    [
        (DENSE.replace(learning=Learning(synapses="real")), {}, "with real synapses"),
        (DENSE, {"flip_rate": 0.0}, "flip_rate = 0.0: must be between 0 and 1"),
        (DENSE, {"flip_rate": 1.0}, "flip_rate = 1.0: must be"),
        (DENSE, {"batches": 0}, "batches = 0: must be a whole number from 1"),
        (DENSE.replace(batch_size=0), {}, "batch_size = 0"),
        (DENSE.replace(start="0" * 64), {}, "is for a network that starts anew"),
    ],
)
def test_what_has_no_thresholds_is_refused(setting: Any, options: Any, refusal: str) -> None:
    with pytest.raises(ConfigError, match=refusal) as error:
        auto_threshold(setting, data(), **options)
    assert "\n" not in str(error.value)


def test_a_layer_without_a_gradient_is_named() -> None:
    dark = [np.zeros_like(part) if part.ndim > 1 else part for part in data()]
    with pytest.raises(ConfigError, match=r"layers\.1: got no gradient in 5 batches"):
        auto_threshold(DENSE, dark, batches=5)


# ---- from the command line


def test_a_run_is_described_by_what_was_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("x_train", "y_train", "x_test", "y_test")
    np.savez(tmp_path / "own.npz", **dict(zip(names, data(), strict=True)))
    (tmp_path / "small.toml").write_text(DENSE.to_toml())
    words = ["--config", str(tmp_path / "small.toml"), "--dataset", str(tmp_path / "own.npz")]
    run = tmp_path / "run"
    assert cli.main(["train", *words, "--auto-threshold", "--run-dir", str(run)]) == 0
    kept = Config.load(run / "config.toml")
    assert kept.layers == auto_threshold(kept).layers
    first, *_ = capsys.readouterr().out.splitlines()
    taus = (f"layers.{n}.threshold {layer.threshold:g}" for n, layer in kept.layers.items())
    assert first == f"chosen: {', '.join(taus)}"
    for flag in ("--resume", "--from"):
        assert cli.main(["train", flag, str(run), "--auto-threshold"]) == 2
        assert "is for a network that starts anew" in capsys.readouterr().err
