"""Epochs: train and evaluate, with no file and no terminal in it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from binep.core.costs import Labels, Readout
from binep.core.gradients import GradientEstimator
from binep.core.network import Network
from binep.core.phases import Equilibrium
from binep.experiment.workers import ALONE, Alone, Settled

Batches = Iterable[tuple[Tensor, Labels]]
"""Pairs of inputs (batch, *shape), float, and labels (batch,), whole numbers."""

READOUTS: dict[str, tuple[Readout, bool]] = {
    "error": ("averaged", False),
    "error_single": ("single", False),
    "error_bits": ("averaged", True),
    "error_bits_single": ("single", True),
}
"""How an error is read: from the mean or the first of a class's neurons, states or fired bits."""


@dataclass(frozen=True)
class Scores:
    """Scores of a pass over some data.

    Attributes:
        errors: per readout of `READOUTS`, the share of samples misread, in percent. Readouts
            that cannot differ from "error" are left out, and all with a cost that is not of
            classes.
        loss: mean cost per sample.
        settle_steps: per layer, the free phase's mean number of steps until it settled.
        residual: per layer, the largest max|Δs| in the last step of a free phase.
        samples: number of samples.
        seconds: wall time.
    """

    errors: dict[str, float]
    loss: float
    settle_steps: list[float]
    residual: list[float]
    samples: int
    seconds: float

    @property
    def error(self) -> float:
        """Share of samples misread, in percent, read from the mean of each class's states.

        NaN with a cost that is not of classes: its loss says how well it does.
        """
        return self.errors.get("error", math.nan)


class Meter:
    """Sums of scores, kept on the device; only `read` makes the host wait."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.start = time.perf_counter()
        self.samples = self.batches = 0
        self.wrong: dict[str, Tensor] = {}
        self.loss: Tensor | float = 0.0
        self.steps: Any = 0.0  # then a tensor
        self.residual: Tensor | None = None

    @torch.no_grad()
    def add(self, free: Equilibrium | Settled, target: Tensor, labels: Tensor) -> None:
        """Add the end of a free phase, in full precision."""
        with torch.autocast(labels.device.type, enabled=False):
            self._add(free, target, labels)

    def _add(self, free: Equilibrium | Settled, target: Tensor, labels: Tensor) -> None:
        network = self.network
        self.samples += len(labels)
        self.batches += 1
        self.loss = self.loss + network.cost.loss(free.output, target).float().sum()
        self.steps = self.steps + free.moved
        last = free.residual
        self.residual = last if self.residual is None else torch.maximum(self.residual, last)
        for name in readouts_of(network):
            readout, bits = READOUTS[name]
            output = network.neurons[-1].fire(free.output) if bits else free.output
            output = output.to(free.output.dtype)
            wrong = network.cost.scores(output, readout).argmax(dim=1) != labels
            self.wrong[name] = wrong.sum() + self.wrong.get(name, 0)

    def state(self) -> dict[str, Tensor]:
        """What has been added up, for a checkpoint."""
        if self.residual is None:
            return {}
        sums = {"loss": self.loss, "steps": self.steps, "residual": self.residual}
        wrong = {f"wrong.{name}": count for name, count in self.wrong.items()}
        counts = {"samples": self.samples, "batches": self.batches, "seconds": self._seconds()}
        return {k: torch.as_tensor(v) for k, v in {**sums, **wrong}.items()} | {
            k: torch.tensor(v, dtype=torch.float64) for k, v in counts.items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        self.loss, self.steps, self.residual = state["loss"], state["steps"], state["residual"]
        self.wrong = {k.removeprefix("wrong."): v for k, v in state.items() if "wrong." in k}
        self.samples, self.batches = int(state["samples"]), int(state["batches"])
        self.start -= float(state["seconds"])

    def _seconds(self) -> float:
        return time.perf_counter() - self.start

    def read(self) -> Scores:
        """The scores so far."""
        if self.residual is None:
            raise ValueError("no batches: there is nothing to score")
        return Scores(
            errors={k: 100 * int(v) / self.samples for k, v in self.wrong.items()},
            loss=float(self.loss) / self.samples,
            settle_steps=(self.steps / self.batches).tolist(),
            residual=self.residual.tolist(),
            samples=self.samples,
            seconds=self._seconds(),
        )


def readouts_of(network: Network) -> Iterator[str]:
    """Names in `READOUTS` of the errors that can differ for a network."""
    if not network.cost.classifies:
        return
    binary = not network.neurons[-1].differentiable
    for name, (readout, bits) in READOUTS.items():
        if (network.cost.copies > 1 or readout == "averaged") and (binary or not bits):
            yield name


def _checked(network: Network, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches, their inputs and labels checked before either is used."""
    for x, labels in batches:
        x = network.as_input(x)
        yield x, network.cost.labels(labels, len(x))


def train_epoch(
    network: Network,
    estimator: GradientEstimator,
    optimizers: Sequence[Optimizer],
    batches: Batches,
    after_batch: Callable[[Meter], None] | None = None,
    meter: Meter | None = None,
    workers: Alone = ALONE,
) -> Scores:
    """The scores of one pass over the training data, in which the network learns.

    Args:
        network: what learns.
        estimator: fills the gradients of the network.
        optimizers: take a step each, in this order, after every batch.
        batches: the data.
        after_batch: called with the scores so far.
        meter: adds to the scores of an epoch that was begun before; a new one if None.
        workers: among whom each batch is shared.

    Returns:
        Scores of the free phases, each before its batch's update.

    Raises:
        TypeError, ValueError: no batches, inputs or labels that do not fit (see `Network.as_input`
            and `Cost.labels`), or an estimator of another network.
    """
    if estimator.network is not network:
        raise ValueError("the estimator is of another network than the one to train")
    meter = Meter(network) if meter is None else meter
    for x, labels in _checked(network, batches):
        target = network.cost.target(labels)
        free = workers.estimate(estimator, x, target)
        meter.add(free, target, labels)
        for optimizer in optimizers:
            optimizer.step()
        if after_batch is not None:
            after_batch(meter)
    return meter.read()


@torch.no_grad()
def evaluate(
    network: Network,
    batches: Batches,
    *,
    free_steps: int,
    tolerance: float = 1e-6,
    workers: Alone = ALONE,
) -> Scores:
    """The scores of the network's free equilibria, without learning.

    Args:
        network: what is tested.
        batches: the data.
        free_steps: T, the most steps of the free phase.
        tolerance: see `Network.relax`.
        workers: among whom each batch is shared.

    Raises:
        ValueError: no batches, or labels that are none of the classes; see `Cost.labels`.
    """
    meter = Meter(network)
    for x, labels in _checked(network, batches):
        free = workers.relax(network, x, free_steps, tolerance)
        meter.add(free, network.cost.target(labels), labels)
    return meter.read()


@torch.no_grad()
def class_scores(
    network: Network, batches: Batches, *, free_steps: int, tolerance: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """The scores of each class for each sample, at the network's free equilibria.

    Returns:
        A score per class, (samples, classes), whose argmax is the prediction, read from the mean
        of each class's states; and the labels, (samples,).
    """
    scores, labels = [], []
    for x, y in _checked(network, batches):
        labels.append(y)
        output = network.relax(x, free_steps, tolerance=tolerance, output_only=True).output
        with torch.autocast(x.device.type, enabled=False):
            scores.append(network.cost.scores(output, "averaged"))
    return torch.cat(scores), torch.cat(labels)


@dataclass(frozen=True)
class LayerChange:
    """How a layer changed over an epoch.

    Attributes:
        flips: binary weights that changed sign, each change counted.
        flip_rate: flips per weight and batch.
        scale: mean scaling factor α at the end.
        most: flips of that weight that has flipped most since training began; None if not counted.
    """

    flips: int
    flip_rate: float
    scale: float
    most: int | None = None


def layer_changes(
    network: Network, flip: Any, batches: int, counted: bool = True
) -> list[LayerChange | None]:
    """The change of each learning synapse since the last call; None for real weights.

    Args:
        network: what learns.
        flip: a rule with ``take_flips`` and ``writes``, such as `BinaryFlip`; None without binary
            weights.
        batches: since the last call.
        counted: whether its ``writes`` are since training began.
    """
    counts = iter(flip.take_flips() if flip is not None else [])
    writes = iter(flip.writes() if flip is not None and counted else [])
    changes: list[LayerChange | None] = []
    for synapse in network.learning_synapses():
        if synapse.scale is None:
            changes.append(None)
            continue
        flips = int(next(counts, torch.tensor(0)))
        rate = flips / (synapse.values.numel() * batches)
        scale, written = float(synapse.scale.detach().mean()), next(writes, None)
        most = None if written is None else int(written.max())
        changes.append(LayerChange(flips, rate, scale, most))
    return changes
