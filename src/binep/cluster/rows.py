"""Runs side by side on a cluster, one task of Ray for each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import ray
from ray.exceptions import RayError

from binep.cluster import rays, runs
from binep.cluster.search import RETRIES
from binep.experiment.config import Config
from binep.runs.metrics import Row


def train_all(
    jobs: Mapping[Path, Config],
    given: Collection[str],
    cpus: int,
    gpus: float,
    show: Callable[[Path, str, bool], None],
) -> None:
    """Train in each of some folders, within `rays.connected`.

    One whose worker or machine is lost goes on elsewhere from its checkpoint.

    Args:
        jobs: folder and settings of each run that has not ended.
        given: which of them one that has begun goes on with, in the place of its own.
        cpus: that a run takes.
        gpus: that a run takes.
        show: called for each run that has ended, with what came of it and whether it was trained.
    """
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(_task())
    running = {task.remote(f.resolve(), config.to_toml(), given): f for f, config in jobs.items()}
    while running:
        ended, _ = ray.wait(list(running), timeout=1.0)
        for one in ended:
            folder = running.pop(one)
            try:
                text, well = ray.get(one)
            except RayError as error:
                text, well = f"its worker was lost: {type(error).__name__}", False
            show(folder, text, well)


def _task() -> Callable[[Path, str, Collection[str]], tuple[str, bool]]:
    """What a worker does with a run, if it has this binep."""
    other = rays.revision_check()

    def train(folder: Path, text: str, given: Collection[str]) -> tuple[str, bool]:
        if why := other():
            return why, False
        from binep.cluster.rows import trained

        return trained(folder, text, given)

    return train


def trained(folder: Path, text: str, given: Collection[str]) -> tuple[str, bool]:
    """What came of a run, or why it cannot be trained; and which of the two.

    Args:
        folder: of the run.
        text: its configuration, as config.toml has it.
        given: see `train_all`.
    """
    rows: list[Row] = []
    try:
        runs.train(folder, Config.from_toml(text, str(folder)), rows.append, given)
    except Exception as error:
        return runs.reason(error), False
    return f"test error {rows[-1]['test_error']:.2f} % after epoch {rows[-1]['epoch']:g}", True
