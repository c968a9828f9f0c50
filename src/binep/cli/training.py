"""Training with its progress shown, as `train`, `reproduce` and the paper's command line do."""

from __future__ import annotations

import contextlib
import hashlib
import shlex
import signal
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from binep.cli.output import escaped, warn
from binep.cli.progress import Reporter
from binep.data.sources import Source
from binep.experiment import plugins
from binep.experiment.config import Config
from binep.experiment.experiment import EpochResult, Experiment
from binep.experiment.training import Meter
from binep.experiment.workers import ALONE, Alone, Workers
from binep.runs import files, metrics, start
from binep.runs import folder as runs
from binep.runs.checkpoints import summary_of
from binep.runs.environment import described, environment
from binep.runs.settings import read_config
from binep.runs.signals import handled
from binep.runs.tensorboard import Board

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
"""Ctrl-C, the ends of a machine and of a terminal, and what batch systems send before they kill."""


def run_training(
    config: Config,
    name: str,
    run_dir: Path | None,
    board: Board | None = None,
    begun_from: tuple[Path, Mapping[str, Tensor]] | None = None,
    source: Source | None = None,
    workers: Alone = ALONE,
) -> None:
    """Train, showing progress, and leave a run folder.

    Args:
        config: what to train.
        name: of the folder's folder below runs, if there is no `run_dir`.
        run_dir: the folder.
        board: shows the metrics in TensorBoard.
        begun_from: the run and the tensors of a trained network to start from.
        source: the data set, where it has been read already.
        workers: that train together, of which the first keeps the folder.
    """
    tensors = None
    if begun_from is not None:
        where, tensors = begun_from
        config = config.replace(start=start.identity(tensors))
    experiment = Experiment(config, source, workers)
    if tensors is not None:
        start.begin(experiment, tensors, where)
    if workers.rank:
        _follow(experiment)
        return
    folder = runs.claim_folder(run_dir) if run_dir else runs.new_folder(name, config.seed)
    with files.locked(folder) as lock:
        what = f"{config.summary(experiment.source)}: training on {experiment.device}"
        _train(experiment, lock, [], what, board, tensors)


def resume_training(
    folder: Path,
    board: Board | None = None,
    workers: Alone = ALONE,
    **changes: Any,
) -> None:
    """Resume a run with some settings changed, showing progress."""
    read_config(folder)  # what is no run folder is not locked
    if workers.rank:
        _follow(runs.resume(folder, workers=workers, **changes)[0])
        return
    with files.locked(folder) as lock:
        experiment, rows = runs.resume(folder, warn, workers=workers, **changes)
        place = f"going on at epoch {experiment.epoch + 1}, batch {experiment.batch + 1}"
        place += f" on {experiment.device}"
        if experiment.epoch == experiment.config.epochs:
            place = "has ended; nothing left to do without more --epochs"
        what = f"{experiment.config.summary(experiment.source)}: {place}"
        if experiment.epoch < experiment.config.epochs:
            print(escaped(f"{folder}: now {described(environment(experiment))}"))
        _train(experiment, lock, rows, what, board)


def run_or_resume(
    jobs: Mapping[Path, Config],
    given: Collection[str],
    tensorboard: bool = False,
    begun_from: tuple[Path, Mapping[str, Tensor]] | None = None,
) -> None:
    """Train in each of some folders, from its start or from where it was interrupted.

    Args:
        jobs: folder and settings of each run.
        given: which of them one that was interrupted goes on with, in the place of its own.
        tensorboard: whether to write the metrics for it, too.
        begun_from: see `run_training`.
    """
    for folder, config in jobs.items():
        board = Board() if tensorboard else None
        if (folder / "config.toml").exists():
            resume_training(folder, board, **{name: getattr(config, name) for name in given})
        else:
            run_training(config, folder.parent.name, folder, board, begun_from)


def _train(
    experiment: Experiment,
    lock: files.Lock,
    rows: Sequence[metrics.Row],
    what: str,
    board: Board | None,
    begun_from: Mapping[str, Tensor] | None = None,
) -> None:
    folder = lock.folder
    if board is not None:
        board.check(folder)
    print(escaped(f"{what}, run folder {folder}"), flush=True)
    stopped, workers = "", experiment.workers
    _check_agreement(experiment)
    so_far = list(rows)

    def after_epoch(result: EpochResult) -> None:
        reporter.after_epoch(result)
        so_far.append(metrics.row_of(result))
        if board is not None:
            board.show(folder, so_far)

    with (
        board or contextlib.nullcontext(),
        Reporter(experiment) as reporter,
        _stop_on_signals() as asked,
    ):
        try:
            rows = runs.train(
                experiment,
                folder,
                rows=rows,
                after_batch=reporter.after_batch,
                after_epoch=after_epoch,
                stop=lambda: _stopped_by(asked, workers),
                warn=reporter.warn,
                lock=lock,
                begun_from=begun_from,
            )
            if board is not None:  # of a run that had ended before
                board.show(folder, rows)
        except runs.Stopped:
            stopped = f"stopped in epoch {experiment.epoch + 1} after batch {experiment.batch}"
    if stopped:
        again = f"{shlex.quote(str(folder))}{plugins.flags(experiment.config.plugins)}"
        print(f"{stopped}; go on with: binep train --resume {again}")
        raise SystemExit(128 + asked[0])
    end = f"test error {rows[-1]['test_error']:.2f} % after epoch {len(rows)}"
    print(escaped(f"{end}; see {folder}"))


def _follow(experiment: Experiment) -> None:
    """Train with the first worker, which keeps the folder and shows progress.

    With split momenta all workers make each checkpoint together.
    """
    _check_agreement(experiment)

    def save() -> None:
        if experiment.workers.splits_momenta:
            experiment.state()

    def after_batch(meter: Meter) -> None:
        if _stopped_by(asked, experiment.workers):
            save()
            raise SystemExit(128 + asked[0])
        if experiment.workers.is_due(False):
            save()

    with _stop_on_signals() as asked:
        if experiment.epoch == experiment.batch == 0:
            save()
        while experiment.epoch < experiment.config.epochs:
            experiment.train_epoch(after_batch, warn=lambda text: None)
            if experiment.workers.is_due(False):
                save()


def _check_agreement(experiment: Experiment) -> None:
    """Refuse workers that differ in what they must agree on."""
    if not isinstance(experiment.workers, Workers):
        return
    about, config = environment(experiment), experiment.config
    shared = config.replace(data_dir=None, threads=None)
    facts = {
        "binep": f"{about['versions']['binep']}, revision {about['git_revision']}",
        "PyTorch": about["versions"]["torch"],
        "data": summary_of(experiment.data.identity),
        "--shard-momenta": str(experiment.workers.splits_momenta),
        "settings": hashlib.sha256(shared.to_toml().encode()).hexdigest()[:16],
        "place": f"epoch {experiment.epoch + 1}, batch {experiment.batch + 1}",
    }
    experiment.workers.check_agreement(facts)


def _stopped_by(asked: list[int], workers: Alone) -> bool:
    """Whether a signal has asked any worker to stop; its number is then the first asked."""
    number = workers.largest(asked[0] if asked else 0)
    if number and not asked:
        asked.append(number)
    return bool(number)


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[list[int]]:
    """The numbers of the signals that have asked training to stop.

    A second Ctrl-C or SIGTERM ends the process at once; a terminal's end comes twice by itself.
    """
    stop: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, before: Any) -> None:
        stop.append(number)
        if number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, before)

    with handled(SIGNALS, ask):
        yield stop
