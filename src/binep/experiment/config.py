"""An experiment, described: frozen dataclasses, checked whole before anything runs.

One order holds everywhere: from the input to the output. Each layer carries its own
hyperparameters, so no list can be in the wrong order.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.resources
import math
import re
import sys
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
import torch
import tyro

from binep.core.gradients import Nudging
from binep.core.network import Speed
from binep.core.shapes import map_shape_of
from binep.core.synapses import Weights
from binep.data.sources import input_shape_of


class ConfigError(ValueError):
    """A setting that cannot be: the message names it, its value and what would be right."""


@dataclass(frozen=True)
class Layer:
    """One layer: the synapses that lead to it, and how they learn."""

    size: int
    """Neurons of a dense layer, or output channels of a convolution."""
    kind: Literal["dense", "conv"] = "dense"
    """All-to-all, or a convolution followed by pooling."""
    kernel: int = 5
    """Side of a convolution's kernel."""
    padding: int = 2
    """Zeros around a convolution's input."""
    pool: int = 2
    """Side and stride of a convolution's pooling window; 1 for none."""
    pooling: Literal["max", "average"] = "max"
    """How a convolution pools."""
    gamma: float = 1e-4
    """γ: rate of the momentum that decides when a binary weight flips."""
    threshold: float = 5e-7
    """τ: a binary weight flips when its momentum passes this."""
    weight_lr: float | None = None
    """Learning rate of real weights; that of the biases if None."""
    bias_lr: float = 0.0
    """Learning rate of the biases."""
    scale_lr: float = 0.0
    """Learning rate of the scaling factor α of binary weights; 0 leaves it fixed."""
    firing_threshold: float | None = None
    """Binary activations: the state from which the layer's neurons fire; that of all if None."""


@dataclass(frozen=True)
class Dynamics:
    """How the network settles."""

    activation: Literal["hard-sigmoid", "heaviside"] = "hard-sigmoid"
    """Real activations, clip(u, 0, 1), or binary ones that fire one bit."""
    initial_state: float = 0.0
    """Every neuron's state at the start of the free phase, in [0, 1]."""
    free_steps: int = 50
    """T: the most time steps of the free phase."""
    nudged_steps: int = 10
    """Kmax: the most time steps of the nudged phase, or the steps that bptt differentiates."""
    settle_tol: float = 1e-6
    """A phase ends early once no real state moves by more than this in a step, and no binary
    neuron's at all; 0 takes every step."""
    firing_threshold: float = 0.5
    """Binary activations: the state from which a neuron fires."""
    neuron_filter: float = 0.5
    """Binary activations: how far a state moves towards its drive in one step."""


@dataclass(frozen=True)
class Learning:
    """Where the gradient comes from."""

    estimator: Literal["ep", "bptt"] = "ep"
    """Equilibrium propagation, or backpropagation through time."""
    synapses: Weights = "binary"
    """±α, or real weights learnt by gradient descent: the full-precision reference."""
    cost: Literal["squared-error", "cross-entropy"] = "squared-error"
    """Cost of the output. With cross-entropy the last layer is a softmax readout, outside the
    dynamics, and the nudge acts on the layer below it."""
    output_copies: int = 1
    """Output neurons per class."""
    beta: float = 0.3
    """β: strength of the nudge."""
    nudging: Nudging = "random-sign"
    """+β, a random sign per batch, or the difference between +β and −β."""
    nudge: Literal["outside", "inside"] = "outside"
    """Real activations: nudge outside rho as the paper's program, or inside, which follows the
    gradient better."""
    clip_nudged: bool = True
    """Real activations: clip an output nudged from outside to [0, 1]."""
    hold_nudge: bool = False
    """Binary activations: nudge with the free phase's output instead of the current one."""
    momentum_noise: bool = False
    """Start the momenta at 2γ(1 − γ)·N(0, 1) instead of 0."""
    zero_bias: bool = False
    """Start from zero biases instead of uniform ones."""
    scale_lr_decay: float = 1.0
    """Divide the learning rate of the scaling factors by this ..."""
    scale_lr_decay_epochs: int = 1
    """... every so many epochs."""


@dataclass(frozen=True)
class Config:
    """A whole experiment."""

    title: str = ""
    """A name for it; `binep presets` shows what it is."""
    dataset: Literal["mnist5k", "mnist", "fashion-mnist", "cifar10"] = "mnist5k"
    """mnist5k needs no download."""
    data_dir: Path | None = None
    """Folder of the data sets; otherwise $BINEP_DATA, otherwise a cache folder."""
    epochs: int = 10
    """Passes over the training set."""
    batch_size: int = 64
    """Samples per training batch."""
    test_batch_size: int = 512
    """Samples per test batch."""
    max_batches: int | None = None
    """Cut every epoch, and every test, to so many batches."""
    seed: int = 0
    """Fixes the initial weights, the order of the data and the signs of the nudge."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""
    deterministic: bool = False
    """On a GPU: use kernels that repeat bit for bit, where PyTorch has them; slower."""
    warn_flip_rate: float = 0.01
    """Warn when a larger share of a layer's weights than this flips per batch."""
    checkpoint_minutes: float = 10.0
    """Save a checkpoint after every epoch, and after so many minutes within one."""
    threads: int | None = None
    """CPU threads; otherwise what PyTorch chooses. Results repeat bit for bit only at the same
    number."""
    dynamics: Annotated[Dynamics, tyro.conf.arg(name="")] = field(default_factory=Dynamics)
    learning: Annotated[Learning, tyro.conf.arg(name="")] = field(default_factory=Learning)
    speed: Annotated[Speed, tyro.conf.arg(name="")] = field(default_factory=Speed)
    layers: dict[str, Layer] = field(default_factory=dict)
    """Layers by number, from "1" above the input to the output."""

    def replace(self, **settings: Any) -> Config:
        """A copy with some settings replaced."""
        return dataclasses.replace(self, **settings)

    def summary(self) -> str:
        """What it is, in a line, such as "mnist, 784-4096-10, real activations, EP, fixed α"."""
        (channels, height, width), _ = input_shape_of(self.dataset)
        layers = list(self.layers.values())
        conv = bool(layers) and layers[0].kind == "conv"
        sizes = [channels if conv else channels * height * width, *(layer.size for layer in layers)]
        binary = self.dynamics.activation == "heaviside"
        if self.learning.synapses == "real":
            synapses = "real weights"
        else:
            learnt = any(layer.scale_lr > 0 for layer in layers)
            synapses = f"{'learnt' if learnt else 'fixed'} α"
        return (
            f"{self.dataset}, {'-'.join(map(str, sizes))}, "
            f"{'binary' if binary else 'real'} activations, "
            f"{self.learning.estimator.upper()}, {synapses}"
        )

    def check(self) -> None:
        """Look at every setting.

        Raises:
            ConfigError: one line for each setting that cannot be.
        """
        problems = _problems(self)
        if problems:
            raise ConfigError("\n".join(problems))

    def to_toml(self) -> str:
        """The whole configuration as TOML; `None` is left out."""
        return tomli_w.dumps(_plain(self))

    @staticmethod
    def from_toml(text: str, source: str) -> Config:
        """Read a configuration.

        Args:
            text: TOML.
            source: the file's name, for errors.

        Raises:
            ConfigError: no TOML, an unknown key, or a value of the wrong type. Ranges are for
                `check`.
        """
        try:
            table = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # also integers or nesting beyond Python's
            raise ConfigError(f"{source}: not TOML: {error}") from None
        try:
            config = _build(Config, table, "")
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None
        assert isinstance(config, Config)
        return config

    @staticmethod
    def load(path: Path) -> Config:
        """Read a TOML file; see `from_toml` for errors."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"{path}: cannot be read: {reason}") from None
        return Config.from_toml(text, str(path))


def preset_names() -> list[str]:
    """Names of the presets that come with the package."""
    folder = importlib.resources.files("binep.experiment") / "presets"
    return sorted(
        p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml")
    )


def preset(name: str) -> Config:
    """A preset by name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in preset_names():
        where = f"--config {name} reads it" if Path(name).exists() else "binep presets lists them"
        raise ConfigError(f"unknown preset {name!r}{did_you_mean(name, preset_names())}: {where}")
    file = importlib.resources.files("binep.experiment") / "presets" / f"{name}.toml"
    return Config.from_toml(file.read_text(encoding="utf-8"), file.name)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint at the nearest known name, if one is near."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {near[0]}?)" if near else ""


# Checks ------------------------------------------------------------------------------------------


def _problems(config: Config) -> list[str]:
    found: list[str] = []

    def need(ok: bool, key: str, value: object, right: str) -> None:
        if not ok:
            found.append(f"{key} = {value}: must be {right}")

    def at_least(key: str, value: int | None, low: int) -> None:
        need(value is None or value >= low, key, value, f"a whole number from {low}")

    def between(key: str, value: float, low: float, high: float) -> None:
        need(low <= value <= high, key, value, f"from {low:g} to {high:g}")

    def share(key: str, value: float) -> None:
        need(0 < value <= 1, key, value, "above 0 and at most 1")

    def not_negative(key: str, value: float) -> None:
        need(math.isfinite(value) and value >= 0, key, value, "a finite number from 0")

    for key in ("epochs", "batch_size", "test_batch_size", "max_batches"):
        at_least(key, getattr(config, key), 1)
    threads = config.threads
    need(threads is None or 1 <= threads <= 1024, "threads", threads, "from 1 to 1024")
    between("warn_flip_rate", config.warn_flip_rate, 0, 1)
    not_negative("checkpoint_minutes", config.checkpoint_minutes)
    need(0 <= config.seed < 2**63, "seed", config.seed, "a whole number from 0 to 2^63 − 1")
    found.extend(_device_problem(config.device))

    dynamics, learning = config.dynamics, config.learning
    for key in ("free_steps", "nudged_steps"):
        at_least(key, getattr(dynamics, key), 1)
    between("initial_state", dynamics.initial_state, 0, 1)
    not_negative("settle_tol", dynamics.settle_tol)
    for key in ("firing_threshold", "neuron_filter"):
        share(key, getattr(dynamics, key))
    need(
        math.isfinite(learning.beta) and abs(learning.beta) >= 1e-6,
        "beta",
        learning.beta,
        "a finite number, at least 1e-6 away from 0: nothing is learnt without a nudge",
    )
    at_least("output_copies", learning.output_copies, 1)
    decay = learning.scale_lr_decay
    need(1 <= decay < math.inf, "scale_lr_decay", decay, "a finite number from 1")
    at_least("scale_lr_decay_epochs", learning.scale_lr_decay_epochs, 1)
    if learning.estimator == "bptt":
        need(
            dynamics.activation == "hard-sigmoid",
            "estimator",
            "bptt",
            "ep with heaviside activations, which have no derivative",
        )
        need(
            dynamics.free_steps >= dynamics.nudged_steps,
            "free_steps",
            dynamics.free_steps,
            f"at least nudged_steps = {dynamics.nudged_steps} with bptt",
        )
    for number, layer in config.layers.items():
        at = f"layers.{number}."
        for key, low in (("size", 1), ("kernel", 1), ("padding", 0), ("pool", 1)):
            at_least(at + key, getattr(layer, key), low)
        share(at + "gamma", layer.gamma)
        if layer.firing_threshold is not None:
            share(at + "firing_threshold", layer.firing_threshold)
        for key in ("threshold", "bias_lr", "scale_lr"):
            not_negative(at + key, getattr(layer, key))
        if layer.weight_lr is not None:
            not_negative(at + "weight_lr", layer.weight_lr)
            need(
                learning.synapses == "real",
                at + "weight_lr",
                layer.weight_lr,
                "left out: binary weights have no learning rate (real ones: synapses = real)",
            )
    return found or _shape_problems(config)


def _device_problem(name: str) -> list[str]:
    found = re.fullmatch(r"cpu|cuda(?::([0-9]{1,3}))?", name)
    if found is None:
        return [f"device = {name}: must be cpu, cuda or cuda:N"]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or int(found[1] or 0) < count:
        return []
    return [f"device = {name}: this machine has {count} CUDA devices; cpu always works"]


def _shape_problems(config: Config) -> list[str]:
    """Whether the layers fit the data and each other; every size is known to be positive."""
    shape, classes = input_shape_of(config.dataset)
    numbers = list(config.layers)
    if not numbers or numbers != [str(i + 1) for i in range(len(numbers))]:
        return [f"layers = {numbers}: must be numbered 1, 2, ... from the input to the output"]
    found: list[str] = []
    current: tuple[int, ...] = shape
    for number, layer in config.layers.items():
        if layer.kind == "dense":
            current = (layer.size,)
            continue
        try:
            map_shape = map_shape_of(current, layer.kernel, layer.padding, layer.pool)
        except ValueError as error:
            return [f"layers.{number}: {error}"]
        current = (layer.size, map_shape[0] // layer.pool, map_shape[1] // layer.pool)
    output = config.layers[numbers[-1]]
    copies = config.learning.output_copies
    if output.kind != "dense":
        found.append(f"layers.{numbers[-1]}.kind = conv: must be dense, it is the output")
    elif output.size != classes * copies:
        found.append(
            f"layers.{numbers[-1]}.size = {output.size}: must be {classes * copies}, "
            f"the {classes} classes of {config.dataset} times output_copies = {copies}"
        )
    if config.learning.cost == "cross-entropy":
        if copies != 1:
            found.append(f"output_copies = {copies}: must be 1 with cross-entropy")
        if len(numbers) < 2:
            found.append("layers = 1: must be at least 2 with cross-entropy, the last reads out")
    return found


# TOML --------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """A dataclass as what TOML can hold."""
    if dataclasses.is_dataclass(value):
        pairs = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {name: _plain(v) for name, v in pairs if v is not None}
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    return str(value) if isinstance(value, Path) else value


def differing(one: Config, other: Config) -> list[str]:
    """Settings that are not the same in both, by their dotted keys."""
    return list(_differing(_plain(one), _plain(other)))


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys([*one, *other]):
        a, b = one.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from (f"{key}.{inner}" for inner in _differing(a, b))
        elif a != b:
            yield key


def _build(kind: Any, value: Any, key: str) -> Any:
    """The reverse of `_plain`: a value of the annotated type, or an error that names the key."""
    origin = typing.get_origin(kind)
    if origin is Annotated:
        return _build(typing.get_args(kind)[0], value, key)
    if origin in (typing.Union, types.UnionType):
        return _build(next(k for k in typing.get_args(kind) if k is not type(None)), value, key)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _build_dataclass(kind, value, key)
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{key} = {value!r}: must be a table")
        return {k: _build(typing.get_args(kind)[1], v, f"{key}.{k}") for k, v in value.items()}
    if origin is Literal:
        choices = typing.get_args(kind)
        if not isinstance(value, str) or value not in choices:
            raise ConfigError(f"{key} = {value!r}: must be one of {', '.join(choices)}")
        return value
    if kind is float and type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    wanted = str if kind is Path else kind
    if type(value) is not wanted:
        raise ConfigError(f"{key} = {value!r}: must be of type {wanted.__name__}")
    return kind(value)


def _build_dataclass(kind: type, value: Any, key: str) -> Any:
    if not isinstance(value, dict):
        raise ConfigError(f"{key} = {value!r}: must be a table")
    prefix = f"{key}." if key else ""
    hints = typing.get_type_hints(kind, include_extras=True)
    for name in value:
        if name not in hints:
            hint = did_you_mean(name, hints)
            raise ConfigError(f"unknown key {prefix}{name}{hint}: one of {', '.join(hints)}")
    for f in dataclasses.fields(kind):
        required = f.default is f.default_factory is dataclasses.MISSING
        if required and f.name not in value:
            raise ConfigError(f"{prefix}{f.name} is missing")
    return kind(**{name: _build(hints[name], v, prefix + name) for name, v in value.items()})
