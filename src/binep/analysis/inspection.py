"""The phases of one sample, and the momenta and flips of a network's weights, as arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from binep.core.network import Network
from binep.core.neurons import Binary, Real
from binep.core.optim import BinaryFlip
from binep.core.phases import Clamped

Array = NDArray[Any]


def energy(network: Network, clamped: Clamped, states: Sequence[Tensor]) -> Tensor:
    """The energy of each sample, (batch,).

    E = Σ_l G(r_l) − Φ, with Φ = Σ_l r_l·(W_l ⋆ r_{l−1} + b_l) the primitive function (paper,
    section 2.1) and r what the neurons send; of a pooled convolution W_l ⋆ r_{l−1} is pooled.

    Real neurons: G = ½‖s‖², so −∂E/∂s = p − s, and a fixed point s = clip(p, 0, 1) of the dynamics
    is a critical point of E in the box [0, 1]. Binary neurons: G = threshold·(number of fired
    bits), Hopfield's energy: a bit set or cleared alone changes E by ±(threshold − p), so that at
    a fixed point of a network without max-pooling no single bit can lower it. Both G agree on bits
    where the threshold is ½.
    All layers move at once and follow no gradient of E: on the way there it may rise. Neurons of
    one's own count as real ones here: G is theirs only if their states settle at s = clip(p, 0, 1).
    """
    pairs = zip(network.neurons, states, strict=True)
    sent = [neurons.fire(s).to(s.dtype) for neurons, s in pairs]
    drives = [clamped.drive]
    for synapse, below in zip(network.synapses[1:], sent, strict=False):
        drives.append(synapse.biased(synapse.up(below)[0]))
    total = torch.zeros(len(clamped.x), dtype=torch.float64, device=clamped.x.device)
    for neurons, r, drive in zip(network.neurons, sent, drives, strict=True):
        alone = neurons.threshold if isinstance(neurons, Binary) else r / 2
        total = total + (r.double() * (alone - drive.double())).flatten(1).sum(dim=1)
    return total


@dataclass(frozen=True)
class Phases:
    """One sample through the free and the nudged phase, step by step.

    Along time, place 0 is the initial state and place t the state after t steps.

    Attributes:
        beta: of the nudged phase.
        free_steps: steps of the free phase; those after it are nudged.
        states: per layer (steps + 1, neurons).
        bits: per layer what is sent by neurons that fire, (steps + 1, neurons), above 0 where one
            does; empty with real neurons.
        residual: max|Δs| of each layer, (steps + 1, L); NaN at 0.
        settled: (2, L), for both phases the last of its steps that moved a real state by more
            than the tolerance, or changed a bit; 0 if none did.
        energy: E, (steps + 1,); empty with neurons of one's own, whose G is not known.
        cost: C of the output, (steps + 1,).
        scores: of each class, (steps + 1, classes); the largest is what the network reads.
    """

    beta: float
    free_steps: int
    states: list[Array]
    bits: list[Array]
    residual: Array
    settled: Array
    energy: Array
    cost: Array
    scores: Array

    @property
    def steps(self) -> int:
        """Steps of both phases."""
        return len(self.cost) - 1

    def rows(self) -> list[dict[str, float | None]]:
        """A row per step, for a table."""
        rows = []
        for t in range(self.steps + 1):
            row: dict[str, float | None] = {
                "step": t,
                "beta": self.beta if t > self.free_steps else 0,
                **({"energy": self.energy[t]} if len(self.energy) else {}),
                "cost": self.cost[t],
            }
            for i in range(len(self.states)):
                row[f"layer{i + 1}_residual"] = self.residual[t, i] if t else None
                if self.bits:
                    row[f"layer{i + 1}_fired"] = int((self.bits[i][t] > 0).sum())
                    changed = int((self.bits[i][t] != self.bits[i][t - 1]).sum()) if t else None
                    row[f"layer{i + 1}_changed"] = changed
            rows.append(row)
        return rows


@torch.no_grad()
def follow(
    network: Network,
    x: Tensor,
    label: int,
    *,
    free_steps: int,
    nudged_steps: int,
    beta: float,
    tolerance: float = 1e-6,
) -> Phases:
    """The states of one sample after every step of both phases, by `Network.step`.

    All layers move at once, as in the paper; a phase ends where that of `Network.relax` then does.

    Args:
        network: the network, with one kind of neurons.
        x: the sample, (*input_shape).
        label: its class.
        free_steps: T, the most steps of the free phase.
        nudged_steps: Kmax, the most steps of the nudged phase.
        beta: strength and sign of the nudge.
        tolerance: see `Network.relax`.
    """
    cost, neurons = network.cost, network.neurons
    target = cost.target(torch.tensor([label], device=x.device))
    clamped = network.clamp(x.unsqueeze(0))
    path, ends = [network.initial_states(clamped.x)], []
    for phase, most in enumerate((free_steps, nudged_steps)):
        start = path[-1][-1]
        for _ in range(most):
            output = start if neurons[-1].hold_nudge else path[-1][-1]
            nudge = beta * cost.force(output, target) if phase == 1 else None
            path.append(network.step(clamped, path[-1], nudge))
            if tolerance > 0 and all(
                (new - old).abs().max() <= (0 if n.settle_exactly else tolerance)
                for n, new, old in zip(neurons, path[-1], path[-2], strict=True)
            ):
                break
        ends.append(len(path) - 1)

    layers = [torch.cat(states) for states in zip(*path, strict=True)]
    states = [s.flatten(1).numpy(force=True) for s in layers]
    fired = zip(neurons, layers, strict=True)
    bits = [n.fire(s).flatten(1).numpy(force=True) for n, s in fired if n.settle_exactly]
    residual = np.stack([abs(np.diff(s, axis=0)).max(axis=1) for s in states], axis=1)
    moved = ~(residual <= tolerance)
    if bits:
        moved = np.stack([(r[1:] != r[:-1]).any(axis=1) for r in bits], axis=1)
    return Phases(
        beta=beta,
        free_steps=ends[0],
        states=states,
        bits=bits,
        residual=np.vstack([np.full(len(network), np.nan), residual]),
        settled=np.stack([_last(moved[: ends[0]]), _last(moved[ends[0] :])]),
        energy=_energies(network, clamped, path),
        cost=cost.loss(layers[-1], target).numpy(force=True),
        scores=cost.scores(layers[-1], "averaged").numpy(force=True),
    )


def _energies(network: Network, clamped: Clamped, path: Sequence[Sequence[Tensor]]) -> Array:
    """E after each step of one sample; empty with neurons of one's own."""
    known = all(type(neurons) in (Real, Binary) for neurons in network.neurons)
    found = [energy(network, clamped, s).numpy(force=True) for s in path if known]
    return np.concatenate([np.empty(0), *found])


def _last(moved: Array) -> Array:
    """The last step at which each layer moved, from (steps, L); 0 if it never did."""
    return np.asarray((moved * np.arange(1, len(moved) + 1)[:, None]).max(axis=0))


@torch.no_grad()
def activity(
    network: Network, x: Tensor, *, free_steps: int, tolerance: float = 1e-6, batch_size: int = 100
) -> tuple[Array, Array]:
    """The share of each layer's neurons that send anything but 0 in the free equilibrium.

    A neuron that never does, as many whose threshold is above all their drives, sends 0 to the
    layers around it in both phases, and EP gives its weights no gradient.

    Args:
        network: the network.
        x: samples, (samples, *input_shape).
        free_steps: T, the most steps of the free phase.
        tolerance: see `Network.relax`.
        batch_size: samples that settle at a time.

    Returns:
        Of each layer, (L,), the share of neurons that send anything but 0: in the mean over the
        samples, and for at least one of them.
    """
    total: list[Tensor] = []
    for some in torch.split(x, batch_size):
        states = network.relax(some, free_steps, tolerance=tolerance).states
        pairs = zip(network.neurons, states, strict=True)
        counts = [(n.fire(s).flatten(1) != 0).sum(dim=0) for n, s in pairs]
        total = [a + b for a, b in zip(total, counts, strict=True)] if total else counts
    often = np.array([float(count.double().mean()) / len(x) for count in total])
    return often, np.array([float((count > 0).double().mean()) for count in total])


@dataclass(frozen=True)
class Momenta:
    """How far the weights of a layer are pushed towards their flip.

    Attributes:
        layer: its number, from 1 above the input.
        push: −sign(w)·m of each weight, with m the momentum in the paper's sign: a weight flips
            when it passes the threshold.
        threshold: τ.
    """

    layer: int
    push: Array
    threshold: float


def momenta(network: Network, flip: BinaryFlip) -> list[Momenta]:
    """The momenta of every layer of binary synapses, the input's side first."""
    thresholds = [group["threshold"] for group in flip.param_groups for _ in group["params"]]
    binary = [(i, s) for i, s in enumerate(network.learning_synapses(), 1) if s.scale is not None]
    return [
        Momenta(i, (synapse.values.detach() * m).flatten().numpy(force=True), threshold)
        for (i, synapse), m, threshold in zip(binary, flip.momenta(), thresholds, strict=True)
    ]


@dataclass(frozen=True)
class Signs:
    """The signs of a layer's weights, and those that it started from.

    Attributes:
        layer: its number, from 1 above the input.
        now: ±1; (out, in), or (out, channels, rows, columns) where the layer looks at a map: a
            convolution's kernels, or the receptive fields of dense neurons above an image.
        start: ±1 before the first batch, in the shape of `now`.
    """

    layer: int
    now: Array
    start: Array

    @property
    def flipped(self) -> Array:
        """Which weights differ from their start: bool, in the shape of `now`."""
        return np.asarray(self.now != self.start)


def signs(network: Network, start: Network) -> list[Signs]:
    """The signs of every layer of binary synapses, the input's side first.

    Args:
        network: a trained network.
        start: the network before training.

    Raises:
        ValueError: a scaling factor that does not learn differs: another start.
    """
    found = []
    pairs = zip(network.learning_synapses(), start.learning_synapses(), strict=True)
    for layer, (now, before) in enumerate(pairs, 1):
        if now.scale is None or before.scale is None:
            continue
        # Another order of summation may round α = mean|w| differently, but not by more than this.
        if not now.scale.requires_grad and not torch.allclose(now.scale, before.scale, rtol=1e-6):
            raise ValueError(f"layer {layer} started from other weights than these")
        shape = now.values.shape
        inputs = math.prod(now.input_shape)
        if len(shape) == 2 and len(now.input_shape) == 3 and shape[1] == inputs:
            shape = torch.Size((len(now.values), *now.input_shape))
        a, b = (s.values.detach().view(shape).numpy(force=True) for s in (now, before))
        found.append(Signs(layer, a.astype(np.int8), b.astype(np.int8)))
    return found
