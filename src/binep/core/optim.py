"""Optimizers: flips for binary weights, plain descent for the rest."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from binep.core.synapses import note_changed_rows
from binep.solvers import kernels

_PART = 2**18
"""Weights visited at a time: small enough that a part stays in cache for all of its update."""

_SMALLEST_DECAY = 2**-10
"""Momenta are multiplied by their decay before it gets smaller than this."""

SCALE_FLOOR = 1e-6
"""Scaling factors stay at least this large."""


class _Eager(Optimizer):
    """An optimizer that does without torch.compile, whose import takes 70 MB and a second."""

    # PyTorch wraps this one so that it is not compiled, for which it imports the compiler.
    add_param_group = inspect.unwrap(Optimizer.add_param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the parameters that have a gradient; the others are left alone."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for i, parameter in enumerate(group["params"]):
                if parameter.grad is not None:
                    self._update(group, i, parameter, parameter.grad)
        return loss

    def _update(self, group: dict[str, Any], i: int, parameter: Tensor, grad: Tensor) -> None:
        """Update the i-th parameter of a group."""
        raise NotImplementedError


class BinaryFlip(_Eager):
    """Flips a weight when its gradient's moving average passes a threshold (paper, section 3.1).

    Per batch, with g the gradient in ``.grad`` (the direction to go against, so m = −m of the
    paper): m ← (1 − gamma)·m + gamma·g, then every weight for which sign(w)·m > threshold flips.
    The momentum outlives a flip. It is kept as ``decay·momentum``, with the decay one number per
    tensor: a weight without a gradient need not be visited, since decay alone flips nothing. A
    sparse gradient is zero in the rows that it leaves out.

    Args:
        params: tensors of ±1, or parameter groups.
        gamma: momentum's rate γ, in (0, 1]; per group.
        threshold: τ ≥ 0; per group.
        noise: start m at 2γ(1 − γ)·N(0, 1) instead of 0; per group.
        one_pass: on a CPU, update and flip in one pass over memory; per group.
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
        one_pass: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        defaults = {"gamma": gamma, "threshold": threshold, "noise": noise, "one_pass": one_pass}
        super().__init__(params, defaults)
        for group in self.param_groups:
            if not 0 < group["gamma"] <= 1:
                raise ValueError(f"gamma = {group['gamma']}: must be in (0, 1]")
            if not group["threshold"] >= 0:
                raise ValueError(f"threshold = {group['threshold']}: must be at least 0")
            # In the group, not in the state: loading casts a state to its parameter's type.
            group["flips"] = [
                torch.zeros((), dtype=torch.int64, device=signs.device) for signs in group["params"]
            ]
            group["decay"] = [1.0] * len(group["params"])
            for signs in group["params"]:
                momentum = self._start(signs, group, generator)
                # Noise may begin above the threshold: the first step visits every weight.
                self.state[signs] = {"momentum": momentum, "visited": not group["noise"]}

    @staticmethod
    def _start(signs: Tensor, group: dict[str, Any], generator: torch.Generator | None) -> Tensor:
        if not group["noise"]:
            return torch.zeros_like(signs, memory_format=torch.contiguous_format)
        normal = torch.randn(signs.shape, generator=generator)
        size: float = 2 * group["gamma"] * (1 - group["gamma"])
        return (size * normal).to(signs)

    def _update(self, group: dict[str, Any], i: int, signs: Tensor, grad: Tensor) -> None:
        momentum = self.state[signs]["momentum"]
        decay = group["decay"][i] * (1 - group["gamma"])
        if decay < _SMALLEST_DECAY:
            momentum *= decay
            decay = 1.0
        group["decay"][i] = decay
        rate, threshold = group["gamma"] / decay, group["threshold"] / decay
        rows = None
        if grad.is_sparse and self.state[signs]["visited"]:
            rows, grad = grad.indices()[0], grad.values()
        elif grad.is_sparse:
            grad = grad.to_dense()
        self.state[signs]["visited"] = True
        if group["one_pass"] and signs.device.type == "cpu" and signs.dtype == torch.float32:
            group["flips"][i] += _flip_fused(signs, momentum, rows, grad, rate, threshold)
        else:
            group["flips"][i] += _flip(signs, momentum, rows, grad, rate, threshold)

    def momenta(self) -> list[Tensor]:
        """The momenta m, copies in the order given; opposite in sign to the paper's."""
        params = [signs for group in self.param_groups for signs in group["params"]]
        pairs = zip(params, self.decays, strict=True)
        return [self.state[signs]["momentum"] * decay for signs, decay in pairs]

    @property
    def decays(self) -> list[float]:
        """What each stored momentum is to be multiplied by, in the order given."""
        return [decay for group in self.param_groups for decay in group["decay"]]

    @decays.setter
    def decays(self, values: Sequence[float]) -> None:
        left = iter(values)
        for group in self.param_groups:
            group["decay"] = [next(left) for _ in group["params"]]

    def flips(self) -> list[Tensor]:
        """Flips of each tensor since `take_flips`, each a device scalar, in the order given."""
        return [flips for group in self.param_groups for flips in group["flips"]]

    def take_flips(self) -> list[Tensor]:
        """`flips`, and start counting anew."""
        taken = [count.clone() for count in self.flips()]
        for count in self.flips():
            count.zero_()
        return taken


def _flip(
    signs: Tensor,
    momentum: Tensor,
    rows: Tensor | None,
    grad: Tensor,
    rate: float,
    threshold: float,
) -> Tensor:
    """``momentum`` += rate·grad, then flip where sign·momentum > threshold; returns how many."""
    if rows is not None:
        grad = torch.zeros_like(momentum).index_copy_(0, rows, grad)
    flips = torch.zeros((), dtype=torch.int64, device=signs.device)
    flat = (signs.view(-1), momentum.view(-1), grad.reshape(-1))
    for w, m, g in zip(*(torch.split(t, _PART) for t in flat), strict=True):
        m += g * rate
        flipped = (w * m).gt_(threshold)
        flips += flipped.sum().long()
        w.addcmul_(w, flipped, value=-2)  # w − 2·w: exactly −w
    return flips


def _flip_fused(
    signs: Tensor,
    momentum: Tensor,
    rows: Tensor | None,
    grad: Tensor,
    rate: float,
    threshold: float,
) -> int:
    """The same in one pass over memory, to the same bits."""
    kernels.use_threads()
    if rows is None:
        rows = torch.arange(len(signs))
    flips = torch.empty(len(rows), dtype=torch.int64)
    kernels.flip(
        signs.detach().view(len(signs), -1).numpy(),
        momentum.view(len(signs), -1).numpy(),
        rows.numpy(),
        grad.reshape(len(rows), signs[0].numel()).contiguous().numpy(),
        np.float32(rate),
        np.float32(threshold),
        flips.numpy(),
    )
    changed = rows[flips > 0]
    if len(changed):
        note_changed_rows(signs, changed)
    return int(flips.sum())


class GradientDescent(_Eager):
    """p ← max(p − lr·g, floor), for biases, real weights and scaling factors.

    A scaling factor at or below zero would turn a layer's weights over or switch them off.

    Args:
        params: tensors, or parameter groups.
        lr: learning rate; per group.
        floor: what no element gets below, such as `SCALE_FLOOR`; per group.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        floor: float | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "floor": floor})

    def _update(self, group: dict[str, Any], i: int, parameter: Tensor, grad: Tensor) -> None:
        parameter.add_(grad, alpha=-group["lr"])
        if group["floor"] is not None:
            parameter.clamp_(min=group["floor"])
