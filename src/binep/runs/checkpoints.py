"""Networks in files, and the checkpoints that training continues from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from binep.core.network import Network
from binep.experiment.config import Config
from binep.experiment.experiment import stored
from binep.experiment.states import check_fit, check_network
from binep.runs.files import RunError
from binep.runs.metrics import Row, checked_rows
from binep.runs.tensors import load_tensors, save_tensors

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """All that training continues from.

    Attributes:
        state: from `Experiment.state`.
        rows: the rows of metrics.csv so far.
        warned: kinds of warnings that were given, from `Guards.known`.
    """

    state: dict[str, Tensor]
    rows: list[Row]
    warned: list[str]


def write_checkpoint(folder: Path, config: Config, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint of a run folder.

    Raises:
        RunError: it cannot be written; the one before is whole.
    """
    about = {
        "kind": "checkpoint",
        "config": config.to_toml(),
        "rows": checkpoint.rows,
        "warned": checkpoint.warned,
    }
    save_tensors(folder / CHECKPOINT, checkpoint.state, about)


def read_checkpoint(folder: Path, config: Config) -> Checkpoint:
    """The checkpoint of a run folder.

    Args:
        folder: the run folder.
        config: its configuration, which must be the checkpoint's.

    Raises:
        RunError: the file is missing, damaged, or of another configuration.
    """
    path = folder / CHECKPOINT
    state, about = load_tensors(path)
    if about.get("kind") != "checkpoint":
        raise RunError(f"{path}: is no checkpoint")
    try:
        _check_about(about)
    except ValueError as error:
        raise RunError(f"{path}: {error}") from None
    # Compared as they are read, so that a setting newer than the checkpoint is no difference.
    if Config.from_toml(about["config"], str(path)) != config:
        raise RunError(f"{path}: of another configuration than {folder / 'config.toml'}")
    return Checkpoint(state, about["rows"], about["warned"])


def place_of(folder: Path) -> tuple[int, int] | None:
    """Epochs and batches that the checkpoint of a run folder has behind it; None without one.

    Raises:
        RunError: it is damaged.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    state, _ = load_tensors(path)
    try:
        epoch, batch = state["progress"].tolist()
    except (KeyError, TypeError, ValueError):
        raise RunError(f"{path}: is no checkpoint") from None
    return epoch, batch


def _check_about(about: dict[str, Any]) -> None:
    """Refuse a checkpoint whose facts are none.

    Raises:
        ValueError: one is missing, or of another type.
    """
    if not isinstance(about.get("config"), str):
        raise ValueError("config is no text of a configuration")
    warned = about.get("warned")
    if not isinstance(warned, list) or not all(isinstance(kind, str) for kind in warned):
        raise ValueError("warned is no list of names")
    try:
        checked_rows(about.get("rows"))
    except ValueError as error:
        raise ValueError(f"rows: {error}") from None


def save_network(network: Network, path: Path) -> None:
    """Write a network's parameters; signs take a byte each."""
    save_tensors(path, stored(network), {"kind": "network"})


def load_network(network: Network, path: Path) -> None:
    """Read parameters written by `save_network` into a network of that shape.

    Raises:
        RunError: the file is missing, damaged, or of another network.
    """
    state, about = load_tensors(path)
    if about.get("kind") != "network":
        raise RunError(f"{path}: holds no network")
    try:
        check_fit(state, stored(network))
        check_network(state)
    except ValueError as error:
        raise RunError(f"{path}: {error}") from None
    network.load_state_dict(state)
