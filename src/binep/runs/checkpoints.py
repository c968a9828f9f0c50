"""Networks in files, and the checkpoints that training continues from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from binep.core.network import Network
from binep.data.batches import Dataset
from binep.data.errors import DataError
from binep.data.sources import Facts, Source
from binep.experiment.config import Config
from binep.experiment.experiment import stored
from binep.experiment.settings import REAL
from binep.experiment.states import check_fit, check_network
from binep.runs.files import CHECKPOINT as CHECKPOINT
from binep.runs.files import RunError
from binep.runs.metrics import Row, checked_rows, ordered
from binep.runs.settings import check_test_set, past
from binep.runs.tensors import load_tensors, save_tensors


@dataclass(frozen=True)
class Checkpoint:
    """All that training continues from.

    Attributes:
        state: from `Experiment.state`.
        rows: the rows of metrics.csv so far.
        warned: kinds of warnings that were given, from `Guards.known`.
        data: from `Dataset.identity`; None of an older version, which did not keep it.
    """

    state: dict[str, Tensor]
    rows: list[Row]
    warned: list[str]
    data: dict[str, Any] | None = None

    @property
    def begun(self) -> int:
        """Epochs that have ended or begun."""
        return len(self.rows) + any(name.startswith("meter.") for name in self.state)


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
        "data": checkpoint.data,
    }
    save_tensors(folder / CHECKPOINT, checkpoint.state, about)


def read_checkpoint(folder: Path, config: Config) -> Checkpoint:
    """The checkpoint of a run folder.

    Args:
        folder: the run folder.
        config: its configuration, which must be the checkpoint's but for `GOES_ON`.

    Raises:
        RunError: the file is missing, damaged, or of another configuration.
        ConfigError: config.toml has the run test on another part of the test set.
    """
    path = folder / CHECKPOINT
    state, about = load_tensors(path)
    if about.get("kind") != "checkpoint":
        raise RunError(f"{path}: is no checkpoint")
    try:
        _check_about(about)
    except ValueError as error:
        raise RunError(f"{path}: {error}") from None
    # Compared as they are read, so that a setting newer than the checkpoint is no difference. What
    # a run may go on with may differ; data are compared by their digest.
    held = Config.from_toml(about["config"], str(path))
    if past(held) != past(config):
        raise RunError(f"{path}: of another configuration than {folder / 'config.toml'}")
    check_test_set(config, held)
    return Checkpoint(
        state, [ordered(row) for row in about["rows"]], about["warned"], about.get("data")
    )


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
    check_identity(about)


def check_identity(about: Mapping[str, Any]) -> None:
    """Refuse an identity of data, under "data", that is none; an older version kept none.

    Raises:
        ValueError: see `Dataset.identity`.
    """
    data = about.get("data")
    if data is None:
        return
    kinds = {"sha256": str, "train": int, "test": int, "classes": list}
    if not isinstance(data, dict) or any(type(data.get(k)) is not kinds[k] for k in kinds):
        raise ValueError("data is no digest of a data set with its sizes")
    if type(data.get("valid", 0)) is not int:
        raise ValueError("data has a valid that is no number of samples")
    if type(data.get("floats", False)) is not bool:
        raise ValueError("data has a floats that is neither true nor false")
    shape = data.get("shape", [])
    if not isinstance(shape, list) or not all(type(size) is int and size > 0 for size in shape):
        raise ValueError("data has a shape that is no list of sizes")
    for name in ("mean", "std"):
        scale = data.get(name)
        if scale is not None and (
            not isinstance(scale, list)
            or [len(scale)] != shape[:1]
            or any(type(x) not in (int, float) or not -REAL <= x <= REAL for x in scale)
        ):
            raise ValueError(f"data has a {name} that is no list of numbers, one for a channel")


def held_source(path: Path) -> Source | None:
    """What a file says of the data that its network was trained on; None of an older version.

    Raises:
        RunError: the file is missing or damaged.
    """
    _, about = load_tensors(path)
    try:
        check_identity(about)
    except ValueError as error:
        raise RunError(f"{path}: {error}") from None
    data = about.get("data") or {}
    if not data.get("shape"):
        return None
    mean, std = (data[name] and tuple(data[name]) for name in ("mean", "std"))
    return Facts(tuple(data["shape"]), tuple(map(str, data["classes"])), mean, std)


COMPARED = ("sha256", "train", "test", "classes")
"""What of a data set's identity tells it from another one."""


def same_data(path: Path, held: Mapping[str, Any] | None, data: Dataset) -> str:
    """A line where a file is too old to say what it was trained on; otherwise "".

    Args:
        path: the file.
        held: what it says; see `Dataset.identity`.
        data: what it is to be used with.

    Raises:
        DataError: that is another data set.
    """
    here = data.identity
    if held is None:
        return f"{path}: does not say on which data it was trained: not compared with {data.name}"
    if all(held.get(name) == here.get(name) for name in COMPARED):
        return ""
    names = held["classes"] != here["classes"]
    raise DataError(
        f"{path}: was trained on {summary_of(held, names)}; {data.name} here is "
        f"{summary_of(here, names)}: give the data folder that it was trained with"
    )


def summary_of(identity: Mapping[str, Any], names: bool = False) -> str:
    """Sizes and digest of a data set in words, and names of its classes if they are asked for."""
    classes = f", classes {', '.join(map(ascii, identity['classes']))}" if names else ""
    held = f" + {identity['valid']}" if identity.get("valid") else ""
    sizes = f"{identity['train']}{held} + {identity['test']} images"
    return f"{sizes}{classes}, SHA-256 {ascii(identity['sha256'])[1:17]}"


def save_network(
    network: Mapping[str, Tensor], path: Path, data: Mapping[str, Any] | None = None
) -> None:
    """Write a network's parameters.

    Args:
        network: what is `stored` of it; signs take a byte each.
        path: the file.
        data: what it was trained on, from `Dataset.identity`.
    """
    save_tensors(path, network, {"kind": "network", "data": data})


def load_network(network: Network, path: Path) -> dict[str, Any] | None:
    """What a network was trained on (`Dataset.identity`), or None where its file does not say.

    The parameters that `save_network` wrote are read into a network of that shape.

    Raises:
        RunError: the file is missing, damaged, or of another network.
    """
    state, about = load_tensors(path)
    if about.get("kind") != "network":
        raise RunError(f"{path}: holds no network")
    try:
        check_fit(state, stored(network))
        check_network(state)
        check_identity(about)
    except ValueError as error:
        raise RunError(f"{path}: {error}") from None
    network.load_state_dict(state)
    data: dict[str, Any] | None = about.get("data")
    return data
