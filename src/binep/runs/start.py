"""The trained network that a run starts from, kept in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from binep.core.network import Network
from binep.experiment.build import initial_network
from binep.experiment.config import Config
from binep.experiment.experiment import Experiment, stored
from binep.experiment.states import RULE_GENERATOR
from binep.runs.files import CHECKPOINT, START, RunError
from binep.runs.tensors import digest, load_tensors, save_tensors

NETWORK = "network."


def trained(folder: Path, momentum: bool = False) -> dict[str, Tensor]:
    """What a run has learned, by the names of `Experiment.state`.

    Args:
        folder: the run folder.
        momentum: also what its flip rule keeps, with the network as it was at its checkpoint;
            otherwise the network after the last finished epoch.

    Raises:
        RunError: the file is missing or damaged.
    """
    name = CHECKPOINT if momentum else "model.safetensors"
    if not (folder / name).exists():
        raise RunError(f"{folder}: cannot be started from: it holds no {name}")
    tensors, about = load_tensors(folder / name)
    if about.get("kind") != ("checkpoint" if momentum else "network"):
        raise RunError(f"{folder / name}: holds something else than its name says")
    if not momentum:
        return {f"{NETWORK}{name}": tensor for name, tensor in tensors.items()}
    kept = (NETWORK, "momentum.", "decays", "rule.")
    found = {
        name: tensor
        for name, tensor in tensors.items()
        if name.startswith(kept) and name != RULE_GENERATOR
    }
    if all(name.startswith(NETWORK) for name in found):
        raise RunError(
            f"{folder}: has no momenta to keep: its weights are real, or its flip rule keeps none"
        )
    return found


def of_network(network: Network) -> dict[str, Tensor]:
    """A network alone, by the names of `Experiment.state`."""
    return {f"{NETWORK}{name}": tensor for name, tensor in stored(network).items()}


def identity(tensors: Mapping[str, Tensor]) -> str:
    """The digest by which a configuration knows what it starts from: its setting ``start``."""
    return digest(tensors, "")


def begin(experiment: Experiment, tensors: Mapping[str, Tensor], where: Path) -> None:
    """Let a new experiment start from a trained network.

    Args:
        experiment: of a configuration with the setting ``start``.
        tensors: from `trained` or `read`.
        where: what they are of, for errors.

    Raises:
        RunError: they do not fit the configuration.
    """
    state = experiment.state()
    try:
        if odd := _of_network(state).keys() ^ _of_network(tensors).keys():
            raise ValueError(f"{', '.join(sorted(odd))} missing or unknown")
        for name, tensor in _of_network(tensors).items():
            there, here = tuple(tensor.shape), tuple(_of_network(state)[name].shape)
            number, _, part = name.removeprefix("synapses.").partition(".")
            if there != here and part == "values":
                raise ValueError(f"layer {int(number) + 1} has weights {there}, with these {here}")
        experiment.restore({**state, **tensors})
    except ValueError as error:
        raise RunError(f"{where}: its network does not fit these settings: {error}") from None


def _of_network(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(NETWORK): t for name, t in state.items() if name.startswith(NETWORK)}


def write(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Keep what a run starts from in its folder."""
    save_tensors(folder / START, tensors, {"kind": "start"})


def read(folder: Path, config: Config) -> dict[str, Tensor]:
    """What the run of a folder started from.

    Raises:
        RunError: it is missing, damaged or another than that of the configuration.
    """
    path = folder / START
    if not path.exists():
        raise RunError(
            f"{folder}: holds no {START}, from which its config.toml starts: give --from RUN"
        )
    tensors, _ = load_tensors(path)
    if identity(tensors) != config.start:
        raise RunError(f"{path}: is not what the configuration starts from, {config.start!a}")
    return tensors


def initial(folder: Path, config: Config) -> Network:
    """The network that the run of a folder started from, on the CPU."""
    network = initial_network(config)
    if config.start is not None:
        network.load_state_dict(_of_network(read(folder, config)))
    return network
