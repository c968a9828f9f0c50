"""A run's folder: everything that explains a training run, repeats it and resumes it."""

from __future__ import annotations

import contextlib
import gc
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from binep.data.sources import SOURCES, Files
from binep.experiment.config import Config, ConfigError, differing
from binep.experiment.experiment import EpochResult, Experiment, stored
from binep.experiment.training import Meter
from binep.experiment.warnings import Guards
from binep.experiment.workers import ALONE, Alone
from binep.runs import start
from binep.runs.checkpoints import (
    CHECKPOINT,
    Checkpoint,
    load_network,
    place_of,
    read_checkpoint,
    same_data,
    save_network,
    summary_of,
    write_checkpoint,
)
from binep.runs.environment import changed, described, environment, read_environment
from binep.runs.files import (
    Lock,
    RunError,
    append,
    is_unused,
    locked,
    make_folder,
    read,
    remove_leftovers,
    write,
)
from binep.runs.metrics import Row, checkpointed, row_of, table
from binep.runs.settings import continued, past, read_config

_LONG, _APART = 1.0, 9.0
"""Where a checkpoint takes longer than this many seconds to write, as of a wide network that a GPU
trains in seconds an epoch, the next one is this many times as long away, or at the end. So is the
next curves.png, which takes a second."""


def new_folder(name: str, seed: int, root: Path = Path("runs")) -> Path:
    """Make runs/<name>/<time>-<seed>, with a number behind it where that is taken.

    Where runs/<name> is a run itself, the folder is runs/<name>-again.
    """
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{seed}"
    parent, attempt = root / name, 1
    while (parent / "config.toml").exists():
        parent = parent.with_name(f"{parent.name}-again")
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
    """Make a folder of the user's choice, which must be new or empty.

    It may hold what a training leaves that was killed before it had written its settings.
    """
    make_folder(folder)
    try:
        if not is_unused(folder):
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
    lock: Lock | None = None,
    begun_from: Mapping[str, Tensor] | None = None,
) -> list[Row]:
    """Run an experiment to its last epoch and keep its folder up to date.

    The checkpoint is written last: whatever files a killed run leaves, `resume` continues from the
    checkpoint, and the other files are written again after the next epoch. A tenth of the time at
    most goes into checkpoints that take long.

    Args:
        experiment: the experiment, new or restored.
        folder: an empty folder, or the experiment's own.
        rows: rows of metrics.csv so far.
        after_batch: called during training with the scores so far.
        after_epoch: called after each epoch.
        stop: called after each batch; True saves a checkpoint and stops.
        warn: called with each warning; log.txt has them, too.
        lock: of the folder, where it is held since before `resume`; None locks it here.
        begun_from: what a new experiment starts from (`binep.runs.start`), to be kept.

    Returns:
        The rows of metrics.csv.

    Raises:
        Stopped: because `stop` returned True.
        RunError: a file could not be written, and the checkpoint before is whole; another process
            trains there; the folder's checkpoint is not where the experiment is; or its parts are
            no longer those of its configuration.
    """
    recorder = _Recorder(experiment, folder, list(rows), begun_from)

    def between_batches(meter: Meter) -> None:
        if after_batch is not None:
            after_batch(meter)
        if stop():
            recorder.stopped(warn)
            raise Stopped
        recorder.save_if_due(warn)

    with locked(folder) if lock is None else contextlib.nullcontext(lock) as held:
        for text in recorder.begin(held.note):
            warn(text)
        while experiment.epoch < experiment.config.epochs:
            new: list[str] = []
            result = experiment.train_epoch(between_batches, warn=new.append)
            for text in (*new, *recorder.record(result, new)):
                warn(text)
            if after_epoch is not None:
                after_epoch(result)
    return recorder.rows


class _Recorder:
    """Writes the files of a run folder while its experiment trains."""

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        rows: list[Row],
        begun_from: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.start = begun_from
        self.experiment, self.folder = experiment, folder
        self._check_parts()
        self.rows = rows
        self.saved, self.took = time.monotonic(), 0.0
        self.networks: dict[str, dict[str, Tensor]] = {}
        """Of the last epochs' ends, by the name of the file, that are still to be written."""
        self.undrawn = ""
        self.drawn = len(rows) if (folder / "curves.png").exists() else 0
        self.drew, self.drawing = time.monotonic(), 0.0
        """Rows that curves.png has, as far as known, when it was drawn, and how long that took."""

    def begin(self, note: str) -> list[str]:
        """Log the start, and write what does not change during a run, where it is missing.

        Args:
            note: what is not as usual about the lock, or "".

        Returns:
            Warnings, logged.
        """
        experiment, config = self.experiment, self.experiment.config
        self._check_place()
        remove_leftovers(self.folder)
        if not (self.folder / "config.toml").exists():
            if self.start is not None:
                start.write(self.folder, self.start)
            write(self.folder / "config.toml", config.to_toml().encode())
        elif experiment.epoch < config.epochs:
            self._change_settings()
        self._mend_metrics()
        notes = [note] if note else []
        if experiment.epoch < config.epochs:
            notes += [*self._record_environment(), *experiment.guards.before(experiment)]
        for text in notes:
            self._log(f"warning: {text}")
        return notes

    def _change_settings(self) -> None:
        """Write the settings that the run goes on with, and log them, where they are others.

        Raises:
            RunError: they are another run's.
        """
        held, config = read_config(self.folder), self.experiment.config
        if others := differing(past(held), past(config)):
            raise RunError(
                f"{self.folder}: holds a run of other settings: {', '.join(others)}: name a new "
                "folder"
            )
        if changed := differing(held, config):
            self._log(f"goes on with other settings: {', '.join(changed)}")
            write(self.folder / "config.toml", config.to_toml().encode())

    def _record_environment(self) -> list[str]:
        """Log what training starts or goes on with, and add it to environment.json.

        Returns:
            Warnings: what changed since, and a file that could not be read.
        """
        experiment, path, notes = self.experiment, self.folder / "environment.json", []
        place = f"epoch {experiment.epoch + 1}, batch {experiment.batch + 1}"
        now = about = environment(experiment)
        data = experiment.data
        self._log(f"starts at {place} on {experiment.device}: {described(now)}")
        self._log(f"learns {data.name}: {summary_of(data.identity)}")
        if self.rows or experiment.batch:
            try:
                about = read_environment(self.folder)
            except RunError as error:
                notes, about = [f"{error}: begun anew"], {}
            earlier = about.get("resumed", [])
            if other := changed([about, *earlier][-1], now):
                notes.append(f"{other}: the bits may be others than those of one uninterrupted run")
            about = {**about, "resumed": [*earlier, {"at": place, **now}]}
        else:
            self.save()
        write(path, (json.dumps(about, indent=2) + "\n").encode())
        return notes

    def _check_place(self) -> None:
        """Refuse to go back over what another process has trained since the checkpoint was read."""
        held = place_of(self.folder)
        if held is None:
            _check_unlogged(self.folder)
        if held not in (None, (self.experiment.epoch, self.experiment.batch)):
            epoch, batch = held
            raise RunError(
                f"{self.folder}: its {CHECKPOINT} is of epoch {epoch + 1}, batch {batch}, and this "
                f"experiment at epoch {self.experiment.epoch + 1}, batch {self.experiment.batch}: "
                "resume it from there, or name a new folder"
            )

    def _check_parts(self) -> None:
        """Refuse to write what config.toml would describe as something else."""
        if changed := self.experiment.changed():
            raise RunError(
                f"{self.folder}: cannot keep this experiment: {changed}; a configuration names "
                "parts of one's own (docs/extending.md), and makes a new Experiment"
            )

    def save(self, last: bool = False) -> list[str]:
        """Write what the last epochs' ends have changed, then the checkpoint; warnings, logged.

        Args:
            last: nothing is written after it.
        """
        self._check_parts()
        data, notes = self.experiment.data.identity, []
        if self.networks:
            write(self.folder / "metrics.csv", table(self.rows).encode())
            for name, network in self.networks.items():
                save_network(network, self.folder / f"{name}.safetensors", data)
        soon = time.monotonic() - self.drew < _APART * self.drawing
        if self.drawn < len(self.rows) and (last or not soon):
            notes = self._draw()
        begun = time.monotonic()
        checkpoint = Checkpoint(
            self.experiment.state(), self.rows, self.experiment.guards.known, data
        )
        write_checkpoint(self.folder, self.experiment.config, checkpoint)
        self.networks = {}
        self.saved = time.monotonic()
        self.took = self.saved - begun
        return notes

    def save_if_due(self, warn: Callable[[str], None]) -> None:
        """Save where the last checkpoint is older than ``checkpoint_minutes``."""
        late = time.monotonic() - self.saved > 60 * self.experiment.config.checkpoint_minutes
        if self.experiment.workers.is_due(late):
            for text in self.save():
                warn(text)

    def stopped(self, warn: Callable[[str], None]) -> None:
        """Save and log that training stops in the midst of an epoch."""
        for text in self.save(last=True):
            warn(text)
        self._log(f"stopped in epoch {self.experiment.epoch + 1}, batch {self.experiment.batch}")

    def _mend_metrics(self) -> None:
        """Write metrics.csv from the checkpoint's rows, where it is something else."""
        held = checkpointed(self.folder)
        if not held:
            return
        path, content = self.folder / "metrics.csv", table(held).encode()
        with contextlib.suppress(RunError):
            if read(path) == content:
                return
        write(path, content)

    def record(self, result: EpochResult, warned: Sequence[str]) -> list[str]:
        """Keep what an epoch's end changes, and write it if it is time.

        Args:
            result: of the epoch.
            warned: what it gave cause to warn of, to be logged.

        Returns:
            More warnings, logged.
        """
        experiment = self.experiment
        for text in warned:
            self._log(f"epoch {result.epoch}: warning: {text}")
        self.rows.append(row_of(result))
        network = {name: part.clone() for name, part in stored(experiment.network).items()}
        self.networks["model"] = network
        judged = "test_error" if result.valid is None else "valid_error"
        if self.rows[-1][judged] == min(row[judged] or 0 for row in self.rows):
            self.networks["best"] = network
        wait = _APART * self.took if self.took > _LONG else 0
        late = time.monotonic() - self.saved >= wait
        ended = experiment.epoch == experiment.config.epochs
        if experiment.workers.is_due(late or ended):
            return self.save(last=ended)
        return []

    def _draw(self) -> list[str]:
        """Write curves.png; where it cannot be drawn, a warning, once, which stops no training."""
        begun, self.drawn = time.monotonic(), len(self.rows)
        content, note = b"", ""
        try:
            content = _curves(self.rows)
        except Exception as error:  # matplotlib's, on which the user's own settings have a say
            note = f"curves.png cannot be drawn: {str(error).split(chr(10))[0]}"
        self.drew = time.monotonic()
        self.drawing = self.drew - begun
        if not note:
            write(self.folder / "curves.png", content)
        elif not self.undrawn:
            self.undrawn = note
            self._log(f"warning: {note}")
            return [note]
        return []

    def _log(self, text: str) -> None:
        """Add a line to log.txt."""
        append(self.folder / "log.txt", f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}")


def _check_unlogged(folder: Path) -> None:
    """Refuse to write over the log of a run that has no checkpoint."""
    if (folder / "metrics.csv").exists():
        raise RunError(
            f"{folder}: holds a log, but no {CHECKPOINT} to go on from; "
            f"binep train --config {folder} runs it again elsewhere"
        )


def _curves(rows: Sequence[Row]) -> bytes:
    """The content of curves.png."""
    # An experiment that is not recorded does without matplotlib.
    from binep.runs import curves

    # A figure is a cycle of references with megabytes in it. Made while nothing is collected, it is
    # all of the youngest generation, and freed at once.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return curves.rendered(curves.curves([rows]))
    finally:
        gc.collect(0)
        if collecting:
            gc.enable()


def resume(
    folder: Path,
    warn: Callable[[str], None] = lambda text: None,
    data: Sequence[Any] | None = None,
    workers: Alone = ALONE,
    **changes: Any,
) -> tuple[Experiment, list[Row]]:
    """What `train` continues from: the experiment at its checkpoint, and the rows of metrics.csv.

    Args:
        folder: the run folder.
        warn: called where a checkpoint is too old to say what data it was trained on.
        data: the arrays, of a run that got them from Python; see `Experiment`.
        workers: that train together; they may be others than before.
        changes: settings of `binep.runs.settings.GOES_ON` to go on with; `train` writes them into
            config.toml. With more epochs a run ends with the bits of one that was planned so long.

    Raises:
        RunError: the checkpoint is damaged, of another configuration, or gone.
        DataError: the data set is another than the one that the run has been trained on.
        ConfigError: config.toml cannot be read, a setting that cannot change, or fewer epochs than
            have been trained.
    """
    held = read_config(folder)
    config = continued(held, **changes)
    if not (folder / CHECKPOINT).exists():
        _check_unlogged(folder)
        # It was killed before the first one was there.
        experiment = _experiment(folder, config, data, workers)
        if config.start is not None:
            start.begin(experiment, start.read(folder, config), folder)
        return experiment, []
    checkpoint = read_checkpoint(folder, config)
    if held.epochs != config.epochs < checkpoint.begun:
        raise ConfigError(
            f"epochs = {config.epochs}: must be at least {checkpoint.begun}, "
            "which the run has begun"
        )
    experiment = _restored(folder, config, checkpoint, warn, data, workers)
    experiment.guards = Guards(checkpoint.warned)
    return experiment, checkpoint.rows


def _restored(
    folder: Path,
    config: Config,
    checkpoint: Checkpoint,
    warn: Callable[[str], None],
    data: Sequence[Any] | None,
    workers: Alone = ALONE,
) -> Experiment:
    experiment = _experiment(folder, config, data, workers)
    if note := same_data(folder / CHECKPOINT, checkpoint.data, experiment.data):
        warn(note)
    try:
        experiment.restore(checkpoint.state)
        if len(checkpoint.rows) != experiment.epoch:
            raise ValueError(
                f"its rows are of {len(checkpoint.rows)} epochs, its progress of {experiment.epoch}"
            )
    except ValueError as error:
        raise RunError(f"{folder / CHECKPOINT}: {error}") from None
    return experiment


def _experiment(
    folder: Path,
    config: Config,
    data: Sequence[Any] | None,
    workers: Alone = ALONE,
) -> Experiment:
    """The experiment of a run folder, whose data are not looked for in a folder beside others.

    Older versions kept a data folder as it was called where the run was started.
    """
    place = config.data_dir
    files = config.dataset in SOURCES and isinstance(config.source(), Files)
    if files and place is not None and not place.expanduser().is_absolute() and not place.is_dir():
        raise RunError(
            f"{folder / 'config.toml'}: data_dir = {place}: there is no such folder in "
            f"{Path.cwd()}: go to where the run was started, or give its path with --data-dir"
        )
    return Experiment(config, data, workers)


def load(
    folder: Path,
    *,
    warn: Callable[[str], None] = lambda text: None,
    data: Sequence[Any] | None = None,
    **overrides: Any,
) -> Experiment:
    """The experiment of a run folder with its trained network.

    Args:
        folder: the run folder.
        warn: called where it is too old to say what data it was trained on.
        data: the arrays, of a run that got them from Python; see `Experiment`.
        overrides: settings of `Config` to replace, such as device.

    Raises:
        RunError: a file of the folder is missing or damaged.
        DataError: the data set is another than the run's, and was not named in the overrides.
        ConfigError: config.toml is missing or damaged.
    """
    config = read_config(folder)
    if not (folder / "model.safetensors").exists():
        raise RunError(f"{folder}: no epoch has ended yet: it holds no model.safetensors")
    experiment = _experiment(folder, config.replace(**overrides), data)
    held = load_network(experiment.network, folder / "model.safetensors")
    experiment.started = True
    other = "dataset" in overrides  # another was asked for
    if not other and (note := same_data(folder / "model.safetensors", held, experiment.data)):
        warn(note)
    return experiment


def load_checkpoint(
    folder: Path,
    *,
    warn: Callable[[str], None] = lambda text: None,
    **overrides: Any,
) -> Experiment:
    """The experiment of a run folder at its checkpoint, also of one that still trains.

    Args:
        folder: the run folder.
        warn: called where it is too old to say what data it was trained on.
        overrides: settings of `Config` to replace, such as device.

    Raises:
        RunError: the checkpoint is missing or damaged, or of another configuration.
        DataError: the data set is another than the run's.
        ConfigError: config.toml cannot be read.
    """
    config = read_config(folder)
    checkpoint = read_checkpoint(folder, config)
    return _restored(folder, config.replace(**overrides), checkpoint, warn, None)
