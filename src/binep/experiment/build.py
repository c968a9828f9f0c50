"""A checked configuration turned into a network and what trains it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from binep.core.costs import Cost
from binep.core.gradients import GradientEstimator
from binep.core.network import Network
from binep.core.neurons import Neurons
from binep.core.optim import MOST_WRITES, SCALE_FLOOR, GradientDescent
from binep.core.synapses import Synapse
from binep.data.sources import Source
from binep.experiment import memory
from binep.experiment.config import Config, ConfigError, Layer
from binep.experiment.kinds import COSTS, ESTIMATORS, FLIP_RULES, NEURONS, SOLVERS
from binep.experiment.sharding import ShardedFlip
from binep.experiment.workers import ALONE, Alone, Workers
from binep.registry import Kind, Registry


def generators(seed: int, count: int) -> list[torch.Generator]:
    """Independent CPU generators from one seed."""
    seeds = np.random.SeedSequence(seed).generate_state(count, np.uint64)
    return [torch.Generator().manual_seed(int(s) >> 1) for s in seeds]


def initial_network(
    config: Config,
    generator: torch.Generator | None = None,
    *,
    source: Source | None = None,
) -> Network:
    """The network that a checked configuration starts from, on the CPU.

    Args:
        config: the configuration.
        generator: of the initial weights; that of the configuration's seed if None.
        source: its data set; if None, the configuration is asked.

    Raises:
        MemoryError: what it needs at least is more than there is.
    """
    source = config.source() if source is None else source
    memory.check(config.replace(device="cpu"), source=source)
    generator = generator or generators(config.seed, 3)[0]
    return build_network(config, source.shape, len(source.classes), generator)


def _make(registry: Registry, name: str, config: Config, *arguments: Any, **offered: Any) -> Any:
    """An instance of a kind that a configuration names, with the settings that it takes.

    Raises:
        ConfigError: its constructor refuses them.
    """
    kind: Kind = registry[name]
    own = config.options.get(name) if kind.settings is not None else None
    try:
        return kind.build(*arguments, own=own, **offered)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{registry.what} = {name}: {error}") from error


def build_neurons(config: Config, layer: Layer) -> Neurons:
    """The neurons of a layer."""
    dynamics, learning, threshold = config.dynamics, config.learning, layer.firing_threshold
    neurons: Neurons = _make(
        NEURONS,
        dynamics.activation,
        config,
        initial=dynamics.initial_state,
        threshold=dynamics.firing_threshold if threshold is None else threshold,
        filter=dynamics.neuron_filter,
        hold_nudge=learning.hold_nudge,
        nudge=learning.nudge,
        clip_nudged=learning.clip_nudged,
    )
    return neurons


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
    network = _assembled(config, input_shape, classes, generator)
    try:
        network.check()
    except (ValueError, ImportError) as error:
        raise ConfigError(str(error)) from error
    return network


def check_solver(config: Config, source: Source) -> None:
    """Refuse a network whose phases the solver that is named cannot take; no weights are drawn.

    Raises:
        ConfigError: why it cannot.
    """
    try:
        with torch.device("meta"):
            _assembled(config, source.shape, len(source.classes)).check_solver()
    except RuntimeError:  # a layer of one's own asks for values: it is checked once built
        return
    except (ValueError, ImportError) as error:
        raise ConfigError(str(error)) from error


def _assembled(
    config: Config,
    input_shape: tuple[int, ...],
    classes: int,
    generator: torch.Generator | None = None,
) -> Network:
    learning, layers = config.learning, list(config.layers.values())
    synapses: list[Synapse] = []
    for number, layer in config.layers.items():
        shape = synapses[-1].output_shape if synapses else input_shape
        try:
            made = layer.build(
                shape, weights=learning.synapses, zero_bias=learning.zero_bias, generator=generator
            )
        except ValueError as error:
            raise ConfigError(f"layers.{number}: {error}") from error
        made.train_scale(layer.scale_lr > 0)
        synapses.append(made)
    offered: dict[str, Any] = {"classes": classes, "copies": learning.output_copies}
    if config.has_readout:
        offered["readout"] = synapses.pop()
    cost: Cost = _make(COSTS, learning.cost, config, **offered)
    # A readout has no neurons.
    neurons = [build_neurons(config, layer) for layer in layers[: len(synapses)]]
    dynamics = config.dynamics
    return Network(
        synapses,
        neurons,
        cost,
        speed=config.speed,
        free_steps=dynamics.free_steps,
        tolerance=dynamics.settle_tol,
        solver=SOLVERS[dynamics.solver].load(),
    )


def build_estimator(
    config: Config, network: Network, generator: torch.Generator | None = None
) -> GradientEstimator:
    """The gradient estimator of a checked configuration; the generator draws nudge signs."""
    dynamics, learning = config.dynamics, config.learning
    offered: dict[str, Any] = {
        "beta": learning.beta,
        "free_steps": dynamics.free_steps,
        "nudged_steps": dynamics.nudged_steps,
        "nudging": learning.nudging,
        "tolerance": dynamics.settle_tol,
        "row_sparse": bool(FLIP_RULES[learning.flip_rule].fact("takes_rows")),
        "generator": generator,
    }
    estimator: GradientEstimator = _make(ESTIMATORS, learning.estimator, config, network, **offered)
    return estimator


def build_optimizers(
    config: Config,
    network: Network,
    generator: torch.Generator | None = None,
    workers: Alone = ALONE,
) -> tuple[Any, GradientDescent]:
    """The optimizers of a checked configuration, in the order of their steps.

    A flip rule, or None without binary weights; then descent for biases, real weights and scaling
    factors. The generator draws the momenta's initial noise. Workers that are given split the
    momenta of binary weights.
    """
    layers = list(zip(config.layers.values(), network.learning_synapses(), strict=True))
    flips = [
        {
            "params": [synapse.values],
            "gamma": layer.gamma,
            "initial_gamma": layer.gamma,
            "threshold": layer.threshold,
        }
        for layer, synapse in layers
        if synapse.scale is not None
    ]
    descent: list[dict[str, Any]] = [
        {"params": [synapse.bias], "lr": layer.bias_lr} for layer, synapse in layers
    ]
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
            "relative": True,  # its step is lr·α·∂/∂α, which the paper's rates were tuned with
        }
        for layer, synapse in layers
        if synapse.scale is not None and layer.scale_lr > 0
    ]
    flip: Any = None
    if flips and isinstance(workers, Workers) and workers.splits_momenta:
        one_pass = config.speed.uses("one-pass-flips")
        flip = ShardedFlip(_splittable(config, flips), workers, one_pass)
    elif flips:
        flip = _build_flip_rule(config, flips, generator)
    return flip, GradientDescent(descent)


def _splittable(config: Config, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parameter groups of a rule whose momenta can be split among workers.

    Raises:
        ConfigError: they cannot.
    """
    rule, noise = config.learning.flip_rule, config.learning.momentum_noise
    if rule != "momentum" or noise:
        raise ConfigError(
            f"--shard-momenta with flip_rule = {rule}, momentum_noise = {str(noise).lower()}: must "
            "be momentum, without noise"
        )
    return groups


def _build_flip_rule(
    config: Config, groups: list[dict[str, Any]], generator: torch.Generator | None
) -> Any:
    rule = _make(
        FLIP_RULES,
        config.learning.flip_rule,
        config,
        groups,
        noise=config.learning.momentum_noise,
        one_pass=config.speed.uses("one-pass-flips"),
        generator=generator,
    )
    if not all(hasattr(rule, name) for name in ("flips", "take_flips", "writes")):
        SignChanges(rule)
    return rule


class SignChanges:
    """Counts the flips of an optimizer that does not count them itself.

    It then has ``flips``, ``take_flips`` and ``writes`` as `BinaryFlip` has them.
    """

    def __init__(self, rule: Optimizer) -> None:
        self.signs: list[Tensor] = [p for group in rule.param_groups for p in group["params"]]
        self.counts = [torch.zeros((), dtype=torch.int64, device=p.device) for p in self.signs]
        self.written = [torch.zeros_like(p, dtype=torch.int16) for p in self.signs]
        self.before: list[Tensor] = []
        rule.register_step_pre_hook(self._keep)
        rule.register_step_post_hook(self._count)
        rule.flips = lambda: self.counts  # type: ignore[attr-defined]
        rule.take_flips = self._take  # type: ignore[attr-defined]
        rule.writes = lambda: self.written  # type: ignore[attr-defined]

    def _keep(self, *_: Any) -> None:
        self.before = [signs.detach().clone() for signs in self.signs]

    def _count(self, *_: Any) -> None:
        for i, (signs, before) in enumerate(zip(self.signs, self.before, strict=True)):
            flipped = signs.detach() != before
            self.counts[i] += flipped.sum()
            self.written[i] += flipped & (self.written[i] < MOST_WRITES)

    def _take(self) -> list[Tensor]:
        taken = [count.clone() for count in self.counts]
        for count in self.counts:
            count.zero_()
        return taken
