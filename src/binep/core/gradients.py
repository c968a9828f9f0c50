"""Gradient estimators: what fills each parameter's ``.grad``.

Both follow PyTorch's convention: ``.grad`` is the direction to go *against*, −g in the paper's.
``values.grad`` is with respect to the weight W.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from binep.core.network import Equilibrium, Network
from binep.core.synapses import Synapse
from binep.solvers.events import solver as events
from binep.solvers.in_cache import solver as fused

Nudging = Literal["one-sided", "random-sign", "centred"]


class GradientEstimator(ABC):
    """Estimates the loss gradient of one batch.

    Args:
        network: whose parameters' ``.grad`` are filled; those of scaling factors only where
            ``scale.requires_grad``.
        free_steps: T, the most steps of the free phase.
        nudged_steps: Kmax: the most steps of the nudged phase, or the steps that are
            differentiated.
        tolerance: see `Network.relax`.

    Raises:
        ValueError: steps below one.
    """

    def __init__(
        self, network: Network, *, free_steps: int, nudged_steps: int, tolerance: float = 1e-6
    ) -> None:
        if min(free_steps, nudged_steps) < 1:
            raise ValueError("free_steps and nudged_steps must be at least 1")
        self.network = network
        self.free_steps, self.nudged_steps = free_steps, nudged_steps
        self.tolerance = tolerance

    @abstractmethod
    def __call__(self, x: Tensor, target: Tensor) -> Equilibrium:
        """Fill every ``.grad``.

        Args:
            x: input, (batch, *input_shape).
            target: from `Cost.target`.

        Returns:
            The end of the free phase.
        """


class EquilibriumPropagation(GradientEstimator):
    """The gradient as the difference of two equilibria (paper, eqs. 4 and 5).

    g_W = (1/βB) [ Σ r^β_l ⊗ r^β_{l−1} − Σ r*_l ⊗ r*_{l−1} ], likewise g_b, with r what the neurons
    send, * the end of the free phase and β the end of the nudged one; g_α = α·∂/∂α.

    Args:
        beta: nudging strength β.
        nudging: "one-sided" (+β), "random-sign" (±β drawn once per batch), or "centred" (the
            difference between +β and −β; Laborieux et al. 2021).
        generator: of the random signs, on the CPU; the global one if None.
        network, free_steps, nudged_steps, tolerance: see `GradientEstimator`.

    Raises:
        ValueError: β = 0.
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
        if beta == 0:
            raise ValueError("beta = 0: without a nudge there is nothing to learn from")
        if nudging not in ("one-sided", "random-sign", "centred"):
            raise ValueError(
                f"nudging = {nudging!r}: must be 'one-sided', 'random-sign' or 'centred'"
            )
        self.beta, self.nudging, self.generator = beta, nudging, generator

    @torch.no_grad()
    def __call__(self, x: Tensor, target: Tensor) -> Equilibrium:
        """Settle, nudge, settle, compare."""
        self.network.zero_grad()  # the last gradients make room for the next
        free = self.network.relax(x, self.free_steps, tolerance=self.tolerance)
        beta = self.beta
        if self.nudging == "random-sign" and torch.rand((), generator=self.generator) < 0.5:
            beta = -beta
        nudged = self._nudged(free, target, beta)
        if self.nudging == "centred":
            self.compare(self._nudged(free, target, -beta), nudged, 2 * beta)
        else:
            self.compare(free, nudged, beta)
        self._differentiate_cost(free.output, target)
        return free

    @torch.enable_grad()
    def _differentiate_cost(self, output: Tensor, target: Tensor) -> None:
        """A cost with parameters of its own (a readout) learns by its gradient at equilibrium."""
        cost = self.network.cost
        if any(True for _ in cost.parameters()):
            cost.zero_grad()
            cost.loss(output, target).mean().backward()  # type: ignore[no-untyped-call]
            for module in cost.modules():
                if isinstance(module, Synapse):
                    _per_weight(module)
                    if module.scale is not None and module.scale.grad is not None:
                        module.scale.grad *= module.scale.detach()  # g_α = α·∂/∂α here, too

    def _nudged(self, free: Equilibrium, target: Tensor, beta: float) -> Equilibrium:
        return self.network.relax(
            free.clamped.x,
            self.nudged_steps,
            start=free,
            target=target,
            beta=beta,
            tolerance=self.tolerance,
        )

    @torch.no_grad()
    def compare(self, first: Equilibrium, second: Equilibrium, beta: float) -> None:
        """Fill every ``.grad`` from two equilibria whose nudges differ by β."""
        x = first.clamped.x
        shrink = -1 / (beta * len(x))  # minus: .grad is the direction to go against
        if events.correlate(self.network, first, second, shrink):
            return
        fired = [
            [n.fire(s) for n, s in zip(self.network.neurons, phase.states, strict=True)]
            for phase in (first, second)
        ]
        before, after = fired
        for i, synapse in enumerate(self.network.synapses):
            if i == 0:
                # The input is the same in both, so one product of the difference serves.
                above, below = (after[0] - before[0]).to(x.dtype) * shrink, x
            else:
                above = torch.cat([after[i], -before[i]]).to(x.dtype) * shrink
                below = torch.cat([after[i - 1], before[i - 1]])
            synapse.values.grad = synapse.correlate(above, below)
            synapse.bias.grad = synapse.correlate_bias(above)
            if synapse.scale is not None and synapse.scale.requires_grad:
                synapse.scale.grad = synapse.scale * synapse.per_scale(synapse.values.grad)


class BackpropThroughTime(GradientEstimator):
    """The exact gradient through the last steps of the free phase (paper, section 2.2).

    The loss is the batch mean of the cost at the end of ``free_steps`` steps, of which the last
    ``nudged_steps`` are differentiated. g_α is ∂/∂α, without the factor α of the other estimator.

    Raises:
        ValueError: neurons without a derivative, or fewer free steps than differentiated ones.
    """

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
        """Settle, then differentiate the last steps."""
        network = self.network
        before = self.free_steps - self.nudged_steps
        start = None
        if before:
            with torch.no_grad():
                start = network.relax(x, before, tolerance=self.tolerance)
        network.zero_grad()
        if start is not None and network.speed.uses("in-cache") and fused.fits(network):
            return self._through_fused_steps(start, target)
        with torch.enable_grad():
            if start is not None:  # W_1 ⋆ x + b_1 again, now to be differentiated
                start = replace(start, clamped=network.clamp(x))
            end = network.relax(x, self.nudged_steps, start=start, tolerance=0)
            network.cost.loss(end.output, target).mean().backward()  # type: ignore[no-untyped-call]
        for synapse in network.learning_synapses():
            _per_weight(synapse)
        steps = self.nudged_steps + (0 if start is None else start.steps)
        moved = end.moved if start is None else start.moved
        return replace(end, states=[s.detach() for s in end.states], steps=steps, moved=moved)

    @torch.no_grad()
    def _through_fused_steps(self, start: Equilibrium, target: Tensor) -> Equilibrium:
        """The same without autograd."""
        x, synapses = start.clamped.x, self.network.synapses
        end = fused.Loop(self.network).unroll(start, self.nudged_steps, target)
        first = synapses[0]
        gradients = [(first.correlate(end.drive, x), first.correlate_bias(end.drive))]
        gradients += zip(end.weights, end.biases, strict=True)
        for synapse, (weight, bias) in zip(synapses, gradients, strict=True):
            # The cost is a mean over the batch.
            synapse.values.grad, synapse.bias.grad = weight.div_(len(x)), bias.div(len(x))
            if synapse.scale is not None and synapse.scale.requires_grad:
                synapse.scale.grad = synapse.per_scale(synapse.values.grad)
        steps = start.steps + self.nudged_steps
        return Equilibrium(start.clamped, end.states, steps, start.moved, end.residual)


def _per_weight(synapse: Synapse) -> None:
    """Turn autograd's ∂/∂sign, which is α·∂/∂W since p = α·(sign ⋆ s), into ∂/∂W."""
    if synapse.scale is not None and synapse.values.grad is not None:
        synapse.values.grad /= synapse.per_weight(synapse.scale.detach())
