"""What TensorBoard is shown: the columns of metrics.csv, each epoch once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from binep.cli import main as cli
from binep.experiment.config import Config, Layer
from binep.experiment.experiment import Experiment
from binep.runs import folder as runs
from binep.runs import tensorboard as board
from binep.runs.metrics import read_metrics

LAYERS = {"1": Layer(8, bias_lr=0.05), "2": Layer(10, bias_lr=0.05)}
SMALL = Config(layers=LAYERS, max_batches=2, epochs=3, threads=1)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(SMALL.to_toml())


def shown(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of every scalar, by its tag."""
    events = EventAccumulator(str(folder / board.FOLDER))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def logged(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The same of metrics.csv, in which a value has six digits."""
    columns: dict[str, list[tuple[int, float]]] = {}
    for row in read_metrics(folder / "metrics.csv"):
        for column, value in row.items():
            if column != "epoch" and value is not None:
                near = pytest.approx(value, rel=1e-5)
                columns.setdefault(column, []).append((int(row["epoch"] or 0), near))
    return columns


def test_every_column_is_shown_after_every_epoch() -> None:
    assert cli.main(["train", "--config", "small.toml", "--run-dir", "run", "--tensorboard"]) == 0
    folder = Path("run")
    assert shown(folder) == logged(folder)
    assert [step for step, _ in shown(folder)["test_error"]] == [1, 2, 3]


def test_a_run_that_goes_on_shows_each_epoch_once() -> None:
    """Killed between an epoch's events and its checkpoint, or shown for the first time."""
    for folder, before in ((Path("killed"), True), (Path("first"), False)):
        experiment = Experiment(SMALL)
        folder.mkdir()
        with pytest.raises(runs.Stopped):
            runs.train(experiment, folder, stop=lambda e=experiment: (e.epoch, e.batch) == (1, 1))
        if before:
            (row,) = read_metrics(folder / "metrics.csv")
            with board.Board() as killed:
                killed.show(folder, [row, {**row, "epoch": 2, "test_error": -1}])
        assert cli.main(["train", "--resume", str(folder), "--tensorboard"]) == 0
        assert shown(folder) == logged(folder)
        assert [step for step, _ in shown(folder)["layer1_flips"]] == [1, 2, 3]


def test_a_run_that_has_ended_can_be_shown() -> None:
    folder = Path("run")
    assert cli.main(["train", "--config", "small.toml", "--run-dir", "run"]) == 0
    assert not (folder / board.FOLDER).exists()
    assert cli.main(["train", "--tensorboard", "--resume", "run"]) == 0
    assert shown(folder) == logged(folder)


def test_without_the_package_nothing_is_begun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(torch.utils, "tensorboard", raising=False)
    for name in [n for n in sys.modules if n.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert cli.main(["train", "--config", "small.toml", "--run-dir", "run", "--tensorboard"]) == 2
    assert "pip install 'binep[tensorboard]'" in capsys.readouterr().err
    assert not Path("run").exists()


def test_events_that_cannot_be_written_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--config", "small.toml", "--run-dir", "run"]) == 0
    (Path("run") / board.FOLDER).touch()
    assert cli.main(["train", "--resume", "run", "--tensorboard"]) == 2
    assert "binep: run/tensorboard: cannot be written" in capsys.readouterr().err
