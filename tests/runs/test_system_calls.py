"""Killed at, or with an error from, each system call on files: the run ends with the same bits."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fuzzing
import pytest

from benchmarks.forked import Forks
from benchmarks.kills import differences
from benchmarks.kinds import KINDS
from binep.core.speed import SHORTCUTS, Speed

CHANGE = ("openat", "write", "fsync", "close", "rename", "unlink", "mkdir", "link", "flock")
READ = ("newfstatat", "fstat", "read", "getdents64", "pipe2", "statfs", "getcwd", "fcntl")
ERRORS = ("ENOSPC", "EIO", "EACCES", "EINTR")
Injected = tuple[str, int, str]
"""A system call, which of its kind, from 1, and what strace does with it."""


@dataclass
class Runs:
    """A run that nobody interrupts, and the same command again with something injected.

    Attributes:
        epochs: of the run that is gone on with; 0 begins one.
    """

    root: Path
    forks: Forks
    epochs: int

    def __post_init__(self) -> None:
        config = KINDS["real activations"].replace(
            max_batches=2, checkpoint_minutes=0, test_batch_size=1000, speed=Speed(off=SHORTCUTS)
        )
        self.root.mkdir()
        self.settings, self.gate = self.root / "settings.toml", self.root / "gate"
        self.settings.write_text(config.replace(epochs=self.epochs or 2).to_toml())
        os.mkfifo(self.gate)
        if self.epochs:
            assert self.go_on(self.root / "begun", begin=True)[0] == 0

    def go_on(self, run: Path, *inject: str, begin: bool = False) -> tuple[int, str]:
        """Exit code and output of a command that trains in a folder, under strace if asked."""
        words = ["--epochs", "2", "--resume", str(run)]
        if begin or not (run / "config.toml").exists():
            words = ["--config", str(self.settings), "--run-dir", str(run)]
        said = self.root / "said"
        with fuzzing.time_limit():
            number = self.forks.start(["train", *words], said, self.gate if inject else None)
            if inject:
                self.trace(number, inject)
            return self.forks.wait(), said.read_text()

    def trace(self, number: int, inject: tuple[str, ...]) -> None:
        """Let a waiting process go on under strace, whose log is in the file calls."""
        command = ["strace", "-p", str(number), "-o", str(self.root / "calls"), *inject]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
            assert strace.stderr is not None
            begins = strace.stderr.readline()
            self.gate.write_bytes(b"")
            if "attached" not in begins:
                pytest.skip(f"strace cannot be used here: {begins}")

    def calls(self) -> list[tuple[str, int]]:
        """System calls since the run folder is begun: each one's name, and which of its name."""
        run = self.folder("whole")
        assert self.go_on(run, "-e", f"trace={','.join(CHANGE + READ)}")[0] == 0
        counts: Counter[str] = Counter()
        found, begun = [], False
        for line in (self.root / "calls").read_text().splitlines():
            begun = begun or f'"{run}' in line
            if name := re.match(r"(\w+)\(", line):
                counts[name[1]] += 1
                if begun:
                    found.append((name[1], counts[name[1]]))
        return found

    def folder(self, name: str) -> Path:
        run = self.root / name
        shutil.rmtree(run, ignore_errors=True)
        if self.epochs:
            shutil.copytree(self.root / "begun", run)
        return run

    def inject(self, call: str, which: int, what: str) -> None:
        """Do the command with something injected, and go on to its end."""
        run = self.folder("injected")
        code, said = self.go_on(run, "-e", f"inject={call}:{what}:when={which}")
        assert "Traceback" not in said
        if what == "signal=SIGKILL":
            assert code == -9
        else:
            assert code in (0, 2), said
            lines = [line for line in said.splitlines() if line.startswith("binep: ")]
            assert len([line for line in lines if ": warning: " not in line]) == (code == 2), said
        if code:
            again, said = self.go_on(run)
            assert again == 0, said
            assert not list(run.glob(".*.tmp"))
        assert differences(run, self.root / "whole") == []


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    with Forks() as forks:
        yield forks


@pytest.mark.parametrize("epochs", [0, 1], ids=["new", "resumed"])
def test_killed_or_failing_at_any_system_call_it_ends_with_the_same_bits(
    tmp_path: Path, forks: Forks, epochs: int
) -> None:
    """A few of them; `make fuzz` takes them all."""
    runs = Runs(tmp_path / "runs", forks, epochs)
    calls = runs.calls()
    cases: list[Injected] = [(*call, "signal=SIGKILL") for call in calls if call[0] in CHANGE]
    cases += [(*call, f"error={name}") for call in calls for name in ERRORS]
    failed = []
    for case in cases if fuzzing.FACTOR > 1 else cases[:: len(cases) // 4]:
        try:
            runs.inject(*case)
        except AssertionError as error:
            failed.append(f"{case}: {error}")
    assert not failed, "\n\n".join(failed)
