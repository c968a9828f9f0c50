"""A run goes on with the data that it has been trained on, or is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import samples
import torch

from binep.analysis import readings
from binep.cli import main as cli
from binep.data.batches import Dataset, Split
from binep.data.errors import DataError
from binep.experiment.config import Config, Layer
from binep.experiment.experiment import Experiment
from binep.runs import folder as runs
from binep.runs.checkpoints import CHECKPOINT, same_data
from binep.runs.tensors import load_tensors, save_tensors

FILES = (CHECKPOINT, "model.safetensors")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run on a data set of its own, of one epoch of two and a batch."""
    monkeypatch.chdir(tmp_path)
    data = samples.write_mnist(tmp_path / "data", 8, 4)
    samples.write_mnist(tmp_path / "other", 9, 4)
    config = Config(
        dataset="mnist",
        data_dir=data,
        layers={"1": Layer(8), "2": Layer(10)},
        epochs=2,
        batch_size=4,
        threads=1,
    )
    (tmp_path / "run").mkdir()
    with pytest.raises(runs.Stopped):
        runs.train(Experiment(config), tmp_path / "run", stop=iter([0, 0, 1]).__next__)
    return tmp_path / "run"


def dataset(**changes: object) -> Dataset:
    split = Split(torch.arange(8, dtype=torch.uint8).view(2, 1, 2, 2), torch.tensor([0, 1]))
    settings = {"train": split, "test": split, "classes": ("a", "b"), "name": "own", **changes}
    return Dataset(**settings, mean=None, std=None)  # type: ignore[arg-type]


def test_the_identity_is_of_images_labels_order_and_names() -> None:
    split = dataset().train
    one = dataset().identity
    assert one == dataset().to("cpu").identity
    assert (one["train"], one["test"], one["classes"]) == (2, 2, ["a", "b"])
    others = [
        Split(split.images.flip(0), split.labels),
        Split(split.images, split.labels.flip(0)),
        Split(split.images.view(2, 1, 1, 4), split.labels),
        Split(split.images.float(), split.labels),
    ]
    changed = [dataset(train=other).identity for other in others]
    changed += [dataset(test=other).identity for other in others]
    changed.append(dataset(classes=("b", "a")).identity)
    assert len({str(identity) for identity in [one, *changed]}) == 1 + len(changed)


@pytest.mark.parametrize("command", ["train --resume run", "evaluate run", "inspect run"])
def test_other_data_are_refused(
    run: Path, command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "other").rename(tmp_path / "data")
    here = Experiment(Config.load(run / "config.toml")).data.identity
    held = load_tensors(run / CHECKPOINT)[1]["data"]
    assert cli.main(command.split()) == 2
    said = capsys.readouterr().err
    name = FILES["evaluate" in command]
    assert said.startswith(f"binep: run/{name}: was trained on 8 + 4 images, SHA-256 ")
    assert f"mnist here is 9 + 4 images, SHA-256 {here['sha256'][:16]}" in said
    assert held["sha256"][:16] in said
    assert said.count("\n") == 1
    assert {p.name: p.read_bytes() for p in run.iterdir() if p.name != ".lock"} | {
        ".lock": b""
    } == before | {".lock": b""}


def test_names_of_classes_are_compared() -> None:
    with pytest.raises(DataError, match=r"classes 'a', 'b', .* classes 'b', 'a', "):
        same_data(Path("run"), dataset().identity, dataset(classes=("b", "a")))


def test_a_report_says_that_the_data_are_others(run: Path, tmp_path: Path) -> None:
    found = readings.gather([run], data_dir=tmp_path / "other")
    assert found.readings == []
    (line,) = found.missing
    assert f"{run} could not be tested again: {run}/model.safetensors: was trained on" in line


def test_a_run_of_an_older_version_goes_on_with_a_line(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in FILES:
        state, about = load_tensors(run / name)
        del about["data"]
        save_tensors(run / name, state, about)
    for command, name in (("evaluate run", FILES[1]), ("train --resume run", FILES[0])):
        assert cli.main(command.split()) == 0
        line = f"run/{name}: does not say on which data it was trained: not compared with mnist"
        assert f"binep: warning: {line}\n" in capsys.readouterr().err
    assert cli.main(["evaluate", "run"]) == 0
    assert "does not say" not in capsys.readouterr().err  # from then on it does


def test_another_data_set_can_be_asked_for(run: Path) -> None:
    assert runs.load(run, dataset="mnist5k").data.name == "mnist5k"
