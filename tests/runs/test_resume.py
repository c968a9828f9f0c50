"""Runs that are interrupted, killed and damaged go on to the same bits, or say what is wrong."""

from __future__ import annotations

import dataclasses
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from binep.cli import main as cli
from binep.experiment.config import Config, Dynamics, Layer, Learning
from binep.experiment.experiment import Experiment
from binep.experiment.warnings import Guards
from binep.runs import files
from binep.runs import folder as runs
from binep.runs.checkpoints import CHECKPOINT
from binep.runs.files import RunError
from binep.runs.metrics import read_metrics
from binep.runs.tensors import load_tensors, save_tensors

KILLS = 20


def config(**settings: Any) -> Config:
    """A small network on MNIST-5k that flips, learns its α, and saves after every batch."""
    rates = {"gamma": 1e-3, "threshold": 1e-5, "bias_lr": 0.05, "scale_lr": 1e-3}
    whole = Config(
        layers={"1": Layer(12, **rates), "2": Layer(10, **rates)},
        dynamics=Dynamics(free_steps=15, nudged_steps=5),
        learning=Learning(scale_lr_decay=2),
        threads=1,
        max_batches=4,
        epochs=2,
        checkpoint_minutes=0,
    )
    return dataclasses.replace(whole, **settings)


def outcome(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]], list[bytes]]:
    """What a run came to: all of its state, its metrics but for the clock, its networks."""
    state, _ = load_tensors(folder / CHECKPOINT)
    rows = read_metrics(folder / "metrics.csv")
    metrics = [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]
    return state, metrics, [(folder / f"{n}.safetensors").read_bytes() for n in ("model", "best")]


def assert_same(folder: Path, other: Path) -> None:
    (state, *rest), (expected, *wanted) = outcome(folder), outcome(other)
    assert rest == wanted
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


@settings(max_examples=10)
@given(
    stops=st.lists(st.integers(1, 5), max_size=4),
    bits=st.booleans(),
    estimator=st.sampled_from(("ep", "bptt")),
    synapses=st.sampled_from(("binary", "real")),
    seed=st.integers(0, 99),
)
def test_stopping_anywhere_changes_nothing(
    stops: list[int], bits: bool, estimator: Any, synapses: Any, seed: int
) -> None:
    learning = Learning(estimator="ep" if bits else estimator, synapses=synapses, beta=1.0)
    dynamics = Dynamics("heaviside" if bits else "hard-sigmoid", free_steps=12, nudged_steps=4)
    setting = config(learning=learning, dynamics=dynamics, seed=seed).effective()
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as parts:
        runs.train(Experiment(setting), Path(whole))
        experiment, rows, guards = Experiment(setting), [], Guards()
        for batches in stops:
            stop = iter([False] * (batches - 1) + [True] * 9).__next__
            try:
                runs.train(experiment, Path(parts), rows=rows, guards=guards, stop=stop)
            except runs.Stopped:
                experiment, rows, guards = runs.resume(Path(parts))
        runs.train(experiment, Path(parts), rows=rows, guards=guards)
        assert_same(Path(parts), Path(whole))


def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    setting = config(epochs=10)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    runs.train(Experiment(setting), whole)
    (killed / "config.toml").write_text(setting.to_toml())
    moments = random.Random(0)
    command = [sys.executable, "-m", "binep", "train", "--resume", str(killed)]

    def written() -> int:
        """When the checkpoint was last written."""
        path = killed / CHECKPOINT
        return path.stat().st_mtime_ns if path.exists() else 0

    for _ in range(KILLS):
        before = written()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while written() == before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        error = process.communicate()[1]
        assert process.returncode in (0, -signal.SIGKILL), error
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert_same(killed, whole)
    assert not list(killed.glob(".*.tmp"))


def test_ctrl_c_finishes_the_batch_and_says_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "a run"
    flags = ["--layers.1.size", "8", "--threads", "1", "--epochs", "500"]
    command = [sys.executable, "-m", "binep", "train", "quickstart", *flags, "--run-dir", folder]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 1/"):
            break
    process.send_signal(signal.SIGINT)
    said, error = process.communicate()
    assert (process.returncode, error) == (130, "")
    last = said.splitlines()[-1]
    assert last.endswith(f"go on with: binep train --resume '{folder}'")
    experiment, rows, _ = runs.resume(folder)
    assert len(rows) == experiment.epoch >= 1
    assert f"stopped in epoch {experiment.epoch + 1} after batch {experiment.batch};" in last


def finished(folder: Path) -> Path:
    runs.train(Experiment(config()), folder)
    return folder


def test_a_finished_run_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p.name: p.read_bytes() for p in finished(tmp_path).iterdir()}
    assert cli.main(["train", "--resume", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "has ended; nothing left to do" in said
    assert "after epoch 2" in said
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_log_without_a_checkpoint_is_not_trained_over(tmp_path: Path) -> None:
    log = (finished(tmp_path) / "metrics.csv").read_bytes()
    (tmp_path / CHECKPOINT).unlink()
    with pytest.raises(RunError, match=r"holds a log, but no checkpoint.safetensors to go on from"):
        runs.resume(tmp_path)
    assert (tmp_path / "metrics.csv").read_bytes() == log


def test_the_best_network_is_kept(tmp_path: Path) -> None:
    experiment = Experiment(config(epochs=6))
    states: list[bytes] = []
    rows = runs.train(
        experiment,
        tmp_path,
        after_epoch=lambda _: states.append((tmp_path / "model.safetensors").read_bytes()),
    )
    errors = [row["test_error"] for row in rows]
    best = max(i for i, error in enumerate(errors) if error == min(errors))  # type: ignore[type-var]
    assert (tmp_path / "best.safetensors").read_bytes() == states[best]


@pytest.mark.parametrize("name", ["config.toml", CHECKPOINT])
def test_damage_is_refused_by_name(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = finished(tmp_path) / name
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"\0" * 99):
        path.write_bytes(damaged)
        assert cli.main(["train", "--resume", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert name in error


@settings(max_examples=60)
@given(data=st.data())
def test_a_changed_checkpoint_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "checkpoint"
    if not folder.exists():
        folder.mkdir()
        finished(folder)
        (folder / "whole").write_bytes((folder / CHECKPOINT).read_bytes())
    path, content = folder / CHECKPOINT, bytearray((folder / "whole").read_bytes())
    at, flip = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(1, 255))
    content[at] ^= flip
    path.write_bytes(content)
    try:
        state, about = load_tensors(path)
    except RunError:
        return
    path.write_bytes((folder / "whole").read_bytes())  # a blank of the header: nothing is lost
    whole, same = load_tensors(path)
    assert about == same
    assert all(torch.equal(state[name], whole[name]) for name in whole)


def test_another_configuration_or_network_is_refused(tmp_path: Path) -> None:
    finished(tmp_path)
    (tmp_path / "config.toml").write_text(config(seed=9).to_toml())
    with pytest.raises(RunError, match="of another configuration"):
        runs.resume(tmp_path)
    (tmp_path / "config.toml").write_text(config().to_toml())
    (tmp_path / CHECKPOINT).write_bytes((tmp_path / "model.safetensors").read_bytes())
    with pytest.raises(RunError, match="is no checkpoint"):
        runs.resume(tmp_path)
    with pytest.raises(ValueError, match=r"synapses.0.values .* of shape"):
        Experiment(config()).restore(
            Experiment(config(layers={"1": Layer(9, scale_lr=0.1), "2": Layer(10)})).state()
        )


def test_a_setting_newer_than_the_checkpoint_is_no_other_configuration(tmp_path: Path) -> None:
    finished(tmp_path)
    older = config().to_toml().replace("compile = false\n", "")
    assert older != config().to_toml()
    (tmp_path / "config.toml").write_text(older)
    state, about = load_tensors(tmp_path / CHECKPOINT)
    save_tensors(tmp_path / CHECKPOINT, state, about | {"config": older})
    experiment, rows, _ = runs.resume(tmp_path)
    assert experiment.epoch == len(rows) == 2


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    finished(tmp_path)
    half_written = tmp_path / ".checkpoint.safetensors.1.tmp"
    half_written.touch()
    with files.locked(tmp_path):
        experiment, rows, _ = runs.resume(tmp_path)
        with pytest.raises(RunError, match="another process trains here"):
            runs.train(experiment, tmp_path, rows=rows)
        assert half_written.exists()
    runs.train(experiment, tmp_path, rows=rows)
    assert not half_written.exists()


def test_a_folder_that_cannot_be_locked_is_named(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(RunError, match=f"^{tmp_path}: cannot be written"):
        runs.train(Experiment(config()), tmp_path)


def test_a_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    finished(whole)
    folder = tmp_path / "full"
    folder.mkdir()
    real, calls = files.os.fsync, iter(range(9))

    def full(number: int) -> None:
        if next(calls, None) is None:
            raise OSError(28, "No space left on device")
        real(number)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(RunError, match="No space left on device"):
            runs.train(Experiment(config()), folder)
    assert not list(folder.glob(".*.tmp"))
    experiment, rows, _ = runs.resume(folder)
    assert (experiment.epoch, experiment.batch) != (0, 0)
    runs.train(experiment, folder, rows=rows)
    assert_same(folder, whole)


@pytest.mark.parametrize(
    "flags",
    [
        "--resume",
        "--resume x --epochs 3",
        "quickstart --resume x",
        "--resume=x --seed 1",
        "quickstart --epochs 3 --resume x",
        "--config y --resume=x",
    ],
)
def test_resume_takes_a_folder_alone(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", *flags.split()]) == 2
    assert "--resume takes one run folder" in capsys.readouterr().err
