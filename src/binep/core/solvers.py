"""Solvers: what takes the time steps of a phase.

The plain solver applies `Network.step`. Faster ones register themselves; the core imports none of
them. All compute the dynamics of `Network.step`; tests/solvers/test_contract.py compares each with
the reference implementation, tests/oracle.py. docs/solvers.md says what a solver may assume.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from binep.core.certain import CertainOutputs
from binep.core.overrelaxation import OverRelaxation
from binep.core.phases import Clamped, Equilibrium, Phase
from binep.core.provided import provided
from binep.core.speed import SHORTCUTS, Speed

if TYPE_CHECKING:
    from binep.core.network import Network, Ups

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
        network: one that `fits` accepted, or that names it as its `solver`.
    """

    name: ClassVar[str]
    """What `Speed.off` calls it; the plain solver cannot be switched off."""
    ignores: ClassVar[tuple[str, ...]] = ()
    """Names of settings in [dynamics] of a configuration that do nothing where it is named."""

    def __init__(self, network: Network) -> None:
        self.network = network

    @classmethod
    @abstractmethod
    def fits(cls, network: Network, phase: Phase) -> bool:
        """Whether it can take this phase's steps. Compare exact types: a subclass may differ."""

    @classmethod  # noqa: B027
    def check(cls, network: Network) -> None:
        """Refuse a network that names it as its `solver`, and whose phases it cannot take.

        Raises:
            ValueError: why it cannot.
        """

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
        """The states after free steps and the gradient through them; None to leave it to others.

        Args:
            start: a current equilibrium of this solver.
            steps: how many.
            target: of the output, from `Cost.as_target`.
        """
        return None

    def go_back(self, adjoints: Sequence[Tensor | None]) -> Sequence[Tensor | None] | None:
        """Each layer's ∂C/∂s before a free step that stays at an equilibrium of this solver.

        ∂C/∂s_l = W_l ⋆ ∂C/∂p_{l−1} + W_{l+1}ᵀ ⋆ ∂C/∂p_{l+1}.

        Args:
            adjoints: ∂C/∂p of each layer in the step, (batch, *shape); None where it is 0.

        Returns:
            None for a layer where it is 0; None alone to leave it to autograd.
        """
        return None


_REGISTERED: list[type[Solver]] = []


@cache
def _load() -> None:
    """Let the solvers that come with binep register themselves, once they are needed."""
    provided("solvers")


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
    """The network's own `solver`, or the first registered one that fits and is not off.

    Those that come with binep know no steps but those of `Network`: a subclass with its own is for
    the plain one.
    """
    if network.solver is not None:
        return network.solver
    *faster, plain = registered()
    for kind in [] if network.has_own_steps else faster:
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
        and network.is_real
    )


def turns(phase: Phase) -> list[range]:
    """The layers that a step updates at once, counted from 0, in their turn."""
    count = len(phase.network)
    return [range(0, count, 2), range(1, count, 2)] if odd_even(phase) else [range(count)]


@dataclass
class Loop:
    """Where the loop over a phase's steps stands.

    All of it stays on the device, so that no step makes the host wait.

    Attributes:
        network: whose states settle.
        clamped: the input.
        step: what takes a step: `Network.step`, or the same compiled.
        nudge: β·(−∂C/∂s_L) of an output, or None in the free phase; see `Phase.nudge`.
        halves: the layers that are updated at once, in their turn.
        allowed: by how much the states of each layer that has settled may move, (L,).
        states: s_1 … s_L; contiguous before the first step.
        taken: steps taken, () int64.
        moved: see `Equilibrium`.
        residual: likewise.
        relaxation: the over-relaxation of odd/even updates; None for all layers at once.
        change: max|Δs| of each layer and sample in the last step, (L, batch).
        ups: with odd/even updates, what came from below in the half step before: see
            `Network.step`. None for steps that do not take it.
        outputs: finds the samples whose output is certain, which then count as settled; None where
            all are to settle.
        certain: these samples, (batch,) bool; none where all are to settle.
    """

    network: Network
    clamped: Clamped
    step: Callable[..., list[Tensor]]
    nudge: Callable[[Tensor], Tensor | None]
    halves: Sequence[range]
    allowed: Tensor
    states: list[Tensor]
    taken: Tensor
    moved: Tensor
    residual: Tensor
    relaxation: OverRelaxation | None
    change: Tensor
    ups: Ups | None
    outputs: CertainOutputs | None
    certain: Tensor

    @classmethod
    def of(cls, phase: Phase, clamped: Clamped) -> Loop:
        """Of a phase before its first step."""
        network, x = phase.network, phase.x
        count = len(network)
        halves = turns(phase)
        tolerances = (0.0 if n.settle_exactly else phase.tolerance for n in network.neurons)
        counts = x.new_zeros(count + 1, dtype=torch.int64)
        return cls(
            network,
            clamped,
            network.step,
            phase.nudge,
            halves,
            # Filled on the device: a tensor of a list would be copied, and the host wait for it.
            torch.cat([x.new_full((1,), tolerance) for tolerance in tolerances]),
            [state.contiguous() for state in phase.states],  # torch.compile would start twice
            counts[0],
            counts[1:],
            x.new_zeros(count),
            OverRelaxation.of(clamped.drive, network.synapses) if len(halves) > 1 else None,
            x.new_full((count, len(x)), torch.inf),
            None if len(halves) == 1 or network.has_own_steps else {},
            None,
            x.new_zeros(len(x), dtype=torch.bool),
        )

    def tensors(self) -> list[Tensor]:
        """All that a step replaces."""
        relaxation = self.relaxation.tensors() if self.relaxation else ()
        return [*self.states, self.taken, self.moved, self.residual, *relaxation]

    def copy(self) -> Loop:
        """A loop that goes on from here by itself, from the same tensors."""
        ups: Ups | None = None if self.ups is None else {}
        return replace(self, relaxation=self.relaxation and replace(self.relaxation), ups=ups)

    def keep(self, stays: Tensor) -> None:
        """Go on with some samples alone: a mask, (batch,) bool."""
        drive, states = self.clamped.drive[stays], [state[stays] for state in self.states]
        self.clamped = Clamped(drive, drive)  # no step reads x
        if self.ups is not None:
            known = {i: up for i, up in self.ups.items() if up.below is self.states[i - 1]}
            self.ups = {i: up.part(states[i - 1], stays) for i, up in known.items()}
        self.states = states
        self.relaxation = self.relaxation and self.relaxation.part(stays)
        self.change = self.change[:, stays]
        self.outputs = self.outputs and self.outputs.part(stays)
        self.certain = self.certain[stays]

    @property
    def settled(self) -> Tensor:
        """Which samples moved by no more than is allowed in the last step, (batch,) bool."""
        return (self.change <= self.allowed[:, None]).all(dim=0)  # a NaN has not settled

    @property
    def finished(self) -> Tensor:
        """Which samples have settled or have a certain output, (batch,) bool."""
        return self.settled | self.certain

    @property
    def moving(self) -> Tensor:
        """Which layers moved by more than is allowed in the last step, (L,) bool."""
        return ~(self.residual <= self.allowed)  # a NaN has not settled

    def advance(self) -> None:
        """Take a step."""
        before, relaxation = self.states, self.relaxation
        more = () if self.ups is None else (self.ups,)
        for layers in self.halves:
            omega = relaxation.omega if relaxation else None
            nudge = self.nudge(self.states[-1])
            self.states = self.step(self.clamped, self.states, nudge, layers, omega, *more)
        self.change = largest_change(self.states, before)
        if relaxation is not None:
            relaxation.update(self.change.amax(dim=0))
        counted = self.change
        if self.outputs is not None:
            change = self.change.amax(dim=0)
            self.certain = self.outputs.find(self.states[-1], self._output_drive, change)
            counted = self.change.masked_fill(self.certain, 0)
        self.residual = counted.amax(dim=1)
        self.taken = self.taken + 1
        self.moved = torch.where(self._changed(before), self.taken, self.moved)

    def _output_drive(self) -> Tensor:
        """The drive p of the output, by the network's own products."""
        last = len(self.network) - 1
        drive = self.network.drives(self.clamped, self.states, [last])[last]
        assert drive is not None
        return drive

    def _changed(self, before: Sequence[Tensor]) -> Tensor:
        """Which layers moved, (L,) bool: a state by more than the tolerance, or a bit."""
        layers = zip(self.network.neurons, self.states, before, self.moving, strict=True)
        return torch.stack(
            [
                (n.fire(a) != n.fire(b)).any() if n.settle_exactly else still_moving
                for n, a, b, still_moving in layers
            ]
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
        loop = Loop.of(phase, phase.clamped or self.network.clamp(phase.x))
        if self.network.speed.compile:
            loop.step, loop.ups = self._compiled_step, None
        for taken in range(1, phase.steps + 1):
            loop.advance()
            if phase.tolerance > 0 and taken % phase.check_every == 0 and not loop.moving.any():
                break
        return phase.ended(self, loop.clamped, loop.states, loop.moved, loop.residual)

    @cached_property
    def _compiled_step(self) -> Callable[..., list[Tensor]]:
        return torch.compile(self.network.step, dynamic=False)


def largest_change(new: Sequence[Tensor], old: Sequence[Tensor]) -> Tensor:
    """max|Δs| of each layer and sample, (L, batch)."""
    return torch.stack([(n - o).abs_().flatten(1).amax(1) for n, o in zip(new, old, strict=True)])
