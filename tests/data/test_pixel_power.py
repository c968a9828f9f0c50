"""--pixel-power: pixels to a power, before all else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import graphs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from binep.cli.main import main
from binep.data.batches import Dataset, Split, _raised_levels, prepared
from binep.data.errors import DataError
from binep.experiment.config import Config, ConfigError, Layer
from binep.experiment.experiment import Experiment
from binep.export import packed
from binep.runs import folder as runs

CONFIG = Config(layers={"1": Layer(8), "2": Layer(10)}, epochs=1, max_batches=1, threads=1)
POWERS = st.sampled_from((0.1, 0.35, 0.5, 2.0, 7.3))


def dataset(images: torch.Tensor) -> Dataset:
    split = Split(images, torch.arange(len(images)) % 2)
    return Dataset("own", split, split, ("a", "b"), None, None)


def random(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@given(POWERS, st.booleans())
def test_each_pixel_is_raised_and_then_normalised(power: float, standardize: bool) -> None:
    images = random((40, 2, 5, 4))
    found = dataset(torch.from_numpy(images)).with_power(power)
    found = found.standardized() if standardize else found
    x = ((images / np.float32(255)).astype(np.float64) ** power).astype(np.float32)
    expected = x.astype(np.float64)
    if standardize:
        expected -= expected.mean(axis=(0, 2, 3), keepdims=True)
        expected /= np.sqrt((expected**2).mean(axis=(0, 2, 3), keepdims=True))
    got = found.prepare(found.train.images)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got, expected, atol=1e-6 if standardize else 0)
    floats = torch.from_numpy(images) / 255
    assert torch.equal(prepared(floats, power=power), torch.from_numpy(x))
    assert torch.equal(floats, torch.from_numpy(images) / 255)


def test_a_power_of_1_changes_no_bit() -> None:
    images = torch.from_numpy(random((3, 1, 9, 9)))
    assert torch.equal(prepared(images, power=1.0), images.float() / 255)


def test_what_becomes_light_is_warned_of() -> None:
    dark = torch.from_numpy(random((50, 1, 6, 6)) // 3)
    assert dataset(dark).dark_on_light is None
    raised = dataset(dark).with_power(0.1)
    mean = float(raised.prepare(dark).mean())
    assert raised.dark_on_light == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize(("wrong", "range_"), [(-0.25, "-0.25 to 1"), (1.5, "0 to 1.5")])
def test_pixels_beyond_0_to_1_are_refused(
    wrong: float, range_: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, y = np.float32(random((20, 1, 6, 6))) / 255, np.arange(20) % 10
    images[0, 0, 0, :2] = 0, 1
    config, bad = CONFIG.replace(pixel_power=0.35), images.copy()
    bad[7, 0, 1, 1] = wrong
    said = f"pixel_power = 0.35: takes pixels from 0 to 1, or bytes: there are some from {range_}"
    for data in ((bad, y, images, y), (images, y, bad, y)):
        with pytest.raises(DataError, match=f"^{re.escape(said)}$"):
            Experiment(config, data=data)
    trained = packed.Trained(Experiment(config, data=(images, y, images, y)).network, power=0.35)
    packed.save(trained, tmp_path / "saved")
    np.save(tmp_path / "bad.npy", bad)
    assert main(["predict", str(tmp_path / "saved"), str(tmp_path / "bad.npy")]) == 2
    assert capsys.readouterr().err == f"binep: {said}\n"


@pytest.mark.gpu
@graphs.needs_gpu
def test_a_power_of_bytes_on_a_gpu_does_not_wait() -> None:
    images = torch.arange(256, dtype=torch.uint8)
    expected, there = prepared(images, power=0.6), images.to("cuda")
    assert torch.equal(prepared(there, power=0.6).cpu(), expected)
    graphs.without_waiting(lambda: prepared(there, power=0.6))


def test_the_power_of_bytes_does_not_depend_on_defaults() -> None:
    images = torch.arange(256, dtype=torch.uint8)
    expected = prepared(images, power=0.6)
    _raised_levels.cache_clear()
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(prepared(images, power=0.6), expected)
        assert torch.equal(prepared(images.float() / 255, power=0.6), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_is_normalised_by_default_is_to_be_standardized() -> None:
    config = CONFIG.replace(dataset="cifar10", pixel_power=0.5)
    with pytest.raises(
        ConfigError, match=r"^pixel_power = 0\.5: must go with standardize: cifar10"
    ):
        config.check()
    config.replace(standardize=True).check()
    config.replace(pixel_power=1.0).check()


def test_features_are_refused() -> None:
    x, y = np.float32(random((20, 6))), np.arange(20) % 10
    with pytest.raises(ConfigError, match=r"^pixel_power = 0\.35: must be left out: the samples"):
        Experiment(CONFIG.replace(pixel_power=0.35), data=(x, y, x, y))


def test_what_is_trained_so_is_used_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = "--pixel-power 0.35 --layers.1.size 16 --epochs 1 --max-batches 3 --threads 1"
    assert main(f"train quickstart {flags} --standardize --run-dir run".split()) == 0
    trained = packed.read(Path("run"))
    assert trained.power == 0.35
    packed.save(trained, "saved")
    images = random((4, 1, 28, 28))
    np.save("images.npy", images)
    capsys.readouterr()
    said = []
    for path in ("run", "saved"):
        assert main(["predict", path, "images.npy"]) == 0
        said.append(capsys.readouterr().out.splitlines()[1:])
    assert said[0] == said[1]
    scores = trained.network(trained.prepare(torch.from_numpy(images)))
    for line, expected in zip(said[0], scores.tolist(), strict=True):
        found = [float(cell) for cell in line.split(",")[3:]]
        assert found == pytest.approx(expected, abs=1e-5)
    assert main(["train", "--resume", "run", "--epochs", "2"]) == 0
    assert runs.load(Path("run")).data.power == 0.35
