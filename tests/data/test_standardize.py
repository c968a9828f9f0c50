"""--standardize, and the warning that light images give cause for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import binep
from binep.cli.main import main
from binep.data.batches import Dataset, Split
from binep.experiment.config import Config, Layer
from binep.experiment.experiment import Experiment
from binep.experiment.warnings import TrainingWarning
from binep.export import packed
from binep.runs import folder as runs

LAYERS = {"1": Layer(8, bias_lr=0.05), "2": Layer(10, bias_lr=0.05)}
CONFIG = Config(layers=LAYERS, epochs=1, max_batches=1, threads=1)


def dataset(images: torch.Tensor) -> Dataset:
    split = Split(images, torch.arange(len(images)) % 2)
    return Dataset("own", split, split, ("a", "b"), None, None)


def random(shape: tuple[int, ...], low: int = 0, high: int = 256) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(low, high, shape, np.uint8)


@given(
    st.sampled_from([(3,), (12,), (1, 4, 5), (3, 4, 5), (10, 2, 2)]),
    st.sampled_from([np.uint8, np.float32]),
    st.sampled_from([1, 2, 1003]),
)
def test_every_channel_gets_mean_0_and_deviation_1(
    shape: tuple[int, ...], dtype: Any, count: int
) -> None:
    images = random((count, *shape)).astype(dtype)
    found = dataset(torch.tensor(images)).standardized()
    x = images.astype(np.float64) / (255 if dtype == np.uint8 else 1)
    axes = (0, *range(2, x.ndim))
    mean, std = x.mean(axis=axes, keepdims=True), x.std(axis=axes, keepdims=True)
    std[std < 1e-12] = 1
    wanted = (x - mean) / std
    np.testing.assert_allclose(found.prepare(found.train.images), wanted, atol=1e-4)


def test_a_channel_that_never_changes_becomes_0() -> None:
    images = torch.tensor(random((9, 2, 3, 3)))
    images[:, 1] = 77
    found = dataset(images).standardized()
    assert found.std is not None
    assert found.std[1] == 1
    assert found.prepare(images)[:, 1].abs().max() < 1e-6


@pytest.mark.parametrize("value", [0.1, -1e8 / 3, 3e30])
def test_a_float_that_never_changes_becomes_0(value: float) -> None:
    features = torch.full((1003, 2), value)
    features[:, 0] = torch.randn(1003)
    found = dataset(features).standardized()
    assert found.std is not None
    assert found.std[1] == 1


def test_only_light_images_are_dark_on_light() -> None:
    light, dark = (torch.tensor(random((9, 1, 3, 3), *span)) for span in ((200, 256), (0, 100)))
    found = dataset(light).dark_on_light
    assert found == pytest.approx(float(light.float().mean()) / 255)
    assert dataset(light.float() / 255).dark_on_light == pytest.approx(found)
    for other in (dark, light.float(), light.float() / 255 - 0.9, light.flatten(1)):
        assert dataset(other).dark_on_light is None
    assert dataset(light).standardized().dark_on_light is None


@pytest.fixture
def light() -> tuple[Any, ...]:
    images, labels = random((20, 6, 6), 200, 256), np.arange(20) % 2
    return images, labels, images, labels


def test_light_images_are_warned_of_once_before_training(
    light: tuple[Any, ...], tmp_path: Path
) -> None:
    said: list[str] = []
    (tmp_path / "run").mkdir()
    experiment = Experiment(CONFIG.replace(epochs=2), light)
    when: list[int] = []
    runs.train(
        experiment,
        tmp_path / "run",
        warn=lambda text: (said.append(text), when.append(experiment.epoch))[0],  # type: ignore[func-returns-value]
    )
    which = [(text, epoch) for text, epoch in zip(said, when, strict=True) if "light" in text]
    assert [epoch for _, epoch in which] == [0]
    assert "--standardize" in which[0][0]
    assert which[0][0] in (tmp_path / "run" / "log.txt").read_text()
    with pytest.warns(TrainingWarning, match="dark on light"):
        Experiment(CONFIG, light).train_epoch()


def test_what_was_standardised_is_predicted_so_without_the_data(
    light: tuple[Any, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("x_train", "y_train", "x_test", "y_test")
    np.savez("light.npz", **dict(zip(names, light, strict=True)))
    words = ["train", "quickstart", "--dataset", "light.npz", "--epochs", "1", "--run-dir", "run"]
    assert main([*words, "--layers.1.size", "8", "--standardize", "--threads", "1"]) == 0
    assert "dark on light" not in capsys.readouterr().err
    experiment = runs.load(Path("run"))
    scores = experiment.class_scores()[0]
    Path("light.npz").unlink()
    trained = packed.read(Path("run"))
    assert (trained.mean, trained.std) == (experiment.data.mean, experiment.data.std)
    np.save("some.npy", light[0][:2])
    assert main(["predict", "run", "some.npy"]) == 0
    cells = [line.split(",")[3:] for line in capsys.readouterr().out.splitlines()[1:]]
    np.testing.assert_allclose(np.array(cells, float), scores[:2], atol=1e-5)
    x = experiment.data.prepare(torch.tensor(light[0])[:, None])
    torch.testing.assert_close(binep.load("run")(x), scores)


def test_what_is_normalised_otherwise_is_measured_too() -> None:
    images = torch.tensor(random((9, 3, 4, 4)))
    other = dataclasses.replace(dataset(images), mean=(0.5,) * 3, std=(0.25,) * 3)
    assert other.standardized().mean == dataset(images).standardized().mean
