"""Equilibrium propagation against backpropagation through time, step by step.

With t steps of the nudged phase taken, equilibrium propagation has found what backpropagation finds
through the last t steps of a settled free phase, as β → 0: the *gradient-descending updates* of
Ernoult et al. 2019 (NeurIPS, "Updates of Equilibrium Prop Match Gradients of Backprop Through Time
in an RNN with Static Input", theorem 1).

That holds of a nudge inside ρ. One outside ρ also moves outputs where ρ is flat; what it tends to
is backpropagation whose error passes *straight through* the ρ of the output in the last step.

Gradients here are ∂L/∂θ of the batch mean of the cost, by the weight W, the bias b and the scaling
factor α.
"""

from __future__ import annotations

import copy
import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields, replace
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from binep.core import solvers
from binep.core.gradients import EquilibriumPropagation
from binep.core.network import Network
from binep.core.neurons import Real
from binep.core.phases import Equilibrium
from binep.core.speed import Speed

Gradients = dict[tuple[int, str], Tensor]
"""By layer, from 1, and parameter: weight, bias or scale."""

Nudge = Literal["inside", "outside"]

SETTLED = 1e-12
"""max|Δs| of a step at which float64 states are at rest."""


@dataclass(frozen=True)
class Agreement:
    """Cosine and relative error of EP against BPTT, for one parameter of one layer.

    Attributes:
        weights: the layer's, "binary" or "real".
        nudge: "inside" or "outside" ρ.
        nudging: "one-sided" or "centred".
        beta: β.
        layer: from 1, above the input, to the output.
        parameter: "weight", "bias" or "scale".
        reference: "exact" or "straight-through" BPTT.
        step: t, from 1: steps of the nudged phase, and last steps of the free phase.
        step_cosine: between both updates of step t alone; NaN where one of them is zero.
        step_error: ‖EP − BPTT‖/‖BPTT‖ of the updates of step t; NaN where BPTT is zero.
        cosine: between both gradients of steps 1 … t.
        error: ‖EP − BPTT‖/‖BPTT‖ of the gradients of steps 1 … t.
        ep_norm: ‖EP‖ of steps 1 … t.
        bptt_norm: ‖BPTT‖ of steps 1 … t.
    """

    weights: str
    nudge: str
    nudging: str
    beta: float
    layer: int
    parameter: str
    reference: str
    step: int
    step_cosine: float
    step_error: float
    cosine: float
    error: float
    ep_norm: float
    bptt_norm: float


@dataclass(frozen=True)
class Traced:
    """The gradient of one weight after t steps, by EP and by BPTT.

    Attributes:
        weights, nudge, nudging, beta, layer, step: see `Agreement`.
        index: of the weight in its layer, flattened.
        ep: by equilibrium propagation.
        exact: by backpropagation through time.
        through: by backpropagation through time, straight through the output's ρ.
    """

    weights: str
    nudge: str
    nudging: str
    beta: float
    layer: int
    index: int
    step: int
    ep: float
    exact: float
    through: float


@dataclass(frozen=True)
class Check:
    """What `check` found.

    Attributes:
        agreements: for every nudge, β, step, nudging and parameter.
        traced: for every nudge, β, step and nudging, gradients of single weights.
        free_steps: that the free phase took to settle.
        residual: max|Δs| in its last step.
        stuck: share of the outputs that are wrong where ρ is flat: BPTT and a small nudge inside ρ
            do not move them, a nudge outside does.
    """

    agreements: list[Agreement]
    traced: list[Traced]
    free_steps: int
    residual: float
    stuck: float


def needed(network: Network, samples: int, steps: int) -> int:
    """Bytes that `check` takes at least: parameters and their gradients, states of each step."""
    weights = sum(p.numel() for p in network.parameters())
    states = sum(math.prod(synapse.output_shape) for synapse in network.synapses)
    return 8 * (4 * weights + samples * steps * states)  # float64


def check(
    network: Network,
    x: Tensor,
    target: Tensor,
    *,
    betas: Sequence[float],
    steps: int,
    free_steps: int = 5000,
    trace: int = 3,
    generator: torch.Generator | None = None,
) -> Check:
    """Compare both gradients of one batch, in float64 and without a shortcut.

    Memory: about twenty copies of the parameters in float64, and ``steps`` of the states.

    Args:
        network: of real neurons; it stays as it is.
        x: input, (batch, *input_shape).
        target: from `Cost.target`.
        betas: nudging strengths, above 0; each also with the other sign.
        steps: K, steps of the nudged phase.
        free_steps: the most steps of the free phase, which has settled once no state moves by more
            than `SETTLED` in a step.
        trace: how many weights of a layer to follow, drawn in proportion to their |gradient|.
        generator: of that draw, on the CPU.

    Raises:
        ValueError: neurons without a derivative, no β or one that is not positive, or no step.
    """
    output = network.neurons[-1]
    if not isinstance(output, Real) or not all(n.differentiable for n in network.neurons):
        raise ValueError("binary activations have no derivative to compare with")
    if not betas or min(betas) <= 0 or steps < 1:
        raise ValueError(f"betas = {betas} and steps = {steps}: must be above 0")
    network, x = _float64_copy(network), x.double()
    free = network.relax(x, free_steps, tolerance=SETTLED)
    trail = [free]
    for _ in range(steps):
        trail.append(network.relax(x, 1, start=trail[-1], tolerance=0))
    chosen = _draw_weights(network, trail, target, trace, generator)
    agreements: list[Agreement] = []
    traced: list[Traced] = []
    nudge: Nudge
    for nudge in ("inside", "outside"):
        nudged = _with_output(network, replace(output, nudge=nudge))
        for beta in betas:
            for rows, weights in _compare(nudged, trail, target, nudge, beta, chosen):
                agreements += rows
                traced += weights
    at_rest = trail[-1]
    flat = (at_rest.output <= 0) | (at_rest.output >= 1)
    with torch.no_grad():
        stuck = flat & (network.cost.force(at_rest.output, target) != 0)
    residual = float(at_rest.residual.max())
    return Check(agreements, traced, free.steps, residual, float(stuck.double().mean()))


def _compare(
    network: Network,
    trail: Sequence[Equilibrium],
    target: Tensor,
    nudge: Nudge,
    beta: float,
    chosen: dict[int, Tensor],
) -> Iterator[tuple[list[Agreement], list[Traced]]]:
    """The agreement for one nudge and β, step by step."""
    kinds = ["real" if synapse.scale is None else "binary" for synapse in network.synapses]
    steps = zip(
        propagated(network, trail[-1], target, beta, len(trail) - 1),
        propagated(network, trail[-1], target, -beta, len(trail) - 1),
        backpropagated(network, trail, target),
        backpropagated(network, trail, target, through=True),
        strict=True,
    )
    names = ("one-sided", "centred", "exact", "straight-through")
    totals: dict[str, Gradients] = {name: {} for name in names}
    for step, (plus, minus, *exact) in enumerate(steps, start=1):
        # (g(β) + g(−β))/2 is the difference between the two nudged phases over 2β.
        centred = {key: (plus[key] + minus[key]) / 2 for key in plus}
        updates = dict(zip(names, (plus, centred, *exact), strict=True))
        totals = {name: _sum(totals[name], updates[name]) for name in names}
        rows: list[Agreement] = []
        weights: list[Traced] = []
        for nudging, (layer, parameter) in product(names[:2], plus):
            key = layer, parameter
            place = (kinds[layer - 1], nudge, nudging, beta, layer)
            for name in names[2:]:
                now, all_of = (_agreement(g[nudging][key], g[name][key]) for g in (updates, totals))
                rows.append(Agreement(*place, parameter, name, step, *now[:2], *all_of))
            if parameter == "weight":
                followed = chosen[layer]
                values = [totals[n][key].flatten()[followed] for n in (nudging, *names[2:])]
                for index, *three in zip(followed.tolist(), *map(list, values), strict=True):
                    weights.append(Traced(*place, index, step, *map(float, three)))
        yield rows, weights


@torch.no_grad()
def propagated(
    network: Network, free: Equilibrium, target: Tensor, beta: float, steps: int
) -> Iterator[Gradients]:
    """The update of each step of the nudged phase: −(1/βB)[∂Φ/∂θ(s_{t+1}) − ∂Φ/∂θ(s_t)].

    Args:
        network: with scaling factors that are to learn.
        free: the end of the free phase.
        target: from `Cost.target`.
        beta: β, of either sign.
        steps: K.
    """
    estimator = EquilibriumPropagation(network, beta=beta, free_steps=1, nudged_steps=1)
    now = free
    for _ in range(steps):
        following = network.relax(
            free.clamped.x, 1, start=now, target=target, beta=beta, tolerance=0
        )
        network.zero_grad()
        estimator.compare(now, following, beta)
        found: Gradients = {}
        for key, parameter in _parameters(network).items():
            assert parameter.grad is not None
            found[key] = parameter.grad
        yield found
        now = following


@torch.no_grad()
def backpropagated(
    network: Network, trail: Sequence[Equilibrium], target: Tensor, through: bool = False
) -> Iterator[Gradients]:
    """The gradient through each of the last steps of the free phase, from the last one back.

    The loss is the batch mean of the cost at the end; t of these add up to backpropagation
    through the last t steps. One step at a time is held for differentiation, never all.

    Args:
        network: of neurons with a derivative.
        trail: consecutive states of the free phase, one more than steps.
        target: from `Cost.target`.
        through: let the error pass straight through the output's ρ in the last step.
    """
    x, last = trail[-1].clamped.x, trail[-1]
    output = last.output.detach().requires_grad_()
    with torch.enable_grad():
        loss = network.cost.loss(output, target).mean()
    errors = [torch.zeros_like(state) for state in last.states[:-1]]
    errors += torch.autograd.grad(loss, output)
    parameters = _parameters(network)
    stepping = _with_output(network, _StraightThrough()) if through else network
    for before in reversed(trail[:-1]):
        states = [state.detach().requires_grad_() for state in before.states]
        with torch.enable_grad():
            after = stepping.step(network.clamp(x), states)
        wanted = [*states, *parameters.values()]
        found = torch.autograd.grad(after, wanted, errors, materialize_grads=True)
        errors, stepping = list(found[: len(states)]), network
        gradients = dict(zip(parameters, found[len(states) :], strict=True))
        for layer, synapse in enumerate(network.synapses, start=1):
            if synapse.scale is not None:
                gradients[layer, "weight"] /= synapse.per_weight(synapse.scale)  # from ∂/∂sign
        yield gradients


def _parameters(network: Network) -> Gradients:
    """Weights, biases and scaling factors of the dynamics, named as their gradients are."""
    found: Gradients = {}
    for layer, synapse in enumerate(network.synapses, start=1):
        found |= {(layer, "weight"): synapse.values, (layer, "bias"): synapse.bias}
        if synapse.scale is not None:
            found[layer, "scale"] = synapse.scale
    return found


def _float64_copy(network: Network) -> Network:
    """A copy in float64 without shortcuts, all of whose parameters have a gradient."""
    network = copy.deepcopy(network).double()
    others = [kind.name for kind in solvers.registered() if kind is not solvers.Plain]
    network.speed = Speed(off=("odd-even", *others), precision="exact")
    return network.requires_grad_(True)


class _StraightThrough(Real):
    """ρ that an error passes straight through, even where it is flat."""

    def update(self, state: Tensor, drive: Tensor, nudge: Tensor | None = None) -> Tensor:
        return drive + (drive.clamp(0, 1) - drive).detach()


def _with_output(network: Network, neurons: Real) -> Network:
    """A network of these synapses with other neurons at the output."""
    others = network.neurons[:-1]
    return Network(network.synapses, [*others, neurons], network.cost, speed=network.speed)


def _sum(total: Gradients, more: Gradients) -> Gradients:
    return {key: total[key] + value if total else value for key, value in more.items()}


def _agreement(found: Tensor, exact: Tensor) -> tuple[float, float, float, float]:
    """Cosine, relative error, ‖EP‖ and ‖BPTT‖."""
    norms = float(found.norm()), float(exact.norm())
    dot = float(torch.dot(found.flatten(), exact.flatten()))
    cosine = dot / (norms[0] * norms[1]) if min(norms) > 0 else math.nan
    error = float((found - exact).norm()) / norms[1] if norms[1] > 0 else math.nan
    return cosine, error, *norms


def _draw_weights(
    network: Network,
    trail: Sequence[Equilibrium],
    target: Tensor,
    count: int,
    generator: torch.Generator | None,
) -> dict[int, Tensor]:
    """Weights of each layer, as flat indices, drawn in proportion to their |gradient|."""
    total: Gradients = {}
    for gradients in backpropagated(network, trail, target):
        total = _sum(total, gradients)
    chosen: dict[int, Tensor] = {}
    for (layer, parameter), gradient in total.items():
        if parameter == "weight":
            waits = torch.empty_like(gradient).exponential_(generator=generator)
            rates = (gradient.abs() / waits).flatten()
            chosen[layer] = rates.topk(min(count, len(rates))).indices
    return chosen


def table(rows: Sequence[Agreement] | Sequence[Traced]) -> str:
    """Rows as CSV; the cell of a NaN is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(rows[0]))
    for row in rows:
        writer.writerow(_cell(value) for value in astuple(row))
    return text.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.9g}"
    return value
