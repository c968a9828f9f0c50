"""The network: synapses and neurons stacked, and the dynamics that settle it.

Layer 0 is the input x, clamped; layers 1…L are neurons, L is the output; ``synapses[l − 1]`` joins
layer l − 1 to layer l (paper, section 2.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from binep import events
from binep.costs import Cost, SquaredError
from binep.neurons import Neurons
from binep.synapses import Route, Synapse


@dataclass(frozen=True)
class Clamped:
    """An input held fixed, with what it contributes to the first layer: W_1 ⋆ x + b_1.

    The input does not move, so that drive is computed once per batch, and so is its route.
    """

    x: Tensor
    drive: Tensor
    route: Route = None


@dataclass(frozen=True)
class Equilibrium:
    """Where the dynamics ended.

    Attributes:
        clamped: the input.
        states: s_1 … s_L, each (batch, *shape).
        steps: steps taken; fewer than asked for if everything had settled.
        moved: per layer the last step that moved a real state by more than the tolerance, or
            changed a bit, (L,): the steps that it took to settle.
        residual: per layer max|Δs| in the last step, (L,).
        trace: the same in the arrays of `binep.events`, if events were followed.
    """

    clamped: Clamped
    states: list[Tensor]
    steps: int
    moved: Tensor
    residual: Tensor
    trace: events.Trace | None = None

    @property
    def output(self) -> Tensor:
        """s_L."""
        return self.states[-1]


class Network(nn.Module):
    """Layers of neurons joined by synapses, with a cost on the output.

    Args:
        synapses: from the input to the output; each takes the shape that the one before it makes.
        neurons: one kind for every layer, or one per layer.
        cost: squared error with one neuron per class if None.
        follow_events: on a CPU let the work of binary neurons follow the bits that change.

    Raises:
        ValueError: shapes that do not fit, or another number of neurons than of synapses.
    """

    synapses: Sequence[Synapse]

    def __init__(
        self,
        synapses: Sequence[Synapse],
        neurons: Neurons | Sequence[Neurons],
        cost: Cost | None = None,
        *,
        follow_events: bool = True,
    ) -> None:
        super().__init__()
        if not synapses:
            raise ValueError("a network needs at least one synapse layer")
        for layer, (low, high) in enumerate(pairwise(synapses), start=1):
            if low.output_shape != high.input_shape and (
                len(high.input_shape) != 1 or high.input_shape[0] != _size(low.output_shape)
            ):
                raise ValueError(
                    f"layer {layer} has shape {low.output_shape}, "
                    f"but layer {layer + 1} takes {high.input_shape}"
                )
        self.synapses = nn.ModuleList(synapses)  # type: ignore[assignment]
        kinds = [neurons] * len(synapses) if isinstance(neurons, Neurons) else list(neurons)
        if len(kinds) != len(synapses):
            raise ValueError(f"{len(synapses)} layers of synapses, but {len(kinds)} of neurons")
        self.neurons = kinds
        self.cost = SquaredError(_size(synapses[-1].output_shape)) if cost is None else cost
        self.follow_events = follow_events
        self._wiring: events.Wiring | None = None

    def __len__(self) -> int:
        return len(self.neurons)

    def learning_synapses(self) -> list[Synapse]:
        """All synapses with something to learn: those of the dynamics, then the cost's readout."""
        return [module for module in self.modules() if isinstance(module, Synapse)]

    def clamp(self, x: Tensor) -> Clamped:
        """Hold an input (batch, *input_shape) fixed."""
        first = self.synapses[0]
        drive, route = first.up_input(x)
        return Clamped(x, first.biased(drive), route)

    def initial_states(self, x: Tensor) -> list[Tensor]:
        """The states at the start of the free phase."""
        return [
            x.new_full((len(x), *synapse.output_shape), neurons.initial)
            for synapse, neurons in zip(self.synapses, self.neurons, strict=True)
        ]

    def step(
        self, clamped: Clamped, states: Sequence[Tensor], nudge: Tensor | None = None
    ) -> list[Tensor]:
        """Move all layers at once, from the states of the previous step.

        p_l = W_l ⋆ s_{l−1} + b_l + W_{l+1}ᵀ ⋆ s_{l+1}, then each layer's `Neurons.update`.

        Args:
            clamped: the input.
            states: s_1 … s_L.
            nudge: β·(−∂C/∂s_L), or None in the free phase.
        """
        sent = [n.fire(s) for n, s in zip(self.neurons, states, strict=True)]
        drives, routes = [clamped.drive], [_NO_ROUTE]
        for synapse, below in zip(self.synapses[1:], sent, strict=False):
            drive, route = synapse.up(below)
            drives.append(synapse.biased(drive))
            routes.append(route)
        for i in range(len(sent) - 1):
            feedback = self.synapses[i + 1].down(sent[i + 1], routes[i + 1])
            drives[i] = drives[i] + feedback.view_as(drives[i])
        nudges = [None] * (len(sent) - 1) + [nudge]
        return [
            n.update(s, p, push)
            for n, s, p, push in zip(self.neurons, states, drives, nudges, strict=True)
        ]

    def relax(
        self,
        x: Tensor,
        steps: int,
        *,
        start: Equilibrium | None = None,
        target: Tensor | None = None,
        beta: float = 0.0,
        tolerance: float = 1e-6,
        check_every: int = 1,
    ) -> Equilibrium:
        """Let the network settle: the free phase, or with a target the nudged phase.

        Args:
            x: input, (batch, *input_shape).
            steps: the most steps to take (T or Kmax), at least 1.
            start: where to go on from; the neurons' initial states if None.
            target: what the output is nudged towards, from `Cost.target`.
            beta: strength and sign of the nudge.
            tolerance: stop once no state moves by more than this in a step. Binary neurons stop
                only when nothing moves at all. 0 takes all the steps.
            check_every: steps between two looks at whether all has settled; the host waits for
                the device at each.
        """
        clamped = self.clamp(x) if start is None else start.clamped
        states = self.initial_states(clamped.x) if start is None else start.states
        held = self._nudge(states[-1], target, beta) if self.neurons[-1].hold_nudge else None
        moved = torch.zeros(len(self), dtype=torch.int64, device=x.device)
        allowed = x.new_tensor([0.0 if n.settle_exactly else tolerance for n in self.neurons])
        if self.follow_events and events.fits(self):
            return self._follow_events(clamped, start, states, steps, target, beta, held, tolerance > 0)
        taken, residual = 0, allowed
        while taken < steps:
            nudge = self._nudge(states[-1], target, beta) if held is None else held
            following = self.step(clamped, states, nudge)
            residual = _residual(following, states)
            taken += 1
            moving = ~(residual <= allowed)  # a NaN has not settled
            moved.masked_fill_(self._changed(following, states, moving), taken)
            states = following
            look = tolerance > 0 and taken % check_every == 0
            if look and not moving.any():
                break
        return Equilibrium(clamped, states, taken, moved, residual)

    def _changed(
        self, new: Sequence[Tensor], old: Sequence[Tensor], moving: Tensor
    ) -> Tensor:
        """Which layers have moved, or changed a bit where only bits are sent."""
        return torch.stack(
            [
                (n.fire(a) != n.fire(b)).any() if n.settle_exactly else still_moving
                for n, a, b, still_moving in zip(self.neurons, new, old, moving, strict=True)
            ]
        )

    @property
    def wiring(self) -> events.Wiring:
        """The arrays in which events are followed; made when first needed."""
        if self._wiring is None:
            self._wiring = events.Wiring(self)
        return self._wiring

    def _follow_events(
        self,
        clamped: Clamped,
        start: Equilibrium | None,
        states: Sequence[Tensor],
        steps: int,
        target: Tensor | None,
        beta: float,
        held: Tensor | None,
        may_skip: bool,
    ) -> Equilibrium:
        wiring = self.wiring
        if start is None or start.trace is None:
            wiring.refresh()
            trace = wiring.begin(states)
        else:
            trace = start.trace.copy()
        push = held
        if held is None and beta != 0:
            push = target
        moved, residual = wiring.run(trace, clamped.drive, steps, push, beta, held is not None, may_skip)
        return Equilibrium(
            clamped,
            [wiring.layer(trace.states, l) for l in range(len(self))],
            steps,
            moved.amax(dim=0),
            residual.amax(dim=0),
            trace,
        )

    def _nudge(self, output: Tensor, target: Tensor | None, beta: float) -> Tensor | None:
        if target is None or beta == 0:
            return None
        return beta * self.cost.force(output, target)


_NO_ROUTE: Route = None


@torch.no_grad()
def _residual(new: Sequence[Tensor], old: Sequence[Tensor]) -> Tensor:
    return torch.stack([(n - o).abs_().max() for n, o in zip(new, old, strict=True)])


def _size(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()
