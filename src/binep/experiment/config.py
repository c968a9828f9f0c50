"""An experiment, described: frozen dataclasses, checked whole before anything runs.

One order holds everywhere: from the input to the output. Each layer carries its own
hyperparameters, so no list can be in the wrong order.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import math
import os
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
import tyro

from binep.core.speed import FORMER, Speed
from binep.data.regular import open_regular
from binep.data.sources import SOURCES, Source, is_path, source_of
from binep.experiment import checks, plugins, toml
from binep.experiment.kinds import COSTS, ESTIMATORS, FLIP_RULES, NEURONS, SOLVERS, WITH_OPTIONS
from binep.experiment.layers import ConvLayer, DenseLayer, Layer
from binep.experiment.settings import (
    Choices,
    ConfigError,
    Count,
    Divisor,
    Margin,
    NamesOrPaths,
    Part,
    Portion,
    Positive,
    Rate,
    Seed,
    Share,
    Strength,
    Threads,
)
from binep.experiment.toml import differing
from binep.registry import Kind, did_you_mean

__all__ = [
    "Config",
    "ConfigError",
    "ConvLayer",
    "DenseLayer",
    "Dynamics",
    "Layer",
    "Learning",
    "did_you_mean",
    "differing",
    "preset",
    "preset_names",
]


@dataclass(frozen=True)
class Dynamics:
    """How the network settles."""

    activation: Annotated[str, Choices(NEURONS)] = "hard-sigmoid"
    """Real activations, clip(u, 0, 1), or binary ones that fire one bit."""
    initial_state: Portion = 0.0
    """Every neuron's state at the start of the free phase, in [0, 1]."""
    free_steps: Count = 50
    """T: the most time steps of the free phase."""
    nudged_steps: Count = 10
    """Kmax: the most time steps of the nudged phase, or the steps that bptt differentiates."""
    settle_tol: Rate = 1e-6
    """A phase ends early once no real state moves by more than this in a step, and no binary
    neuron's at all; 0 takes every step."""
    firing_threshold: Share = 0.5
    """Binary activations: the state from which a neuron fires."""
    neuron_filter: Share = 0.5
    """Binary activations: how far a state moves towards its drive in one step."""
    solver: Annotated[str, Choices(SOLVERS)] = "steps"
    """What takes the phases: time steps, or simulated annealing of the energy of binary
    activations (pip install 'binep[ising]')."""


@dataclass(frozen=True)
class Learning:
    """Where the gradient comes from."""

    estimator: Annotated[str, Choices(ESTIMATORS)] = "ep"
    """Equilibrium propagation, or backpropagation through time."""
    synapses: Literal["binary", "real"] = "binary"
    """±α, or real weights learnt by gradient descent: the full-precision reference."""
    cost: Annotated[str, Choices(COSTS)] = "squared-error"
    """Cost of the output. With cross-entropy the last layer is a softmax readout, outside the
    dynamics, and the nudge acts on the layer below it."""
    output_copies: Count = 1
    """Output neurons per class."""
    beta: Strength = 0.3
    """β: strength of the nudge."""
    nudging: Literal["one-sided", "random-sign", "centred"] = "random-sign"
    """+β, a random sign per batch, or the difference between +β and −β."""
    nudge: Literal["outside", "inside"] = "outside"
    """Real activations: nudge outside rho as the paper's program, or inside, which follows the
    gradient better."""
    clip_nudged: bool = True
    """Real activations: clip an output nudged from outside to [0, 1]."""
    hold_nudge: bool = False
    """Binary activations: nudge with the free phase's output instead of the current one."""
    flip_rule: Annotated[str, Choices(FLIP_RULES)] = "momentum"
    """When a binary weight flips: once its momentum passes a threshold."""
    gamma_decay: Divisor = 1.0
    """Divide γ of every layer by this, so that weights flip ever more rarely, ..."""
    gamma_decay_epochs: Count = 1
    """... every so many epochs."""
    momentum_noise: bool = False
    """Start the momenta at 2γ(1 − γ)·N(0, 1) instead of 0."""
    zero_bias: bool = False
    """Start from zero biases instead of uniform ones."""
    scale_lr_decay: Divisor = 1.0
    """Divide the learning rate of the scaling factors by this ..."""
    scale_lr_decay_epochs: Count = 1
    """... every so many epochs."""


@dataclass(frozen=True)
class Config:
    """A whole experiment."""

    title: str = ""
    """A name for it; `binep presets` shows what it is."""
    dataset: Annotated[str, NamesOrPaths(SOURCES)] = "mnist5k"
    """A name, of which mnist5k needs no download; or the path of data of your own."""
    data_dir: Path | None = None
    """Folder of the data sets; otherwise $BINEP_DATA, otherwise a cache folder."""
    validation: Part = 0.0
    """Share of each class's training samples that is not trained on, to choose settings by."""
    standardize: bool = False
    """Give every channel, or feature, mean 0 and deviation 1, measured over the training set and
    not as it is otherwise done for CIFAR."""
    pixel_power: Positive = 1.0
    """Raise pixels, from 0 to 1, to this power before all else (gamma correction): below 1 it tells
    dark shades apart."""
    mirror: bool | None = None
    """Mirror training images left to right at random; if None, as the data set says:
    CIFAR's are."""
    shift: Margin | None = None
    """Move training images at random by up to so many pixels, with pixels of the edge in their
    place; if None, as the data set says: CIFAR's by 4."""
    epochs: Count = 10
    """Passes over the training set."""
    batch_size: Count = 64
    """Samples per training batch."""
    test_batch_size: Count = 512
    """Samples per test batch."""
    max_batches: Count | None = None
    """Cut every epoch, and every test, to so many batches."""
    seed: Seed = 0
    """Fixes the initial weights, the order of the data and the signs of the nudge."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""
    deterministic: bool = False
    """On a GPU: use kernels that repeat bit for bit, where PyTorch has them; slower."""
    warn_flip_rate: Portion = 0.01
    """Warn when a larger share of a layer's weights than this flips per batch."""
    checkpoint_minutes: Rate = 10.0
    """Save a checkpoint after every epoch, and after so many minutes within one."""
    threads: Threads | None = None
    """CPU threads; otherwise what PyTorch chooses. Results repeat bit for bit only at the same
    number."""
    start: Annotated[str | None, tyro.conf.Suppress] = None
    """SHA-256 of the trained network that it starts from, which lies in the run's folder: --from
    writes both."""
    plugins: Annotated[dict[str, str], tyro.conf.Suppress] = field(default_factory=dict)
    """SHA-256 of each module of one's own that --plugin named, by the name of its file."""
    dynamics: Annotated[Dynamics, tyro.conf.arg(name="")] = field(default_factory=Dynamics)
    learning: Annotated[Learning, tyro.conf.arg(name="")] = field(default_factory=Learning)
    speed: Annotated[Speed, tyro.conf.arg(name="")] = field(default_factory=Speed)
    layers: dict[str, Layer] = field(default_factory=dict)
    """Layers by number, from "1" above the input to the output."""
    options: dict[str, Any] = field(default_factory=dict)
    """Settings of kinds of one's own, by the kind's name; see `binep.experiment.kinds`."""

    def __post_init__(self) -> None:
        """Give each layer the table of its kind, and each kind of one's own its settings.

        A data set's path becomes absolute.
        """
        if isinstance(self.data_dir, str):
            object.__setattr__(self, "data_dir", Path(self.data_dir))
        if isinstance(self.dataset, str) and is_path(self.dataset):
            path = os.path.abspath(os.path.expanduser(self.dataset))
            object.__setattr__(self, "dataset", path)
        layers = {number: layer.as_kind() for number, layer in self.layers.items()}
        object.__setattr__(self, "layers", layers)
        options = {name: self._settings_of(name, table) for name, table in self.options.items()}
        for name, kind in self.kinds().items():
            if kind.settings is not None and name not in options:
                options[name] = self._settings_of(name, {})
        object.__setattr__(self, "options", options)

    def kinds(self) -> dict[str, Kind]:
        """What its names stand for, but for its layers.

        Raises:
            ConfigError: two kinds with settings have one name, and so one table [options.NAME].
        """
        chosen = (
            (SOURCES, self.dataset),
            (NEURONS, self.dynamics.activation),
            (COSTS, self.learning.cost),
            (ESTIMATORS, self.learning.estimator),
            (FLIP_RULES, self.learning.flip_rule),
        )
        found: dict[str, Kind] = {}
        for registry, name in chosen:
            if name not in registry:
                continue
            kind, other = registry[name], found.get(name)
            if other is None or other.settings is None:
                found[name] = kind
            elif kind.settings is not None:
                raise ConfigError(
                    f"{registry.what} = {name!r}: another kind of this name has settings, too, "
                    f"and there is one table [options.{name}]: rename one"
                )
        return found

    def _settings_of(self, name: str, table: Any) -> Any:
        """A table [options.NAME] as the settings of the kind; as it is if there is no such kind."""
        registries = (self.kinds(), *WITH_OPTIONS)
        found = (kinds[name].settings for kinds in registries if name in kinds)
        settings = next((kind for kind in found if kind is not None), None)
        if settings is None or not isinstance(table, dict):
            return table
        return toml.read(settings, table, f"options.{name}")

    def replace(self, **settings: Any) -> Config:
        """A copy with some settings replaced."""
        return dataclasses.replace(self, **settings)

    @property
    def has_readout(self) -> bool:
        """Whether the last layer only reads out: it has no neurons, and no part in the dynamics."""
        return "readout" in COSTS[self.learning.cost].takes

    def without_options(self, names: Collection[str]) -> Config:
        """A copy without the tables [options.NAME] of these names."""
        kept = {name: table for name, table in self.options.items() if name not in names}
        return self.replace(options=kept)

    def source(self) -> Source:
        """Its data set, described; data of one's own are read for this.

        Raises:
            DataError: they cannot be read.
        """
        return source_of(self.dataset, self.options.get(self.dataset), self.data_dir)

    def fitted(self, source: Source) -> Config:
        """A copy whose last layer has the neurons that the classes of a data set need."""
        if not self.layers:
            return self
        (*_, (last, layer)) = self.layers.items()
        size = len(source.classes) * self.learning.output_copies
        return self.replace(layers={**self.layers, last: dataclasses.replace(layer, size=size)})

    def summary(self, source: Source | None = None) -> str:
        """What it is, in a line, such as "mnist, 784-4096-10, real activations, EP, fixed α".

        The inputs of data of one's own are counted only where their `source` is given.
        """
        name = Path(self.dataset).name if is_path(self.dataset) else self.dataset
        layers = list(self.layers.values())
        sizes: list[object] = [layer.size for layer in layers]
        source = self.source() if source is None and self.dataset in SOURCES else source
        if source is not None:
            conv = bool(layers) and isinstance(layers[0], ConvLayer)
            sizes.insert(0, source.shape[0] if conv else math.prod(source.shape))
        activation = self.dynamics.activation
        words = {"hard-sigmoid": "real", "heaviside": "binary"}
        if self.learning.synapses == "real":
            synapses = "real weights"
        else:
            learnt = any(layer.scale_lr > 0 for layer in layers)
            synapses = f"{'learnt' if learnt else 'fixed'} α"
        return (
            f"{name}, {'-'.join(map(str, sizes))}, "
            f"{words.get(activation, activation)} activations, "
            f"{self.learning.estimator.upper()}, {synapses}"
        )

    def check(self, source: Source | None = None) -> None:
        """Look at every setting.

        Args:
            source: its data set; if None, `source` is asked for it.

        Raises:
            ConfigError: one line for each setting that cannot be.
            DataError: data of one's own that cannot be read.
        """
        problems = checks.all_problems(self, source)
        if problems:
            raise ConfigError("\n".join(problems))

    def to_toml(self) -> str:
        """The whole configuration as TOML; `None` is left out."""
        table = toml.plain(self)
        for name in ("options", "plugins"):
            if not table[name]:
                del table[name]
        return tomli_w.dumps(table)

    def effective(self) -> Config:
        """A copy with the default of each setting that does nothing; only of one that fits.

        So a configuration is turned into another of its kind (a reference, say), or one of version
        0.1 read, which let such settings stand.
        """
        return checks.effective(self)

    @staticmethod
    def from_toml(text: str, source: str) -> Config:
        """Read a configuration.

        Args:
            text: TOML.
            source: the file's name, for errors.

        Raises:
            ConfigError: no TOML, an unknown key, a value of the wrong type, or modules of one's
                own that have not been loaded (`binep.experiment.plugins`). Ranges are for `check`.
                Of a file that version 0.1 wrote, which let settings stand that do nothing, they
                are left out.
        """
        try:
            table = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # also integers or nesting beyond Python's
            raise ConfigError(f"{source}: not TOML: {error}") from None
        try:
            toml.check_plain(table)
            if isinstance(recorded := table.get("plugins"), dict):  # before what they add is named
                plugins.require(recorded)
            config = toml.read(Config, table, "")
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None
        assert isinstance(config, Config)
        return config.effective() if _of_version_0_1(table) else config

    @staticmethod
    def load(path: Path) -> Config:
        """Read a TOML file; see `from_toml` for errors."""
        try:
            with open_regular(path, "r", encoding="utf-8") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"{path}: cannot be read: {reason}") from None
        return Config.from_toml(text, str(path))


def _of_version_0_1(table: Mapping[str, Any]) -> bool:
    """Whether version 0.1 wrote a table: it named each shortcut, and a kernel for every layer."""
    dense = (layer for layer in table.get("layers", {}).values() if layer.get("kind") == "dense")
    return not FORMER.keys().isdisjoint(table.get("speed", {})) or any("kernel" in x for x in dense)


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
