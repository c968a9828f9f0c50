"""Optimizers: flips of binary weights; gradient descent for all other parameters."""

from __future__ import annotations

import copy
import inspect
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from binep.core.provided import provided
from binep.core.versions import Version, note_flips

_PART = 2**18
"""Weights visited at a time: on a CPU a part stays in cache for all of its update."""

_LAUNCHED = 2**24
"""Weights visited at a time on other devices: float32 still counts so many flips exactly."""

_SMALLEST_DECAY = 2**-10
"""Momenta are multiplied by their decay before it gets smaller than this."""

MOST_WRITES = 2**15 - 1
"""Flips of one weight are counted up to here, in 16 bits."""

SCALE_FLOOR = 1e-6
"""Scaling factors stay at least this large."""


class Flip(Protocol):
    """Number of flips, and rows that hold any (None if unknown), of one update in place.

    The momentum becomes momentum + rate·grad; then every sign for which sign·momentum > threshold
    flips, which ``writes``, int16, counts per weight up to `MOST_WRITES`. ``grad`` has the given
    rows, or all if None. All tensors are contiguous.
    """

    def __call__(  # noqa: D102
        self,
        signs: Tensor,
        momentum: Tensor,
        writes: Tensor,
        rows: Tensor | None,
        grad: Tensor,
        rate: float,
        threshold: float,
        /,
    ) -> tuple[Tensor | int, Tensor | None]: ...


class _Optimizer(Optimizer):
    """An optimizer that updates one parameter at a time."""

    # PyTorch wraps this one so that it is not compiled, and for that imports its compiler: 1.0 to
    # 1.9 s and 72 MB, at the start of every training.
    _add_param_group = inspect.unwrap(Optimizer.add_param_group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; a parameter that it holds twice, as of tied layers, counts once."""
        params = param_group["params"]
        if not isinstance(params, Tensor | set):  # PyTorch refuses sets, which have no order
            params = list(dict.fromkeys(params))
        self._add_param_group({**param_group, "params": params})

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

    @abstractmethod
    def _update(self, group: dict[str, Any], i: int, parameter: Tensor, grad: Tensor) -> None:
        """Update the i-th parameter of a group."""


class BinaryFlip(_Optimizer):
    """Flips a weight when its gradient's moving average passes a threshold (paper, section 3.1).

    Per batch, with g the gradient in ``.grad`` (the direction to go against, so m = −m of the
    paper): m ← (1 − γ)·m + γ·g, then every weight for which sign(w)·m > τ flips. The momentum
    is not reset by a flip. It is kept as ``decay·momentum``, with the decay one number per tensor:
    a weight without a gradient need not be visited, since decay alone flips nothing, unless τ is
    lowered. A sparse gradient is zero in the rows that it leaves out.

    Args:
        params: tensors of ±1, such as ``[s.values for s in network.synapses]``, or groups of them.
        gamma: momentum's rate γ, in (0, 1]; per group.
        threshold: τ ≥ 0; per group.
        noise: start m at 2γ(1 − γ)·N(0, 1) instead of 0; per group.
        one_pass: update and flip in one pass over memory, in float32; per group.
        generator: of that noise, on the CPU; the global one if None.
        lr: what PyTorch's schedulers change: γ is multiplied by it; per group.

    Raises:
        ValueError: a setting out of range, or a parameter that holds other values than ±1.
    """

    takes_rows = True
    """Whether gradients may be sparse tensors of some rows."""

    _generator: torch.Generator | None = None  # of copies, too, which PyTorch makes without it

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        gamma: float = 1e-5,
        threshold: float = 5e-7,
        noise: bool = False,
        one_pass: bool = True,
        generator: torch.Generator | None = None,
        lr: float = 1.0,
    ) -> None:
        self._generator = generator
        defaults = {"gamma": gamma, "threshold": threshold, "noise": noise}
        super().__init__(params, {**defaults, "one_pass": one_pass, "lr": lr})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with momenta at their start."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check_group(group)
        except ValueError:
            self.param_groups.pop()
            raise
        # In the group, not in the state: loading casts a state to its parameter's type.
        group["flips"] = [
            torch.zeros((), dtype=torch.int64, device=p.device) for p in group["params"]
        ]
        group["writes"] = [_no_writes(signs) for signs in group["params"]]
        group["decay"] = [1.0] * len(group["params"])
        for signs in group["params"]:
            # The threshold past which no momentum is. Noise may begin above all: the first step
            # then visits every weight, as does one with a lower threshold.
            start = self._start(signs, group)
            self.state[signs] = {"momentum": start, "flipped_at": math.inf if group["noise"] else 0}

    def _start(self, signs: Tensor, group: dict[str, Any]) -> Tensor:
        if not group["noise"]:
            return torch.zeros_like(signs, memory_format=torch.contiguous_format)
        normal = torch.randn(signs.shape, generator=self._generator)
        size: float = 2 * group["gamma"] * (1 - group["gamma"])
        return (size * normal).to(signs)

    def _update(self, group: dict[str, Any], i: int, signs: Tensor, grad: Tensor) -> None:
        state = self.state[signs]
        momentum = state["momentum"]
        gamma = _rate(group)
        decay = group["decay"][i] * (1 - gamma)
        if decay < _SMALLEST_DECAY:
            momentum *= decay
            decay = 1.0
        group["decay"][i] = decay
        rate, threshold = gamma / decay, group["threshold"] / decay
        rows = None
        if grad.is_sparse:
            grad = grad.coalesce()
            if group["threshold"] < state["flipped_at"]:
                grad = grad.to_dense()
            else:
                rows, grad = grad.indices()[0], grad.values()
        state["flipped_at"] = group["threshold"]
        before, dense = Version(signs), signs.detach().contiguous()
        flip: Flip = flip_plainly
        if group["one_pass"] and signs.dtype == momentum.dtype == torch.float32:
            flip = provided("flip in one pass")
        writes = group["writes"][i]
        flips, changed = flip(dense, momentum, writes, rows, grad.contiguous(), rate, threshold)
        group["flips"][i] += flips
        if not signs.is_contiguous():
            signs.copy_(dense)
        if changed is None or len(changed):
            note_flips(signs, before, changed)

    def state_dict(self) -> dict[str, Any]:
        """A snapshot: later steps leave it as it is."""
        return copy.deepcopy(super().state_dict())

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over momenta and settings from `state_dict`, which is left as it is.

        Raises:
            ValueError: of other groups, or momenta of other shapes than the weights'.
        """
        saved, params = state_dict["state"], [p for g in self.param_groups for p in g["params"]]
        for i, signs in enumerate(params):
            momentum = saved.get(i, {}).get("momentum")
            shape = None if momentum is None else tuple(momentum.shape)
            if shape != tuple(signs.shape):
                raise ValueError(
                    f"the momentum of params[{i}] has shape {shape}: must be {tuple(signs.shape)}, "
                    "that of the weights"
                )
        super().load_state_dict(copy.deepcopy(dict(state_dict)))
        for signs in params:
            self.state[signs]["momentum"] = self.state[signs]["momentum"].contiguous()
            self.state[signs].setdefault("flipped_at", math.inf)  # of version 0.1
        for group in self.param_groups:  # version 0.1 did not count by weight
            group.setdefault("writes", [_no_writes(signs) for signs in group["params"]])

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

    def writes(self) -> list[Tensor]:
        """How often each weight has flipped so far, int16, of the shapes and in the order given.

        They count up to `MOST_WRITES`.
        """
        return [writes for group in self.param_groups for writes in group["writes"]]

    def flips(self) -> list[Tensor]:
        """Flips of each tensor since `take_flips`, each a device scalar, in the order given."""
        return [flips for group in self.param_groups for flips in group["flips"]]

    def take_flips(self) -> list[Tensor]:
        """`flips`, and start counting anew."""
        taken = [count.clone() for count in self.flips()]
        for count in self.flips():
            count.zero_()
        return taken


def _no_writes(signs: Tensor) -> Tensor:
    return torch.zeros(signs.shape, dtype=torch.int16, device=signs.device)


def _check_group(group: Mapping[str, Any]) -> None:
    if not 0 < group["gamma"] <= 1:
        raise ValueError(f"gamma = {group['gamma']}: must be in (0, 1]")
    _rate(group)
    if not 0 <= group["threshold"] < math.inf:
        raise ValueError(f"threshold = {group['threshold']}: must be a finite number from 0")
    for i, signs in enumerate(group["params"]):
        if signs.dim() < 2 or not bool((signs.detach().abs() == 1).all()):
            raise ValueError(
                f"params[{i}], of shape {tuple(signs.shape)}: must be the signs, 1 or -1, of "
                "binary weights, [s.values for s in network.synapses]; biases, scaling factors and "
                "real weights are for another optimizer"
            )


def _rate(group: Mapping[str, Any]) -> float:
    rate: float = group["gamma"] * group["lr"]
    if not 0 <= rate <= 1:
        raise ValueError(
            f"gamma = {group['gamma']} times lr = {group['lr']}: must be at most 1 and not negative"
        )
    return rate


def flip_plainly(
    signs: Tensor,
    momentum: Tensor,
    writes: Tensor,
    rows: Tensor | None,
    grad: Tensor,
    rate: float,
    threshold: float,
) -> tuple[Tensor, None]:
    """`Flip` on any device. In float32 `BinaryFlip` takes what `binep.solvers` has instead."""
    if rows is not None:
        grad = torch.zeros_like(momentum).index_copy_(0, rows, grad)
    flips = torch.zeros((), dtype=torch.int64, device=signs.device)
    flat = (signs.view(-1), momentum.view(-1), writes.view(-1), grad.view(-1))
    part = _PART if signs.device.type == "cpu" else _LAUNCHED
    for w, m, n, g in zip(*(torch.split(t, part) for t in flat), strict=True):
        m += g * rate
        flipped = (w * m).gt_(threshold)
        flips += flipped.sum().long()
        n += (flipped > 0) & (n < MOST_WRITES)
        w.addcmul_(w, flipped, value=-2)  # w − 2·w: exactly −w
    return flips, None


class GradientDescent(_Optimizer):
    """p ← max(p − lr·g, floor), for biases, real weights and scaling factors.

    A scaling factor below zero would invert a layer's weights, one of zero would cut them off.

    Args:
        params: tensors, or parameter groups.
        lr: learning rate; per group.
        floor: what no element gets below, such as `SCALE_FLOOR`; per group.
        relative: whether a step is in proportion to the parameter, p ← p − lr·p·g: the paper's
            learning rates of the scaling factors assume this form; per group.

    Raises:
        ValueError: a rate that is negative or not finite.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        floor: float | None = None,
        relative: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "floor": floor, "relative": relative})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group."""
        lr = {**self.defaults, **param_group}["lr"]
        if not 0 <= lr < math.inf:
            raise ValueError(f"lr = {lr}: must be a finite number from 0")
        super().add_param_group(param_group)

    def _update(self, group: dict[str, Any], i: int, parameter: Tensor, grad: Tensor) -> None:
        step = parameter * grad if group["relative"] else grad
        parameter.add_(step, alpha=-group["lr"])
        if group["floor"] is not None:
            parameter.clamp_(min=group["floor"])
