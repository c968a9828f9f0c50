"""Neurons: activation, update of the states from their drive, and nudge of the output.

A layer's *state* s is a tensor (batch, *shape). Neurons hold no state of their own: they are the
rules, and `binep.core.network.Network` applies them to every layer at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


class Neurons(ABC):
    """The rules of one layer of neurons.

    Attributes:
        initial: every state's value at the start of the free phase.
        differentiable: whether backpropagation through time can pass through `update`.
        hold_nudge: whether the nudge is computed once, from the free phase's last output, and
            held for the whole nudged phase; otherwise it follows the current output.
        settle_exactly: whether only a state that repeats itself bit for bit counts as settled.
    """

    initial: float
    differentiable: bool
    hold_nudge: bool
    settle_exactly: bool

    @abstractmethod
    def fire(self, state: Tensor) -> Tensor:
        """The activation r that neighbouring layers receive, in the shape of the state.

        Bits are int8, so that synapses can multiply them exactly, in integers.
        """

    @abstractmethod
    def update(self, state: Tensor, drive: Tensor, nudge: Tensor | None = None) -> Tensor:
        """The next state.

        Args:
            state: the current state s.
            drive: p, the sum of what arrives from below, from above and from the bias.
            nudge: β·(−∂C/∂s), for the output layer in the nudged phase; same shape.
        """


@dataclass(frozen=True)
class Real(Neurons):
    """Real activations through the hard sigmoid, rho(u) = clip(u, 0, 1); paper, section 3.

    Args:
        initial: state at the start of the free phase (0 in the paper's dense networks, 0.5 in
            its convolutional ones).
        nudge: "outside", s ← rho(p) + nudge, as the paper's program does; or "inside",
            s ← rho(p + nudge), the textbook form, which follows the loss gradient more closely.
        clip_nudged: whether an output nudged from outside is clipped to [0, 1] again.

    Raises:
        ValueError: an initial state outside [0, 1], or an unknown nudge.
    """

    initial: float = 0.0
    nudge: Literal["outside", "inside"] = "outside"
    clip_nudged: bool = True

    differentiable = True
    hold_nudge = False
    settle_exactly = False

    def __post_init__(self) -> None:
        _check_initial(self.initial)
        if self.nudge not in ("outside", "inside"):
            raise ValueError(f"nudge = {self.nudge!r}: must be 'outside' or 'inside'")

    def fire(self, state: Tensor) -> Tensor:
        """The state itself."""
        return state

    def update(self, state: Tensor, drive: Tensor, nudge: Tensor | None = None) -> Tensor:
        """The next state: rho(p) with the nudge added before the clipping (inside) or after it."""
        if nudge is None:
            return drive.clamp(0, 1)
        if self.nudge == "inside":
            return (drive + nudge).clamp(0, 1)
        nudged = drive.clamp(0, 1) + nudge
        return nudged.clamp(0, 1) if self.clip_nudged else nudged

    def slope(self, drive: Tensor) -> Tensor:
        """rho'(p): 1 where 0 ≤ p ≤ 1, as PyTorch has it of `torch.clamp`; 0 elsewhere."""
        return ((drive >= 0) & (drive <= 1)).to(drive.dtype)


@dataclass(frozen=True)
class Binary(Neurons):
    """Binary activations: a filtered pre-activation that fires one bit; paper, section 4.

    Each neuron holds a real s in [0, 1] and fires a(s) = 1 if s ≥ threshold else 0.

    The paper's program multiplies the drive by a pseudo-derivative that is 1 for |s − 0.5| ≤ 0.5.
    The clip keeps every s there, so the factor is always 1 and is left out.

    Args:
        threshold: the Heaviside function's step (`--rho_threshold` of that program), in (0, 1].
        filter: how far s moves towards the drive in one step (`--gamma_neur`), in (0, 1].
        initial: pre-activation at the start of the free phase.
        hold_nudge: nudge with the free phase's last output (the paper's convolutional networks)
            instead of the current one (its dense networks).

    Raises:
        ValueError: a setting out of range.
    """

    threshold: float = 0.5
    filter: float = 0.5
    initial: float = 1.0
    hold_nudge: bool = False

    differentiable = False
    settle_exactly = True

    def __post_init__(self) -> None:
        _check_initial(self.initial)
        for name, value in (("threshold", self.threshold), ("filter", self.filter)):
            if not 0 < value <= 1:
                raise ValueError(f"{name} = {value}: must be in (0, 1]")

    def fire(self, state: Tensor) -> Tensor:
        """a(s): 1 where s has reached the threshold, else 0, as int8."""
        return (state >= self.threshold).view(torch.int8)

    def update(self, state: Tensor, drive: Tensor, nudge: Tensor | None = None) -> Tensor:
        """The next state: clip((1 − filter)·s + filter·(p + nudge), 0, 1)."""
        if nudge is not None:
            drive = drive + nudge
        # Not torch.lerp: products rounded one by one do not depend on where they are computed.
        return ((1 - self.filter) * state + (self.filter * drive)).clamp(0, 1)


def _check_initial(initial: float) -> None:
    if not 0 <= initial <= 1:
        raise ValueError(f"initial = {initial}: must be in [0, 1]")
