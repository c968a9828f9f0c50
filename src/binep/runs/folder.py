"""A run's folder: everything that explains a training run, repeats it and resumes it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from binep.experiment.config import Config
from binep.experiment.experiment import EpochResult, Experiment
from binep.experiment.training import Meter
from binep.experiment.warnings import Guards
from binep.runs.checkpoints import (
    CHECKPOINT,
    Checkpoint,
    load_network,
    read_checkpoint,
    save_network,
    write_checkpoint,
)
from binep.runs.environment import environment
from binep.runs.files import RunError, locked, make_folder, remove_leftovers, write
from binep.runs.metrics import Row, row_of, table
from binep.runs.settings import read_config


def new_folder(name: str, seed: int, root: Path = Path("runs")) -> Path:
    """Make runs/<name>/<time>-<seed>, with a number behind it where that is taken."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{seed}"
    parent, attempt = root / name, 1
    make_folder(parent)
    try:
        while True:
            folder = parent / (stem if attempt == 1 else f"{stem}-{attempt}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder
            attempt += 1
    except OSError as error:
        raise RunError(f"{parent}: cannot be made: {error.strerror}") from error


def claim_folder(folder: Path) -> Path:
    """Make a folder of the user's choice, which must be new or empty."""
    make_folder(folder)
    try:
        if any(folder.iterdir()):
            raise RunError(f"{folder}: holds files already: name a new or empty folder")
    except OSError as error:
        raise RunError(f"{folder}: cannot be made: {error.strerror}") from error
    return folder


class Stopped(Exception):  # noqa: N818
    """Training was stopped by `stop`, after it had saved a checkpoint."""


def train(
    experiment: Experiment,
    folder: Path,
    *,
    rows: Sequence[Row] = (),
    after_batch: Callable[[Meter], None] | None = None,
    after_epoch: Callable[[EpochResult], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    warn: Callable[[str], None] = lambda text: None,
    guards: Guards | None = None,
) -> list[Row]:
    """Run an experiment to its last epoch and keep its folder up to date after each.

    The checkpoint is written last: whatever files a killed run leaves, `resume` continues from the
    checkpoint, and the other files are written again after the next epoch.

    Args:
        experiment: the experiment, new or restored.
        folder: an empty folder, or the experiment's own.
        rows: rows of metrics.csv so far.
        after_batch: called during training with the scores so far.
        after_epoch: called after each epoch.
        stop: called after each batch; True saves a checkpoint and stops.
        warn: called with each warning; log.txt has them, too.
        guards: what was warned of before.

    Returns:
        The rows of metrics.csv.

    Raises:
        Stopped: because `stop` returned True.
        RunError: a file could not be written, or the experiment's parts are no longer those of
            its configuration; the checkpoint before is whole.
    """
    recorder = _Recorder(experiment, folder, list(rows), guards or Guards())

    def between_batches(meter: Meter) -> None:
        if after_batch is not None:
            after_batch(meter)
        if stop():
            recorder.stopped()
            raise Stopped
        recorder.save_if_due()

    with locked(folder):
        recorder.begin()
        while experiment.epoch < experiment.config.epochs:
            result = experiment.train_epoch(between_batches, warn=lambda text: None)
            for text in recorder.warnings(result):
                warn(text)
            recorder.record(result)
            if after_epoch is not None:
                after_epoch(result)
    return recorder.rows


class _Recorder:
    """Writes the files of a run folder while its experiment trains."""

    def __init__(
        self, experiment: Experiment, folder: Path, rows: list[Row], guards: Guards
    ) -> None:
        self.experiment, self.folder = experiment, folder
        self._check_parts()
        self.rows, self.guards = rows, guards
        self.saved = time.monotonic()

    def begin(self) -> None:
        """Log the start; write what does not change during a run, where it is missing."""
        experiment, config = self.experiment, self.experiment.config
        remove_leftovers(self.folder)
        if not (self.folder / "config.toml").exists():
            write(self.folder / "config.toml", config.to_toml().encode())
        if experiment.epoch < config.epochs:
            place = f"epoch {experiment.epoch + 1}, batch {experiment.batch + 1}"
            self._log(f"binep {version('binep')} starts at {place} on {experiment.device}")
        if not self.rows and not experiment.batch:
            self.save()
            about = json.dumps(environment(experiment), indent=2) + "\n"
            write(self.folder / "environment.json", about.encode())

    def _check_parts(self) -> None:
        """Refuse to write what config.toml would describe as something else."""
        if changed := self.experiment.changed():
            raise RunError(
                f"{self.folder}: cannot keep this experiment: {changed}; a configuration names "
                "parts of one's own (docs/extending.md), and makes a new Experiment"
            )

    def save(self) -> None:
        """Write the checkpoint."""
        self._check_parts()
        checkpoint = Checkpoint(self.experiment.state(), self.rows, self.guards.known)
        write_checkpoint(self.folder, self.experiment.config, checkpoint)
        self.saved = time.monotonic()

    def save_if_due(self) -> None:
        """Write the checkpoint where the last one is older than ``checkpoint_minutes``."""
        if time.monotonic() - self.saved > 60 * self.experiment.config.checkpoint_minutes:
            self.save()

    def stopped(self) -> None:
        """Write the checkpoint and log that training stops in the midst of an epoch."""
        self.save()
        self._log(f"stopped in epoch {self.experiment.epoch + 1}, batch {self.experiment.batch}")

    def warnings(self, result: EpochResult) -> list[str]:
        """Texts of the warnings that an epoch is the first to give cause for, logged."""
        new = self.guards.look(self.experiment, result)
        for text in new:
            self._log(f"epoch {result.epoch}: warning: {text}")
        return new

    def record(self, result: EpochResult) -> None:
        """Write what an epoch's end changes, the checkpoint last."""
        self.rows.append(row_of(result))
        write(self.folder / "metrics.csv", table(self.rows).encode())
        save_network(self.experiment.network, self.folder / "model.safetensors")
        if result.test.error <= min(row["test_error"] or 0 for row in self.rows):
            save_network(self.experiment.network, self.folder / "best.safetensors")
        write(self.folder / "curves.png", _curves(self.rows))
        self.save()

    def _log(self, text: str) -> None:
        """Add a line to log.txt."""
        path = self.folder / "log.txt"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}\n")
        except OSError as error:
            raise RunError(f"{path}: cannot be written: {error.strerror}") from error


def _curves(rows: Sequence[Row]) -> bytes:
    """The content of curves.png."""
    # An experiment that is not recorded does without matplotlib.
    from binep.runs import curves

    return curves.rendered(curves.curves([rows]))


def resume(folder: Path) -> tuple[Experiment, list[Row], Guards]:
    """What `train` continues from: the experiment at its checkpoint, rows and guards.

    Raises:
        RunError: the checkpoint is damaged, of another configuration, or gone.
        ConfigError: config.toml cannot be read.
    """
    config = read_config(folder)
    if not (folder / CHECKPOINT).exists():
        if (folder / "metrics.csv").exists():
            raise RunError(
                f"{folder}: holds a log, but no {CHECKPOINT} to go on from; "
                f"binep train --config {folder} runs it again elsewhere"
            )
        return Experiment(config), [], Guards()  # killed before the first one was there
    checkpoint = read_checkpoint(folder, config)
    experiment = _restored(folder, config, checkpoint)
    return experiment, checkpoint.rows, Guards(checkpoint.warned)


def _restored(folder: Path, config: Config, checkpoint: Checkpoint) -> Experiment:
    experiment = Experiment(config)
    try:
        experiment.restore(checkpoint.state)
        if len(checkpoint.rows) != experiment.epoch:
            raise ValueError(
                f"its rows are of {len(checkpoint.rows)} epochs, its progress of {experiment.epoch}"
            )
    except ValueError as error:
        raise RunError(f"{folder / CHECKPOINT}: {error}") from None
    return experiment


def load(folder: Path, **overrides: Any) -> Experiment:
    """The experiment of a run folder with its trained network.

    Args:
        folder: the run folder.
        overrides: settings of `Config` to replace, such as device.

    Raises:
        RunError: a file of the folder is missing or damaged.
        ConfigError: config.toml is missing or damaged.
    """
    config = read_config(folder)
    if not (folder / "model.safetensors").exists():
        raise RunError(f"{folder}: no epoch has ended yet: it holds no model.safetensors")
    experiment = Experiment(config.replace(**overrides))
    load_network(experiment.network, folder / "model.safetensors")
    return experiment


def load_checkpoint(folder: Path, **overrides: Any) -> Experiment:
    """The experiment of a run folder at its checkpoint, also of one that still trains.

    Args:
        folder: the run folder.
        overrides: settings of `Config` to replace, such as device.

    Raises:
        RunError: the checkpoint is missing or damaged, or of another configuration.
        ConfigError: config.toml cannot be read.
    """
    config = read_config(folder)
    checkpoint = read_checkpoint(folder, config)
    return _restored(folder, config.replace(**overrides), checkpoint)
