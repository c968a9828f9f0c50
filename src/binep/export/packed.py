"""A network in one file, one bit per binary weight; docs/packed.md describes the file."""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from binep.core.network import Network
from binep.experiment.build import initial_network
from binep.export import description
from binep.runs.checkpoints import held_source, load_network
from binep.runs.files import RunError, write
from binep.runs.settings import read_config
from binep.runs.tensors import load_tensors, save_tensors

KIND = "packed network"


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network, and what its inputs and outputs mean.

    Attributes:
        network: on the CPU.
        classes: names of the classes, in order; empty if they have none.
        mean, std: of each input channel, in units of x/255, which inputs were normalised by.
    """

    network: Network
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def save(trained: Trained | Network, path: Path | str) -> None:
    """Write a network as a file, a bit per binary weight.

    Args:
        trained: a network, with or without what its inputs and outputs mean.
        path: the file, in the place of what was there.

    Raises:
        ValueError: a network with parts that no description rebuilds.
        RunError: the file cannot be written.
    """
    save_tensors(Path(path), *_content(trained))


def save_npz(trained: Trained | Network, path: Path | str) -> None:
    """`save`, as NumPy arrays; what JSON says of them is the array "about"."""
    tensors, about = _content(trained)
    content = io.BytesIO()
    arrays: dict[str, Any] = {name: t.detach().cpu().numpy() for name, t in tensors.items()}
    np.savez(content, about=np.array(json.dumps(about)), **arrays)
    write(Path(path), content.getvalue())


def _content(trained: Trained | Network) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file, signs packed, and what is said of them."""
    trained = Trained(trained) if isinstance(trained, Network) else trained
    network = trained.network
    about: dict[str, Any] = {"kind": KIND, "network": description.described(network)}
    about |= {"classes": trained.classes, "mean": trained.mean, "std": trained.std}
    tensors = {
        name: _packed(tensor) if _is_binary(network, name) else tensor
        for name, tensor in network.state_dict().items()
    }
    return tensors, about


def load(path: Path | str) -> Network:
    """A trained network: `network(x)` gives class scores, `network.predict(x)` labels.

    Args:
        path: a run folder, or a file that `Network.save` or `binep export --format packed` wrote.
            Nothing but the folder or file is needed.

    Raises:
        RunError: it is missing or damaged.
    """
    return read(Path(path)).network


def read(path: Path) -> Trained:
    """`load`, with the names of classes and what inputs were normalised by."""
    return _from_run(path) if path.is_dir() else _from_file(path)


def _from_run(folder: Path) -> Trained:
    config, file = read_config(folder), folder / "model.safetensors"
    source = held_source(file) or config.source()
    network = initial_network(config, source=source)
    load_network(network, file)
    return Trained(network, source.classes, source.mean, source.std)


def _from_file(path: Path) -> Trained:
    tensors, about = load_tensors(path)
    if not isinstance(about, dict) or about.get("kind") != KIND:
        raise RunError(f"{path}: holds no network that can be loaded alone; give its run folder")
    try:
        network = description.rebuilt(about["network"])
        state = network.state_dict()
        if state.keys() != tensors.keys():
            odd = ", ".join(sorted(state.keys() ^ tensors.keys()))
            raise ValueError(f"{odd} missing or unknown")
        for name, like in state.items():
            found = tensors[name]
            if _is_binary(network, name):
                found = _unpacked(found, like)
            if found.shape != like.shape or not found.isfinite().all():
                raise ValueError(f"{name} must be finite, of shape {tuple(like.shape)}")
            state[name] = found
        network.load_state_dict(state)
        network.check()
        scales = [v and tuple(map(float, v)) for v in (about["mean"], about["std"])]
        return Trained(network, tuple(map(str, about["classes"])), *scales)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise RunError(f"{path}: {error}") from None


def _is_binary(network: Network, name: str) -> bool:
    module, _, parameter = name.rpartition(".")
    return parameter == "values" and network.get_submodule(module).scale is not None


def _packed(signs: Tensor) -> Tensor:
    """A bit per sign, 1 for +1: eight to a byte in row-major order, the first the highest bit."""
    return torch.from_numpy(np.packbits(signs.detach().cpu().numpy().reshape(-1) > 0))


def _unpacked(bits: Tensor, like: Tensor) -> Tensor:
    count = math.prod(like.shape)
    if bits.dtype != torch.uint8 or bits.shape != (-(-count // 8),):
        found = f"{bits.dtype} of shape {tuple(bits.shape)}"
        raise ValueError(f"signs are {found}: must be {count} bits in bytes")
    ones = torch.from_numpy(np.unpackbits(bits.numpy(), count=count)).view(like.shape)
    return torch.where(ones.bool(), 1.0, -1.0).to(like.dtype)
