"""Several runs of one setting that differ in their seeds, as `train --seeds` makes them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from binep.analysis import measurements
from binep.cli.training import run_or_resume
from binep.experiment.config import Config
from binep.runs import files, start
from binep.runs import folder as runs
from binep.runs.files import RunError


def run_seeds(
    config: Config,
    count: int,
    name: str,
    root: Path | None,
    begun_from: tuple[Path, Mapping[str, Tensor]] | None,
    tensorboard: bool,
    given: Collection[str],
) -> None:
    """Train what is missing of the runs in root/seedN, and print the mean of their test errors.

    Args:
        config: of the first run; the seeds of the others follow it.
        count: how many runs.
        name: of the folder below runs, if there is no `root`.
        root: folder of the runs' folders.
        begun_from: see `run_training`.
        tensorboard: whether to write the metrics for it, too.
        given: which settings were given of those that may change while a run goes on.

    Raises:
        ConfigError: a setting that cannot be.
        RunError: a folder holds another run.
    """
    if begun_from is not None:
        config = config.replace(start=start.identity(begun_from[1]))
    seeds = range(config.seed, config.seed + count)
    configs = [config.replace(seed=seed) for seed in seeds]
    for one in configs:
        one.check()
    if root is not None and (root / "config.toml").exists():
        raise RunError(f"{root}: holds a run itself: name another folder")
    if root is None:
        root = runs.new_folder(name, config.seed)
    files.make_folder(root)
    jobs = {root / f"seed{one.seed}": one for one in configs}
    unfinished = {f: one for f, one in jobs.items() if measurements.is_unfinished(f, one)}
    try:
        run_or_resume(unfinished, given, tensorboard, begun_from)
    except SystemExit:
        print(f"what is missing of {count} seeds: the same command with --run-dir {root}")
        raise
    found = [measurements.read(folder) for folder in jobs]
    print(
        f"test error {measurements.mean_of(found)} % of {count} seeds"
        f"{' (mean ± standard deviation)' if count > 1 else ''} after epoch {config.epochs}; "
        f"see {root}"
    )
