"""A run as a worker of a cluster trains it: from its start, or from where another left it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from binep.data.errors import DataError
from binep.experiment.config import Config, ConfigError
from binep.experiment.experiment import EpochResult, Experiment
from binep.runs import files
from binep.runs import folder as runs
from binep.runs.metrics import Row, row_of

PATIENCE = 90.0
"""Seconds to wait for the lock of a worker that was lost, which NFS may keep for a while."""


def placed(config: Config, cpus: int) -> Config:
    """A configuration that is the same on all machines: its data folder, and its threads.

    Args:
        config: what to run.
        cpus: that a run takes; as many threads, on which bits depend.

    Raises:
        ConfigError: another GPU than the first.
    """
    if config.device.startswith("cuda:") and config.device != "cuda:0":
        raise ConfigError(
            f"device = {config.device}: must be cuda: through Ray a run sees its own GPU alone"
        )
    place = config.data_dir or os.environ.get("BINEP_DATA")
    if place is not None:
        place = Path(os.path.abspath(Path(place).expanduser()))
    return config.replace(data_dir=place, threads=config.threads or cpus)


def train(
    folder: Path,
    config: Config,
    after_epoch: Callable[[Row], None] = lambda row: None,
    given: Collection[str] = (),
) -> None:
    """Train in a folder, from its start or from its checkpoint, to the bits of one training.

    Args:
        folder: of the run, on a file system that all machines share.
        config: its settings.
        after_epoch: called with each new row of metrics.csv, and first with the last old one.
        given: which of them a run that has begun goes on with, in the place of its own.

    Raises:
        ConfigError, DataError, RunError: the run cannot be trained.
        MemoryError: it does not fit.
    """
    files.make_folder(folder)
    with _locked(folder) as lock:
        if (folder / "config.toml").exists():
            changes = {name: getattr(config, name) for name in given}
            experiment, rows = runs.resume(folder, **changes)
        else:
            experiment, rows = Experiment(config), []
        for row in rows[-1:]:
            after_epoch(row)

        def report(result: EpochResult) -> None:
            after_epoch(row_of(result))

        runs.train(experiment, folder, rows=rows, lock=lock, after_epoch=report)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[files.Lock]:
    """The lock of a folder, for which a worker that was lost is waited."""
    end = time.monotonic() + PATIENCE
    with contextlib.ExitStack() as held:
        while True:
            try:
                lock = held.enter_context(files.locked(folder))
                break
            except files.BusyError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)
        yield lock


def reason(error: Exception) -> str:
    """Why a run cannot be trained, in a line: what is no error in the input goes by its class."""
    first = str(error).partition("\n")[0]
    known = isinstance(error, ConfigError | DataError | files.RunError)
    return first if known and first else f"{type(error).__name__}: {first}".removesuffix(": ")
