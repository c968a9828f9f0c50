"""Optimizers: flips for binary weights, descent that keeps scaling factors positive."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

_PART = 2**18
"""Weights visited at a time: small enough that a part stays in cache for all of its update."""

SCALE_FLOOR = 1e-6
"""Scaling factors stay at least this large."""


class BinaryFlip(Optimizer):
    """Flips a weight when its gradient's moving average passes a threshold (paper, section 3.1).

    Per batch, with g the gradient in ``.grad`` (the direction to go against, so m = −m of the
    paper): m ← (1 − gamma)·m + gamma·g, then every weight for which sign(w)·m > threshold flips.
    The momentum is in the optimizer's state; it outlives a flip.

    Args:
        params: tensors of ±1, or parameter groups.
        gamma: momentum's rate γ, in (0, 1]; per group.
        threshold: τ ≥ 0; per group.
        noise: start m at 2γ(1 − γ)·N(0, 1) instead of 0; per group.
        generator: of that noise, on the CPU; the global one if None.

    Raises:
        ValueError: a setting out of range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        gamma: float = 1e-5,
        threshold: float = 5e-7,
        noise: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(params, {"gamma": gamma, "threshold": threshold, "noise": noise})
        for group in self.param_groups:
            if not 0 < group["gamma"] <= 1:
                raise ValueError(f"gamma = {group['gamma']}: must be in (0, 1]")
            if not group["threshold"] >= 0:
                raise ValueError(f"threshold = {group['threshold']}: must be at least 0")
            # In the group, not in the state: loading casts a state to its parameter's type.
            group["flips"] = [
                torch.zeros((), dtype=torch.int64, device=signs.device) for signs in group["params"]
            ]
            for signs in group["params"]:
                self.state[signs] = {"momentum": self._start(signs, group, generator)}

    @staticmethod
    def _start(signs: Tensor, group: dict[str, Any], generator: torch.Generator | None) -> Tensor:
        if not group["noise"]:
            return torch.zeros_like(signs, memory_format=torch.contiguous_format)
        normal = torch.randn(signs.shape, generator=generator)
        size: float = 2 * group["gamma"] * (1 - group["gamma"])
        return (size * normal).to(signs)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the momenta and flip; parameters without a gradient are left alone."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for signs, flips in zip(group["params"], group["flips"], strict=True):
                if signs.grad is None:
                    continue
                momentum = self.state[signs]["momentum"]
                parts = (t.view(-1).split(_PART) for t in (signs, momentum))
                grads = signs.grad.reshape(-1).split(_PART)
                for w, m, g in zip(*parts, grads, strict=True):
                    m.lerp_(g, group["gamma"])
                    flipped = (w * m).gt_(group["threshold"])
                    flips += flipped.sum().long()
                    w.addcmul_(w, flipped, value=-2)  # w − 2·w: exactly −w
        return loss

    def flips(self) -> list[Tensor]:
        """Flips of each tensor since `take_flips`, each a device scalar, in the order given."""
        return [flips for group in self.param_groups for flips in group["flips"]]

    def take_flips(self) -> list[Tensor]:
        """`flips`, and start counting anew."""
        taken = [count.clone() for count in self.flips()]
        for count in self.flips():
            count.zero_()
        return taken


class PositiveSGD(SGD):
    """Gradient descent, after which no parameter is below a small positive floor.

    A scaling factor at or below zero would turn a layer's weights over or switch them off.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of SGD, then the floor."""
        loss: float | None = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.clamp_(min=SCALE_FLOOR)
        return loss
