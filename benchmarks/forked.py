"""Commands in processes of their own, without the seconds that importing PyTorch takes.

``python -m benchmarks.forked`` trains a batch without compiled loops, whose threads a forked
process would lack, and then forks for each command that it reads; see `Forks`.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any, NoReturn

from numba.core.registry import cpu_target

from benchmarks.kinds import KINDS
from binep.__main__ import run
from binep.core.speed import SHORTCUTS, Speed
from binep.experiment.experiment import Experiment
from binep.runs import folder as runs

_NEEDED = (
    *("binep.cli.main", "binep.cli.training", "binep.solvers.flips", "binep.solvers.inputs"),
    *(f"binep.solvers.{name}.engine" for name in ("digits", "events", "in_cache")),
)
"""What commands import while they work."""


class Forks:
    """A context with a process that forks one for each command of binep, one at a time."""

    def __enter__(self) -> Forks:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.forked"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # a forked process has no other threads
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._heard()
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.communicate()

    def start(self, arguments: list[str], said: Path, gate: Path | None = None) -> int:
        """Begin a command; its process number.

        Args:
            arguments: the words after binep.
            said: the file that its outputs are written into.
            gate: a FIFO, which it waits for somebody to open; None does not wait.
        """
        job = {"arguments": arguments, "said": str(said), "gate": gate and str(gate)}
        assert self.process.stdin is not None
        print(json.dumps(job), file=self.process.stdin, flush=True)
        self.number = self._heard()
        return self.number

    def wait(self, seconds: float = 120) -> int:
        """The exit code of the command that was begun last; the signal's, negative, if by one.

        Raises:
            TimeoutError: it has not ended in time, and was killed.
        """
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            os.kill(self.number, signal.SIGKILL)
            self._heard()
            raise TimeoutError(f"a command has not ended after {seconds:g} s")
        return os.waitstatus_to_exitcode(self._heard())

    def _heard(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


def _serve() -> None:
    """Say 0 when all is ready; then of each line's command its process number and its status."""
    for name in _NEEDED:
        importlib.import_module(name)
    cpu_target.target_context.refresh()  # numba imports then what loading a loop needs
    vars(runs)["_curves"] = lambda rows: b""  # half a second an epoch
    config = KINDS["real activations"].replace(max_batches=1, epochs=1, speed=Speed(off=SHORTCUTS))
    with tempfile.TemporaryDirectory() as scratch:
        runs.train(Experiment(config), Path(scratch), warn=lambda text: None)
    print(0, flush=True)
    for line in sys.stdin:
        number = os.fork()
        if number == 0:
            _command(**json.loads(line))
        print(number, flush=True)
        print(os.waitpid(number, 0)[1], flush=True)


def _command(arguments: list[str], said: str, gate: str | None) -> NoReturn:
    """Do a command as `python -m binep` does it."""
    nowhere = os.open(os.devnull, os.O_RDONLY)
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number, leads in enumerate((nowhere, file, file)):
        os.dup2(leads, number)
    os.close(nowhere)
    os.close(file)
    sys.argv = ["binep", *arguments]
    if gate is not None:
        Path(gate).read_bytes()
    code: Any = 1
    try:
        code = run()
    except SystemExit as exit:
        code = exit.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    _serve()
