"""What asks a training to stop saves it, and its exit code says what asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from binep.__main__ import run
from binep.cli import main as cli
from binep.cli import training
from binep.cli.progress import Reporter
from binep.runs import folder as runs

LINE = "train quickstart --layers.1.size 8 --max-batches 4 --threads 1 --epochs 2 --run-dir run"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def asked_after_a_batch(patch: pytest.MonkeyPatch, *numbers: int) -> None:
    """Send these signals to this process after each batch."""

    def send(*_: object) -> None:
        for number in numbers:
            os.kill(os.getpid(), number)

    patch.setattr(Reporter, "after_batch", send)


@pytest.mark.parametrize("name", training.SIGNALS)
def test_a_signal_saves_and_gives_its_exit_code(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    asked_after_a_batch(monkeypatch, number)
    with pytest.raises(SystemExit) as exit:
        cli.main(LINE.split())
    assert exit.value.code == 128 + number
    assert "go on with: binep train --resume run" in capsys.readouterr().out
    experiment, _ = runs.resume(Path("run"))
    assert (experiment.epoch, experiment.batch) == (0, 1)
    assert signal.getsignal(number) == before


def test_a_terminals_end_comes_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_after_a_batch(monkeypatch, signal.SIGHUP, signal.SIGHUP, signal.SIGTERM)
    with pytest.raises(SystemExit) as exit:
        cli.main(LINE.split())
    assert exit.value.code == 128 + signal.SIGHUP


def test_a_second_ctrl_c_ends_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked_after_a_batch(monkeypatch, signal.SIGINT, signal.SIGINT)
    with pytest.raises(SystemExit) as exit:
        cli.main(LINE.split())
    assert exit.value.code == 128 + signal.SIGINT
    assert capsys.readouterr().err == "binep: interrupted\n"


def test_what_is_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under nohup."""
    asked_after_a_batch(monkeypatch, signal.SIGHUP)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert cli.main(LINE.split()) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert runs.resume(Path("run"))[0].epoch == 2


def test_a_terminal_that_is_closed_ends_no_training() -> None:
    """One that sends no signal, as of a process in another session."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "binep", *LINE.split()]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, start_new_session=True
    ) as process:
        os.close(theirs)
        os.read(ours, 1)
        os.close(ours)
    assert process.returncode == 0
    assert runs.resume(Path("run"))[0].epoch == 2


def test_ctrl_c_while_the_command_line_is_imported_ends_quietly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Interrupting:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "binep.cli.main":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "binep.cli.main")
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    assert run() == 128 + signal.SIGINT
