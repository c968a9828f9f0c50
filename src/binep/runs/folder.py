"""A run's folder: everything that explains a training run, replays it and resumes it."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from binep.experiment.config import Config, ConfigError, did_you_mean, differing
from binep.experiment.experiment import EpochResult, Experiment, check_fit, stored
from binep.runs.files import RunError, load_tensors, locked, remove_leftovers, save_tensors, write
from binep.experiment.warnings import Guards
from binep.core.network import Network
from binep.experiment.training import Meter

Row = dict[str, float | None]
"""A row of metrics.csv by column; None where a column has no meaning for the layer."""


def new_folder(name: str, seed: int, root: Path = Path("runs")) -> Path:
    """Make runs/<name>/<time>-<seed>, with a number behind it where that is taken."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{seed}"
    parent, attempt = root / name, 1
    try:
        parent.mkdir(parents=True, exist_ok=True)
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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise RunError(f"{folder}: holds files already: name a new or empty folder")
    except OSError as error:
        raise RunError(f"{folder}: cannot be made: {error.strerror}") from error
    return folder


class Stopped(Exception):  # noqa: N818
    """Training was asked to stop, and has saved a checkpoint."""


CHECKPOINT = "checkpoint.safetensors"


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

    The checkpoint is what counts, and is written last: whatever a killed run leaves, `resume`
    goes on from the checkpoint, and the next epoch's end writes the files that follow from it.

    Args:
        experiment: the experiment, new or restored.
        folder: an empty folder, or the experiment's own.
        rows: rows of metrics.csv so far.
        after_batch: called during training with the scores so far.
        after_epoch: called after each epoch.
        stop: asked after each batch whether to save a checkpoint and stop.
        warn: called with each warning; log.txt has them, too.
        guards: what was warned of before.

    Returns:
        The rows of metrics.csv.

    Raises:
        Stopped: because `stop` said so.
        RunError: a file could not be written; the checkpoint before is whole.
    """
    rows, guards = list(rows), guards or Guards()
    config = experiment.config.to_toml()

    def save() -> None:
        about: dict[str, Any] = {"kind": "checkpoint", "config": config, "rows": rows}
        about["warned"] = guards.known
        save_tensors(folder / CHECKPOINT, experiment.state(), about)

    saved = time.monotonic()

    def between(meter: Meter) -> None:
        nonlocal saved
        if after_batch is not None:
            after_batch(meter)
        if stop():
            save()
            _log(folder, f"stopped in epoch {experiment.epoch + 1}, batch {experiment.batch}")
            raise Stopped
        if time.monotonic() - saved > 60 * experiment.config.checkpoint_minutes:
            save()
            saved = time.monotonic()

    with locked(folder):
        remove_leftovers(folder)
        if not (folder / "config.toml").exists():
            write(folder / "config.toml", config.encode())
        place = f"epoch {experiment.epoch + 1}, batch {experiment.batch + 1}"
        if experiment.epoch < experiment.config.epochs:
            _log(folder, f"binep {version('binep')} starts at {place} on {experiment.device}")
        if not rows and not experiment.batch:
            save()
            about = json.dumps(environment(experiment), indent=2) + "\n"
            write(folder / "environment.json", about.encode())
        while experiment.epoch < experiment.config.epochs:
            result = experiment.train_epoch(between, warn=lambda text: None)
            rows.append(row_of(result))
            for text in guards.look(experiment, result):
                _log(folder, f"epoch {result.epoch}: warning: {text}")
                warn(text)
            write(folder / "metrics.csv", table(rows).encode())
            save_network(experiment.network, folder / "model.safetensors")
            if result.test.error <= min(row["test_error"] or 0 for row in rows):
                save_network(experiment.network, folder / "best.safetensors")
            write(folder / "curves.png", _curves(rows))
            save()
            saved = time.monotonic()
            if after_epoch is not None:
                after_epoch(result)
    return rows


def _log(folder: Path, text: str) -> None:
    """Add a line to log.txt."""
    try:
        with (folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}\n")
    except OSError as error:
        raise RunError(f"{folder / 'log.txt'}: cannot be written: {error.strerror}") from error


def resume(folder: Path) -> tuple[Experiment, list[Row], Guards]:
    """What `train` goes on from: the experiment as its checkpoint left it, rows and guards.

    Raises:
        RunError: the checkpoint is damaged, of another configuration, or gone.
        ConfigError: config.toml cannot be read.
    """
    config = _config_of(folder)
    if not (folder / CHECKPOINT).exists():
        if (folder / "metrics.csv").exists():
            raise RunError(
                f"{folder}: holds a log, but no {CHECKPOINT} to go on from; "
                f"binep train --config {folder} runs it again elsewhere"
            )
        return Experiment(config), [], Guards()  # killed before the first one was there
    state, about = _read_checkpoint(folder, config)
    experiment = _restored(folder, config, state)
    return experiment, about["rows"], Guards(about["warned"])


def _read_checkpoint(folder: Path, config: Config) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = folder / CHECKPOINT
    state, about = load_tensors(path)
    if about.get("kind") != "checkpoint":
        raise RunError(f"{path}: is no checkpoint")
    # Compared as they are read, so that a setting newer than the checkpoint is no difference.
    if Config.from_toml(about["config"], str(path)) != config:
        raise RunError(f"{path}: of another configuration than {folder / 'config.toml'}")
    return state, about


def _restored(folder: Path, config: Config, state: dict[str, Tensor]) -> Experiment:
    experiment = Experiment(config)
    try:
        experiment.restore(state)
    except ValueError as error:
        raise RunError(f"{folder / CHECKPOINT}: {error}") from None
    return experiment


def row_of(result: EpochResult) -> Row:
    """An epoch as a row of metrics.csv; docs/runs.md explains the columns."""
    train, test = result.train, result.test
    row: Row = {
        "epoch": result.epoch,
        "train_error": train.error,
        "test_error": test.error,
        "train_loss": train.loss,
        "test_loss": test.loss,
        "train_seconds": train.seconds,
        "test_seconds": test.seconds,
    }
    for i, change in enumerate(result.layers):
        settles = i < len(train.settle_steps)  # a readout has no states
        row |= {
            f"layer{i + 1}_flips": change.flips if change else None,
            f"layer{i + 1}_flip_rate": change.flip_rate if change else None,
            f"layer{i + 1}_settle_steps": train.settle_steps[i] if settles else None,
            f"layer{i + 1}_residual": train.residual[i] if settles else None,
            f"layer{i + 1}_alpha": change.scale if change else None,
        }
    for name in train.errors:
        if name != "error":
            row |= {f"train_{name}": train.errors[name], f"test_{name}": test.errors[name]}
    return row


def table(rows: Sequence[Row], digits: int = 6) -> str:
    """Rows as the text of a CSV file, with so many significant digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "" if v is None else f"{v:.{digits}g}" for k, v in row.items()})
    return text.getvalue()


def read_metrics(path: Path) -> list[Row]:
    """Read a metrics.csv.

    Raises:
        RunError: the file is missing or no such table.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if not rows or "epoch" not in rows[0] or "test_error" not in rows[0]:
            raise RunError(f"{path}: no table of metrics with a row for an epoch")
        return [{k: float(v) if v else None for k, v in row.items()} for row in rows]
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, csv.Error) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"{path}: no table of metrics: {error}") from error


def read_alike(folders: Sequence[Path]) -> list[list[Row]]:
    """The metrics of runs that differ in nothing but seed, machine and length.

    Raises:
        ConfigError: settings or columns that are not those of the first run.
        RunError: a file is missing or damaged.
    """
    settings = [setting(folder) for folder in folders]
    metrics = [read_metrics(folder / "metrics.csv") for folder in folders]
    for folder, chosen, rows in zip(folders, settings, metrics, strict=True):
        if chosen != settings[0] or rows[0].keys() != metrics[0][0].keys():
            which = ", ".join(differing(chosen, settings[0])) or "columns of metrics.csv"
            raise ConfigError(f"{folder}: its settings are not those of {folders[0]}: {which}")
    return metrics


def read_environment(folder: Path) -> dict[str, Any]:
    """What `environment` said of a run; empty if it was not kept.

    Raises:
        RunError: the file is damaged.
    """
    path = folder / "environment.json"
    if not path.exists():
        return {}
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RunError(f"{path}: not JSON: {error}") from error
    kinds = {"command": list, "versions": dict}
    if not isinstance(about, dict) or any(
        not isinstance(about.get(key, kind()), kind) for key, kind in kinds.items()
    ):
        raise RunError(f"{path}: does not say what a run ran on")
    return about


def save_network(network: Network, path: Path) -> None:
    """Write a network's parameters; signs take a byte each."""
    save_tensors(path, stored(network), {"kind": "network"})


def load_network(network: Network, path: Path) -> None:
    """Read parameters written by `save_network` into a network of the same shape.

    Raises:
        RunError: the file is missing, damaged, or of another network.
    """
    state, _ = load_tensors(path)
    try:
        check_fit(state, stored(network))
    except ValueError as error:
        raise RunError(f"{path}: {error}") from None
    for name, tensor in state.items():
        if not bool(tensor.isfinite().all()):
            raise RunError(f"{path}: {name} holds values that are not finite")
    network.load_state_dict(state)


def load(folder: Path, **overrides: Any) -> Experiment:
    """The experiment of a run folder with its trained network.

    Args:
        folder: the run folder.
        overrides: settings of `Config` to replace, such as device.

    Raises:
        RunError: a file of the folder is missing or damaged.
        ConfigError: the same of its config.toml.
    """
    config = _config_of(folder)
    if not (folder / "model.safetensors").exists():
        raise RunError(f"{folder}: no epoch has ended yet: it holds no model.safetensors")
    experiment = Experiment(config.replace(**overrides))
    load_network(experiment.network, folder / "model.safetensors")
    return experiment


def load_checkpoint(folder: Path, **overrides: Any) -> Experiment:
    """The experiment of a run folder as its checkpoint left it, to look at; also while it trains.

    Args:
        folder: the run folder.
        overrides: settings of `Config` to replace, such as device.

    Raises:
        RunError: the checkpoint is missing or damaged, or of another configuration.
        ConfigError: config.toml cannot be read.
    """
    config = _config_of(folder)
    state, _ = _read_checkpoint(folder, config)
    return _restored(folder, config.replace(**overrides), state)


def _curves(rows: Sequence[Row]) -> bytes:
    """Of curves.png."""
    from binep.runs import curves as plots# an experiment that is not recorded does without matplotlib

    return plots.rendered(plots.curves([rows]))


def setting(folder: Path) -> Config:
    """What a run shares with repetitions of it: its configuration but for seed and machine."""
    return without_machine(_config_of(folder))


def without_machine(config: Config) -> Config:
    """A configuration but for what does not change what is learned, its seed and its length."""
    usual = Config()
    apart = (
        *("title", "seed", "epochs", "test_batch_size", "data_dir", "device", "deterministic"),
        *("warn_flip_rate", "checkpoint_minutes", "threads", "speed"),
    )
    return config.replace(**{name: getattr(usual, name) for name in apart})


def _config_of(folder: Path) -> Config:
    path = folder / "config.toml"
    if not path.is_file():
        if folder.exists():
            raise RunError(f"{folder}: not a run folder: it holds no config.toml")
        siblings = [found.parent.name for found in folder.parent.glob("*/config.toml")]
        hint = did_you_mean(folder.name, siblings)
        raise RunError(f"{folder}: not a run folder: there is none of this name{hint}")
    return Config.load(path)


def environment(experiment: Experiment) -> dict[str, Any]:
    """What a run ran on: versions, machine, device and command."""
    device, name = experiment.device, Path(sys.argv[0]).name
    return {
        "command": ["binep" if name == "__main__.py" else name, *sys.argv[1:]],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {name: version(name) for name in ("binep", "torch", "numpy")},
        "python": platform.python_version(),
        "git_revision": _git_revision(),
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def _git_revision() -> str | None:
    """Revision of the checkout that the package runs from; None if it is installed elsewhere."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():  # else git would answer for a project around the package
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    name = found.group(1) if found else platform.processor()
    return f"{name}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
