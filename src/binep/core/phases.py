"""A phase to be taken, and the equilibrium in which it ends.

Arguments are checked and converted once, in `Phase.of`; solvers need not check them again.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from binep.core.checks import as_tolerance, bare, whole
from binep.core.neurons import Neurons
from binep.core.synapses import Route
from binep.core.versions import Version

if TYPE_CHECKING:
    from binep.core.network import Network
    from binep.core.solvers import Solver


_MOST_STEPS = 2**40
"""More than anyone waits for, and far from the largest number of 64 bits."""


@dataclass(frozen=True, eq=False)
class Clamped:
    """An input held fixed, with what it contributes to the first layer.

    It does not change during a phase, so its drive is computed once.

    Attributes:
        x: the input, (batch, *input_shape).
        drive: W_1 ⋆ x + b_1, (batch, *shape of layer 1).
        route: of a max-pooled convolution, the indices of the maxima; see `Synapse.up`.
    """

    x: Tensor
    drive: Tensor
    route: Route = None


@dataclass(frozen=True, eq=False)
class Equilibrium:
    """Where a phase ended.

    Attributes:
        clamped: the input.
        states: s_1 … s_L, each (batch, *shape).
        moved: per layer the last step in which a real state moved by more than the tolerance, or a
            binary neuron's bit changed, (L,) int64: the steps that the layer took to settle, but
            for samples whose output is certain.
        residual: per layer max|Δs| in the last step, (L,), likewise.
        by: the kind of solver that took the steps; None if none did.
        memory: what that solver keeps beside the states to continue from.
        certain: which samples left before they had settled, as their output is certain, (batch,)
            bool (`binep.core.certain`); None where all were to settle.
    """

    clamped: Clamped
    states: Sequence[Tensor]
    moved: Tensor
    residual: Tensor
    by: type[Solver] | None = None
    memory: object = None
    certain: Tensor | None = None
    _stamp: tuple[Version, ...] = field(default=(), repr=False)
    _neurons: tuple[Neurons, ...] = field(default=(), repr=False)

    @property
    def output(self) -> Tensor:
        """s_L."""
        return self.states[-1]

    @property
    def steps(self) -> int:
        """Time steps until every layer had settled: the largest of `moved`."""
        return int(self.moved.max())

    def part(self, samples: Tensor) -> Equilibrium:
        """That of some samples, without the memory."""
        clamped, states = self.clamped, [state[samples] for state in self.states]
        route = None if clamped.route is None else clamped.route[samples]
        clamped = Clamped(clamped.x[samples], clamped.drive[samples], route)
        certain = None if self.certain is None else self.certain[samples]
        return replace(
            self, clamped=clamped, states=states, memory=None, certain=certain, _stamp=()
        )

    def is_current(self, network: Network, x: Tensor) -> bool:
        """Whether all that it follows from, and its states, are what they were when it was reached.

        Only then can a solver continue from its memory; otherwise only the states are used.
        """
        tensors = (*network.parameters(), x, self.clamped.drive, *self.states)
        stamp, neurons = self._stamp, self._neurons
        return (
            len(stamp) == len(tensors)
            and len(neurons) == len(network.neurons)
            and all(map(operator.is_, neurons, network.neurons))
            and all(map(Version.holds, stamp, tensors))
        )


@dataclass(frozen=True, eq=False)
class Phase:
    """A free phase, or with a target a nudged phase, for a `Solver` to take.

    Attributes:
        network: whose states settle.
        x: input, (batch, *input_shape), of the parameters' type.
        states: to start from, each (batch, *shape).
        steps: the most time steps, at least 1.
        start: the equilibrium that these states are, if it is current; otherwise None.
        target: what the output is nudged towards, or None in the free phase.
        beta: strength and sign of the nudge; 0 in the free phase.
        held: a nudge that is constant during the phase, (batch, *shape of the output), or None.
        tolerance: a phase ends once no real state moves by more than this in a step, and no binary
            neuron's state at all; 0 takes all steps.
        check_every: steps between two looks at whether all has settled.
        versions: of the parameters and x, as they are when the phase begins.
        output_only: whether samples whose output is certain may leave a free phase before their
            hidden layers have settled (`binep.core.certain`). A solver need not let them.
        goal: the target, where only those may whose output nothing nudges; None for all.
    """

    network: Network
    x: Tensor
    states: Sequence[Tensor]
    steps: int
    start: Equilibrium | None
    target: Tensor | None
    beta: float
    held: Tensor | None
    tolerance: float
    check_every: int
    versions: tuple[Version, ...]
    output_only: bool = False
    goal: Tensor | None = None

    @classmethod
    def of(
        cls,
        network: Network,
        x: Tensor,
        steps: int,
        *,
        start: Equilibrium | None = None,
        target: Tensor | None = None,
        beta: float = 0.0,
        tolerance: float = 1e-6,
        check_every: int | None = None,
        output_only: bool = False,
    ) -> Phase:
        """A phase, checked; `Network.relax` says what the arguments are.

        Raises:
            TypeError: x is no floating-point tensor, the target none of real numbers, or the start
                no `Equilibrium`.
            ValueError: a shape, a device or a value that does not fit, named.
        """
        network.check()
        x = network.as_input(x)
        steps = min(whole("steps", steps), _MOST_STEPS)
        if check_every is None:
            check_every = 1 if x.device.type == "cpu" else 8
        beta, tolerance = float(beta), as_tolerance(tolerance)
        if not abs(beta) <= torch.finfo(x.dtype).max:
            raise ValueError(f"beta = {beta}: must be finite in {x.dtype}")
        states: Sequence[Tensor] = network.initial_states(x)
        if start is not None:
            _check_start(start, states)
            states = [bare(state).to(x.dtype) for state in start.states]
            start = start if start.is_current(network, x) else None
        if target is not None:
            target = network.cost.as_target(target, states[-1])
        elif beta:
            raise ValueError(f"beta = {beta:g} without a target: there is nothing to nudge towards")
        held = _held(network, states[-1], target, beta)
        every = whole("check_every", check_every)
        versions = tuple(map(Version, (*network.parameters(), x)))
        return cls(
            network, x, states, steps, start, target, beta, held, tolerance, every, versions,
            output_only=bool(output_only),
        )  # fmt: skip

    def nudged(self, end: Equilibrium, steps: int, target: Tensor, beta: float) -> Phase:
        """The nudged phase that follows this one; nothing is checked again.

        Args:
            end: of this phase, or a part of it.
            steps: the most time steps, at least 1.
            target: from `Cost.as_target`.
            beta: strength and sign of the nudge.
        """
        x, held = end.clamped.x, _held(self.network, end.output, target, beta)
        versions = self.versions if x is self.x else (*self.versions[:-1], Version(x))
        return replace(
            self,
            x=x,
            states=end.states,
            steps=steps,
            start=end,
            target=target,
            beta=beta,
            held=held,
            versions=versions,
        )

    @property
    def is_free(self) -> bool:
        """Whether nothing nudges the output."""
        return self.target is None

    @property
    def clamped(self) -> Clamped | None:
        """The input's contribution, where it is known from an earlier phase."""
        return None if self.start is None else self.start.clamped

    def nudge(self, output: Tensor, some: slice = slice(None)) -> Tensor | None:
        """β·(−∂C/∂s_L) at some samples' output; None in the free phase."""
        if self.target is None or self.beta == 0:
            return None
        if self.held is not None:
            return self.held[some]
        return self.beta * self.network.cost.force(output, self.target[some])

    def ended(
        self,
        solver: Solver,
        clamped: Clamped,
        states: Sequence[Tensor],
        moved: Tensor,
        residual: Tensor,
        memory: object = None,
        certain: Tensor | None = None,
    ) -> Equilibrium:
        """The equilibrium that a solver reached, with the versions of all that it depends on."""
        stamp = (*self.versions, *map(Version, (clamped.drive, *states)))
        neurons, by = tuple(self.network.neurons), type(solver)
        return Equilibrium(clamped, states, moved, residual, by, memory, certain, stamp, neurons)


def _held(network: Network, output: Tensor, target: Tensor | None, beta: float) -> Tensor | None:
    if target is None or beta == 0 or not network.neurons[-1].hold_nudge:
        return None
    # Contiguous: products of views may be rounded otherwise.
    with torch.autocast(output.device.type, enabled=False):
        return beta * network.cost.force(output.contiguous(), target)


def _check_start(start: Equilibrium, states: Sequence[Tensor]) -> None:
    if not isinstance(start, Equilibrium):
        raise TypeError(f"start is a {type(start).__name__}: must be an Equilibrium")
    for state, like in zip(start.states, states, strict=False):
        if not isinstance(state, Tensor) or state.layout != torch.strided:
            raise TypeError(f"start has states of {type(state).__name__}: must be dense tensors")
        if state.device != like.device:
            raise ValueError(f"start has states on {state.device}: must be on {like.device}")
    given = [tuple(state.shape) for state in start.states]
    needed = [tuple(state.shape) for state in states]
    if given != needed:
        raise ValueError(f"start has states of shapes {given}: must be {needed}, as x says")
