"""The network: synapses and neurons stacked, and the dynamics that settle it.

Layer 0 is the input x, clamped; layers 1…L are neurons, L is the output; ``synapses[l − 1]`` joins
layer l − 1 to layer l (paper, section 2.1).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor, nn

from binep.core.costs import Cost, SquaredError
from binep.core.neurons import Neurons, Real
from binep.core.overrelaxation import Relaxation
from binep.core.speed import Speed as Speed
from binep.core.synapses import Route, Synapse
from binep.solvers.digits import solver as digits
from binep.solvers.events import solver as events
from binep.solvers.in_cache import solver as fused


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
        steps: steps taken; fewer than asked for if everything had settled. Where shortcuts follow
            bits, steps without a change are counted among them.
        moved: per layer the last step that moved a real state by more than the tolerance, or
            changed a bit, (L,): the steps that it took to settle.
        residual: per layer max|Δs| in the last step, (L,).
        trace: the same as a shortcut keeps it, if it needs more than the states to go on from.
    """

    clamped: Clamped
    states: list[Tensor]
    steps: int
    moved: Tensor
    residual: Tensor
    trace: object = None

    @property
    def output(self) -> Tensor:
        """s_L."""
        return self.states[-1]


@dataclass(frozen=True)
class Task:
    """What `Network.relax` asks of a shortcut.

    Attributes:
        clamped: the input.
        states: to start from.
        steps: the most steps.
        target: what the output is nudged towards, or None.
        beta: of the nudge.
        held: a nudge that stays the same, or None.
        nudge: of the output of some samples: their nudge, or None.
        tolerance: see `Network.relax`.
        turns: layers that move at once, counted from 0, in the order of a step.
    """

    clamped: Clamped
    states: Sequence[Tensor]
    steps: int
    target: Tensor | None
    beta: float
    held: Tensor | None
    nudge: Callable[[Tensor, slice], Tensor | None]
    tolerance: float
    turns: Sequence[Sequence[int]]

    @property
    def alternate(self) -> bool:
        """Whether layers move in turn."""
        return len(self.turns) > 1


class Network(nn.Module):
    """Layers of neurons joined by synapses, with a cost on the output.

    Args:
        synapses: from the input to the output; each takes the shape that the one before it makes.
        neurons: one kind for every layer, or one per layer.
        cost: squared error with one neuron per class if None.
        speed: shortcuts that its dynamics may take.

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
        speed: Speed | None = None,
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
        self.speed = Speed() if speed is None else speed
        self._wiring: events.Wiring | None = None
        self._lines: digits.Lines | None = None

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
        """The states at the start of the free phase: those of one sample, seen as a batch."""
        return [
            x.new_full((1, *synapse.output_shape), neurons.initial).expand(
                len(x), *synapse.output_shape
            )
            for synapse, neurons in zip(self.synapses, self.neurons, strict=True)
        ]

    def step(
        self,
        clamped: Clamped,
        states: Sequence[Tensor],
        nudge: Tensor | None = None,
        which: Container[int] | None = None,
        relaxation: Tensor | None = None,
    ) -> list[Tensor]:
        """Move all layers at once, from the states of the previous step.

        p_l = W_l ⋆ s_{l−1} + b_l + W_{l+1}ᵀ ⋆ s_{l+1}, then each layer's `Neurons.update`.

        The equilibrium of real neurons is where s = rho(p), the minimum of the energy in the box
        [0, 1]. Any relaxation ω leaves it in place: rho(s + ω·(p − s)) = s there (projected
        successive over-relaxation; Cryer 1971, SIAM Journal on Control 9:385).

        Args:
            clamped: the input.
            states: s_1 … s_L.
            nudge: β·(−∂C/∂s_L), or None in the free phase.
            which: the layers that move, counted from 0; all if None.
            relaxation: ω of each sample, (batch,); 1 if None, as in the paper.
        """
        which = range(len(self)) if which is None else which
        sent = [n.fire(s) for n, s in zip(self.neurons, states, strict=True)]
        moved: list[Tensor] = []
        drives: list[Tensor | None] = [clamped.drive]
        routes: list[Route] = [clamped.route]
        for i, (synapse, below) in enumerate(zip(self.synapses[1:], sent, strict=False), start=1):
            needed = i in which or (i - 1 in which and synapse.has_route)
            drive, route = synapse.up(below) if needed else (None, None)
            drives.append(None if drive is None else synapse.biased(drive))
            routes.append(route)
        for i, (neurons, state) in enumerate(zip(self.neurons, states, strict=True)):
            drive = drives[i]
            if i not in which or drive is None:
                moved.append(state)
                continue
            last = i + 1 == len(self)
            if not last:
                feedback = self.synapses[i + 1].down(sent[i + 1], routes[i + 1])
                drive = drive + feedback.view_as(drive)
            if relaxation is not None:
                factor = relaxation.view(-1, *[1] * (state.dim() - 1))
                drive = torch.lerp(state, drive, factor)
            moved.append(neurons.update(state, drive, nudge if last else None))
        return moved

    def relax(
        self,
        x: Tensor,
        steps: int,
        *,
        start: Equilibrium | None = None,
        target: Tensor | None = None,
        beta: float = 0.0,
        tolerance: float = 1e-6,
        check_every: int | None = None,
    ) -> Equilibrium:
        """Let the network settle: the free phase, or with a target the nudged phase.

        In a step all layers move at once, as in the paper, or where `Speed.alternate` says so in
        turn.

        Args:
            x: input, (batch, *input_shape).
            steps: the most steps to take (T or Kmax), at least 1.
            start: where this network, as it is now, came to from this very tensor x, to go on from
                there; of another input the states alone count. The neurons' initial states if None.
            target: what the output is nudged towards, from `Cost.target`.
            beta: strength and sign of the nudge.
            tolerance: stop once no state moves by more than this in a step. Binary neurons stop
                only when nothing moves at all. 0 takes all the steps.
            check_every: steps between two looks at whether all has settled, at each of which the
                host waits for the device; by default 1 on a CPU and 8 on a GPU.
        """
        if start is not None and start.clamped.x is x:
            clamped, trace = start.clamped, start.trace
        else:
            clamped, trace = self.clamp(x), None
        states = self.initial_states(clamped.x) if start is None else start.states
        held = self._nudge(states[-1], target, beta) if self.neurons[-1].hold_nudge else None

        def nudge(output: Tensor, some: slice = slice(None)) -> Tensor | None:
            if held is not None:
                return held[some]
            return self._nudge(output, None if target is None else target[some], beta)

        turns = self._turns(free=target is None, tolerance=tolerance)
        compiled = self._compiled()
        if compiled is not None:
            task = Task(clamped, states, steps, target, beta, held, nudge, tolerance, turns)
            return Equilibrium(clamped, *compiled.relax(task, trace))
        if check_every is None:
            check_every = 1 if x.device.type == "cpu" else 8
        moved = torch.zeros(len(self), dtype=torch.int64, device=x.device)
        allowed = x.new_tensor([0.0 if n.settle_exactly else tolerance for n in self.neurons])
        taken, residual = 0, torch.zeros_like(allowed)
        step = self._fused_step if self.speed.compile else self.step
        states = [state.contiguous() for state in states]  # torch.compile would start twice
        relaxation = Relaxation.of(clamped.drive) if len(turns) > 1 else None
        while taken < steps:
            following = states
            for which in turns:
                factor = relaxation.factor if relaxation else None
                following = step(clamped, following, nudge(following[-1]), which, factor)
            change = _change(following, states)
            if relaxation is not None:
                relaxation.follow(change.amax(dim=0))
            residual = change.amax(dim=1)
            taken += 1
            moving = ~(residual <= allowed)  # a NaN has not settled
            moved.masked_fill_(self._changed(following, states, moving), taken)
            states = following
            if tolerance > 0 and taken % check_every == 0 and not moving.any():
                break
        return Equilibrium(clamped, states, taken, moved, residual)

    def _turns(self, *, free: bool, tolerance: float) -> list[range]:
        """The layers that move at once, in the order of a step."""
        count = len(self)
        # Only of these is it known that they settle where s = rho(p).
        real = all(type(neurons) is Real for neurons in self.neurons)
        settles = free and tolerance > 0 and not torch.is_grad_enabled()
        if self.speed.uses("odd-even") and real and settles and count > 1:
            return [range(0, count, 2), range(1, count, 2)]
        return [range(count)]

    def _changed(self, new: Sequence[Tensor], old: Sequence[Tensor], moving: Tensor) -> Tensor:
        """Which layers have moved, or changed a bit where only bits are sent."""
        return torch.stack(
            [
                (n.fire(a) != n.fire(b)).any() if n.settle_exactly else still_moving
                for n, a, b, still_moving in zip(self.neurons, new, old, moving, strict=True)
            ]
        )

    @cached_property
    def _fused_step(self) -> Callable[..., list[Tensor]]:
        return torch.compile(self.step, dynamic=False)

    @property
    def wiring(self) -> events.Wiring:
        """The network as events see it; made when first needed."""
        self._wiring = self._wiring or events.Wiring(self)
        return self._wiring

    def _compiled(self) -> events.Wiring | fused.Loop | digits.Lines | None:
        """What takes the steps in place of `step`, if a shortcut applies."""
        if torch.is_grad_enabled() and not events.fits(self):
            return None  # what is compiled has no gradient
        if self.speed.uses("events") and events.fits(self):
            return self.wiring
        if self.speed.uses("in-cache") and fused.fits(self):
            return fused.Loop(self)
        if self.speed.precision != "exact" and self.speed.uses("digits") and digits.fits(self):
            self._lines = self._lines or digits.Lines(self)
            return self._lines
        return None

    def _nudge(self, output: Tensor, target: Tensor | None, beta: float) -> Tensor | None:
        if target is None or beta == 0:
            return None
        return beta * self.cost.force(output, target)


@torch.no_grad()
def _change(new: Sequence[Tensor], old: Sequence[Tensor]) -> Tensor:
    """max|Δs| of each layer and sample, (L, batch)."""
    return torch.stack([(n - o).abs_().flatten(1).amax(1) for n, o in zip(new, old, strict=True)])


def _size(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()
