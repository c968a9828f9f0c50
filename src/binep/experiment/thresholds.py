"""Thresholds τ for a network of one's own, from the gradients of its first batches."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from binep.data.sources import Source
from binep.experiment.config import Config, ConfigError
from binep.experiment.experiment import Experiment

FLIP_RATES = {"real": 1e-3, "binary": 1e-4}
"""Share of a layer's weights that flips per batch at the start, by the neurons' activations.

In their first epoch the paper's presets, narrowed for MNIST-5k, have 1e-3 to 4e-3 with real
activations, and 3e-5 to 3e-4 in the dense network of bits that learns best (results/mnist5k). Over
the 938 batches of MNIST it is 1e-4 to 3e-4 and 2e-5 to 8e-5: it falls as the network learns.
"""

BATCHES = 50
"""Batches that are looked at, of a run of at least five times as many."""

_NEVER = 1e38  # a threshold that no momentum passes


def auto_threshold(
    config: Config,
    data: Sequence[Any] | Source | None = None,
    *,
    flip_rate: float | None = None,
    batches: int | None = None,
) -> Config:
    """A copy of a configuration in which each layer has a threshold τ that suits its momenta.

    A network of the configuration learns from some batches, while in each layer those weights flip
    whose momenta m are most against their signs: so many that the given share has flipped per
    batch. The momentum at which they do is what τ is then to be: the median over the second half of
    the batches, to three digits. γ stays what it is: m is about γ times the sum of the gradients
    until 1/γ batches have passed, so that τ/γ decides.

    Args:
        config: what is to be trained; the thresholds of its layers do not matter.
        data: of one's own; see `Experiment`.
        flip_rate: share of a layer's weights that is to flip per batch at the start; by default a
            thousandth, or with binary activations a tenth of that.
        batches: to learn from; by default 50, or a fifth of the run if that is less, but 5 at
            least. An epoch that is shorter is followed by another.

    Raises:
        ConfigError: a setting that cannot be, real weights, another flip rule than "momentum", a
            start from a trained network, or a layer without a gradient.
        DataError: a data set that is missing or damaged.
    """
    if flip_rate is not None and not 0 < flip_rate < 1:
        raise ConfigError(f"flip_rate = {flip_rate}: must be between 0 and 1")
    if batches is not None and batches < 1:
        raise ConfigError(f"batches = {batches}: must be a whole number from 1")
    if config.learning.synapses != "binary" or config.learning.flip_rule != "momentum":
        which = f"{config.learning.synapses} synapses, flip_rule = {config.learning.flip_rule}"
        raise ConfigError(f"auto-threshold with {which}: is for binary ones that flip by momentum")
    if config.start is not None:
        raise ConfigError(
            f"auto-threshold with start = {config.start[:16]}: is for a network that starts anew"
        )
    never = {n: dataclasses.replace(at, threshold=_NEVER) for n, at in config.layers.items()}
    experiment = Experiment(config.replace(layers=never), data)
    synapses = zip(config.layers, experiment.network.learning_synapses(), strict=True)
    binary = [number for number, synapse in synapses if synapse.scale is not None]
    if flip_rate is None:
        real = experiment.network.neurons[-1].differentiable
        flip_rate = FLIP_RATES["real" if real else "binary"]
    if batches is None:
        batches = min(BATCHES, max(5, experiment.batches_per_epoch * config.epochs // 5))
    layers = dict(experiment.config.layers)
    for number, level in zip(binary, _levels(experiment, flip_rate, batches), strict=True):
        if not level > 0:
            raise ConfigError(f"layers.{number}: got no gradient in {batches} batches: no τ fits")
        layers[number] = dataclasses.replace(layers[number], threshold=float(f"{level:.2e}"))
    return experiment.config.replace(layers=layers)


def _levels(experiment: Experiment, flip_rate: float, count: int) -> list[float]:
    """The momentum of each layer at which so large a share of its weights flips per batch."""
    flip = experiment.flip
    signs = [p for group in flip.param_groups for p in group["params"]]
    levels: list[list[float]] = [[] for _ in signs]
    flipped, most = [0] * len(signs), [0.0] * len(signs)
    with experiment.working():
        for seen, (x, target) in enumerate(_first(experiment, count), start=1):
            experiment.estimator(x, target)
            for optimizer in experiment.optimizers:
                optimizer.step()
            for i, (values, momentum) in enumerate(zip(signs, flip.momenta(), strict=True)):
                against = (values.detach() * momentum).flatten()
                most[i] = float(against.max())
                due = min(int(flip_rate * seen * len(against)) - flipped[i], len(against))
                level = float(against.topk(due).values[-1]) if due > 0 else 0.0
                if level > 0:
                    flipped[i] += _flip(values, values * momentum >= level)
                    levels[i].append(level)
    later = [some[len(some) // 2 :] for some in levels]
    # Of a few weights none may have been due.
    return [statistics.median(s) if s else m for s, m in zip(later, most, strict=True)]


def _first(experiment: Experiment, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """So many training batches: inputs, and targets."""
    data, size = experiment.data, experiment.config.batch_size

    def epochs() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from data.training_batches(size, experiment.order)

    for images, labels in itertools.islice(epochs(), count):
        yield data.prepare(images), experiment.network.cost.target(labels)


@torch.no_grad()
def _flip(signs: Tensor, which: Tensor) -> int:
    """Flip these signs; how many they are."""
    signs.copy_(torch.where(which, -signs, signs))
    return int(which.sum())
