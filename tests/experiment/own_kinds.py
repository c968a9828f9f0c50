"""One kind of each sort, as a user's module would add them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import binep
from binep.core.phases import Phase
from binep.core.solvers import Plain
from binep.data.batches import Split
from binep.data.sources import Source
from binep.experiment import kinds


@kinds.data_set("own-stripes")
class Stripes(Source):
    """Images of 4x4 with one bright row, in the upper or the lower half."""

    shape = (1, 4, 4)
    classes = ("upper", "lower")

    def __init__(self, count: kinds.Count = 64, noise: kinds.Rate = 0.1) -> None:
        self.count, self.noise = count, noise

    def read(self, data_dir: Path | None, download: bool) -> tuple[Split, Split]:
        return self.drawn(0), self.drawn(1)

    def drawn(self, seed: int) -> Split:
        random = torch.Generator().manual_seed(seed)
        images = self.noise * torch.rand(self.count, 1, 4, 4, generator=random)
        labels = torch.arange(self.count) % 2
        images[range(self.count), 0, 2 * labels + torch.arange(self.count) // 2 % 2] += 1
        return Split(images, labels)


@kinds.layer("own-dense")
class OwnDense(binep.Dense):
    """Dense synapses whose initial scaling factor is multiplied."""

    def __init__(
        self,
        shape: tuple[int, ...],
        outputs: int,
        gain: kinds.Rate = 1.0,
        weights: Any = "binary",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(shape, outputs, weights=weights, generator=generator)
        if self.scale is not None:
            self.scale.data *= gain


@kinds.layer("own-halves")
class OwnHalves(binep.Conv):
    """A convolution of every other pixel."""

    def __init__(self, shape: tuple[int, ...], outputs: int, pool: kinds.Count = 2) -> None:
        super().__init__(shape, outputs, kernel=3, padding=1, pool=pool)

    @staticmethod
    def output_shape_of(shape: tuple[int, ...], size: int, pool: int) -> tuple[int, ...]:
        return size, shape[1] // pool, shape[2] // pool


@kinds.layer("own-real")
class OwnReal(binep.Dense):
    """Dense synapses of real weights, whatever those of other layers are."""

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__(shape, outputs, weights="real")


@kinds.neurons("own-leaky")
@dataclass(frozen=True)
class Leaky(binep.Neurons):
    """s ← (1 − leak)·s + leak·clip(p + nudge, 0, 1)."""

    leak: kinds.Share = 0.2
    initial: float = 0.0

    differentiable = True
    hold_nudge = False
    settle_exactly = False

    def fire(self, state: Tensor) -> Tensor:
        return state

    def update(self, state: Tensor, drive: Tensor, nudge: Tensor | None = None) -> Tensor:
        goal = drive if nudge is None else drive + nudge
        return torch.lerp(state, goal.clamp(0, 1), self.leak)


@kinds.solver("own-cold")
class Cold(Plain):
    """Time steps, which begin anew from 0 in a phase that nothing nudges."""

    name = "own-cold"
    ignores = ("initial_state",)

    @classmethod
    def check(cls, network: binep.Network) -> None:
        if len(network) < 2:
            raise ValueError("must have two layers")

    def solve(self, phase: Phase, memory: object) -> binep.Equilibrium:
        zeros = [torch.zeros_like(s) for s in phase.states] if phase.is_free else phase.states
        return super().solve(dataclasses.replace(phase, states=zeros), memory)


@kinds.cost("own-error")
class OwnError(binep.SquaredError):
    """The squared error, weighted."""

    def __init__(self, classes: int, weight: float = 1.0) -> None:
        super().__init__(classes)
        if not math.isfinite(weight):
            raise ValueError(f"weight = {weight}: must be finite")
        self.weight = weight

    def force(self, output: Tensor, target: Tensor) -> Tensor:
        return self.weight * super().force(output, target)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return self.weight * super().loss(output, target)


class Forwarding(binep.GradientEstimator):
    """Hands on what it does not know."""

    def __init__(self, network: binep.Network, **options: Any) -> None:
        super().__init__(network, **options)


@kinds.estimator("own-ep")
class OwnEstimator(Forwarding):
    """Centred equilibrium propagation."""

    def __init__(self, network: binep.Network, *, beta: float, **options: Any) -> None:
        super().__init__(network, **options)
        self.inner = binep.EquilibriumPropagation(network, beta=beta, nudging="centred", **options)

    def __call__(self, x: Tensor, target: Tensor) -> binep.Equilibrium:
        return self.inner(x, target)


@kinds.flip_rule("own-sign")
class OwnRule(torch.optim.Optimizer):
    """Flips where the averaged gradient is so many times as large as its mean."""

    def __init__(self, params: Any, times: kinds.Count = 3) -> None:
        super().__init__(params, {"times": times})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for signs in group["params"]:
                state = self.state[signs]
                if not state:
                    state["steps"], state["mean"] = 0, torch.zeros_like(signs)
                state["steps"] += 1
                state["mean"].lerp_(signs.grad, 1 / min(state["steps"], 10))
                large = group["times"] * state["mean"].abs().mean()
                signs[signs * state["mean"] > large] *= -1
