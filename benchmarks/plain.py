"""The training step as the paper's program takes it, without a shortcut: what speed is measured by.

Every one of T and Kmax steps is taken, with full weights ±α in float32 and the input's drive
computed anew each time. It shares no arithmetic with the package, only the setting and the state
that it starts from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from binep.core.optim import BinaryFlip
from binep.core.synapses import Synapse
from binep.experiment.config import ConvLayer, Layer
from binep.experiment.experiment import Experiment


def momentum_of(optimizer: BinaryFlip, signs: Tensor) -> Tensor:
    """The paper's momentum of a layer, a copy; the optimizer's has the opposite sign."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return next(-m for p, m in zip(params, optimizer.momenta(), strict=True) if p is signs)


@dataclass
class PlainLayer:
    """The weights that lead to a layer, what they have learnt, and how they learn."""

    weight: Tensor
    bias: Tensor
    momentum: Tensor
    shape: tuple[int, ...]
    setting: Any

    def up(self, below: Tensor) -> tuple[Tensor, Tensor | None]:
        """W ⋆ s + b, and the indices of the maxima."""
        if self.setting.kind == "dense":
            return F.linear(below.flatten(1), self.weight, self.bias), None
        convolved = F.conv2d(below, self.weight, padding=self.setting.padding)
        pooled, indices = F.max_pool2d(convolved, self.setting.pool, return_indices=True)
        return pooled + self.bias.view(-1, 1, 1), indices

    def unpool(self, above: Tensor, indices: Tensor, below: Tensor) -> Tensor:
        """Each value back to where its maximum was, in the map before pooling."""
        smaller = 2 * self.setting.padding - self.setting.kernel + 1
        size = [side + smaller for side in below.shape[-2:]]
        return F.max_unpool2d(above, indices, [self.setting.pool] * 2, output_size=size)

    def down(self, above: Tensor, indices: Tensor | None, below: Tensor) -> Tensor:
        """Wᵀ ⋆ s, in the shape of the layer below."""
        if indices is None:
            return (above @ self.weight).view_as(below)
        unpooled = self.unpool(above, indices, below)
        return F.conv_transpose2d(unpooled, self.weight, padding=self.setting.padding)

    def correlate(self, above: Tensor, below: Tensor) -> tuple[Tensor, Tensor]:
        """Σ s_above ⊗ s_below and Σ s_above."""
        _, indices = self.up(below)
        if indices is None:
            return above.T @ below.flatten(1), above.sum(dim=0)
        unpooled, shape = self.unpool(above, indices, below), list(self.weight.shape)
        padding = self.setting.padding
        product: Tensor = conv2d_weight(below, shape, unpooled, padding=padding)  # type: ignore[no-untyped-call]
        return product, above.sum(dim=(0, 2, 3))

    def learn(self, g_weight: Tensor, g_bias: Tensor) -> Tensor:
        """Momentum, flips, bias; returns the number of flips."""
        setting = self.setting
        self.momentum = (1 - setting.gamma) * self.momentum + setting.gamma * g_weight
        flipped = -self.weight.sign() * self.momentum > setting.threshold
        self.weight = torch.where(flipped, -self.weight, self.weight)
        self.bias = self.bias + setting.bias_lr * g_bias
        count: Tensor = flipped.sum()
        return count


class Batch(NamedTuple):
    """What a batch did: states at the end of both phases, flips per layer, the β drawn."""

    free: list[Tensor]
    nudged: list[Tensor]
    flips: list[Tensor]
    beta: float


class Plain:
    """A copy of an experiment's network and momenta, with a training step of its own.

    Covers equilibrium propagation of dense and max-pooled networks, real and binary activations,
    fixed α, squared error, the nudge outside ρ, one-sided or of random sign.

    Raises:
        ValueError: another setting.
    """

    @torch.no_grad()
    def __init__(self, experiment: Experiment) -> None:
        config = experiment.config
        self.dynamics, self.learning = config.dynamics, config.learning
        wanted = ("ep", "binary", "squared-error", "outside")
        given = tuple(getattr(self.learning, k) for k in ("estimator", "synapses", "cost", "nudge"))
        settings = list(config.layers.values())
        learnt = any(setting.scale_lr for setting in settings)
        average = any(isinstance(s, ConvLayer) and s.pooling != "max" for s in settings)
        apart = any(setting.firing_threshold is not None for setting in settings)
        if given != wanted or self.learning.nudging == "centred" or learnt or average or apart:
            raise ValueError(f"the plain program does not cover {config.summary()} as it is set")
        flip = experiment.flip
        assert flip is not None  # its synapses are binary

        def copied(synapse: Synapse, setting: Layer) -> PlainLayer:
            momentum = momentum_of(flip, synapse.values)
            bias, shape = synapse.bias.detach().clone(), synapse.output_shape
            return PlainLayer(synapse.weight.detach().clone(), bias, momentum, shape, setting)

        pairs = zip(experiment.network.synapses, settings, strict=True)
        self.layers = [copied(synapse, setting) for synapse, setting in pairs]
        self.generator = torch.Generator()  # draws the same signs of β as the experiment's
        self.generator.set_state(experiment.nudge.get_state())

    def fire(self, state: Tensor) -> Tensor:
        """What the neighbours receive."""
        if self.dynamics.activation == "hard-sigmoid":
            return state
        return (state >= self.dynamics.firing_threshold).float()

    def step(
        self, x: Tensor, states: Sequence[Tensor], target: Tensor, beta: float, held: Tensor
    ) -> list[Tensor]:
        """All layers at once; β = 0 in the free phase; held is the free phase's last output."""
        sent = [x, *map(self.fire, states)]
        passes = [layer.up(below) for layer, below in zip(self.layers, sent, strict=False)]
        drives = [drive for drive, _ in passes]
        for i, above in enumerate(self.layers[1:]):
            drives[i] = drives[i] + above.down(sent[i + 2], passes[i + 1][1], states[i])
        new: list[Tensor] = []
        for i, (state, drive) in enumerate(zip(states, drives, strict=True)):
            last = i == len(states) - 1
            nudge = beta * (target - (held if self.learning.hold_nudge else state)) if last else 0
            if self.dynamics.activation == "hard-sigmoid":
                moved = drive.clamp(0, 1) + nudge
                new.append(moved.clamp(0, 1) if self.learning.clip_nudged else moved)
            else:
                gated = ((state - 0.5).abs() <= 0.5) * drive + nudge
                share = self.dynamics.neuron_filter
                new.append(((1 - share) * state + share * gated).clamp(0, 1))
        return new

    @torch.no_grad()
    def train(self, x: Tensor, target: Tensor) -> Batch:
        """Both phases, the difference of their correlations, and the update."""
        beta, random = self.learning.beta, self.learning.nudging == "random-sign"
        if random and torch.rand((), generator=self.generator) < 0.5:
            beta = -beta
        initial = self.dynamics.initial_state
        free = [x.new_full((len(x), *layer.shape), initial) for layer in self.layers]
        for _ in range(self.dynamics.free_steps):
            free = self.step(x, free, target, 0, free[-1])
        nudged = free
        for _ in range(self.dynamics.nudged_steps):
            nudged = self.step(x, nudged, target, beta, free[-1])
        phases = [[x, *map(self.fire, states)] for states in (free, nudged)]
        gradients = []
        for i, layer in enumerate(self.layers):
            products = (layer.correlate(sent[i + 1], sent[i]) for sent in phases)
            gradients.append([(b - a) / (beta * len(x)) for a, b in zip(*products, strict=True)])
        flips = [layer.learn(*g) for layer, g in zip(self.layers, gradients, strict=True)]
        return Batch(free, nudged, flips, beta)
