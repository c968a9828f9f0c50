"""The network: layers of synapses and neurons, and its dynamics.

Layer 0 is the input x, clamped; layers 1…L are neurons, L is the output; ``synapses[l − 1]`` joins
layer l − 1 to layer l (paper, section 2.1).
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from binep.core import solvers, summary
from binep.core.checks import as_tolerance, bare, whole
from binep.core.costs import Cost, SquaredError
from binep.core.neurons import Neurons, Real
from binep.core.phases import Clamped, Equilibrium, Phase
from binep.core.provided import provided
from binep.core.solvers import Solver
from binep.core.speed import Speed
from binep.core.synapses import Route, Synapse
from binep.core.versions import Version, is_shared

S = TypeVar("S", bound=Solver)


class Up(NamedTuple):
    """What comes to a layer from below: its drive, with the bias, and the route."""

    below: Tensor
    drive: Tensor
    route: Route

    def part(self, below: Tensor, samples: Tensor) -> Up:
        """Of some samples, whose activations below lie elsewhere now."""
        route = None if self.route is None else self.route[samples]
        return Up(below, self.drive[samples], route)


Ups = dict[int, Up]
"""By layer, counted from 0."""


class Network(nn.Module):
    """Layers of neurons joined by synapses, with a cost on the output.

    Args:
        synapses: from the input to the output; each takes the shape that the one before it makes.
        neurons: one kind for every layer, or one per layer.
        cost: squared error with one neuron per class if None.
        speed: shortcuts that its dynamics may take.
        free_steps: T, the most steps of the free phase when it is called.
        tolerance: of that phase; see `relax`.
        solver: what takes all phases, also those of a subclass with a step of its own; None: the
            first registered solver that fits, or the subclass's steps.

    Raises:
        TypeError: something else than synapses, neurons, a cost, `Speed` and a class of solvers.
        ValueError: shapes that do not fit, or another number of neurons than of synapses.
    """

    synapses: Sequence[Synapse]
    solver: type[Solver] | None = None

    def __init__(
        self,
        synapses: Sequence[Synapse],
        neurons: Neurons | Sequence[Neurons],
        cost: Cost | None = None,
        *,
        speed: Speed | None = None,
        free_steps: int = 250,
        tolerance: float = 1e-6,
        solver: type[Solver] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(synapses, nn.Module) and not isinstance(synapses, nn.ModuleList):
            raise TypeError(f"synapses is a {type(synapses).__name__}: must be a list of them")
        if not synapses:
            raise ValueError("a network needs at least one synapse layer")
        for i, synapse in enumerate(synapses):
            _expect(f"synapses[{i}]", synapse, Synapse)
        self.synapses = nn.ModuleList(synapses)  # type: ignore[assignment]
        kinds = neurons if isinstance(neurons, Sequence) else [neurons] * len(synapses)
        self.neurons = list(kinds)
        self.cost = SquaredError(_size(synapses[-1].output_shape)) if cost is None else cost
        self.speed = Speed() if speed is None else speed
        self.free_steps, self.tolerance = whole("free_steps", free_steps), as_tolerance(tolerance)
        for i, kind in enumerate(self.neurons):
            _expect(f"neurons[{i}]", kind, Neurons)
        _expect("cost", self.cost, Cost)
        _expect("speed", self.speed, Speed)
        self.solver = _as_solver(solver)
        self._check_layers()
        # Each solver with the synapses that it was made for.
        self._solvers: dict[type[Solver], tuple[tuple[Synapse, ...], Solver]] = {}
        self._finite: Version | None = None  # the input that was checked last

    def __len__(self) -> int:
        return len(self.neurons)

    def __repr__(self) -> str:
        """A table of its layers."""
        return summary.text(self)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave the solvers behind."""
        return {**self.__dict__, "_solvers": {}, "_finite": None}

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """A score per class at the free equilibrium, (batch, classes): the highest is predicted.

        Args:
            x: input, (batch, *input_shape), floating point, prepared as in training.
        """
        free = self.relax(x, self.free_steps, tolerance=self.tolerance, output_only=True)
        with torch.autocast(free.output.device.type, enabled=False):
            return self.cost.scores(free.output, "averaged")

    def predict(self, x: Tensor) -> Tensor:
        """The class of each sample, (batch,) int64; see `forward`."""
        scores: Tensor = self(x)
        return scores.argmax(dim=1)

    def save(self, path: Path | str) -> None:
        """Write the network as a file that `binep.load` reads, a bit per binary weight.

        Raises:
            ValueError: a part that is no class of binep, or synapses in two places.
            RunError: the file cannot be written.
        """
        provided("save")(self, path)

    def learning_synapses(self) -> list[Synapse]:
        """All synapses with something to learn: those of the dynamics, then the cost's readout."""
        return [module for module in self.modules() if isinstance(module, Synapse)]

    def check(self) -> None:
        """Refuse layers and signs that were changed to what cannot be.

        Raises:
            TypeError: a solver that is no class of solvers.
            ValueError: layers that do not fit each other, parameters of several types, a name in
                `Speed.off` that is none, or what `Synapse.check` or `Solver.check` refuses.
        """
        self._check_layers()
        solvers.check_off(self.speed)
        first = self.synapses[0].values
        for number, synapse in enumerate(self.learning_synapses(), start=1):
            try:
                synapse.check(first)
            except ValueError as error:
                raise ValueError(f"layer {number}: {error}") from None
        self.check_solver()

    def check_solver(self) -> None:
        """Refuse a solver that cannot take this network's phases; see `check`."""
        if (solver := _as_solver(self.solver)) is not None:
            try:
                solver.check(self)
            except ValueError as error:
                raise ValueError(f"solver = {solver.name}: {error}") from None

    def _check_layers(self) -> None:
        for layer, (low, high) in enumerate(pairwise(self.synapses), start=1):
            if low.output_shape != high.input_shape and (
                len(high.input_shape) != 1 or high.input_shape[0] != _size(low.output_shape)
            ):
                raise ValueError(
                    f"layer {layer} has shape {low.output_shape}, "
                    f"but layer {layer + 1} takes {high.input_shape}"
                )
        if len(self.neurons) != len(self.synapses):
            raise ValueError(
                f"{len(self.synapses)} layers of synapses, but {len(self.neurons)} of neurons"
            )
        self.cost.check_output(tuple(self.synapses[-1].output_shape))

    def as_input(self, x: Tensor) -> Tensor:
        """An input, checked, of the parameters' type.

        Args:
            x: (batch, *input_shape), floating point. Into dense synapses samples may also go flat,
                and into those of n inputs any shape of n values.

        Raises:
            TypeError: no tensor, or not of floating point.
            ValueError: another shape or device than the network's, or values that are not finite.
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"x is a {type(x).__name__}: must be a tensor, such as torch.tensor(x)")
        first = self.synapses[0]
        if x.layout != torch.strided or x.is_nested:
            kind = "nested" if x.is_nested else x.layout
            raise TypeError(f"x is {kind}: must be dense, such as x.to_dense()")
        if not x.is_floating_point():
            raise TypeError(
                f"x is {x.dtype}: must be floating point, x.float(); images of 0 to 255 as "
                "x.float() / 255"
            )
        needed, given = tuple(first.input_shape), tuple(x.shape[1:])
        fits = given == needed or (
            1 in (len(needed), len(given)) and first.flattens and _size(given) == _size(needed)
        )
        if x.dim() < 2 or not fits:
            shape = ", ".join(map(str, ("batch", *needed)))
            raise ValueError(f"x has shape {tuple(x.shape)}: must have shape ({shape})")
        if not len(x):
            raise ValueError(f"x has shape {tuple(x.shape)}: must hold at least one sample")
        if x.device != first.values.device:
            raise ValueError(
                f"x is on {x.device}: must be on {first.values.device}, as the network"
            )
        x = bare(x).to(first.values.dtype)
        own = x.untyped_storage().resizable()  # another process, or NumPy, may refill other memory
        if own and self._finite is not None and self._finite.holds(x):
            return x  # the host need not wait for the device again
        if not x.sum().isfinite() and not x.isfinite().all():
            wrong = (~x.isfinite().flatten(1).all(dim=1)).nonzero().flatten().tolist()
            raise ValueError(f"x has values that are not finite in samples {wrong[:5]}")
        x = x.clone() if is_shared(x) or not own else x
        self._finite = Version(x)
        return x

    def vouch(self, x: Tensor, labels: Tensor) -> None:
        """Say that a batch is in order, so that the host need not wait for the device to know.

        Args:
            x: finite; until it changes, or another input comes, nobody looks.
            labels: classes, likewise.
        """
        self._finite = Version(x)
        self.cost.vouch(labels)

    def clamp(self, x: Tensor) -> Clamped:
        """An input (batch, *input_shape) held fixed, with its drive W_1 ⋆ x + b_1."""
        first = self.synapses[0]
        drive, route = first.up_input(x)
        return Clamped(x, first.biased(drive), route)

    def initial_states(self, x: Tensor) -> list[Tensor]:
        """The states at the start of the free phase, each (batch, *shape): expanded views."""
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
        layers: Container[int] | None = None,
        omega: Tensor | None = None,
        ups: Ups | None = None,
    ) -> list[Tensor]:
        """The states after one time step: all layers move at once, from those of the step before.

        p_l = W_l ⋆ s_{l−1} + b_l + W_{l+1}ᵀ ⋆ s_{l+1}, then each layer's `Neurons.update`.

        The equilibrium of real neurons is where s = rho(p), a stationary point of the energy in
        [0, 1]. Any over-relaxation ω leaves it in place: rho(s + ω·(p − s)) = s there (projected
        successive over-relaxation; Cryer 1971, SIAM Journal on Control 9:385).

        Args:
            clamped: the input.
            states: s_1 … s_L.
            nudge: β·(−∂C/∂s_L), or None in the free phase.
            layers: the layers that move, counted from 0; all if None.
            omega: ω of each sample, (batch,); 1 if None, as in the paper.
            ups: what came from below, computed before with these parameters: not computed again
                where the activations are the same tensor, which nobody may have changed in place;
                and added to.
        """
        drives = self.drives(clamped, states, layers, ups)
        moved: list[Tensor] = []
        for neurons, state, drive in zip(self.neurons, states, drives, strict=True):
            if drive is None:
                moved.append(state)
                continue
            if omega is not None:
                drive = torch.lerp(state, drive, omega.view(-1, *[1] * (state.dim() - 1)))
            last = len(moved) + 1 == len(self)
            moved.append(neurons.update(state, drive, nudge if last else None))
        return moved

    def drives(
        self,
        clamped: Clamped,
        states: Sequence[Tensor],
        layers: Container[int] | None = None,
        ups: Ups | None = None,
    ) -> list[Tensor | None]:
        """What arrives at each layer, p_l, without the nudge; None for layers that do not move.

        Args:
            clamped: the input.
            states: s_1 … s_L.
            layers: see `step`.
            ups: likewise.
        """
        layers = range(len(self)) if layers is None else layers
        ups = {} if ups is None else ups
        sent = [n.fire(s) for n, s in zip(self.neurons, states, strict=True)]
        drives: list[Tensor | None] = [clamped.drive]
        routes: list[Route] = [clamped.route]
        for i, (synapse, below) in enumerate(zip(self.synapses[1:], sent, strict=False), start=1):
            if i not in layers and not (i - 1 in layers and synapse.has_route):
                drives.append(None)
                routes.append(None)
                continue
            if i not in ups or ups[i].below is not below:
                arrives, route = synapse.up(below)
                ups[i] = Up(below, synapse.biased(arrives), route)
            drives.append(ups[i].drive)
            routes.append(ups[i].route)
        for i, drive in enumerate(drives):
            if i not in layers or drive is None:
                drives[i] = None
            elif i + 1 < len(self):
                feedback = self.synapses[i + 1].down(sent[i + 1], routes[i + 1])
                drives[i] = drive + feedback.view_as(drive)
        return drives

    @torch.no_grad()
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
        output_only: bool = False,
    ) -> Equilibrium:
        """The end of the free phase, or with a target of the nudged phase.

        Gradients are never recorded; `BackpropThroughTime` differentiates steps. In a step all
        layers move at once, as in the paper, or odd ones before even ones (`Speed`). The
        network's `solver` takes the steps, or the first that fits: see
        `binep.core.solvers.choose`.

        Args:
            x: input, (batch, *input_shape), floating point.
            steps: the most steps to take (T or Kmax), at least 1.
            start: the equilibrium to start from; the neurons' initial states if None.
            target: what the output is nudged towards, from `Cost.target`.
            beta: strength and sign of the nudge.
            tolerance: stop once no state moves by more than this in a step. Binary neurons stop
                only when nothing moves at all. 0 takes all the steps.
            check_every: steps between two looks at whether all has settled, at each of which the
                host waits for the device; by default 1 on a CPU and 8 on a GPU.
            output_only: whether hidden layers need not settle where the output is certain.

        Raises:
            TypeError, ValueError: what does not fit, named, before any work; see `Phase.of`.
        """
        phase = Phase.of(
            self, x, steps,
            start=start, target=target, beta=beta, tolerance=tolerance, check_every=check_every,
            output_only=output_only,
        )  # fmt: skip
        return self.settle(phase)

    @torch.no_grad()
    def settle(self, phase: Phase) -> Equilibrium:
        """The end of a phase of this network, by its `solver` or the first that fits."""
        kind = solvers.choose(self, phase)
        start = phase.start
        memory = start.memory if start is not None and start.by is kind else None
        device = phase.x.device.type
        # What a solver keeps must be of use outside inference mode, too.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
            return self.made(kind).solve(phase, memory)

    @property
    def is_real(self) -> bool:
        """Whether all neurons are `Real`; not of a subclass, which may do something else."""
        return all(type(neurons) is Real for neurons in self.neurons)

    @property
    def has_own_steps(self) -> bool:
        """Whether a subclass has replaced `step`, `drives` or `clamp`."""
        names = ("step", "drives", "clamp")
        return any(getattr(type(self), name) is not getattr(Network, name) for name in names)

    def made(self, kind: type[S]) -> S:
        """The network's solver of a kind: made when first needed, anew for replaced layers."""
        synapses = tuple(self.synapses)
        made_for, solver = self._solvers.get(kind, ((), None))
        if (
            solver is None
            or len(made_for) != len(synapses)
            or any(a is not b for a, b in zip(made_for, synapses, strict=True))
        ):
            solver = kind(self)
            self._solvers[kind] = (synapses, solver)
        return cast(S, solver)


def _as_solver(kind: type[Solver] | None) -> type[Solver] | None:
    if kind is None or (isinstance(kind, type) and issubclass(kind, Solver)):
        return kind
    raise TypeError(f"solver = {kind!r}: must be a subclass of Solver, or None")


def _expect(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        given = f"the class {value.__name__}" if isinstance(value, type) else repr(value)
        raise TypeError(f"{name} = {given}: must be of type {kind.__name__}")


def _size(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()
