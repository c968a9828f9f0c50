"""Run folders: they explain a run, replay it, and are whole or refused by name."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import safetensors.torch
import samples
import torch
from refusals import refused
from torch import Tensor

from binep.experiment.config import Config, ConvLayer, Dynamics, Layer, Learning
from binep.experiment.experiment import EpochResult, Experiment
from binep.runs import folder as runs
from binep.runs.files import RunError
from binep.runs.metrics import Row, read_metrics

FILES = {"config.toml", "metrics.csv", "model.safetensors", "curves.png", "environment.json"}
FILES |= {"best.safetensors", "checkpoint.safetensors", ".lock", "log.txt"}
SECONDS = {"train_seconds", "test_seconds"}
COLUMNS = "epoch,train_error,test_error,train_loss,test_loss,train_seconds,test_seconds"
LAYER = "layer{0}_flips,layer{0}_flip_rate,layer{0}_settle_steps,layer{0}_residual,layer{0}_alpha"
SINGLE = "train_error_single,test_error_single"
BITS = "train_error_bits,test_error_bits,train_error_bits_single,test_error_bits_single"

FAST: dict[str, Any] = {"gamma": 1e-2, "threshold": 1e-6, "bias_lr": 0.05}
DENSE = Config(
    layers={"1": Layer(8, **FAST), "2": Layer(10, **FAST)}, max_batches=2, epochs=2, threads=1
)
POOLED = ConvLayer(3, padding=0, pool=4, **FAST, scale_lr=1e-3)
KINDS = {
    "dense": (DENSE, ""),
    "bits": (
        replace(
            DENSE,
            layers={"1": POOLED, "2": Layer(20, **FAST)},
            dynamics=Dynamics("heaviside", 1.0, 12, 4),
            learning=Learning(output_copies=2, hold_nudge=True),
        ),
        f",{SINGLE},{BITS}",
    ),
    "real": (
        replace(
            DENSE,
            layers={"1": Layer(12, **FAST), "2": Layer(10, **FAST)},
            learning=Learning(synapses="real", cost="cross-entropy"),
        ),
        "",
    ),
}


@dataclass
class Run:
    """A finished run, its columns beside the usual, what `train` returned and what it told."""

    folder: Path
    config: Config
    further: str
    rows: list[Row]
    results: list[EpochResult]

    @property
    def state(self) -> dict[str, Tensor]:
        return safetensors.torch.load((self.folder / "model.safetensors").read_bytes())


@pytest.fixture(scope="module", params=KINDS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    config, further = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    results: list[EpochResult] = []
    rows = runs.train(Experiment(config), folder, after_epoch=results.append)
    return Run(folder, config, further, rows, results)


# ---- what a run leaves


def test_the_folder_is_complete_and_nothing_else(run: Run) -> None:
    assert {path.name for path in run.folder.iterdir()} == FILES
    assert Config.load(run.folder / "config.toml") == run.config


def test_metrics_have_the_documented_columns_and_a_row_per_epoch(run: Run) -> None:
    lines = (run.folder / "metrics.csv").read_text().splitlines()
    binary = run.config.learning.synapses == "binary"
    layer = LAYER + (",layer{0}_most_flips" if binary else "")
    layers = ",".join(layer.format(number) for number in run.config.layers)
    assert lines[0] == f"{COLUMNS},{layers}{run.further}"
    rows = read_metrics(run.folder / "metrics.csv")
    assert [row["epoch"] for row in rows] == [1, 2]
    for row, returned in zip(rows, run.rows, strict=True):
        assert row == {k: v if v is None else pytest.approx(v, 1e-5) for k, v in returned.items()}


def test_rows_hold_the_results_of_their_epochs(run: Run) -> None:
    for row, result in zip(run.rows, run.results, strict=True):
        train, test = result.train, result.test
        assert [row[name] for name in COLUMNS.split(",")] == [
            *(result.epoch, train.error, test.error, train.loss, test.loss),
            *(train.seconds, test.seconds),
        ]
        for i, (steps, residual) in enumerate(zip(train.settle_steps, train.residual, strict=True)):
            change = result.layers[i]
            told = (change.flips, change.flip_rate) if change else (None, None)
            alpha = change.scale if change else None
            names = LAYER.format(i + 1).split(",")
            assert [row[name] for name in names] == [*told, steps, residual, alpha]
            assert row.get(f"layer{i + 1}_most_flips") == (change.most if change else None)


def test_cells_are_empty_exactly_where_they_mean_nothing(run: Run) -> None:
    real = run.config.learning.synapses == "real"
    readout = f"layer{len(run.config.layers)}"
    for row in run.rows:
        empty = {name for name, value in row.items() if value is None}
        flips = {n for n in row if re.fullmatch(r"layer\d_(flips|flip_rate|alpha)", n)}
        states = {f"{readout}_settle_steps", f"{readout}_residual"}
        assert empty == (flips | states if real else set())


def test_every_weight_is_plus_or_minus_alpha(run: Run) -> None:
    """Of the file, and of the network that is read from it, to the bit."""
    signs = {name: t for name, t in run.state.items() if t.dtype == torch.int8}
    binary = run.config.learning.synapses == "binary"
    assert len(signs) == (len(run.config.layers) if binary else 0)
    for name, values in signs.items():
        assert set(values.flatten().tolist()) == {-1, 1}
        assert (run.state[name.replace("values", "scale")] > 0).all()
    for synapse in runs.load(run.folder).network.learning_synapses():
        if synapse.scale is not None:
            alpha = synapse.per_weight(synapse.scale).expand_as(synapse.weight)
            assert torch.equal(synapse.weight.abs(), alpha)


def test_weights_flipped_and_scales_learnt_as_told(run: Run) -> None:
    start = Experiment(run.config).network.state_dict()
    for name, now in run.state.items():
        number = list(run.config.layers)[-1 if "readout" in name else int(name.split(".")[1])]
        learns = "scale" not in name or run.config.layers[number].scale_lr > 0
        assert torch.equal(now.float(), start[name]) != learns, name


def test_the_configuration_replays_the_run(run: Run, tmp_path: Path) -> None:
    again = runs.train(Experiment(Config.load(run.folder / "config.toml")), tmp_path)
    for first, second in zip(run.rows, again, strict=True):
        assert {k: first[k] for k in first if k not in SECONDS} == {
            k: second[k] for k in second if k not in SECONDS
        }
    model = "model.safetensors"
    assert (tmp_path / model).read_bytes() == (run.folder / model).read_bytes()


def test_a_loaded_network_scores_as_the_last_epoch_did(run: Run) -> None:
    scores = runs.load(run.folder).evaluate()
    assert scores.error == run.rows[-1]["test_error"]
    assert scores.loss == run.rows[-1]["test_loss"]


def test_the_curves_are_a_picture(run: Run) -> None:
    picture = matplotlib.image.imread(run.folder / "curves.png")
    assert picture.shape[0] > 100
    assert picture.std() > 0


def test_the_environment_is_told(run: Run) -> None:
    told = json.loads((run.folder / "environment.json").read_text())
    assert {"command", "started", "versions", "git_revision", "processor", "threads"} <= set(told)
    assert told["versions"].keys() == {"binep", "torch", "numpy", "numba"}
    assert told["versions"]["torch"] == torch.__version__
    assert (told["device"], told["device_name"], told["threads"]) == ("cpu", None, 1)


def test_a_run_cut_short_keeps_its_finished_epochs(tmp_path: Path) -> None:
    def stop(result: EpochResult) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.train(Experiment(DENSE), tmp_path, after_epoch=stop)
    (row,) = read_metrics(tmp_path / "metrics.csv")
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert f"{runs.load(tmp_path).evaluate().loss:.6g}" == f"{row['test_loss']:.6g}"


def test_the_log_of_a_run_without_its_checkpoint_is_not_written_over(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    setting = DENSE.replace(epochs=1)
    runs.train(Experiment(setting), folder)
    (folder / "checkpoint.safetensors").unlink()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for attempt in (lambda: runs.train(Experiment(setting), folder), lambda: runs.resume(folder)):
        with refused(folder, "holds a log, but no checkpoint.safetensors"):
            attempt()
    (folder / "config.toml").unlink()
    with refused(folder, "holds a log, but no checkpoint.safetensors"):
        runs.train(Experiment(setting), folder)
    del before[folder / "config.toml"]
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with refused(tmp_path, "not a run folder"):
        runs.load(tmp_path)
    (tmp_path / "config.toml").write_text(DENSE.to_toml())
    with refused(tmp_path, "no epoch has ended yet"):
        runs.load(tmp_path)
    (tmp_path / "small").mkdir()
    (tmp_path / "small/config.toml").write_text(DENSE.to_toml())
    for name, hint in (("smal", " (did you mean small?)"), ("other", "")):
        missing = tmp_path / name
        with pytest.raises(RunError) as error:
            runs.load(missing)
        assert str(error.value) == f"{missing}: not a run folder: there is none of this name{hint}"


def test_settings_can_be_replaced_on_loading(tmp_path: Path) -> None:
    data_dir = samples.write_mnist(tmp_path / "data")
    folder = tmp_path / "run"
    folder.mkdir()
    runs.train(Experiment(DENSE.replace(dataset="mnist", data_dir=data_dir, epochs=1)), folder)
    moved = data_dir.rename(tmp_path / "moved")
    assert runs.load(folder, data_dir=moved).evaluate().samples == 10


def test_new_folders_never_collide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda form: "20200101-000000")
    with ThreadPoolExecutor(8) as threads:
        folders = list(threads.map(lambda i: runs.new_folder("name", 3, tmp_path), range(80)))
    assert len(set(folders)) == 80
    assert set(folders) == set((tmp_path / "name").iterdir())
    assert tmp_path / "name" / "20200101-000000-3" in folders


@pytest.mark.parametrize("link", [True, False])
def test_a_new_folder_that_cannot_be_made_is_refused(tmp_path: Path, link: bool) -> None:
    """A link to nowhere says that it exists, and yet is no folder."""
    root = tmp_path / "runs"
    if link:
        root.symlink_to(tmp_path / "nowhere")
    else:
        root.write_bytes(b"")
    with refused(root / "name", "cannot be made"):
        runs.new_folder("name", 0, root)


def test_only_a_new_or_empty_folder_is_claimed(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert runs.claim_folder(folder) == folder
    assert runs.claim_folder(folder) == folder
    file = folder / ".hidden"
    file.touch()
    for taken, reason in ((folder, "holds files already"), (file, "cannot be made")):
        with refused(taken, reason):
            runs.claim_folder(taken)
    assert list(folder.iterdir()) == [file]
