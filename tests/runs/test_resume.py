"""Runs that are interrupted, killed and damaged go on to the same bits, or say what is wrong."""

from __future__ import annotations

import dataclasses
import multiprocessing
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
from binep.experiment.config import Config, ConfigError, Dynamics, Layer, Learning
from binep.experiment.experiment import Experiment
from binep.runs import files
from binep.runs import folder as runs
from binep.runs.checkpoints import CHECKPOINT, place_of
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
    if synapses == "binary":
        learning = dataclasses.replace(learning, gamma_decay=2.0)
    dynamics = Dynamics("heaviside" if bits else "hard-sigmoid", free_steps=12, nudged_steps=4)
    setting = config(learning=learning, dynamics=dynamics, seed=seed).effective()
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as parts:
        runs.train(Experiment(setting), Path(whole))
        experiment, rows = Experiment(setting), []
        for batches in stops:
            stop = iter([False] * (batches - 1) + [True] * 9).__next__
            try:
                rows = runs.train(experiment, Path(parts), rows=rows, stop=stop)
            except runs.Stopped:
                experiment, rows = runs.resume(Path(parts))
        runs.train(experiment, Path(parts), rows=rows)
        assert_same(Path(parts), Path(whole))


def test_a_run_that_did_not_count_writes_goes_on_without(tmp_path: Path) -> None:
    """As version 0.1 left it; all else comes to the same bits."""
    whole, older = tmp_path / "whole", tmp_path / "older"
    for folder, epochs in ((whole, 3), (older, 2)):
        folder.mkdir()
        runs.train(Experiment(config(epochs=epochs)), folder)
    assert (load_tensors(older / CHECKPOINT)[0]["writes.0"] > 0).any()
    state, about = load_tensors(older / CHECKPOINT)
    state = {k: v for k, v in state.items() if not k.startswith("writes.")}
    rows = [{k: v for k, v in r.items() if "_most_flips" not in k} for r in about["rows"]]
    save_tensors(older / CHECKPOINT, state, about | {"rows": rows})
    experiment, held = runs.resume(older, epochs=3)
    runs.train(experiment, older, rows=held)
    (state, metrics, networks), (wanted, full, same) = outcome(older), outcome(whole)
    assert networks == same
    assert metrics == [{k: v for k, v in row.items() if "_most_flips" not in k} for row in full]
    assert state.keys() == {k for k in wanted if not k.startswith("writes.")}


def go_on(folder: Path) -> None:
    raise SystemExit(cli.main(["train", "--resume", str(folder)]))


def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    setting = config(epochs=30, max_batches=40)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    runs.train(Experiment(setting), whole)
    (killed / "config.toml").write_text(setting.to_toml())
    moments = random.Random(0)
    fresh = multiprocessing.get_context("forkserver")  # processes that need not import PyTorch
    fresh.set_forkserver_preload([__name__, "binep.cli.training"])

    places = [(0, 0)]
    while len(places) <= KILLS:
        process = fresh.Process(target=go_on, args=(killed,))
        process.start()
        while (place_of(killed) or (0, 0)) == places[-1] and process.is_alive():
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"after {places}"
        places.append(place_of(killed) or (0, 0))
    assert places == sorted(set(places))  # each went on from where the one before was killed
    process = fresh.Process(target=go_on, args=(killed,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert_same(killed, whole)
    assert not list(killed.glob(".*.tmp"))


def test_checkpoints_that_take_long_are_rare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows come with them; whenever it stops, or is killed, it ends with the same bits."""
    usual, rare = tmp_path / "usual", tmp_path / "rare"
    usual.mkdir()
    rare.mkdir()
    three = config(epochs=3, checkpoint_minutes=1000)
    runs.train(Experiment(three), usual)
    monkeypatch.setattr(runs, "_LONG", -1.0)
    monkeypatch.setattr(runs, "_APART", 1e9)
    seen: list[bool] = []

    def look(_: object) -> None:
        seen.append((rare / "metrics.csv").exists())
        if len(seen) == 2:
            raise KeyboardInterrupt  # killed

    with pytest.raises(KeyboardInterrupt):
        runs.train(Experiment(three), rare, after_epoch=look)
    assert seen == [False, False]
    assert not (rare / "best.safetensors").exists()
    experiment, rows = runs.resume(rare)
    assert (experiment.epoch, rows) == (0, [])
    with pytest.raises(runs.Stopped):
        runs.train(experiment, rare, stop=lambda: experiment.epoch == 1)
    first = tmp_path / "first"
    first.mkdir()
    runs.train(Experiment(config(checkpoint_minutes=1000, epochs=1)), first)
    assert outcome(rare)[2] == outcome(first)[2]
    assert len(read_metrics(rare / "metrics.csv")) == 1
    assert (rare / "curves.png").exists()
    experiment, rows = runs.resume(rare)
    assert (experiment.epoch, experiment.batch, len(rows)) == (1, 1, 1)
    runs.train(experiment, rare, rows=rows)
    assert_same(rare, usual)


def test_ctrl_c_finishes_the_batch_and_says_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "a run"
    flags = ["--layers.1.size", "8", "--threads", "1", "--epochs", "500"]
    command = [sys.executable, "-m", "binep", "train", "quickstart", *flags, "--run-dir", folder]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.split()[:1] == ["1/500"]:
            break
    process.send_signal(signal.SIGINT)
    said, error = process.communicate()
    assert (process.returncode, error) == (130, "")
    last = said.splitlines()[-1]
    assert last.endswith(f"go on with: binep train --resume '{folder}'")
    experiment, rows = runs.resume(folder)
    assert len(rows) == experiment.epoch >= 1
    assert f"stopped in epoch {experiment.epoch + 1} after batch {experiment.batch};" in last


def finished(folder: Path) -> Path:
    runs.train(Experiment(config()), folder)
    return folder


def test_a_finished_run_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p.name: p.read_bytes() for p in finished(tmp_path).iterdir()}
    assert cli.main(["train", "--resume", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "has ended; nothing left to do without more --epochs, run folder" in said
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


def test_a_run_of_some_batches_is_tested_on_no_others(tmp_path: Path) -> None:
    finished(tmp_path)
    (tmp_path / "config.toml").write_text(config(test_batch_size=3).to_toml())
    before = config().test_batch_size
    with pytest.raises(ConfigError, match=f"test_batch_size = 3: must stay {before}: the run "):
        runs.resume(tmp_path, epochs=3)


def test_a_setting_newer_than_the_checkpoint_is_no_other_configuration(tmp_path: Path) -> None:
    finished(tmp_path)
    older = config().to_toml().replace("compile = false\n", "")
    assert older != config().to_toml()
    (tmp_path / "config.toml").write_text(older)
    state, about = load_tensors(tmp_path / CHECKPOINT)
    save_tensors(tmp_path / CHECKPOINT, state, about | {"config": older})
    experiment, rows = runs.resume(tmp_path)
    assert experiment.epoch == len(rows) == 2


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    finished(tmp_path)
    half_written = tmp_path / ".checkpoint.safetensors.1.tmp"
    half_written.touch()
    with files.locked(tmp_path):
        experiment, rows = runs.resume(tmp_path)
        with pytest.raises(RunError, match="another process trains here"):
            runs.train(experiment, tmp_path, rows=rows)
        assert half_written.exists()
    runs.train(experiment, tmp_path, rows=rows)
    assert not half_written.exists()


def test_a_folder_that_cannot_be_locked_is_named(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(RunError, match=f"^{tmp_path / '.lock'}: cannot be written"):
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
    experiment, rows = runs.resume(folder)
    assert (experiment.epoch, experiment.batch) != (0, 0)
    runs.train(experiment, folder, rows=rows)
    assert_same(folder, whole)


# ---- with other settings


def resumed(folder: Path, flags: str) -> int:
    return cli.main(["train", "--resume", str(folder), *flags.split()])


@pytest.mark.parametrize("stop", [True, False])
def test_extended_it_ends_with_the_bits_of_a_run_that_was_planned_longer(
    tmp_path: Path, stop: bool
) -> None:
    whole, longer = tmp_path / "whole", tmp_path / "longer"
    for folder, epochs in ((whole, 4), (longer, 2)):
        folder.mkdir()
        runs.train(Experiment(config(epochs=epochs)), folder)
    assert resumed(longer, "--epochs 3") == 0
    experiment, rows = runs.resume(longer, epochs=5)
    if stop:  # in the midst of an epoch that the config.toml before did not have
        with pytest.raises(runs.Stopped):
            runs.train(experiment, longer, rows=rows, stop=lambda: True)
    assert resumed(longer, "--epochs=4") == 0
    assert_same(longer, whole)
    assert Config.load(longer / "config.toml") == Config.load(whole / "config.toml")
    assert "goes on with other settings: epochs" in (longer / "log.txt").read_text()


def test_a_run_of_a_gpu_goes_on_without_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, other = tmp_path / "whole", tmp_path / "other"
    for folder, epochs in ((whole, 3), (other, 2)):
        folder.mkdir()
        runs.train(Experiment(config(epochs=epochs)), folder)
    text = (other / "config.toml").read_text().replace('"cpu"', '"cuda:7"')
    (other / "config.toml").write_text(text)
    state, about = load_tensors(other / CHECKPOINT)
    save_tensors(other / CHECKPOINT, state, about | {"config": text})
    assert resumed(other, "--epochs 3") == 2
    assert "device = cuda:7: this machine has" in capsys.readouterr().err
    assert resumed(other, "--epochs 3 --device cpu --checkpoint-minutes 5 --off events") == 0
    assert_same(other, whole)
    now = Config.load(other / "config.toml")
    assert (now.device, now.checkpoint_minutes, now.speed.off) == ("cpu", 5, ("events",))


def test_killed_before_its_first_checkpoint_a_run_goes_on_with_other_settings(
    tmp_path: Path,
) -> None:
    whole, other = tmp_path / "whole", tmp_path / "other"
    for folder in (whole, other):
        folder.mkdir()
    runs.train(Experiment(config(epochs=1)), whole)
    (other / "config.toml").write_text(config().to_toml())
    assert resumed(other, "--epochs 1") == 0
    assert_same(other, whole)


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ("--seed 1", "seed: cannot change while a run goes on; epochs, device"),
        ("--beta 0.7 --layers.1.gamma 0.5", "learning.beta, layers.1.gamma: cannot change"),
        ("--epochs 1", "epochs = 1: must be at least 2, which the run has begun"),
        ("--epochs 0", "epochs = 0: must be"),
        ("--test-batch-size 9", "test_batch_size = 9: must stay 512"),
        ("--run-dir x", "--run-dir x: a run goes on in its own folder"),
        ("quickstart", "both the preset quickstart and --resume"),
        ("--config y", "both --config y and --resume"),
        ("--layers.3.size 4", "layers.3"),
    ],
)
def test_what_would_change_the_past_is_refused(
    tmp_path: Path, flags: str, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    before = {p.name: p.read_bytes() for p in finished(folder).iterdir()}
    assert resumed(folder, flags) == 2
    said = capsys.readouterr()
    assert error in said.err
    assert (said.err.count("\n"), said.out) == (1, "")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_an_epoch_that_has_begun_is_ended(tmp_path: Path) -> None:
    with pytest.raises(runs.Stopped):
        runs.train(Experiment(config()), tmp_path, stop=lambda: True)
    experiment, _ = runs.resume(tmp_path, epochs=1)
    assert (experiment.batch, experiment.config.epochs) == (1, 1)


def test_another_test_batch_size_tests_the_same_images(tmp_path: Path) -> None:
    layers = {"1": Layer(4), "2": Layer(10)}
    quick = Dynamics(free_steps=2, nudged_steps=1)
    setting = Config(layers=layers, dynamics=quick, epochs=1, batch_size=2000, threads=1)
    runs.train(Experiment(setting), tmp_path)
    assert resumed(tmp_path, "--test-batch-size 300 --epochs 2") == 0
    assert Config.load(tmp_path / "config.toml").test_batch_size == 300
    whole = Experiment(setting.replace(epochs=2))
    errors = [whole.train_epoch().test.error for _ in range(2)]
    assert [row["test_error"] for row in read_metrics(tmp_path / "metrics.csv")] == errors
    assert runs.load(tmp_path).evaluate().samples == len(whole.data.test)


def test_another_experiment_does_not_train_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(config().to_toml())
    with pytest.raises(RunError, match="holds a run of other settings: seed: name a new folder"):
        runs.train(Experiment(config(seed=1)), tmp_path)


def test_resume_without_a_folder_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (["--resume"], ["--resume", "nowhere", "--epochs", "3"]):
        assert cli.main(["train", *flags]) == 2
        assert capsys.readouterr().err.count("\n") == 1
