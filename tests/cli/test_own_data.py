"""From data of one's own to a trained network and its predictions."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import binep
from binep.cli.main import main
from binep.data.errors import DataError
from binep.experiment.config import Config, ConfigError, Layer
from binep.experiment.experiment import Experiment
from binep.export import packed
from binep.runs import folder as runs
from binep.runs.curves import rendered

QUICK = [
    "--epochs",
    "2",
    "--batch-size",
    "10",
    "--layers.1.size",
    "16",
    "--threads",
    "1",
    "--run-dir",
    "run",
]
LAYERS = {"1": Layer(16, bias_lr=0.05), "2": Layer(10, bias_lr=0.05)}
SMALL = Config(layers=LAYERS, epochs=2, batch_size=10, threads=1)


def bars(count: int, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Images (count, 12, 20) with a bar in a place for each of three classes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = rng.integers(0, 60, (count, 12, 20), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, 7 * label : 7 * label + 5] += 150
    return images, labels


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("binep.runs.curves.rendered", lambda figure, kind="png": b"")  # slow
    (x, y), (x_test, y_test) = bars(60, 0), bars(30, 1)
    names = np.array(["left", "middle", "right"])
    np.savez("bars.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test, classes=names)
    return tmp_path


def test_an_npz_is_trained_on_evaluated_resumed_and_predicted_without_it(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "quickstart", "--dataset", "bars.npz", *QUICK]) == 0
    assert "bars.npz, 240-16-3, real activations" in capsys.readouterr().out
    config = Config.load(place / "run" / "config.toml")
    assert config.dataset == str(place / "bars.npz")
    assert config.layers["2"].size == 3
    assert main(["evaluate", "run"]) == 0
    assert main(["train", "--resume", "run"]) == 0
    scores = runs.load(place / "run").class_scores()[0]
    x, _ = bars(30, 1)
    (place / "bars.npz").unlink()
    np.save("new.npy", x)
    capsys.readouterr()
    assert main(["predict", "run", "new.npy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "file,row,class,score left,score middle,score right"
    found = [line.split(",")[2] for line in lines[1:]]
    assert found == [["left", "middle", "right"][i] for i in scores.argmax(dim=1)]
    network = binep.load("run")
    torch.testing.assert_close(network(torch.tensor(x)[:, None] / 255), scores)
    assert main(["compare", "run"]) == 0


def test_what_was_moved_is_found_and_what_was_changed_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "quickstart", "--dataset", "bars.npz", *QUICK]) == 0
    (place / "there").mkdir()
    shutil.move("bars.npz", "there")
    assert main(["evaluate", "run"]) == 2
    assert "bars.npz: there is no such file or folder" in capsys.readouterr().err
    assert main(["evaluate", "run", "--data-dir", "there"]) == 0
    held = dict(np.load("there/bars.npz"))
    held["x_test"][0] ^= 1
    np.savez("there/bars.npz", **held)
    assert main(["evaluate", "run", "--data-dir", "there"]) == 2
    assert "was trained on 60 + 30 images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--dataset nosuch", "data set 'nosuch' is unknown; give one of mnist5k, "),
        ("--dataset no.npz", "no.npz: there is no such file or folder"),
        ("--dataset bars.npz --layers.2.size 4", "layers.2.size = 4: must be 3, the 3 classes of"),
        ("--dataset one.npz", "one.npz: all labels of y_train are 0: must be of two classes"),
        ("--dataset arrays", "dataset = arrays: its arrays were given in Python"),
    ],
)
def test_bad_input_is_one_line(
    flags: str, said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = dict(np.load("bars.npz"))
    del held["classes"]
    np.savez("one.npz", **{**held, "y_train": held["y_train"] * 0})
    assert main(["train", "quickstart", *flags.split(), "--run-dir", "run"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert not Path("run").exists()


@pytest.mark.parametrize("floats", [False, True])
def test_programs_that_take_bytes_say_so_of_a_network_that_learnt_floats(
    floats: bool, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = dict(np.load("bars.npz"))
    if floats:
        held |= {name: held[name] * np.float32(0.3) for name in ("x_train", "x_test")}
    np.savez("held.npz", **held)
    assert main(["train", "quickstart", "--dataset", "held.npz", *QUICK]) == 0
    capsys.readouterr()
    for command in ("export run --format c", "page run --output page.html"):
        assert main(command.split()) == 0
        assert ("was trained on floats; " in capsys.readouterr().err) == floats


# ---- from Python


def test_arrays_train_as_the_file_of_them_does(place: Path) -> None:
    held = np.load("bars.npz")
    arrays = [held[name] for name in ("x_train", "y_train", "x_test", "y_test")]
    ours = Experiment(SMALL, data=arrays)
    layers = {**LAYERS, "2": Layer(3, bias_lr=0.05)}
    theirs = Experiment(SMALL.replace(dataset="bars.npz", layers=layers))
    assert ours.config.layers == theirs.config.layers
    assert ours.train_epoch().train.loss == theirs.train_epoch().train.loss


def test_a_run_on_arrays_has_a_folder_like_any(place: Path) -> None:
    data = (*bars(60, 0), *bars(30, 1))
    folder = place / "run"
    folder.mkdir()
    with pytest.raises(runs.Stopped):
        runs.train(Experiment(SMALL, data), folder, stop=iter([False] * 7 + [True]).__next__)
    experiment, rows = runs.resume(folder, data=data)
    runs.train(experiment, folder, rows=rows)
    whole = Experiment(SMALL, data)
    for _ in range(2):
        scores = whole.train_epoch().test
    tested = runs.load(folder, data=data).evaluate()
    assert (tested.loss, tested.errors) == (scores.loss, scores.errors)
    assert packed.read(folder).classes == ("0", "1", "2")
    with pytest.raises(DataError, match="dataset = arrays: its arrays were given in Python"):
        runs.load(folder)
    with pytest.raises(DataError, match=r"was trained on 60 \+ 30 images"):
        runs.load(folder, data=(*bars(60, 2), *bars(30, 1)))


def test_a_last_layer_of_another_size_is_the_user_s_own(place: Path) -> None:
    config = SMALL.replace(layers={**LAYERS, "2": Layer(7)})
    with pytest.raises(ConfigError, match=r"layers.2.size = 7: must be 3, the 3 classes of"):
        Experiment(config, (*bars(6, 0), *bars(6, 1)))


def test_features_have_no_rows_and_columns(place: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.array(["no", "yes"] * 20)
    x = rng.random((40, 5)) + (y == "yes")[:, None]
    experiment = Experiment(SMALL, (x, y, x[:4], y[:4]))
    assert experiment.network.synapses[0].input_shape == (5,)
    assert experiment.train_epoch().test.samples == 4


@pytest.mark.parametrize("shape", [(5,), (2, 6, 6), (2, 1, 3, 4)])
def test_samples_that_are_no_images_are_inspected_and_reported(
    shape: tuple[int, ...], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("binep.runs.curves.rendered", rendered)
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    x = 9 * rng.standard_normal((40, *shape))
    np.savez("other.npz", x_train=x, y_train=y, x_test=x[::-1], y_test=y)
    assert main(["train", "quickstart", "--dataset", "other.npz", *QUICK]) == 0
    assert main(["inspect", "run"]) == 0
    assert main(["report", "run"]) == 0
