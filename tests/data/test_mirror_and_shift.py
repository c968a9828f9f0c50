"""--mirror and --shift: what training does to images, and only training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import binep
from binep.cli.main import main
from binep.data.own import from_arrays
from binep.experiment.config import Config, ConfigError, Layer
from binep.experiment.experiment import Experiment
from binep.runs import folder as runs

LAYERS = {"1": Layer(8, bias_lr=0.05), "2": Layer(2, bias_lr=0.05)}
CONFIG = Config(layers=LAYERS, epochs=2, batch_size=8, threads=1)


def images(count: int = 24, shape: tuple[int, ...] = (6, 5)) -> tuple[Any, ...]:
    x = np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)
    y = np.arange(count) % 2
    return x, y, x, y


def drawn(experiment: Experiment) -> torch.Tensor:
    """The images of one epoch of training, in bytes."""
    data, config = experiment.data, experiment.config
    return torch.cat([x for x, _ in data.training_batches(config.batch_size, experiment.order)])


def test_training_images_alone_are_moved() -> None:
    plain, moved = (Experiment(CONFIG.replace(shift=s), data=images()) for s in (None, 2))
    assert torch.equal(plain.data.test.images, moved.data.test.images)
    stored = {image.numpy().tobytes() for image in plain.data.train.images}
    assert {image.numpy().tobytes() for image in drawn(plain)} == stored
    assert not {image.numpy().tobytes() for image in drawn(moved)} <= stored


def test_mirrored_images_are_those_or_their_mirror_images() -> None:
    experiment = Experiment(CONFIG.replace(mirror=True), data=images())
    stored = {image.numpy().tobytes() for image in experiment.data.train.images}
    mirrored = {image.flip(2).numpy().tobytes() for image in experiment.data.train.images}
    found = {image.numpy().tobytes() for image in drawn(experiment)}
    assert found <= stored | mirrored
    assert found & stored
    assert found & mirrored


def test_the_settings_go_before_what_is_usual_for_the_data_set() -> None:
    source = from_arrays(images())
    source.mirror, source.shift = True, 4
    usual = Experiment(CONFIG, data=source)
    assert (usual.data.mirror, usual.data.shift) == (True, 4)
    for mirror, shift in ((True, 1), (False, 0)):
        chosen = Experiment(CONFIG.replace(mirror=mirror, shift=shift), data=source)
        assert (chosen.data.mirror, chosen.data.shift) == (mirror, shift)
        assert (chosen.source.mirror, chosen.source.shift) == (mirror, shift)


@pytest.mark.parametrize(
    ("settings", "shape", "said"),
    [
        ({"mirror": True}, (7,), "mirror = True: must be left out: the samples are no images"),
        ({"shift": 1}, (7,), "shift = 1: must be left out: the samples are no images"),
        ({"shift": 5}, (6, 5), "shift = 5: must be below the height and width of images of 6×5"),
        ({"shift": -1}, (6, 5), "shift = -1: must be a whole number from 0"),
        ({"shift": 1.5}, (6, 5), "shift = 1.5: must be of type int"),
        ({"mirror": 1}, (6, 5), "mirror = 1: must be"),
    ],
)
def test_what_cannot_be_is_refused(
    settings: dict[str, Any], shape: tuple[int, ...], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        Experiment(CONFIG.replace(**settings), data=images(shape=shape))


def test_features_may_say_that_they_are_not_moved() -> None:
    Experiment(CONFIG.replace(mirror=False, shift=0), data=images(shape=(7,)))


def test_a_stopped_run_goes_on_with_the_same_moves(tmp_path: Path) -> None:
    config = CONFIG.replace(shift=1, mirror=True)
    weights = []
    for stops in ((), (0, 0, 1)):
        place = tmp_path / str(len(stops))
        place.mkdir()
        if stops:
            with pytest.raises(runs.Stopped):
                runs.train(Experiment(config, data=images()), place, stop=iter(stops).__next__)
            experiment, rows = runs.resume(place, data=images())
            runs.train(experiment, place, rows=rows)
        else:
            runs.train(Experiment(config, data=images()), place)
        weights.append(binep.load(place).state_dict())
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_from_the_command_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ["--mirror", "True", "--shift", "2", "--epochs", "1", "--max-batches", "2"]
    assert main(["train", "quickstart", *flags, "--run-dir", str(run)]) == 0
    assert "mirror = true" in (run / "config.toml").read_text()
    assert "shift = 2" in (run / "config.toml").read_text()
