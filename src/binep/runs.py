"""A run's folder: everything that explains a training run, and what replays it.

config.toml, metrics.csv (a row per epoch), model.safetensors, curves.png, environment.json.
Files are written beside and renamed, so that none is ever half there.
"""

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

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from binep import plots
from binep.config import Config
from binep.experiment import EpochResult, Experiment
from binep.network import Network
from binep.training import Meter

Row = dict[str, float | None]
"""A row of metrics.csv by column; None where a column has no meaning for the layer."""


class RunError(ValueError):
    """A run folder that cannot be written or read: the message names the file and the reason."""


def write(path: Path, content: bytes) -> None:
    """Write a file beside its place, flush it to the disk, then rename it into place."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise RunError(f"{path}: cannot be written: {error.strerror}") from error


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


def train(
    experiment: Experiment,
    folder: Path,
    *,
    after_batch: Callable[[Meter], None] | None = None,
    after_epoch: Callable[[EpochResult], None] | None = None,
) -> list[Row]:
    """Run an experiment to its last epoch and keep its folder up to date after each.

    Args:
        experiment: the experiment.
        folder: an empty folder.
        after_batch: called during training with the scores so far.
        after_epoch: called after each epoch.

    Returns:
        The rows of metrics.csv.
    """
    write(folder / "config.toml", experiment.config.to_toml().encode())
    write(folder / "environment.json", json.dumps(environment(experiment), indent=2).encode())
    rows: list[Row] = []
    while experiment.epoch < experiment.config.epochs:
        result = experiment.train_epoch(after_batch)
        rows.append(row_of(result))
        write(folder / "metrics.csv", _csv(rows).encode())
        save_network(experiment.network, folder / "model.safetensors")
        write(folder / "curves.png", plots.rendered(plots.curves([rows])))
        if after_epoch is not None:
            after_epoch(result)
    return rows


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


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "" if v is None else f"{v:.6g}" for k, v in row.items()})
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


def save_network(network: Network, path: Path) -> None:
    """Write a network's parameters; signs take a byte each."""
    state = {name: tensor.contiguous() for name, tensor in _stored(network).items()}
    write(path, safetensors.torch.save(state, {"format": "binep network, version 1"}))


def _stored(network: Network) -> dict[str, Tensor]:
    """What a file holds of a network."""
    state: dict[str, Tensor] = network.state_dict()
    for name, module in network.named_modules():
        if getattr(module, "scale", None) is not None:
            state[f"{name}.values"] = state[f"{name}.values"].to(torch.int8)
    return state


def load_network(network: Network, path: Path) -> None:
    """Read parameters written by `save_network` into a network of the same shape.

    Raises:
        RunError: the file is missing, damaged, or of another network.
    """
    try:
        state = safetensors.torch.load(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise RunError(f"{path}: damaged or no safetensors file: {error}") from error
    expected = _stored(network)
    if state.keys() != expected.keys():
        odd = ", ".join(sorted(state.keys() ^ expected.keys()))
        raise RunError(f"{path}: not of this network: {odd} missing or unknown")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise RunError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, "
                f"the network's has {tuple(expected[name].shape)}"
            )
        if tensor.dtype != expected[name].dtype:
            raise RunError(
                f"{path}: {name} holds {tensor.dtype}, the network's {expected[name].dtype}"
            )
        if tensor.dtype == torch.int8 and not bool((tensor.abs() == 1).all()):
            raise RunError(f"{path}: {name} holds signs other than 1 and -1")
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
    path = folder / "config.toml"
    if not path.is_file():
        raise RunError(f"{folder}: not a run folder: it holds no config.toml")
    config = Config.load(path)
    for key, value in overrides.items():
        config = config.replace(**{key: value})
    experiment = Experiment(config)
    load_network(experiment.network, folder / "model.safetensors")
    return experiment


def environment(experiment: Experiment) -> dict[str, Any]:
    """What a run ran on: versions, machine, device and command."""
    device = experiment.device
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
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
    root = Path(__file__).parents[2]
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
    return f"{found.group(1) if found else platform.processor()}, {os.cpu_count()} cores"
