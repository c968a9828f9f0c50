"""Gradient estimators: what fills each parameter's ``.grad``.

All fill the same quantities, by PyTorch's convention: ``.grad`` is the direction to go *against*,
−g in the paper's. ``values.grad`` is by the weight W, ``scale.grad`` by the scaling factor α,
``bias.grad`` by the bias. What does not require a gradient gets none. A synapse that joins several
layers gets the sum. Hooks of parameters are called where autograd fills their ``.grad`` alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from binep.core.checks import as_tolerance, whole
from binep.core.network import Network
from binep.core.neurons import Real
from binep.core.phases import Clamped, Equilibrium, Phase
from binep.core.solvers import Gradient, Plain, largest_change
from binep.core.synapses import Conv, Dense, Synapse

Nudging = Literal["one-sided", "random-sign", "centred"]

_PARTS = 8
"""Sizes of a batch that samples are left out of."""

_STILL = 10
"""A sample is at its equilibrium where a step moves it by no more than so many tolerances: the
solver that found it settled may round otherwise."""

_SMALLEST_BETA = 1e-30
"""1/β times a sum must be a number in float32."""


class GradientEstimator(ABC):
    """Estimates the loss gradient of one batch.

    Args:
        network: whose parameters' ``.grad`` are filled, where they require one.
        free_steps: T, the most steps of the free phase.
        nudged_steps: Kmax: the most steps of the nudged phase, or the steps that are
            differentiated.
        tolerance: see `Network.relax`.

    Raises:
        TypeError, ValueError: steps that are no whole numbers from 1, or an impossible tolerance.
    """

    def __init__(
        self, network: Network, *, free_steps: int, nudged_steps: int, tolerance: float = 1e-6
    ) -> None:
        self.network = network
        self.free_steps = whole("free_steps", free_steps)
        self.nudged_steps = whole("nudged_steps", nudged_steps)
        self.tolerance = as_tolerance(tolerance)

    def _begin(self, x: Tensor, target: Tensor, steps: int) -> tuple[Phase, Tensor]:
        """The free phase and the target, checked; clears the gradients of the batch before."""
        network = self.network
        phase = Phase.of(network, x, steps, tolerance=self.tolerance)
        target = network.cost.as_target(target, phase.states[-1])
        network.zero_grad()
        return replace(phase, output_only=True, goal=target), target

    @abstractmethod
    def __call__(self, x: Tensor, target: Tensor) -> Equilibrium:
        """The free equilibrium of a batch, with every ``.grad`` filled.

        Args:
            x: input, (batch, *input_shape), floating point.
            target: from `Cost.target`.

        Returns:
            The end of the free phase; hidden layers of samples of which `Equilibrium.certain` holds
            need not have settled.

        Raises:
            TypeError, ValueError: what does not fit, named, before any work.
        """


class EquilibriumPropagation(GradientEstimator):
    """The gradient as the difference of two equilibria (paper, eqs. 4 and 5).

    g_W = (1/βB) [ Σ r^β_l ⊗ r^β_{l−1} − Σ r*_l ⊗ r*_{l−1} ], g_b = (1/βB) Σ (r^β_l − r*_l)
    and g_α = Σ sign·g_W over the weights that share α, with r what the neurons send, * the end of
    the free phase and β that of the nudged phase.

    Args:
        beta: nudging strength β.
        nudging: "one-sided" (+β), "random-sign" (±β drawn once per batch), or "centred" (the
            difference between +β and −β; Laborieux et al. 2021).
        generator: of the random signs, on the CPU; the global one if None.
        row_sparse: whether ``values.grad`` may be a sparse tensor that leaves out rows without a
            gradient, as `BinaryFlip` takes it, where a solver gains by it.
        network, free_steps, nudged_steps, tolerance: see `GradientEstimator`.

    Raises:
        ValueError: β near 0 or not finite, or an unknown nudging.
    """

    def __init__(
        self,
        network: Network,
        *,
        beta: float,
        free_steps: int,
        nudged_steps: int,
        nudging: Nudging = "random-sign",
        tolerance: float = 1e-6,
        generator: torch.Generator | None = None,
        row_sparse: bool = False,
    ) -> None:
        super().__init__(
            network, free_steps=free_steps, nudged_steps=nudged_steps, tolerance=tolerance
        )
        self.beta, self.nudging, self.generator = beta, nudging, generator
        self.row_sparse = row_sparse
        self._check_nudge()

    def _check_nudge(self) -> None:
        if not _SMALLEST_BETA <= abs(self.beta) < math.inf:
            raise ValueError(
                f"beta = {self.beta}: must be finite and not 0, at least {_SMALLEST_BETA:g} "
                "in size, or nothing is learnt"
            )
        if self.nudging not in ("one-sided", "random-sign", "centred"):
            raise ValueError(
                f"nudging = {self.nudging!r}: must be 'one-sided', 'random-sign' or 'centred'"
            )

    @property
    def between(self) -> float:
        """By how much the nudges of the two equilibria that it compares differ: β, or 2β."""
        return 2 * self.beta if self.nudging == "centred" else self.beta

    @torch.no_grad()
    def __call__(self, x: Tensor, target: Tensor) -> Equilibrium:
        """The free equilibrium, with every ``.grad`` from the difference of the phases' ends."""
        self._check_nudge()  # it may have been changed since
        phase, target = self._begin(x, target, self.free_steps)
        largest = torch.finfo(phase.x.dtype).max
        if not max(abs(self.beta), 1 / abs(self.beta)) <= largest:
            raise ValueError(f"beta = {self.beta}: it and 1/beta must be finite in {phase.x.dtype}")
        free = self.network.settle(phase)
        samples = _that_learn(self.network, phase, free, target)
        first, goal = (free, target) if samples is None else (free.part(samples), target[samples])

        def nudged(beta: float) -> Equilibrium:
            return self.network.settle(phase.nudged(first, self.nudged_steps, goal, beta))

        beta = self.beta
        if self.nudging == "random-sign" and _draw(self.generator) < 0.5:
            beta = -beta
        if self.nudging == "centred":
            left_out, pair = first.certain, (nudged(-beta), nudged(beta))
            self._compare(*pair, self.between, len(phase.x), left_out)
        else:
            self._compare(first, nudged(beta), beta, len(phase.x), first.certain)
        self._differentiate_cost(free.output, target)
        return free

    @torch.no_grad()
    def compare(self, first: Equilibrium, second: Equilibrium, beta: float) -> None:
        """Add to every ``.grad`` from two equilibria whose nudges differ by β.

        Samples of which `Equilibrium.certain` holds in the first one add nothing.
        """
        self._compare(first, second, beta, len(first.clamped.x), first.certain)

    def _compare(
        self,
        first: Equilibrium,
        second: Equilibrium,
        beta: float,
        batch: int,
        left_out: Tensor | None,
    ) -> None:
        """Without some samples, which had not settled and have nothing to learn."""
        x = first.clamped.x
        if left_out is not None and left_out.any():
            states = [state.clone() for state in second.states]
            for after, before in zip(states, first.states, strict=True):
                after[left_out] = before[left_out]
            second = replace(second, states=states)
        factor = -1 / (beta * batch)  # minus: .grad is the direction to go against
        kind = first.by if first.by is not None and first.by is second.by else Plain
        # Gradients are to be changed outside inference mode, too.
        full = torch.autocast(x.device.type, enabled=False)
        with torch.inference_mode(False), torch.no_grad(), full:
            gradients = self.network.made(kind).compare(first, second, factor, self.row_sparse)
            _fill(self.network.synapses, gradients)

    def _differentiate_cost(self, output: Tensor, target: Tensor) -> None:
        """A cost with parameters of its own (a readout) learns by its gradient at equilibrium."""
        cost = self.network.cost
        if any(parameter.requires_grad for parameter in cost.parameters()):
            with _recording(cost, output):
                _differentiate(cost.loss(output, target).mean())


class BackpropThroughTime(GradientEstimator):
    """The exact gradient through the last steps of the free phase (paper, section 2.2).

    The loss is the batch mean of the cost at the end of ``free_steps`` steps, of which the last
    ``nudged_steps`` are differentiated. Of a sample that a further step moves by no more than ten
    tolerances these steps are not taken: all have the derivative of that one (`Speed`, linearised).

    Raises:
        ValueError: neurons without a derivative, or fewer free steps than differentiated ones.
    """

    differentiates = True
    """Whether it needs neurons with a derivative."""

    def __init__(
        self, network: Network, *, free_steps: int, nudged_steps: int, tolerance: float = 1e-6
    ) -> None:
        super().__init__(
            network, free_steps=free_steps, nudged_steps=nudged_steps, tolerance=tolerance
        )
        if not all(n.differentiable for n in network.neurons):
            raise ValueError(
                "backpropagation through time needs neurons with a derivative, and binary "
                "activations have none: use equilibrium propagation"
            )
        if free_steps < nudged_steps:
            raise ValueError(
                f"free_steps = {free_steps} must be at least nudged_steps = {nudged_steps}"
            )

    def __call__(self, x: Tensor, target: Tensor) -> Equilibrium:
        """The end of the free phase, with every ``.grad`` through its last steps.

        It is None of layers that so few steps do not reach from the output.
        """
        network, before = self.network, self.free_steps - self.nudged_steps
        with parametrize.cached():
            _by_signs(network)
        phase, target = self._begin(x, target, before or 1)
        x = phase.x
        start, unrolled = None, None
        if before:
            start = network.settle(phase)
            if start.by is not None:
                with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
                    solver = network.made(start.by)
                    unrolled = solver.unroll(start, self.nudged_steps, target)
        if start is not None and unrolled is not None:
            reached = slice(-self.nudged_steps, None)
            _fill(network.synapses[reached], unrolled.gradients[reached])
            return Equilibrium(start.clamped, unrolled.states, start.moved, unrolled.residual)
        if start is None or not self._may_linearise():
            return self._through_autograd(x, start, target, len(x))
        return self._linearised(start, target)

    def _through_autograd(
        self, x: Tensor, start: Equilibrium | None, target: Tensor, batch: int
    ) -> Equilibrium:
        """The steps of some samples of a batch of so many, recorded and differentiated."""
        network = self.network
        states: Sequence[Tensor] = network.initial_states(x) if start is None else start.states
        states = [state.contiguous() for state in states]
        with _recording(network, x):
            clamped, before = network.clamp(x), states
            for _ in range(self.nudged_steps):
                before, states = states, network.step(clamped, states)
            _differentiate(network.cost.loss(states[-1], target).mean() * (len(x) / batch))
        ends = [state.detach() for state in states]
        change = largest_change(ends, [state.detach() for state in before])
        steps = torch.full((len(network),), self.nudged_steps, device=x.device)
        moved = steps if start is None else start.moved
        certain = None if start is None else start.certain
        residual = (change if certain is None else change.masked_fill(certain, 0)).amax(dim=1)
        clamped = Clamped(x, clamped.drive.detach())
        return Equilibrium(clamped, ends, moved, residual, certain=certain)

    def _may_linearise(self) -> bool:
        network = self.network
        return (  # a subclass may do something else in each step
            network.speed.uses("linearised")
            and not network.has_own_steps
            and network.is_real
            and all(type(synapse) in (Dense, Conv) for synapse in network.synapses)
        )

    def _linearised(self, start: Equilibrium, target: Tensor) -> Equilibrium:
        """Samples at their equilibrium by the derivative of one step, which all steps share.

        With J = ∂step/∂s there, ∂C/∂s goes back by a step as λ ← Jᵀλ, and ∂C/∂θ is
        (∂step/∂θ)ᵀ Σ_t λ_t (recurrent backpropagation, Almeida 1987, in so many steps).
        """
        network, x, batch = self.network, start.clamped.x, len(start.output)
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            drives = [p for p in network.drives(start.clamped, start.states) if p is not None]
            moving = list(zip(network.neurons, start.states, drives, strict=True))
            ends = [neurons.update(s, p) for neurons, s, p in moving]
            slopes = [neurons.slope(p) for neurons, _, p in moving if isinstance(neurons, Real)]
        change = largest_change(ends, start.states)
        if start.certain is not None:  # no gradient passes their output
            change = change.masked_fill(start.certain, 0)
        still = (change <= _STILL * self.tolerance).all(dim=0)
        if not still.any():
            return self._through_autograd(x, start, target, batch)
        output = ends[-1][still].requires_grad_()
        with _recording(network.cost, output):
            _differentiate(network.cost.loss(output, target[still]).mean() * (len(output) / batch))
        force = torch.zeros_like(ends[-1])
        if output.grad is not None:
            force[still] = output.grad
        samples = _first_in_eighths((force != 0).flatten(1).any(dim=1))
        if samples is None:
            self._go_back(start, slopes, force)
        else:
            self._go_back(start.part(samples), [s[samples] for s in slopes], force[samples])
        rest = (~still).nonzero().flatten()
        if len(rest):
            part = start.part(rest)
            others = self._through_autograd(part.clamped.x, part, target[rest], batch)
            for end, state in zip(ends, others.states, strict=True):
                end[rest] = state
            change[:, rest] = others.residual[:, None]
        residual = change.amax(dim=1)
        return Equilibrium(start.clamped, ends, start.moved, residual, certain=start.certain)

    def _go_back(self, start: Equilibrium, slopes: Sequence[Tensor], force: Tensor) -> None:
        """Add to every ``.grad`` by ∂C/∂s_L of samples at their equilibrium.

        Args:
            start: the equilibrium.
            slopes: ρ'(p) of each layer there.
            force: ∂C/∂s_L.
        """
        network, x = self.network, start.clamped.x
        if all(type(synapse) is Dense for synapse in network.synapses):
            with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
                back = partial(_through_dense, network.synapses)
                total = self._adjoints(start, slopes, force, back)
                _fill_dense(network.synapses, [x, *start.states], total)
            return
        with _recording(network, x):
            states = [state.detach().contiguous().requires_grad_() for state in start.states]
            drives = [p for p in network.drives(network.clamp(x), states) if p is not None]
            total = self._adjoints(start, slopes, force, partial(_through, drives, states))
            learnt = [p for p in network.parameters() if p.requires_grad]
            ends, some = _reached(drives, total)
            if ends and learnt:
                torch.autograd.backward(ends, some, inputs=learnt)

    def _adjoints(
        self, start: Equilibrium, slopes: Sequence[Tensor], force: Tensor, back: _Back
    ) -> Sequence[Tensor | None]:
        """Σ_t ∂C/∂p of each layer; None of those that the output does not reach.

        Args:
            start: see `_go_back`.
            slopes: likewise.
            force: likewise.
            back: does what `Solver.go_back` does, where the solver leaves it.
        """
        solver = self.network.made(start.by or Plain)
        adjoints: Sequence[Tensor | None] = [*[None] * (len(slopes) - 1), slopes[-1] * force]
        total = adjoints
        for _ in range(1, self.nudged_steps):
            with torch.no_grad():
                found = solver.go_back(adjoints)
            pairs = zip(back(adjoints) if found is None else found, slopes, strict=True)
            adjoints = [a if a is None else a * slope for a, slope in pairs]
            total = [_sum(a, b) for a, b in zip(total, adjoints, strict=True)]
        return total


_Back = Callable[[Sequence[Tensor | None]], Sequence[Tensor | None]]


def _through_dense(
    synapses: Sequence[Synapse], adjoints: Sequence[Tensor | None]
) -> Sequence[Tensor | None]:
    """As `Solver.go_back`, of dense layers."""
    found: list[Tensor | None] = [None] * len(adjoints)
    for i, synapse in enumerate(synapses[1:], start=1):
        above, below = adjoints[i], adjoints[i - 1]
        if above is not None:
            found[i - 1] = _sum(found[i - 1], synapse.down(above, None).flatten(1))
        if below is not None:
            found[i] = _sum(found[i], synapse.up(below)[0])
    return found


def _fill_dense(
    synapses: Sequence[Synapse], states: Sequence[Tensor], adjoints: Sequence[Tensor | None]
) -> None:
    """Add to every ``.grad`` by ∂C/∂p, of dense layers: W_l is in p_l and, transposed, in p_{l−1}.

    Args:
        synapses: W_1 … W_L.
        states: x, s_1 … s_L.
        adjoints: ∂C/∂p_1 … ∂C/∂p_L.
    """
    layers = zip(synapses, states[1:], states[:-1], adjoints, [None, *adjoints[:-1]], strict=True)
    for synapse, above, below, by_above, by_below in layers:
        if by_above is None:  # nor is any below it reached
            continue
        _fill_bias(synapse, synapse.correlate_bias(by_above))
        if not any(p is not None and p.requires_grad for p in (synapse.values, synapse.scale)):
            continue
        if by_below is None:
            weight = synapse.correlate(by_above, below)
        else:
            ends = torch.cat([by_above, above]), torch.cat([below, by_below])
            weight = synapse.correlate(*ends)
        _fill_weight(synapse, weight)


def _through(
    drives: Sequence[Tensor], states: Sequence[Tensor], adjoints: Sequence[Tensor | None]
) -> Sequence[Tensor | None]:
    """As `Solver.go_back`, of drives that autograd has recorded."""
    ends, some = _reached(drives, adjoints)
    if not ends:
        return [None] * len(states)
    return torch.autograd.grad(ends, states, some, retain_graph=True, allow_unused=True)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return a if b is None else b if a is None else a + b


def _reached(
    drives: Sequence[Tensor], adjoints: Sequence[Tensor | None]
) -> tuple[list[Tensor], list[Tensor]]:
    """The drives that have an adjoint and depend on something, and their adjoints."""
    pairs = zip(drives, adjoints, strict=True)
    reached = [(a, b) for a, b in pairs if b is not None and a.requires_grad]
    return [a for a, _ in reached], [b for _, b in reached]


@contextmanager
def _recording(module: nn.Module, x: Tensor) -> Iterator[None]:
    """Let autograd record, in full precision, and divide ∂/∂sign by α to give ∂/∂W.

    A layer's p = α·(sign ⋆ s), so that its ∂/∂sign is α·∂/∂W.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "torch.inference_mode() is on, in which autograd records nothing: estimate gradients "
            "outside of it"
        )
    with (
        torch.enable_grad(),
        torch.autocast(x.device.type, enabled=False),
        parametrize.cached(),
    ):
        hooks = [
            signs.register_hook(_divided_by(synapse))  # type: ignore[no-untyped-call]
            for signs, synapse in _by_signs(module).items()
            if signs.requires_grad
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _by_signs(module: nn.Module) -> dict[Tensor, Synapse]:
    """Layers of binary weights by their signs, of which several may have the same.

    Raises:
        ValueError: with another scaling factor.
    """
    found: dict[Tensor, Synapse] = {}
    for synapse in module.modules():
        if not isinstance(synapse, Synapse) or synapse.scale is None:
            continue
        first = found.setdefault(synapse.values, synapse)
        if first.scale is not synapse.scale:
            raise ValueError("layers share their signs, but not their scaling factor")
    return found


def _differentiate(loss: Tensor) -> None:
    """Fill every ``.grad`` that a loss depends on; it may depend on none."""
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]


def _draw(generator: torch.Generator | None) -> float:
    return float(torch.rand((), dtype=torch.float32, device="cpu", generator=generator))


def _that_learn(network: Network, phase: Phase, free: Equilibrium, target: Tensor) -> Tensor | None:
    """The samples whose output the nudge moves, and some others; None for all.

    Where the output of a settled sample is its target, −∂C/∂s_L is 0: the nudged phase stays where
    it is, and the sample adds nothing to any gradient. On a GPU it would take longer to know.
    """
    if not (
        network.speed.uses("zero-nudge")
        and phase.x.device.type == "cpu"
        and phase.tolerance > 0
        and network.is_real
        and not network.has_own_steps
        and bool((free.residual <= phase.tolerance).all())
    ):
        return None
    with torch.autocast(target.device.type, enabled=False):
        moves = (network.cost.force(free.output, target) != 0).flatten(1).any(dim=1)
    return _first_in_eighths(moves)


def _first_in_eighths(chosen: Tensor) -> Tensor | None:
    """The numbers of the chosen samples, and of some others after them; None for all.

    As many others as fill an eighth of the batch: convolutions are compiled for each size.
    """
    batch, eighth = len(chosen), -(-len(chosen) // _PARTS)
    count = max(1, -(-int(chosen.sum()) // eighth)) * eighth
    return None if count >= batch else chosen.argsort(descending=True, stable=True)[:count]


def _divided_by(synapse: Synapse) -> Callable[[Tensor], Tensor]:
    assert synapse.scale is not None
    alpha = synapse.per_weight(synapse.scale.detach())
    return lambda gradient: gradient / alpha


def _fill(synapses: Sequence[Synapse], gradients: Sequence[Gradient]) -> None:
    """Add each layer's gradients to every ``.grad``."""
    for synapse, gradient in zip(synapses, gradients, strict=True):
        _fill_weight(synapse, gradient.weight)
        _fill_bias(synapse, gradient.bias)


def _fill_weight(synapse: Synapse, gradient: Tensor) -> None:
    """Those by the weights, and by their scaling factors."""
    with torch.enable_grad():  # a parametrization is computed here
        values, scale = synapse.values, synapse.scale
    if scale is not None and scale.requires_grad:
        _add(scale, synapse.per_scale(gradient))
    if values.requires_grad:
        _add(values, gradient)


def _fill_bias(synapse: Synapse, gradient: Tensor) -> None:
    with torch.enable_grad():
        bias = synapse.bias
    if bias.requires_grad:
        _add(bias, gradient)


def _add(parameter: Tensor, gradient: Tensor) -> None:
    """Add to a parameter's ``.grad``, or to those of what a parametrization computes it from."""
    if parameter.is_leaf:
        gradient = gradient.view_as(parameter) if not gradient.is_sparse else gradient
        if (before := parameter.grad) is not None:  # PyTorch adds no dense one to a sparse one
            gradient = gradient + before if before.is_sparse else before + gradient
        parameter.grad = gradient
    else:
        with torch.enable_grad():
            parameter.backward(gradient.to_dense())  # type: ignore[no-untyped-call]
