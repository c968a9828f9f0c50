"""One process trains in a folder at a time, whatever its file system and whatever lies in it."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import filelock
import pytest
from fuzzing import time_limit
from refusals import refused

from binep.cli import main as cli
from binep.experiment.config import Config, Layer
from binep.experiment.experiment import Experiment
from binep.runs import files, settings
from binep.runs import folder as runs
from binep.runs.checkpoints import CHECKPOINT
from binep.runs.files import RunError

CONFIG = Config(layers={"1": Layer(8), "2": Layer(10)}, max_batches=1, epochs=2, threads=1)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of one epoch of two."""
    with pytest.raises(runs.Stopped):
        runs.train(Experiment(CONFIG), claimed(tmp_path / "run"), stop=iter([0, 1]).__next__)
    return tmp_path / "run"


def claimed(folder: Path) -> Path:
    return runs.claim_folder(folder)


def lock_and_leave(folder: Path) -> None:
    with files.locked(folder):
        pass


def locked_elsewhere(folder: Path) -> bool:
    """Whether another process is refused the lock of a folder."""
    code = f"from binep.runs import files\nwith files.locked(files.Path({str(folder)!r})): pass"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert not done.returncode or "another process trains here" in done.stderr, done.stderr
    return bool(done.returncode)


def test_a_run_is_locked_before_its_checkpoint_is_read(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(folder: Path, warn: Any) -> None:
        raise AssertionError("read")

    with monkeypatch.context() as patch, files.locked(run):
        patch.setattr(runs, "resume", never)
        assert cli.main(["train", "--resume", str(run)]) == 2
    assert capsys.readouterr().err == f"binep: {run}: another process trains here\n"
    seen: list[bool] = []
    real = runs.resume

    def seeing(folder: Path, *arguments: Any, **settings: Any) -> Any:
        seen.append(locked_elsewhere(folder))
        return real(folder, *arguments, **settings)

    monkeypatch.setattr(runs, "resume", seeing)
    assert cli.main(["train", "--resume", str(run)]) == 0
    assert seen == [True]
    assert not locked_elsewhere(run)


def test_what_another_has_trained_meanwhile_is_kept(run: Path) -> None:
    slow, rows = runs.resume(run)
    quick, others = runs.resume(run)
    runs.train(quick, run, rows=others)
    whole = {p.name: p.read_bytes() for p in run.iterdir()}
    for late in (slow, Experiment(CONFIG)):
        with refused(run, "is of epoch 3, batch 0", "resume it from there"):
            runs.train(late, run, rows=rows)
    assert {p.name: p.read_bytes() for p in run.iterdir()} == whole


def test_deleting_the_lock_lets_nobody_in(run: Path) -> None:
    with files.locked(run):
        (run / ".lock").unlink()
        assert locked_elsewhere(run)
        assert not (run / ".lock").exists()


def test_a_lock_that_is_a_link_is_refused_and_its_target_whole(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    (run / ".lock").unlink()
    (run / ".lock").symlink_to(target)
    with refused(run / ".lock", "a link, not a file"), files.locked(run):
        pass
    (run / ".lock").unlink()
    os.link(target, run / ".lock")
    with files.locked(run):
        assert target.read_text() == "precious"


def test_a_log_is_not_written_through_a_link(run: Path, tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    (run / "log.txt").unlink()
    (run / "log.txt").symlink_to(tmp_path / "log")
    experiment, rows = runs.resume(run)
    with refused(run / "log.txt", "a link"):
        runs.train(experiment, run, rows=rows)
    assert (tmp_path / "log").read_text() == ""


COMMANDS = ("train --resume", "evaluate", "plot", "report", "inspect")
READ = {
    "config.toml": COMMANDS,
    "metrics.csv": ("plot", "report"),
    "environment.json": ("report",),
    "model.safetensors": ("evaluate",),
    CHECKPOINT: ("train --resume", "inspect"),
    "log.txt": ("train --resume",),
    ".lock": ("train --resume",),
}


@pytest.mark.parametrize("kind", ["fifo", "device"])
@pytest.mark.parametrize("name", READ)
def test_what_is_no_file_is_refused_at_once(
    run: Path,
    name: str,
    kind: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(run.parent)
    (run / name).unlink()
    if kind == "fifo":
        os.mkfifo(run / name)
    else:
        (run / name).symlink_to("/dev/zero")
    for command in READ[name]:
        with time_limit(20):
            assert cli.main([*command.split(), str(run)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"binep: {run}")
        assert said.count("\n") == 1
    assert not stat.S_ISREG((run / name).stat().st_mode)


def test_data_in_a_fifo_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            os.mkfifo(raw / f"{part}-{kind}-ubyte")
    line = f"train quickstart --dataset mnist --data-dir {tmp_path} --run-dir {tmp_path}/run"
    with time_limit(20):
        assert cli.main(line.split()) == 2
    assert "a FIFO, not a file" in capsys.readouterr().err


# ---- killed before it had begun


@pytest.mark.parametrize("left", [(), (".lock",), (".lock", ".config.toml.77.tmp")])
def test_a_folder_of_nothing_but_a_lock_is_new(tmp_path: Path, left: tuple[str, ...]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in left:
        (folder / name).touch()
    flags = "--layers.1.size 8 --max-batches 1 --epochs 1 --threads 1"
    assert cli.main(["train", "quickstart", *flags.split(), "--run-dir", str(folder)]) == 0
    assert not (folder / ".config.toml.77.tmp").exists()


def test_a_row_that_was_killed_at_once_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "reproduced" / "quickstart" / "seed0"
    folder.mkdir(parents=True)
    (folder / ".lock").touch()
    small = CONFIG.replace(epochs=1)
    monkeypatch.setattr("binep.cli.reproduce._jobs", lambda options: {folder: small})
    monkeypatch.setattr("binep.cli.reproduce._print_rows", lambda *_: None)
    monkeypatch.setattr("binep.analysis.tables.page", lambda root: "")
    assert cli.main(["reproduce", "quickstart"]) == 0
    assert settings.read_config(folder) == small


@pytest.mark.parametrize(
    "name", ["notes.txt", ".mine.tmp", ".notes.txt.1.tmp", ".checkpoint.safetensors.old.tmp"]
)
def test_what_is_not_ours_is_neither_overlooked_nor_deleted(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    (tmp_path / ".model.safetensors.1.tmp").mkdir()
    with refused(tmp_path, "holds files already"):
        claimed(tmp_path)
    files.remove_leftovers(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {name, ".model.safetensors.1.tmp"}


# ---- file systems without locks

NO_LOCKS = ["ENOSYS", "ENOLCK", "EOPNOTSUPP", "EIO"]


def without_locks(patch: pytest.MonkeyPatch, name: str) -> None:
    import fcntl

    def flock(descriptor: int, how: int) -> None:
        number = getattr(errno, name)
        raise OSError(number, os.strerror(number))

    patch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("name", NO_LOCKS)
def test_without_locks_a_file_keeps_others_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    without_locks(monkeypatch, name)
    reason = os.strerror(getattr(errno, name))
    said: list[str] = []
    runs.train(Experiment(CONFIG), claimed(tmp_path / "run"), warn=said.append)
    line = said[0]
    assert line.startswith(f"{tmp_path / 'run'}: no locks on this file system ({reason}): ")
    assert line in (tmp_path / "run" / "log.txt").read_text()
    assert not (tmp_path / "run" / ".lock.soft").exists()
    with files.locked(tmp_path / "run") as lock:
        assert lock.note == line
        with refused(tmp_path / "run", "another process trains here; if none does, on any"):
            lock_and_leave(tmp_path / "run")


def test_the_file_of_a_killed_process_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch, "ENOLCK")
    with files.locked(tmp_path):
        held = (tmp_path / ".lock.soft").read_bytes()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    lines = held.split(b"\n")
    lines[0] = str(gone.pid).encode()
    (tmp_path / ".lock.soft").write_bytes(b"\n".join(lines))
    with files.locked(tmp_path) as lock:
        assert lock.note


def test_windows_locks_the_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    with files.locked(tmp_path), refused(tmp_path, "another process trains here"):
        lock_and_leave(tmp_path)


def test_another_error_of_a_lock_is_no_other_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(filelock, "FileLock", full)
    with refused(tmp_path, os.strerror(errno.ENOSPC)), files.locked(tmp_path):
        pass
    with pytest.raises(RunError, match="cannot be written: No such file"):
        lock_and_leave(tmp_path / "nowhere")
