"""Warnings about training that goes wrong: each once, naming the layer and what to try."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from binep.core.optim import SCALE_FLOOR
from binep.experiment.kinds import FLIP_RULES

if TYPE_CHECKING:
    from binep.experiment.config import Config
    from binep.experiment.experiment import EpochResult, Experiment

MOVING = 0.01
"""A state that still moves by more than this at the end of a phase has not settled."""

LARGE = 10.0
"""A scaling factor above it: one active input already moves a neuron far beyond [0, 1]."""


class TrainingWarning(UserWarning):
    """States that do not settle, too many flips or none, a tiny or huge α, or no finite loss."""


class Guards:
    """Gives each kind of warning once in a training.

    Args:
        known: kinds of warnings that were given before, as in `known` of an earlier instance.
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        self.known = list(known)

    def look(self, experiment: Experiment, result: EpochResult) -> list[str]:
        """Texts of the warnings that an epoch is the first to give cause for."""
        return [*self.before(experiment), *self._new(self._all(experiment, result))]

    def before(self, experiment: Experiment) -> list[str]:
        """Texts of the warnings that the data give cause for."""
        mean = experiment.data.dark_on_light
        if mean is None:
            return []
        text = (
            f"the images are light, {mean:.2f} in the mean of 0 for black and 1 for white: dark on "
            "light does not train well as it is: --standardize, or invert them"
        )
        return self._new([("light", text)])

    def _new(self, found: Iterable[tuple[str, str]]) -> list[str]:
        new = []
        for kind, text in found:
            if kind not in self.known:
                self.known.append(kind)
                new.append(text)
        return new

    def _all(self, experiment: Experiment, result: EpochResult) -> Iterable[tuple[str, str]]:
        config = experiment.config
        if not math.isfinite(result.train.loss):
            yield "loss", "the loss is not finite: lower beta, bias_lr, weight_lr or scale_lr"
        for i, (steps, residual) in enumerate(
            zip(result.train.settle_steps, result.train.residual, strict=True), start=1
        ):
            if not math.isfinite(residual):
                text = "its states are not finite: lower beta, bias_lr, weight_lr or scale_lr"
                yield f"finite {i}", f"layer {i}: {text}"
            elif residual > MOVING and steps > 0.9 * config.dynamics.free_steps:
                yield (
                    f"settle {i}",
                    f"layer {i}: its states still move by {residual:.2g} after free_steps = "
                    f"{config.dynamics.free_steps}: raise free_steps, or layers.{i}.threshold "
                    "if many weights flip",
                )
        for i, (change, synapse) in enumerate(
            zip(result.layers, experiment.network.learning_synapses(), strict=True), start=1
        ):
            if change is None or synapse.scale is None:
                continue
            if float(synapse.scale.detach().min()) <= SCALE_FLOOR:
                text = f"its α has fallen to the floor {SCALE_FLOOR:g}: lower layers.{i}.scale_lr"
                yield f"scale {i}", f"layer {i}: {text}"
            if (largest := float(synapse.scale.detach().max())) > LARGE:
                text = f"its α has grown to {largest:.2g}: lower layers.{i}.scale_lr"
                yield f"large {i}", f"layer {i}: {text}"
            if change.flip_rate > config.warn_flip_rate:
                advice = _advice(config, threshold=f"raise layers.{i}", gamma=f"lower layers.{i}")
                text = f"{change.flip_rate:.2%} of its weights flip per batch: {advice}"
                yield f"many {i}", f"layer {i}: {text}"
            if change.flips == 0:
                advice = _advice(config, threshold=f"lower layers.{i}", gamma=f"raise layers.{i}")
                text = f"no weight flipped in epoch {result.epoch}: if it still has to learn, "
                yield f"none {i}", f"layer {i}: {text}{advice}"


def _advice(config: Config, **how: str) -> str:
    """How to change those settings of a layer that its flip rule takes."""
    rule = FLIP_RULES[config.learning.flip_rule]
    words = [f"{change}.{name}" for name, change in how.items() if name in rule.takes]
    advice = " or ".join(words) or f"change the settings of flip_rule = {rule.name}"
    proposed = "; --auto-threshold proposes a threshold" * (rule.name == "momentum")
    return f"{advice}{proposed}"
