"""A network in one file, one bit per binary weight; docs/packed.md describes the file."""

from __future__ import annotations

import io
import json
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from binep.core.network import Network
from binep.data.batches import prepared
from binep.experiment.build import initial_network
from binep.experiment.config import Config
from binep.experiment.experiment import Experiment
from binep.export import description
from binep.registry import did_you_mean
from binep.runs import folder as runs
from binep.runs.checkpoints import check_identity, held_source, load_network, same_data
from binep.runs.files import RunError, write
from binep.runs.settings import read_config
from binep.runs.tensors import content_of, load_tensors, save_tensors

KIND = "packed network"
_ALONE = "holds no network that can be loaded alone; give its run folder"
_MODELS = Path(__file__).parent.parent / "models"


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network, and what its inputs and outputs mean.

    Attributes:
        network: on the CPU.
        classes: names of the classes, in order; empty if they have none.
        mean, std: of each input channel, in units of x/255, which inputs were normalised by.
        power: to which pixels were raised before.
        run: of a network that a run trained, "config", its settings as TOML, and "data", what it
            was trained on (`Dataset.identity`), or None where that is not known.

    Raises:
        ValueError: other numbers of classes or channels than the network's, or none that can be.
    """

    network: Network
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    run: Mapping[str, Any] | None = None
    power: float = 1.0

    def __post_init__(self) -> None:
        cost, shape = self.network.cost, self.network.synapses[0].input_shape
        if self.classes and len(self.classes) != cost.classes:
            raise ValueError(f"{len(self.classes)} names of classes: must be {cost.classes}")
        if not 0 < self.power < math.inf:
            raise ValueError(f"power = {self.power}: must be a finite number above 0")
        if self.mean is None and self.std is None:
            return
        channels, mean, std = shape[0], self.mean or (), self.std or ()  # or features, of tables
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != channels or not all(map(math.isfinite, values)):
                raise ValueError(f"{name} = {values}: must be {channels} finite, one per channel")
        if min(std) <= 0:
            raise ValueError(f"std = {std}: must be positive")

    def prepare(self, images: Tensor) -> Tensor:
        """The network's input from images (b, C, H, W) or features (b, C); see `prepared`.

        Raises:
            DataError: floats to be raised to a power that are not from 0 to 1.
        """
        return prepared(images, self.mean, self.std, self.power)

    @property
    def learnt_floats(self) -> bool | None:
        """Whether it was trained on numbers as they are, not on bytes as x/255; None: unknown."""
        floats: bool | None = ((self.run or {}).get("data") or {}).get("floats")
        return floats

    def config(self, path: Path) -> Config:
        """The settings that it was trained with.

        Args:
            path: where it was read, for errors.

        Raises:
            RunError: it was not trained by a run.
            ConfigError: the settings cannot be read, or need a module of one's own (--plugin).
        """
        if self.run is None:
            raise RunError(
                f"{path}: does not say how it was trained: give the run folder, or what "
                "`binep export` wrote of it"
            )
        return Config.from_toml(self.run["config"], str(path))


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


def content(trained: Trained) -> bytes:
    """What `save` writes."""
    return content_of(*_content(trained))


def save_npz(trained: Trained | Network, path: Path | str) -> None:
    """`save`, as NumPy arrays; what JSON says of them is the array "about"."""
    tensors, about = _content(trained)
    file = io.BytesIO()
    arrays: dict[str, Any] = {name: t.detach().cpu().numpy() for name, t in tensors.items()}
    np.savez(file, about=np.array(json.dumps(about)), **arrays)
    write(Path(path), file.getvalue())


def _content(trained: Trained | Network) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file, signs packed, and what is said of them."""
    trained = Trained(trained) if isinstance(trained, Network) else trained
    network = trained.network
    about: dict[str, Any] = {"kind": KIND, "network": description.described(network)}
    about |= {"classes": trained.classes, "mean": trained.mean, "std": trained.std}
    about["power"] = trained.power
    if trained.run is not None:
        about["run"] = trained.run
    tensors = {
        name: _packed(tensor) if _is_binary(network, name) else tensor
        for name, tensor in network.state_dict().items()
    }
    return tensors, about


def load(path: Path | str) -> Network:
    """A trained network: `network(x)` gives class scores, `network.predict(x)` labels.

    Args:
        path: a run folder; a file that `Network.save` or `binep export --format packed` wrote; or
            the name of a network that comes with binep, as `binep models` lists them. Nothing but
            the folder or file is needed.

    Raises:
        RunError: it is missing or damaged.
    """
    return read(Path(path)).network


def read(path: Path) -> Trained:
    """`load`, with the names of classes and what inputs were normalised by."""
    path = located(path)
    return _from_run(path) if is_run(path) else _from_file(path)


def experiment(path: Path, *, warn: Callable[[str], None], **overrides: Any) -> Experiment:
    """The experiment of a run folder or of a file that was exported from one.

    Args:
        path: see `load`.
        warn: called where it is not known on what data it was trained.
        overrides: settings of `Config` to replace, such as device.

    Raises:
        RunError: it is missing or damaged, or does not say how it was trained.
        DataError: the data set is another than it was trained on.
        ConfigError: its settings cannot be.
    """
    path = located(path)
    if is_run(path):
        return runs.load(path, warn=warn, **overrides)
    trained = _from_file(path)
    made = Experiment(trained.config(path).replace(**overrides))
    try:
        made.network.load_state_dict(trained.network.state_dict())
    except RuntimeError:
        raise RunError(f"{path}: its network is not the one that its settings describe") from None
    made.started = True
    assert trained.run is not None
    if note := same_data(path, trained.run["data"], made.data):
        warn(note)
    return made


def located(path: Path) -> Path:
    """A path that is there; or of the name of a network that comes with binep, its file.

    Raises:
        RunError: neither.
    """
    if path.exists() or path.is_symlink() or path.name != str(path):
        return path
    names = shipped()
    if path.name in names:
        return _MODELS / f"{path.name}.safetensors"
    if path.suffix == ".safetensors":
        return path  # a file that is missing, as reading it will say
    runs = [found.parent.name for found in Path().glob("*/config.toml")]
    hint = did_you_mean(path.name, [*names, *runs])
    raise RunError(
        f"{path.name}: no run folder, no file, and none of the networks that come with "
        f"binep{hint}: {', '.join(names)}"
    )


def is_run(path: Path) -> bool:
    """Whether to read it as a run folder: of what is missing, all but a .safetensors file.

    Raises:
        RunError: a name that is neither a path nor a network that comes with binep.
    """
    path = located(path)
    return path.is_dir() or not (path.exists() or path.suffix == ".safetensors")


def shipped() -> list[str]:
    """Names of the networks that come with binep, which `load` takes."""
    return sorted(file.stem for file in _MODELS.glob("*.safetensors"))


def card(name: str) -> dict[str, Any]:
    """What is known of a network that comes with binep: its file NAME.toml, beside the network."""
    text = (_MODELS / f"{name}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def _from_run(folder: Path) -> Trained:
    config, file = read_config(folder), folder / "model.safetensors"
    source = held_source(file) or config.source()
    config.replace(device="cpu").check(source)
    network = initial_network(config, source=source)
    data = load_network(network, file)
    text = config.replace(data_dir=None).to_toml()  # a folder of this machine
    run = {"config": text, "data": data}
    return Trained(network, source.classes, source.mean, source.std, run, config.pixel_power)


def _from_file(path: Path) -> Trained:
    if path.name == "config.toml" and path.exists():
        raise RunError(f"{path}: {_ALONE}")
    tensors, about = load_tensors(path)
    if about.get("kind") != KIND:
        raise RunError(f"{path}: {_ALONE}")
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
        mean, std = (v and tuple(map(float, v)) for v in (about["mean"], about["std"]))
        power = float(about.get("power", 1.0))  # files of before it was there lack it
        return Trained(network, tuple(map(str, about["classes"])), mean, std, _run(about), power)
    except (ValueError, KeyError, TypeError, RuntimeError, ImportError, OverflowError) as error:
        raise RunError(f"{path}: {error}") from None


def _run(about: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a file says of the run; None if it was written without one."""
    run: Mapping[str, Any] | None = about.get("run")
    if run is not None:
        if not isinstance(run["config"], str):
            raise ValueError("run holds no text of a configuration")
        check_identity(run)
    return run


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
