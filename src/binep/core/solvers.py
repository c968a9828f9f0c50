"""Solvers: what takes the time steps of a phase.

The plain solver applies `Network.step`. Faster ones register themselves; the core imports none of
them. All compute the dynamics of `Network.step`; tests/solvers/test_contract.py compares each with
the reference implementation, tests/oracle.py. docs/solvers.md says what a solver may assume.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from binep.core.neurons import Real
from binep.core.overrelaxation import OverRelaxation
from binep.core.phases import Clamped, Equilibrium, Phase
from binep.core.speed import SHORTCUTS, Speed

if TYPE_CHECKING:
    from binep.core.network import Network

S = TypeVar("S", bound="Solver")


class Gradient(NamedTuple):
    """Of one layer's synapses: by the weights W, in their shape, and by the biases b."""

    weight: Tensor
    bias: Tensor


class Unrolled(NamedTuple):
    """Time steps that were taken and differentiated.

    Attributes:
        states: s_1 … s_L after the last step.
        residual: per layer max|Δs| in the last step, (L,).
        gradients: of each layer, of the mean over the batch of the cost after the last step.
    """

    states: Sequence[Tensor]
    residual: Tensor
    gradients: list[Gradient]


class Solver(ABC):
    """Takes the time steps of a phase.

    A solver belongs to one network, as long as its layers are the same objects; copies and pickles
    of the network leave it behind. It may keep the parameters in other forms, each for as long as
    their `Version` holds. Several threads may call it at once.

    Args:
        network: one that `fits` accepted.
    """

    name: ClassVar[str]
    """What `Speed.off` calls it; the plain solver cannot be switched off."""

    def __init__(self, network: Network) -> None:
        self.network = network

    @classmethod
    @abstractmethod
    def fits(cls, network: Network, phase: Phase) -> bool:
        """Whether it can take this phase's steps. Compare exact types: a subclass may differ."""

    @abstractmethod
    def solve(self, phase: Phase, memory: object) -> Equilibrium:
        """The equilibrium after the phase's steps from `Phase.states`, made by `Phase.ended`.

        Args:
            phase: the phase to take, checked; see docs/solvers.md.
            memory: of the equilibrium started from, where that was this solver's and is still
                current; otherwise None.
        """

    def compare(
        self, first: Equilibrium, second: Equilibrium, factor: float, row_sparse: bool
    ) -> list[Gradient]:
        """Each layer's factor·Σ_batch (r^second ⊗ r_below^second − r^first ⊗ r_below^first).

        With r what the neurons send (paper, eqs. 4 and 5). Of the biases factor·Σ_batch (r^second −
        r^first).

        Args:
            first: an equilibrium of this solver; the plain one takes any.
            second: another equilibrium, of the input of the first.
            factor: what the sums are multiplied by.
            row_sparse: whether a weight's gradient may leave out rows that are zero, as a sparse
                tensor.
        """
        network = self.network
        neurons, dtype = network.neurons, first.clamped.x.dtype
        before, after = (
            [n.fire(s) for n, s in zip(neurons, end.states, strict=True)] for end in (first, second)
        )
        gradients = []
        for i, synapse in enumerate(network.synapses):
            if i == 0:  # the input is the same in both: one product of the difference serves
                above, below = (after[0] - before[0]).to(dtype) * factor, first.clamped.x
            else:
                above = torch.cat([after[i], -before[i]]).to(dtype) * factor
                below = torch.cat([after[i - 1], before[i - 1]])
            weight = synapse.correlate(above, below)
            gradients.append(Gradient(weight, synapse.correlate_bias(above)))
        return gradients

    def unroll(self, start: Equilibrium, steps: int, target: Tensor) -> Unrolled | None:
        """The states after free steps and the gradient through them; None to leave it to autograd.

        Args:
            start: a current equilibrium of this solver.
            steps: how many.
            target: of the output, from `Cost.target`.
        """
        return None


_REGISTERED: list[type[Solver]] = []


@cache
def _load() -> None:
    """Let the solvers that come with binep register themselves, once they are needed."""
    importlib.import_module("binep.solvers")


def register(kind: type[S]) -> type[S]:
    """Class decorator: let networks use a solver, after those that were registered before it."""
    for i, other in enumerate(registered()):
        if other.name != kind.name:
            continue
        if (other.__module__, other.__qualname__) != (kind.__module__, kind.__qualname__):
            raise ValueError(f"a solver of the name {kind.name!r} is registered already")
        _REGISTERED[i] = kind  # a cell of a notebook that was run again
        return kind
    _REGISTERED.append(kind)
    return kind


def registered() -> tuple[type[Solver], ...]:
    """The solvers in the order in which they are tried; the plain one, which always fits, last."""
    _load()
    return (*_REGISTERED, Plain)


def check_off(speed: Speed) -> None:
    """Refuse names in `Speed.off` that are neither solvers nor shortcuts.

    Raises:
        ValueError: an unknown name.
    """
    known = {*SHORTCUTS, *(kind.name for kind in registered())}
    for name in speed.off:
        if name not in known:
            raise ValueError(f"off = {name}: must be one of {', '.join(sorted(known))}")


def choose(network: Network, phase: Phase) -> type[Solver]:
    """The first registered solver that fits a phase and is not switched off."""
    *faster, plain = registered()
    for kind in faster:
        if network.speed.uses(kind.name) and kind.fits(network, phase):
            return kind
    return plain


def odd_even(phase: Phase) -> bool:
    """Whether odd layers are to be updated first, then even ones from the new odd states.

    That is Gauss–Seidel instead of Jacobi iteration, for free phases that end at an equilibrium.
    The fixed points of real neurons, s = rho(p), are the same for any order of updates; binary
    ones, which are filtered in time, are left to the paper's order.
    """
    network = phase.network
    return (
        network.speed.uses("odd-even")
        and len(network) > 1
        and phase.is_free
        and phase.tolerance > 0
        and all(type(neurons) is Real for neurons in network.neurons)
    )


class Plain(Solver):
    """The loop over `Network.step`, for every network on any device."""

    name = "plain"

    @classmethod
    def fits(cls, network: Network, phase: Phase) -> bool:
        """Always."""
        return True

    def solve(self, phase: Phase, memory: object) -> Equilibrium:
        """Step until all has settled, or the steps are used up."""
        network, x = self.network, phase.x
        clamped = phase.clamped or network.clamp(x)
        moved = torch.zeros(len(network), dtype=torch.int64, device=x.device)
        allowed = x.new_tensor(
            [0.0 if n.settle_exactly else phase.tolerance for n in network.neurons]
        )
        step = self._compiled_step if network.speed.compile else network.step
        states = [state.contiguous() for state in phase.states]  # torch.compile would start twice
        count = len(network)
        halves = [range(0, count, 2), range(1, count, 2)] if odd_even(phase) else [range(count)]
        relaxation = OverRelaxation.of(clamped.drive) if len(halves) > 1 else None
        taken, residual = 0, torch.zeros_like(allowed)
        while taken < phase.steps:
            before = states
            for layers in halves:
                omega = relaxation.omega if relaxation else None
                states = step(clamped, states, phase.nudge(states[-1]), layers, omega)
            change = _change(states, before)
            if relaxation is not None:
                relaxation.update(change.amax(dim=0))
            residual = change.amax(dim=1)
            taken += 1
            moving = ~(residual <= allowed)  # a NaN has not settled
            moved.masked_fill_(self._changed(states, before, moving), taken)
            if phase.tolerance > 0 and taken % phase.check_every == 0 and not moving.any():
                break
        return phase.ended(self, clamped, states, moved, residual)

    def _changed(self, new: Sequence[Tensor], old: Sequence[Tensor], moving: Tensor) -> Tensor:
        """Which layers moved, (L,) bool: a state by more than the tolerance, or a bit."""
        layers = zip(self.network.neurons, new, old, moving, strict=True)
        return torch.stack(
            [
                (n.fire(a) != n.fire(b)).any() if n.settle_exactly else still_moving
                for n, a, b, still_moving in layers
            ]
        )

    @cached_property
    def _compiled_step(self) -> Callable[..., list[Tensor]]:
        return torch.compile(self.network.step, dynamic=False)


def _change(new: Sequence[Tensor], old: Sequence[Tensor]) -> Tensor:
    """max|Δs| of each layer and sample, (L, batch)."""
    return torch.stack([(n - o).abs_().flatten(1).amax(1) for n, o in zip(new, old, strict=True)])


__all__ = [
    "Clamped",
    "Gradient",
    "Plain",
    "Solver",
    "Unrolled",
    "choose",
    "odd_even",
    "register",
    "registered",
]
