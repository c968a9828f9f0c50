"""An experiment, built: a configuration turned into a network and what trains it."""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from binep.core.network import Network
from binep.core.optim import BinaryFlip
from binep.core.synapses import Synapse
from binep.core.versions import Version
from binep.data import sources
from binep.data.batches import Dataset, Split, batches
from binep.data.own import from_arrays
from binep.data.sources import GIVEN, SOURCES, Facts, Source
from binep.experiment import memory, training
from binep.experiment.build import (
    build_estimator,
    build_optimizers,
    generators,
    initial_network,
)
from binep.experiment.config import Config, ConfigError
from binep.experiment.parts import differing, parts_of
from binep.experiment.sharding import ShardedFlip
from binep.experiment.states import (
    NUMBER,
    RULE_GENERATOR,
    Place,
    check_fit,
    check_meter,
    check_rule,
    check_training,
)
from binep.experiment.training import LayerChange, Meter, Scores
from binep.experiment.warnings import Guards, TrainingWarning
from binep.experiment.workers import ALONE, Alone

_LEAST_STD = 1e-30
"""Divided by no less, what was bytes is finite."""


@dataclass(frozen=True)
class EpochResult:
    """An epoch of training and the test after it.

    Attributes:
        epoch: epochs trained, from 1.
        train: scores on the training batches, each before its update.
        test: scores on the test set after the epoch.
        layers: per layer; None where weights are real.
        valid: scores on the validation set after the epoch; None without one.
    """

    epoch: int
    train: Scores
    test: Scores
    layers: list[LayerChange | None]
    valid: Scores | None = None


class Experiment:
    """A configuration, its data, and the network that learns from it.

    PyTorch's number of threads, TF32 and deterministic kernels are the configuration's, and its
    default type is float32, while it builds, trains or tests, and then again what they were; see
    `working`.

    Args:
        config: what to run.
        data: data of one's own in the place of the configuration's: x_train (N, *shape), y_train
            (N,), x_test (M, *shape) and y_test (M,), as arrays, tensors or lists. x is uint8, which
            becomes x/255, or floating point; labels are names, or whole numbers from 0 or from 1. A
            last layer that fits the configuration's data set is made to fit these classes. Or what
            `Config.source` gave, so as not to read it again.
        workers: among whom each batch is shared; see `binep.experiment.workers`. Where they split
            the momenta, all of them call `state` together.

    Attributes:
        source: what is known of the data set without its samples.
        guards: what has been warned of.
        started: whether it holds the network that it is to start from.

    Raises:
        ConfigError: a setting that cannot be.
        DataError: a data set that is missing or damaged.
        MemoryError: the network is too large.
    """

    def __init__(
        self,
        config: Config,
        data: Sequence[Any] | Source | None = None,
        workers: Alone = ALONE,
    ) -> None:
        if data is not None and not isinstance(data, Source):
            data = from_arrays(data)
            config = _given(config, data)
        source = config.source() if data is None else data
        config.check(source)
        place = config.data_dir
        if place is not None:  # kept as what it is from everywhere; errors say what was given
            config = config.replace(data_dir=Path(os.path.abspath(place.expanduser())))
        self._config = config
        self.workers, self.device = workers, workers.device(torch.device(config.device))
        with self.working():
            held = sources.load(config.dataset, place, source=source)
            if config.validation:
                held = held.held_out(config.validation, config.seed)
            if config.pixel_power != 1:
                held = held.with_power(config.pixel_power)
            if config.standardize:
                held = held.standardized()
            if config.mirror is not None:
                held = replace(held, mirror=config.mirror)
            if config.shift is not None:
                held = replace(held, shift=config.shift)
            self.source = Facts(
                source.shape, source.classes, held.mean, held.std, held.mirror, held.shift
            )
            self._check_memory(held)
            self.data = held.to(self.device)
            splits = filter(None, (self.data.train, self.data.test, self.data.valid))
            self._read = {s: (Version(s.images), Version(s.labels)) for s in splits}
            self._build()
        self.epoch = self.batch = 0
        self.started = config.start is None
        self.meter = Meter(self.network)
        self.guards = Guards()
        self._counted = True
        self._built = parts_of(self)

    @property
    def config(self) -> Config:
        """What it was built from; another one needs another experiment."""
        return self._config

    def changed(self) -> str:
        """What of the network and its training the configuration no longer describes; "" if none.

        A clause for an error, such as "its cost is a Hinge, that of its config a SquaredError".
        """
        return differing(parts_of(self), self._built)

    def _check_memory(self, held: Dataset) -> None:
        """Refuse what its device cannot hold, before anything comes to it."""
        train = min(len(held.train), self.config.batch_size)
        test = min(len(held.test), self.config.test_batch_size)
        moves = 0 if self.device.type == "cpu" else held.nbytes
        memory.check(self.config, train, test, self.source, moves)

    def _build(self) -> None:
        config = self.config
        init, self.order, self.nudge = generators(config.seed, 3)
        self._init = init  # which a flip rule of one's own goes on drawing from
        self._epoch_order = self.order.get_state()
        network = initial_network(config, init, source=self.source)
        self.network: Network = network.to(self.device)
        self.estimator = build_estimator(config, self.network, self.nudge)
        self.flip, self.descent = build_optimizers(config, self.network, init, self.workers)
        self.optimizers: list[Optimizer] = [*([self.flip] if self.flip else []), self.descent]

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """A context with the threads, TF32 and determinism of this configuration.

        Its own methods enter it themselves; use it where the network is called directly.
        """
        with _process(self.config):
            yield

    @property
    def batches_per_epoch(self) -> int:
        """Training batches in an epoch."""
        return self._count(len(self.data.train), self.config.batch_size)

    @property
    def samples_per_epoch(self) -> int:
        """Training samples in an epoch."""
        return min(len(self.data.train), self.batches_per_epoch * self.config.batch_size)

    def _count(self, samples: int, batch_size: int) -> int:
        count = -(-samples // batch_size)
        return count if self.config.max_batches is None else min(count, self.config.max_batches)

    def _batches(
        self, split: Split, batch_size: int, order: torch.Generator | None, start: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        if order is None:
            drawn = batches(split, batch_size, start=start)
        else:
            drawn = self.data.training_batches(batch_size, order, start)
        wanted = range(start, self._count(len(split), batch_size))
        for _, (images, labels) in zip(wanted, drawn, strict=False):
            x = self.data.prepare(images)
            if self._is_in_order(split):
                self.network.vouch(x, labels)
            yield x, labels

    def _is_in_order(self, split: Split) -> bool:
        """Whether inputs are finite and labels classes: bytes, as they were checked when read."""
        read = self._read.get(split)
        return (
            read is not None
            and all(map(Version.holds, read, (split.images, split.labels)))
            and split.images.dtype == torch.uint8
            and min(self.data.std or (1,)) >= _LEAST_STD
        )

    def train_epoch(
        self,
        after_batch: Callable[[Meter], None] | None = None,
        *,
        warn: Callable[[str], None] | None = None,
    ) -> EpochResult:
        """The result of one epoch, or of the rest of one that was begun, and of the test after it.

        Args:
            after_batch: called after each batch, when `state` is complete.
            warn: called with the text of each new warning; if None, they are given as
                `TrainingWarning`.

        Raises:
            ConfigError: it is to start from a trained network, and has not been given it.
        """
        if not self.started:
            raise ConfigError(
                f"start = {self.config.start}: must have been started from that network: train it "
                "from its run folder, or with --from"
            )
        with self.working():
            result = self._train_epoch(after_batch)
        for text in self.guards.look(self, result):
            if warn is None:
                warnings.warn(text, TrainingWarning, stacklevel=2)
            else:
                warn(text)
        return result

    def _train_epoch(self, after_batch: Callable[[Meter], None] | None) -> EpochResult:
        if self.batch == 0:
            self.meter, self._epoch_order = Meter(self.network), self.order.get_state()
        else:  # the order of an epoch that was broken off is drawn again
            self.order.set_state(self._epoch_order)
        self._decay_rates()
        drawn = self._batches(self.data.train, self.config.batch_size, self.order, self.batch)

        def count(meter: Meter) -> None:
            self.batch += 1
            if after_batch is not None:
                after_batch(meter)

        train = training.train_epoch(
            self.network, self.estimator, self.optimizers, drawn, count, self.meter, self.workers
        )
        self.workers.check_parameters(self.network)
        self.epoch, self.batch = self.epoch + 1, 0
        layers = training.layer_changes(
            self.network, self.flip, self.batches_per_epoch, self._counted
        )
        return EpochResult(self.epoch, train, self.evaluate(), layers, self.validate())

    def _decay_rates(self) -> None:
        """Divide the rates of scaling factors, and γ, once every so many epochs."""
        learning = self.config.learning

        def decay(divisor: float, epochs: int) -> float:
            return float((1 / divisor) ** (self.epoch // epochs))

        scale = decay(learning.scale_lr_decay, learning.scale_lr_decay_epochs)
        for group in self.descent.param_groups:
            if "initial_lr" in group:
                group["lr"] = group["initial_lr"] * scale
        if self.flip is not None and learning.gamma_decay != 1:
            share = decay(learning.gamma_decay, learning.gamma_decay_epochs)
            for group in self.flip.param_groups:
                group["gamma"] = group["initial_gamma"] * share

    def state(self) -> dict[str, Tensor]:
        """A snapshot of all that training continues from, by name; between two batches."""
        state = {f"network.{k}": v for k, v in stored(self.network).items()}
        if self.flip is not None:
            state |= _flip_state(self.flip)
            if _is_own(self.flip):
                state[RULE_GENERATOR] = self._init.get_state()
            if self._counted:
                state |= {f"writes.{i}": n for i, n in enumerate(self.flip.writes())}
        # The order of a begun epoch is drawn again, from where its generator stood.
        begun = self.batch > 0
        state["order"] = self._epoch_order if begun else self.order.get_state()
        state["nudge"] = self.nudge.get_state()
        state["progress"] = torch.tensor([self.epoch, self.batch])
        if begun:
            state |= {f"meter.{k}": v for k, v in self.meter.state().items()}
        return {name: tensor.detach().clone() for name, tensor in state.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned, bit for bit as without the interruption.

        Raises:
            ValueError: a state of another experiment, or one that cannot be.
        """
        state = {name: tensor.detach().clone() for name, tensor in state.items()}
        # Which there need not be; version 0.1 did not count writes.
        meter, rule, writes = (
            {k: v for k, v in state.items() if k.startswith(part)}
            for part in ("meter.", "rule.", "writes.")
        )
        parts = ("meter.", "rule.") if writes else ("meter.", "rule.", "writes.")
        rest = {k: v for k, v in state.items() if not k.startswith(parts)}
        check_fit(rest, {k: v for k, v in self.state().items() if not k.startswith(parts)})
        epoch, batch = (int(n) for n in rest["progress"])
        place = Place(epoch, batch, self.config.epochs, self.batches_per_epoch)
        check_training(rest, place)
        seen = min(len(self.data.train), batch * self.config.batch_size)
        check_meter(meter, place, seen, self.network, self.config.dynamics.free_steps)
        check_rule(rule, len(list(self.flip.flips())) if _is_own(self.flip) else 0)
        self.epoch, self.batch = epoch, batch
        self.started, self._counted = True, bool(writes)
        network = {k: v for k, v in rest.items() if k.startswith("network.")}
        self.network.load_state_dict({k.removeprefix("network."): v for k, v in network.items()})
        if self.flip is not None:
            _restore_flip(self.flip, rest | rule)
        if RULE_GENERATOR in rule:
            self._init.set_state(rule[RULE_GENERATOR])
        self.order.set_state(rest["order"])
        self.nudge.set_state(rest["nudge"])
        self._epoch_order = rest["order"]
        self.meter = Meter(self.network)
        if self.batch > 0:
            sums = {k.removeprefix("meter."): v.to(self.device) for k, v in meter.items()}
            self.meter.restore(sums)

    def evaluate(self) -> Scores:
        """Scores on the test set."""
        with self.working():
            test = self._test_batches()
            return training.evaluate(self.network, test, workers=self.workers, **self._free_phase())

    def validate(self) -> Scores | None:
        """Scores on the validation set; None without one."""
        if self.data.valid is None:
            return None
        with self.working():
            drawn = self._batches(self.data.valid, self.config.test_batch_size, None)
            return training.evaluate(
                self.network, drawn, workers=self.workers, **self._free_phase()
            )

    def class_scores(self) -> tuple[Tensor, Tensor]:
        """A score per class for each image of the test set, and the labels, in their order."""
        with self.working():
            test = self._test_batches()
            return training.class_scores(self.network, test, **self._free_phase())

    def _test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._batches(self.data.test, self.config.test_batch_size, None)

    def _free_phase(self) -> dict[str, Any]:
        dynamics = self.config.dynamics
        return {"free_steps": dynamics.free_steps, "tolerance": dynamics.settle_tol}


def _given(config: Config, source: Source) -> Config:
    """A configuration on data from Python, to which a last layer that fitted its own is fitted."""
    if config.dataset in SOURCES:
        fits = config.layers == config.fitted(config.source()).layers
        config = config.fitted(source) if fits else config
        others = {name: table for name, table in config.options.items() if name != config.dataset}
        config = config.replace(options=others)
    return config.replace(dataset=GIVEN)


@contextlib.contextmanager
def _process(config: Config) -> Iterator[None]:
    """A context with the process-wide settings of a configuration, which are then restored."""
    cublas, name = os.environ.get("CUBLAS_WORKSPACE_CONFIG"), "CUBLAS_WORKSPACE_CONFIG"
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        torch.set_default_dtype(torch.float32)
        if config.deterministic:
            os.environ.setdefault(name, ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
        with _tf32(config.speed.precision == "fast"):
            yield
    finally:
        if config.deterministic:  # asking for it costs a second: it imports PyTorch's compiler
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        if cublas is None:
            os.environ.pop(name, None)
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)


@contextlib.contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """A context with TF32 or without; then all is as it was.

    PyTorch has two kinds of settings since 2.9, and refuses to say the older ones where a program
    has used the newer ones.
    """
    cuda, cudnn, cpu = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    places = ((cuda, "matmul"), (cudnn, "conv"), (cudnn, "rnn"), (cpu, "matmul"))
    parts: list[Any] = [getattr(place, kind, None) for place, kind in places]
    newer = [part for part in parts if hasattr(part, "fp32_precision")]
    before, older = [part.fp32_precision for part in newer], None
    with contextlib.suppress(RuntimeError):
        older = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    try:
        if older is None:
            for part in newer:
                part.fp32_precision = "tf32" if allowed else "ieee"
        else:
            torch.set_float32_matmul_precision("high" if allowed else "highest")
            cudnn.allow_tf32 = allowed
        yield
    finally:
        if older is not None:
            torch.set_float32_matmul_precision(older[0])
            cudnn.allow_tf32 = older[1]
        for part, value in zip(newer, before, strict=True):
            part.fp32_precision = value


def _is_own(rule: Any) -> bool:
    """Whether a flip rule is of a user's own; it is None without binary weights."""
    return rule is not None and type(rule) not in (BinaryFlip, ShardedFlip)


_OF_BINARY_FLIP = ("momentum", "flipped_at")


def _kept(name: str, value: Any) -> tuple[str, Tensor]:
    """What a flip rule of one's own keeps, for a checkpoint: `NUMBER` tells numbers from tensors.

    Raises:
        ConfigError: neither a tensor nor a number.
    """
    if name.startswith(NUMBER):
        raise ConfigError(f"the flip rule keeps {name}: must not begin with {NUMBER}")
    if isinstance(value, Tensor):
        return name, value
    if not isinstance(value, int | float):
        raise ConfigError(
            f"the flip rule keeps {name}, a {type(value).__name__}: its state must be of tensors "
            "and numbers, which checkpoints hold"
        )
    dtype = torch.float64 if isinstance(value, float) else None
    return f"{NUMBER}{name}", torch.tensor(value, dtype=dtype)


def _as_kept(name: str, tensor: Tensor, now: Mapping[str, Any]) -> tuple[str, Any]:
    """What `_kept` was given, for a rule that keeps something now.

    Before there was `NUMBER`, what is a number now told that it had been one.
    """
    if name.startswith(NUMBER):
        return name.removeprefix(NUMBER), tensor.item()
    if isinstance(now.get(name, tensor), Tensor):
        return name, tensor
    return name, tensor.item()


def _flip_state(rule: Any) -> dict[str, Tensor]:
    """What a flip rule continues from: momenta as `BinaryFlip` keeps them, and all of another's."""
    state = {f"flips.{i}": flips for i, flips in enumerate(rule.flips())}
    kept = [rule.state[signs] for group in rule.param_groups for signs in group["params"]]
    if hasattr(rule, "decays"):
        whole = rule.gathered if isinstance(rule, ShardedFlip) else lambda i, own: own
        state |= {f"momentum.{i}": whole(i, of["momentum"]) for i, of in enumerate(kept)}
        state["decays"] = torch.tensor(rule.decays, dtype=torch.float64)
        kept = [{k: v for k, v in of.items() if k not in _OF_BINARY_FLIP} for of in kept]
    named = ((i, *_kept(key, value)) for i, of in enumerate(kept) for key, value in of.items())
    return state | {f"rule.{i}.{key}": tensor for i, key, tensor in named}


def _restore_flip(rule: Any, state: Mapping[str, Tensor]) -> None:
    """Set what `_flip_state` returned."""
    params = [signs for group in rule.param_groups for signs in group["params"]]
    own = rule.own if isinstance(rule, ShardedFlip) else lambda i, whole: whole
    counted = BinaryFlip.writes(rule) if isinstance(rule, BinaryFlip) else rule.writes()
    for i, (signs, flips) in enumerate(zip(params, rule.flips(), strict=True)):
        flips.copy_(state[f"flips.{i}"])
        if f"writes.{i}" in state:
            counted[i].copy_(own(i, state[f"writes.{i}"]))
        if hasattr(rule, "decays"):
            rule.state[signs]["momentum"].copy_(own(i, state[f"momentum.{i}"]))
            # Momenta may be above their thresholds, as after noise: the next step visits them all.
            rule.state[signs]["flipped_at"] = math.inf
        of, now = f"rule.{i}.", rule.state[signs]
        kept = {k.removeprefix(of): v for k, v in state.items() if k.startswith(of)}
        rule.state[signs] = {key: now[key] for key in _OF_BINARY_FLIP if key in now} | dict(
            _as_kept(key, value.to(signs.device), now) for key, value in kept.items()
        )
    if hasattr(rule, "decays"):
        rule.decays = state["decays"].tolist()


def stored(network: Network) -> dict[str, Tensor]:
    """What a file holds of a network: its parameters, with a byte per sign."""
    state: dict[str, Tensor] = network.state_dict()
    for name, module in network.named_modules():
        if isinstance(module, Synapse) and module.scale is not None:
            state[f"{name}.values"] = state[f"{name}.values"].to(torch.int8)
    return state
