"""An experiment, built: a configuration turned into a network and what trains it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from binep.core.costs import Cost, CrossEntropy, SquaredError
from binep.core.gradients import BackpropThroughTime, EquilibriumPropagation, GradientEstimator
from binep.core.network import Network
from binep.core.neurons import Binary, Neurons, Real
from binep.core.optim import SCALE_FLOOR, BinaryFlip, GradientDescent
from binep.core.synapses import Conv, Dense, Synapse
from binep.data import batches
from binep.data import sources as data
from binep.experiment import training
from binep.experiment.config import Config, Layer
from binep.experiment.training import LayerChange, Meter, Scores


@dataclass(frozen=True)
class EpochResult:
    """An epoch of training and the test after it.

    Attributes:
        epoch: epochs trained, from 1.
        train: scores on the training batches, each before its update.
        test: scores on the test set after the epoch.
        layers: per layer; None where weights are real.
    """

    epoch: int
    train: Scores
    test: Scores
    layers: list[LayerChange | None]


class Experiment:
    """A configuration, its data, and the network that learns from it.

    Args:
        config: what to run.

    Raises:
        ConfigError: a setting that cannot be.
        DataError: a data set that is missing or damaged.
    """

    def __init__(self, config: Config) -> None:
        config.check()
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
        fast = config.speed.precision == "fast"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = fast
        self.config = config
        self.device = torch.device(config.device)
        self.data = data.load(config.dataset, config.data_dir).to(self.device)
        init, self.order, self.nudge = _generators(config.seed, 3)
        self._epoch_order = self.order.get_state()
        try:
            self.network = initial_network(config, init).to(self.device)
        except RuntimeError as error:  # on a CPU torch has no type of its own for this
            if "allocate memory" not in str(error):
                raise
            sizes = " ".join(str(layer.size) for layer in config.layers.values())
            raise MemoryError(f"layers of sizes {sizes} do not fit") from None
        self.estimator = build_estimator(config, self.network, self.nudge)
        self.flip, self.descent = build_optimizers(config, self.network, init)
        self.optimizers: list[Optimizer] = [*([self.flip] if self.flip else []), self.descent]
        self.epoch = self.batch = 0
        self.meter = Meter(self.network)

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
        self, split: batches.Split, batch_size: int, order: torch.Generator | None, start: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        augment = order is not None and self.data.augmented
        drawn = batches.batches(split, batch_size, generator=order, augment=augment, start=start)
        wanted = range(start, self._count(len(split), batch_size))
        for _, (images, labels) in zip(wanted, drawn, strict=False):
            yield self.data.prepare(images), labels

    def train_epoch(self, after_batch: Callable[[Meter], None] | None = None) -> EpochResult:
        """Train for one epoch, or for what is left of one that was begun, then test.

        Args:
            after_batch: called after each batch, when `state` is complete.
        """
        if self.batch == 0:
            self.meter, self._epoch_order = Meter(self.network), self.order.get_state()
        self._decay_scale_lr()
        batches = self._batches(self.data.train, self.config.batch_size, self.order, self.batch)

        def count(meter: Meter) -> None:
            self.batch += 1
            if after_batch is not None:
                after_batch(meter)

        train = training.train_epoch(
            self.network, self.estimator, self.optimizers, batches, count, self.meter
        )
        self.epoch, self.batch = self.epoch + 1, 0
        layers = training.layer_changes(self.network, self.flip, self.batches_per_epoch)
        return EpochResult(self.epoch, train, self.evaluate(), layers)

    def _decay_scale_lr(self) -> None:
        """Divide the rates of the scaling factors once every so many epochs."""
        learning = self.config.learning
        decay = (1 / learning.scale_lr_decay) ** (self.epoch // learning.scale_lr_decay_epochs)
        for group in self.descent.param_groups:
            if "initial_lr" in group:
                group["lr"] = group["initial_lr"] * decay

    def state(self) -> dict[str, Tensor]:
        """All that training goes on from, by name; between two batches."""
        state = {f"network.{k}": v for k, v in stored(self.network).items()}
        if self.flip is not None:
            momenta = [s["momentum"] for s in self.flip.state.values()]
            for i, (momentum, flips) in enumerate(zip(momenta, self.flip.flips(), strict=True)):
                state |= {f"momentum.{i}": momentum, f"flips.{i}": flips}
            state["decays"] = torch.tensor(self.flip.decays, dtype=torch.float64)
        # The order of a begun epoch is drawn again, from where its generator stood.
        begun = self.batch > 0
        state["order"] = self._epoch_order if begun else self.order.get_state()
        state["nudge"] = self.nudge.get_state()
        state["progress"] = torch.tensor([self.epoch, self.batch])
        if begun:
            state |= {f"meter.{k}": v for k, v in self.meter.state().items()}
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave: the same bits follow as without the break.

        Raises:
            ValueError: a state of another experiment, or one that cannot be.
        """
        self.epoch, self.batch = (int(n) for n in state["progress"])
        meter = {k.removeprefix("meter."): v for k, v in state.items() if k.startswith("meter.")}
        rest = {k: v for k, v in state.items() if not k.startswith("meter.")}
        expected = {k: v for k, v in self.state().items() if not k.startswith("meter.")}
        check_fit(rest, expected)
        network = {k: v for k, v in rest.items() if k.startswith("network.")}
        self.network.load_state_dict({k.removeprefix("network."): v for k, v in network.items()})
        if self.flip is not None:
            momenta = [s["momentum"] for s in self.flip.state.values()]
            for i, (momentum, flips) in enumerate(zip(momenta, self.flip.flips(), strict=True)):
                momentum.copy_(rest[f"momentum.{i}"])
                flips.copy_(rest[f"flips.{i}"])
            self.flip.decays = rest["decays"].tolist()
        self.order.set_state(rest["order"])
        self.nudge.set_state(rest["nudge"])
        self._epoch_order = rest["order"]
        self.meter = Meter(self.network)
        if self.batch > 0:
            self.meter.restore({k: v.to(self.device) for k, v in meter.items()})

    def evaluate(self) -> Scores:
        """Scores on the test set."""
        return training.evaluate(self.network, self._test_batches(), **self._free_phase())

    def class_scores(self) -> tuple[Tensor, Tensor]:
        """A score per class for each image of the test set, and the labels, in their order."""
        return training.class_scores(self.network, self._test_batches(), **self._free_phase())

    def _test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._batches(self.data.test, self.config.test_batch_size, None)

    def _free_phase(self) -> dict[str, Any]:
        dynamics = self.config.dynamics
        return {"free_steps": dynamics.free_steps, "tolerance": dynamics.settle_tol}


def stored(network: Network) -> dict[str, Tensor]:
    """What a file holds of a network: its parameters, with a byte per sign."""
    state: dict[str, Tensor] = network.state_dict()
    for name, module in network.named_modules():
        if getattr(module, "scale", None) is not None:
            state[f"{name}.values"] = state[f"{name}.values"].to(torch.int8)
    return state


def check_fit(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse tensors of other names, shapes or types than expected, or impossible signs.

    Raises:
        ValueError: the first difference.
    """
    if tensors.keys() != expected.keys():
        odd = ", ".join(sorted(tensors.keys() ^ expected.keys()))
        raise ValueError(f"not of this network: {odd} missing or unknown")
    for name, tensor in tensors.items():
        like = expected[name]
        if (tensor.shape, tensor.dtype) != (like.shape, like.dtype):
            raise ValueError(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}, "
                f"the network's is {like.dtype} of shape {tuple(like.shape)}"
            )
        if tensor.dtype == torch.int8 and not bool((tensor.abs() == 1).all()):
            raise ValueError(f"{name} holds signs other than 1 and -1")


def _generators(seed: int, count: int) -> list[torch.Generator]:
    """Independent CPU generators from one seed."""
    seeds = np.random.SeedSequence(seed).generate_state(count, np.uint64)
    return [torch.Generator().manual_seed(int(s) >> 1) for s in seeds]


def initial_network(config: Config, generator: torch.Generator | None = None) -> Network:
    """The network that a checked configuration starts from, on the CPU.

    Args:
        config: the configuration.
        generator: of the initial weights; that of the configuration's seed if None.
    """
    shape, classes = data.input_shape_of(config.dataset)
    return build_network(config, shape, classes, generator or _generators(config.seed, 3)[0])


def build_neurons(config: Config, layer: Layer) -> Neurons:
    """The neurons of a layer."""
    dynamics, learning, threshold = config.dynamics, config.learning, layer.firing_threshold
    if dynamics.activation == "hard-sigmoid":
        return Real(dynamics.initial_state, learning.nudge, learning.clip_nudged)
    return Binary(
        dynamics.firing_threshold if threshold is None else threshold,
        dynamics.neuron_filter,
        dynamics.initial_state,
        learning.hold_nudge,
    )


def build_network(
    config: Config,
    input_shape: tuple[int, ...],
    classes: int,
    generator: torch.Generator | None = None,
) -> Network:
    """The network of a checked configuration, on the CPU.

    Args:
        config: the configuration.
        input_shape: shape of one sample.
        classes: number of classes.
        generator: of the initial weights; the global one if None.
    """
    options: dict[str, Any] = {
        "weights": config.learning.synapses,
        "zero_bias": config.learning.zero_bias,
        "generator": generator,
    }
    synapses: list[Synapse] = []
    for layer in config.layers.values():
        shape = synapses[-1].output_shape if synapses else input_shape
        synapses.append(_build_synapse(layer, shape, options))
        synapses[-1].train_scale(layer.scale_lr > 0)
    cost: Cost = SquaredError(classes, config.learning.output_copies)
    if config.learning.cost == "cross-entropy":
        readout = synapses.pop()
        assert isinstance(readout, Dense)
        cost = CrossEntropy(readout)
    layers = list(config.layers.values())[: len(synapses)]  # a readout has no neurons
    neurons = [build_neurons(config, layer) for layer in layers]
    return Network(synapses, neurons, cost, speed=config.speed)


def _build_synapse(layer: Layer, shape: tuple[int, ...], options: dict[str, Any]) -> Synapse:
    if layer.kind == "dense":
        return Dense(shape, layer.size, **options)
    return Conv(
        shape,
        layer.size,
        kernel=layer.kernel,
        padding=layer.padding,
        pool=layer.pool,
        pooling=layer.pooling,
        **options,
    )


def build_estimator(
    config: Config, network: Network, generator: torch.Generator | None = None
) -> GradientEstimator:
    """The gradient estimator of a checked configuration; the generator draws nudge signs."""
    dynamics, learning = config.dynamics, config.learning
    if learning.estimator == "bptt":
        return BackpropThroughTime(
            network,
            free_steps=dynamics.free_steps,
            nudged_steps=dynamics.nudged_steps,
            tolerance=dynamics.settle_tol,
        )
    return EquilibriumPropagation(
        network,
        beta=learning.beta,
        free_steps=dynamics.free_steps,
        nudged_steps=dynamics.nudged_steps,
        nudging=learning.nudging,
        tolerance=dynamics.settle_tol,
        generator=generator,
    )


def build_optimizers(
    config: Config, network: Network, generator: torch.Generator | None = None
) -> tuple[BinaryFlip | None, GradientDescent]:
    """The optimizers of a checked configuration, in the order of their steps.

    Flips, if there are binary weights, then descent for biases, real weights and scaling factors.
    The generator draws the momenta's initial noise.
    """
    layers = list(zip(config.layers.values(), network.learning_synapses(), strict=True))
    flips = [
        {"params": [synapse.values], "gamma": layer.gamma, "threshold": layer.threshold}
        for layer, synapse in layers
        if synapse.scale is not None
    ]
    descent = [{"params": [synapse.bias], "lr": layer.bias_lr} for layer, synapse in layers]
    descent += [
        {
            "params": [synapse.values],
            "lr": layer.bias_lr if layer.weight_lr is None else layer.weight_lr,
        }
        for layer, synapse in layers
        if synapse.scale is None
    ]
    descent += [
        {
            "params": [synapse.scale],
            "lr": layer.scale_lr,
            "initial_lr": layer.scale_lr,
            "floor": SCALE_FLOOR,
        }
        for layer, synapse in layers
        if synapse.scale is not None and layer.scale_lr > 0
    ]
    flip = (
        BinaryFlip(
            flips,
            noise=config.learning.momentum_noise,
            fused=config.speed.fused_flips,
            generator=generator,
        )
        if flips
        else None
    )
    return flip, GradientDescent(descent)
