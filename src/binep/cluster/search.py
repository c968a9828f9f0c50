"""Ray Tune: what draws the settings of trials, ends poor ones, and starts lost ones again."""

from __future__ import annotations

import math
import pickle
import signal
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import optuna
from ray import tune
from ray.tune.experiment import Trial as Job
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from binep.cluster import rays, runs, sweeps
from binep.cluster.sweeps import Sweep
from binep.experiment import plugins
from binep.runs.metrics import Row

STATE = "search"
"""The folder of what Ray Tune keeps of a sweep, below the sweep's."""
RETRIES = 20
"""Times that a trial is begun again after its worker or machine was lost."""


@dataclass(frozen=True)
class TrialStatus:
    """What has happened to a trial.

    Attributes:
        number: of the trial.
        values: of its settings, by name.
        state: "running", "ended", "ended early", "lost" (and begun again) or "failed".
        epochs: that have ended.
        error: on the validation set after the last of them, in percent; None before.
        why: of one that failed.
    """

    number: int
    values: dict[str, Any]
    state: str
    epochs: int = 0
    error: float | None = None
    why: str = ""


class Drawn(Searcher):
    """Settings that Optuna draws, each at all points of the grids, numbered.

    Optuna learns the mean error over the points.
    """

    def __init__(self, sweep: Sweep) -> None:
        super().__init__(metric="valid_error", mode="min")
        space = {s.name: s.distribution() for s in sweep.settings if s.kind != "grid"}
        self.optuna = (
            OptunaSearch(space, metric="valid_error", mode="min", seed=sweep.base.seed)
            if space
            else None
        )
        self.points = sweep.points
        self.count = 0
        self.values: dict[str, Any] = {}
        self.first: dict[str, str] = {}
        self.errors: dict[str, dict[str, float]] = {}

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """The number of a new trial and the values of its settings."""
        point = self.points[self.count % len(self.points)]
        if self.count % len(self.points) == 0:
            self.values = (self.optuna.suggest(trial_id) or {}) if self.optuna else {}
            self.errors[trial_id] = {}
        self.first[trial_id] = [*self.errors][-1]
        self.count += 1
        return {"number": self.count - 1, "values": {**self.values, **point}}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Hand the mean error to Optuna, once all points have one."""
        errors = self.errors[self.first[trial_id]]
        errors[trial_id] = (result or {}).get("valid_error", math.nan)
        if self.optuna is None or len(errors) < len(self.points):
            return
        known = [value for value in errors.values() if not math.isnan(value)]
        mean_result = {"valid_error": mean(known)} if known else None
        self.optuna.on_trial_complete(self.first[trial_id], mean_result, error=not known)

    def save(self, checkpoint_path: str) -> None:
        """Keep what it knows in a file."""
        Path(checkpoint_path).write_bytes(pickle.dumps(vars(self)))

    def restore(self, checkpoint_path: str) -> None:
        """Go on from what `save` kept."""
        vars(self).update(pickle.loads(Path(checkpoint_path).read_bytes()))


class _Watch(tune.Callback):
    """Hands on what happens to trials."""

    def __init__(self, show: Callable[[TrialStatus], None], epochs: int) -> None:
        self.show, self.epochs, self.began = show, epochs, False

    def _report(self, job: Job, state: str, why: str = "") -> None:
        last = job.last_result or {}
        epochs, error = int(last.get("epoch", 0)), last.get("valid_error")
        error = None if error is None or math.isnan(error) else error
        number, values = job.config["number"], job.config["values"]
        self.show(TrialStatus(number, values, state, epochs, error, why))

    def on_step_begin(self, iteration: int, trials: list[Job], **info: Any) -> None:
        if not self.began:  # of a sweep that goes on, those that had ended before
            self.began = True
            for job in trials:
                job.max_failures = job.run_metadata.num_failures + RETRIES
                if job.status == Job.TERMINATED:
                    self.on_trial_complete(iteration, trials, job)

    def on_trial_start(self, iteration: int, trials: list[Job], trial: Job, **info: Any) -> None:
        self._report(trial, "running")

    def on_trial_result(
        self, iteration: int, trials: list[Job], trial: Job, result: dict[str, Any], **info: Any
    ) -> None:
        if "failed" in result:
            trial.max_failures = 0  # begun again by --resume alone
        else:
            self._report(trial, "running")

    def on_trial_complete(self, iteration: int, trials: list[Job], trial: Job, **info: Any) -> None:
        early = (trial.last_result or {}).get("epoch", 0) < self.epochs
        self._report(trial, "ended early" if early else "ended")

    def on_trial_recover(self, iteration: int, trials: list[Job], trial: Job, **info: Any) -> None:
        self._report(trial, "lost")

    def on_trial_error(self, iteration: int, trials: list[Job], trial: Job, **info: Any) -> None:
        why = (trial.last_result or {}).get("failed")
        self._report(trial, "failed", why or f"its worker was lost {RETRIES + 1} times")


def _trainable(folder: Path, parts: Sequence[Path]) -> Callable[[dict[str, Any]], None]:
    """What a worker does with a trial, if it has this binep."""
    other = rays.revision_check()

    def trial(drawn: dict[str, Any]) -> None:
        if why := other():
            tune.report({"valid_error": math.nan, "epoch": 0, "failed": why})
            raise RuntimeError(why)
        from binep.cluster.search import train_trial

        train_trial(folder, parts, drawn)

    return trial


def train_trial(folder: Path, parts: Sequence[Path], drawn: dict[str, Any]) -> None:
    """Train a trial, and report each epoch, or why it cannot be trained.

    Args:
        folder: of the sweep.
        parts: modules of one's own that it needs.
        drawn: what `Drawn` has suggested.
    """

    def report(row: Row) -> None:
        tune.report({"valid_error": row["valid_error"], "epoch": int(row["epoch"] or 0)})

    try:
        for part in parts:
            plugins.load(part)
        sweep = sweeps.read(folder)
        config = sweep.config(drawn["values"])
        runs.train(sweep.place(drawn["number"], config), config, report)
    except Exception as error:
        # Of no epoch, so that ASHA does not end what is to be begun again.
        tune.report({"valid_error": math.nan, "epoch": 0, "failed": runs.reason(error)})
        raise


def _scheduler(sweep: Sweep) -> TrialScheduler:
    """ASHA, where a trial has epochs enough to be ended early."""
    epochs = sweep.base.epochs
    if sweep.grace >= epochs:
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    return AsyncHyperBandScheduler(
        time_attr="epoch",
        metric="valid_error",
        mode="min",
        max_t=epochs,
        grace_period=sweep.grace,
        reduction_factor=3,
    )


def search(sweep: Sweep, parts: Sequence[Path], show: Callable[[TrialStatus], None]) -> int:
    """Train the trials of a sweep, or what is missing of them, within `rays.connected`.

    Args:
        sweep: as its folder keeps it.
        parts: modules of one's own that its trials need.
        show: called with what happens to trials.

    Returns:
        The signal that has interrupted it, or 0 where all trials have ended.
    """
    began = (sweep.folder / STATE).exists()
    with (
        rays.as_interrupts() as came,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        done = tune.run(
            _trainable(sweep.folder.resolve(), [part.resolve() for part in parts]),
            name=STATE,
            storage_path=str(sweep.folder.resolve()),
            num_samples=sweep.trials,
            search_alg=Drawn(sweep),
            scheduler=_scheduler(sweep),
            resources_per_trial={"cpu": sweep.cpus, "gpu": sweep.gpus},
            max_failures=RETRIES,
            resume="AUTO+ERRORED" if began else False,
            reuse_actors=True,
            raise_on_failed_trial=False,
            callbacks=[_Watch(show, sweep.base.epochs)],
            trial_dirname_creator=lambda job: f"{job.config['number']:04d}",
            verbose=0,
        )
    # When it is interrupted, Tune says of every trial that it has been terminated.
    ended = sum(
        job.status == Job.ERROR or (job.last_result or {}).get("done", False) for job in done.trials
    )
    return 0 if ended == sweep.trials else (came or [signal.SIGINT])[0]
