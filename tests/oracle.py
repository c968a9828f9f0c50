"""The plainest version of the specification's arithmetic, in float64, for tests to compare with.

Layers run input -> output: ``synapses[l]`` joins what lies below to neuron layer ``states[l]``, so
``synapses[0]`` reads the input x.  Arrays are batch first; dense states are (B, n), convolutional
ones (B, channels, height, width).  Nothing here is fast, cached or stopped early.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
States = list[Array]  # one array per layer 1..L
Gradient = dict[str, Array]  # "weight", "bias", "scale" of one layer
Force = Callable[[Array], Array]

SCALE_FLOOR = 1e-6


# ------------------------------------------------------------------------------------ Synapses


@dataclass
class Synapse:
    """Specification, "Synapses": W = scale * sign, a dense product or convolution (then pooling).

    sign is (out, in) or (out, in, k, k); scale is () for dense, (out,) for conv; bias is (out,).
    Real weights go in as ``sign`` with scale 1.
    """

    kind: Literal["dense", "conv"]
    sign: Array
    scale: Array
    bias: Array
    padding: int = 0
    pool: int = 1
    pooling: Literal["max", "average"] = "max"

    @property
    def weight(self) -> Array:
        """W, in the shape of sign."""
        return per_output(self.scale, self.sign.ndim) * self.sign


Network = list[Synapse]


def per_output(scale: Array, ndim: int) -> Array:
    """Reshape a conv scale (out,) to (out, 1, 1, ...) of ndim axes; a dense scale () stays."""
    if np.ndim(scale) == 0:
        return np.asarray(scale, dtype=np.float64)
    return np.reshape(scale, (-1,) + (1,) * (ndim - 1))


def binarise(weight: Array, kind: str) -> tuple[Array, Array]:
    """Specification, "Synapses": (sign, mean |w|), sign(0) = +1; one scale, or one per channel."""
    sign = np.where(weight >= 0, 1.0, -1.0)
    scale = np.mean(np.abs(weight), axis=None if kind == "dense" else (1, 2, 3))
    return sign, np.asarray(scale, dtype=np.float64)


def pad(image: Array, padding: int) -> Array:
    """Zeros around (B, C, H, W) -> (B, C, H + 2 padding, W + 2 padding)."""
    return np.pad(image, ((0, 0), (0, 0), (padding, padding), (padding, padding)))


def convolve(kernel: Array, image: Array, padding: int) -> Array:
    """Cross-correlation of stride 1: (out, in, k, k), (B, in, H, W) -> (B, out, H', W')."""
    padded = pad(image, padding)
    rows, columns = kernel.shape[2:]
    height = padded.shape[2] - rows + 1
    width = padded.shape[3] - columns + 1
    result = np.zeros((image.shape[0], kernel.shape[0], height, width))
    for i in range(rows):
        for j in range(columns):
            patch = padded[:, :, i : i + height, j : j + width]
            result += np.einsum("oc,bchw->bohw", kernel[:, :, i, j], patch)
    return result


def pool_planes(planes: Array, synapse: Synapse) -> tuple[Array, Indices | None]:
    """Pool (B, C, H, W); for a maximum also its flat position (row * W + column) in its plane."""
    size = synapse.pool
    if size == 1:
        return planes, None
    batch, channels, height, width = planes.shape
    pooled = np.zeros((batch, channels, height // size, width // size))
    indices = np.zeros(pooled.shape, dtype=np.int64)
    for i in range(height // size):
        for j in range(width // size):
            rows = slice(i * size, (i + 1) * size)
            columns = slice(j * size, (j + 1) * size)
            window = planes[:, :, rows, columns].reshape(batch, channels, size * size)
            if synapse.pooling == "average":
                pooled[:, :, i, j] = window.mean(axis=2)
            else:
                place = window.argmax(axis=2)  # of equals, the first in row-major order
                pooled[:, :, i, j] = window.max(axis=2)
                indices[:, :, i, j] = (i * size + place // size) * width + j * size + place % size
    return pooled, None if synapse.pooling == "average" else indices


def unpool_planes(
    above: Array, indices: Indices | None, synapse: Synapse, shape: tuple[int, int]
) -> Array:
    """The transpose of pooling: (B, C, h, w) -> (B, C, *shape), zero where nothing came from."""
    size = synapse.pool
    if size == 1:
        return above
    batch, channels, height, width = above.shape
    planes = np.zeros((batch, channels, *shape))
    if synapse.pooling == "average":
        for i in range(height * size):
            for j in range(width * size):
                planes[:, :, i, j] = above[:, :, i // size, j // size] / size**2
        return planes
    if indices is None:
        raise ValueError("max-unpooling needs the indices of a forward pass")
    for b, c in np.ndindex(batch, channels):
        planes[b, c].flat[indices[b, c]] = above[b, c]  # windows never overlap
    return planes


def unpooled_shape(synapse: Synapse, below_shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of the convolution's result before pooling."""
    height = below_shape[2] + 2 * synapse.padding - synapse.sign.shape[2] + 1
    width = below_shape[3] + 2 * synapse.padding - synapse.sign.shape[3] + 1
    return height, width


def up(synapse: Synapse, below: Array) -> tuple[Array, Indices | None]:
    """Specification, "Synapses": W * below without bias, and where each pooled maximum came from.

    The scale multiplies the sum of signed inputs, so that sums of bits tie exactly in a maximum.
    """
    if synapse.kind == "dense":
        return synapse.scale * (below.reshape(len(below), -1) @ synapse.sign.T), None
    planes = convolve(synapse.sign, below, synapse.padding)
    return pool_planes(np.reshape(synapse.scale, (1, -1, 1, 1)) * planes, synapse)


def down(
    synapse: Synapse, above: Array, indices: Indices | None, below_shape: tuple[int, ...]
) -> Array:
    """Specification, "Synapses": W transposed * above, in the shape of below."""
    if synapse.kind == "dense":
        return (above @ synapse.weight).reshape(below_shape)
    height, width = unpooled_shape(synapse, below_shape)
    planes = unpool_planes(above, indices, synapse, (height, width))
    padded = pad(np.zeros(below_shape), synapse.padding)
    rows, columns = synapse.sign.shape[2:]
    for i in range(rows):
        for j in range(columns):
            kernel = synapse.weight[:, :, i, j]
            padded[:, :, i : i + height, j : j + width] += np.einsum(
                "oc,bohw->bchw", kernel, planes
            )
    edge = synapse.padding
    return padded[:, :, edge : edge + below_shape[2], edge : edge + below_shape[3]]


# -------------------------------------------------------------- Products of neighbouring layers


def correlate(synapse: Synapse, above: Array, below: Array) -> Array:
    """Specification, "Equilibrium propagation": the sum over the batch of above (x) below.

    It is the derivative of sum(above * (W * below)) by W, in the shape of W; a maximum is unpooled
    to where the forward pass at this very below finds it.
    """
    if synapse.kind == "dense":
        return above.T @ below.reshape(len(below), -1)
    _, indices = up(synapse, below)
    height, width = unpooled_shape(synapse, below.shape)
    planes = unpool_planes(above, indices, synapse, (height, width))
    padded = pad(below, synapse.padding)
    result = np.zeros(synapse.sign.shape)
    rows, columns = synapse.sign.shape[2:]
    for i in range(rows):
        for j in range(columns):
            patch = padded[:, :, i : i + height, j : j + width]
            result[:, :, i, j] = np.einsum("bohw,bchw->oc", planes, patch)
    return result


def correlate_bias(synapse: Synapse, above: Array) -> Array:
    """Specification, "Equilibrium propagation": above summed over batch and positions, (out,)."""
    return np.asarray(above.sum(axis=0 if synapse.kind == "dense" else (0, 2, 3)))


def correlate_scale(synapse: Synapse, above: Array, below: Array) -> Array:
    """Specification, "Equilibrium propagation": sum of above * (W * below), per scale, no bias."""
    drive, _ = up(synapse, below)
    return np.asarray(np.sum(above * drive, axis=None if synapse.kind == "dense" else (0, 2, 3)))


# ------------------------------------------------------------------------------------ Dynamics


@dataclass
class Dynamics:
    """Specification, the two sections "Dynamics".

    nudge and clip_output concern real activations only; threshold, filter (gamma_neur) and
    nudge_reference binary ones only.
    """

    activation: Literal["real", "binary"] = "real"
    initial: float = 0.0
    nudge: Literal["outside", "inside"] = "outside"
    clip_output: bool = True
    threshold: float = 0.5
    filter: float = 0.5
    nudge_reference: Literal["current", "free"] = "current"


def fire(dynamics: Dynamics, state: Array) -> Array:
    """Specification, "Dynamics": what a neuron sends, its state or the bit state >= threshold."""
    if dynamics.activation == "real":
        return state
    return np.where(state >= dynamics.threshold, 1.0, 0.0)


def initial_states(synapses: Network, dynamics: Dynamics, x: Array) -> States:
    """Specification, "Dynamics": every neuron of layers 1..L at its initial value."""
    states = []
    below = x
    for synapse in synapses:
        drive, _ = up(synapse, below)
        below = np.full(drive.shape, float(dynamics.initial))
        states.append(below)
    return states


def preactivations(synapses: Network, dynamics: Dynamics, states: States, x: Array) -> States:
    """Specification, "Dynamics": p_l of every layer from the states of the previous step."""
    sent = [x] + [fire(dynamics, state) for state in states]
    passes = [up(synapse, sent[k]) for k, synapse in enumerate(synapses)]
    result = []
    for k, synapse in enumerate(synapses):
        bias = synapse.bias if synapse.kind == "dense" else synapse.bias.reshape(1, -1, 1, 1)
        p = passes[k][0] + bias
        if k + 1 < len(synapses):
            p = p + down(synapses[k + 1], sent[k + 2], passes[k + 1][1], sent[k + 1].shape)
        result.append(p)
    return result


def step(
    synapses: Network,
    dynamics: Dynamics,
    states: States,
    x: Array,
    target: Array | None = None,
    beta: float = 0.0,
    free_output: Array | None = None,
    force: Force | None = None,
) -> States:
    """Specification, "Dynamics": one step of all layers at once; nudged if beta is not 0.

    The nudge is beta * (target - output), or beta * force(output) if a force is given.
    """
    p = preactivations(synapses, dynamics, states, x)
    nudge: Array | float = 0.0
    if beta != 0.0 and (target is not None or force is not None):
        output = states[-1]
        if dynamics.activation == "binary" and dynamics.nudge_reference == "free":
            if free_output is None:
                raise ValueError("a nudge against the free output needs free_output")
            output = free_output
        if force is not None:
            nudge = beta * force(output)
        elif target is not None:
            nudge = beta * (target - output)

    last = len(states) - 1
    new = []
    if dynamics.activation == "real":
        for k in range(len(states)):
            if k < last:
                new.append(np.clip(p[k], 0.0, 1.0))
            elif dynamics.nudge == "inside":
                new.append(np.clip(p[k] + nudge, 0.0, 1.0))
            elif dynamics.clip_output:
                new.append(np.clip(np.clip(p[k], 0.0, 1.0) + nudge, 0.0, 1.0))
            else:
                new.append(np.clip(p[k], 0.0, 1.0) + nudge)
        return new

    for k, state in enumerate(states):
        gate = np.where(np.abs(state - 0.5) <= 0.5, 1.0, 0.0)
        drive = gate * p[k]
        if k == last:
            drive = drive + nudge
        mixed = (1.0 - dynamics.filter) * state + dynamics.filter * drive
        new.append(np.clip(mixed, 0.0, 1.0))
    return new


def relax(
    synapses: Network,
    dynamics: Dynamics,
    x: Array,
    states: States,
    steps: int,
    target: Array | None = None,
    beta: float = 0.0,
    force: Force | None = None,
) -> States:
    """Specification, "Dynamics": the states after exactly `steps` steps.

    For the nudged phase `states` is the last state of the free phase, whose output stays the
    reference of a nudge against the free output.
    """
    free_output = states[-1]
    for _ in range(steps):
        states = step(synapses, dynamics, states, x, target, beta, free_output, force)
    return states


# --------------------------------------------------------------------- Equilibrium propagation


def phase_products(
    synapses: Network, dynamics: Dynamics, x: Array, states: States
) -> list[Gradient]:
    """Specification, "Equilibrium propagation": the batch sums of one phase, for each layer."""
    sent = [x] + [fire(dynamics, state) for state in states]
    result = []
    for k, synapse in enumerate(synapses):
        below, above = sent[k], sent[k + 1]
        result.append(
            {
                "weight": correlate(synapse, above, below),
                "bias": correlate_bias(synapse, above),
                "scale": correlate_scale(synapse, above, below),
            }
        )
    return result


def ep_gradient(
    synapses: Network, dynamics: Dynamics, x: Array, free: States, nudged: States, beta: float
) -> list[Gradient]:
    """Specification, "Equilibrium propagation": g, the way each parameter should move.

    "scale" is scale * d(Phi)/d(scale), not halved.
    """
    low = phase_products(synapses, dynamics, x, free)
    high = phase_products(synapses, dynamics, x, nudged)
    return [
        {name: (high[k][name] - low[k][name]) / (beta * len(x)) for name in low[k]}
        for k in range(len(synapses))
    ]


def centred_gradient(
    synapses: Network, dynamics: Dynamics, x: Array, plus: States, minus: States, beta: float
) -> list[Gradient]:
    """As ep_gradient, from the states nudged by +beta and by -beta: difference / (2 beta B)."""
    return ep_gradient(synapses, dynamics, x, minus, plus, 2.0 * beta)


# ---------------------------------------------------------------------------------------- BPTT


def loss(output: Array, target: Array) -> float:
    """Specification, "BPTT": half the mean over samples of |output - target|^2."""
    return 0.5 * float(np.sum((output - target) ** 2)) / len(output)


def bptt_gradient(
    synapses: Network,
    dynamics: Dynamics,
    x: Array,
    target: Array,
    free_steps: int,
    nudged_steps: int,
    epsilon: float = 1e-6,
) -> list[Gradient]:
    """Specification, "BPTT": g = -dL/d(parameter) by central finite differences.

    Parameters are perturbed in the last `nudged_steps` of the `free_steps` steps only.  "weight" is
    by W itself, "scale" by the scale (so not times the scale, unlike ep_gradient).
    """
    if dynamics.activation != "real":
        raise ValueError("BPTT needs real activations: a bit has no derivative")
    start = initial_states(synapses, dynamics, x)
    last_steps = min(nudged_steps, free_steps)
    early = relax(synapses, dynamics, x, start, free_steps - last_steps)

    def loss_with(k: int, changed: Synapse) -> float:
        perturbed = [*synapses[:k], changed, *synapses[k + 1 :]]
        return loss(relax(perturbed, dynamics, x, early, last_steps)[-1], target)

    def minus_slope(k: int, synapse: Synapse, name: str) -> Array:
        value = np.asarray(getattr(synapse, name), dtype=np.float64)
        result = np.zeros(value.shape)
        for place in np.ndindex(value.shape):
            higher: dict[str, Any] = {name: value.copy()}
            lower: dict[str, Any] = {name: value.copy()}
            higher[name][place] += epsilon
            lower[name][place] -= epsilon
            rise = loss_with(k, replace(synapse, **higher)) - loss_with(
                k, replace(synapse, **lower)
            )
            result[place] = -rise / (2.0 * epsilon)
        return result

    gradients = []
    for k, synapse in enumerate(synapses):
        direct = replace(synapse, sign=synapse.weight, scale=np.ones(np.shape(synapse.scale)))
        gradients.append(
            {
                "weight": minus_slope(k, direct, "sign"),
                "bias": minus_slope(k, synapse, "bias"),
                "scale": minus_slope(k, synapse, "scale"),
            }
        )
    return gradients


# -------------------------------------------------------------------------------------- Update


def flip(
    sign: Array, momentum: Array, gradient: Array, gamma: float, threshold: float
) -> tuple[Array, Array, int]:
    """Specification, "Update", 1 and 2: (new sign, new momentum, number of flips)."""
    momentum = (1.0 - gamma) * momentum + gamma * gradient
    flipped = -sign * momentum > threshold
    return np.where(flipped, -sign, sign), momentum, int(flipped.sum())


@dataclass
class BatchResult:
    """All that one batch produced, layer by layer; `synapses` are the updated ones."""

    free: States
    nudged: States
    gradients: list[Gradient]
    momenta: States
    flips: list[int]
    synapses: Network


def one_batch(
    synapses: Network,
    dynamics: Dynamics,
    x: Array,
    target: Array | None,
    beta: float,
    free_steps: int,
    nudged_steps: int,
    gammas: list[float],
    thresholds: list[float],
    bias_rates: list[float],
    momenta: States,
    scale_rates: list[float] | None = None,
    force: Force | None = None,
) -> BatchResult:
    """Specification, "Update": both phases, then momentum, flips, biases and (if learnt) scales."""
    start = initial_states(synapses, dynamics, x)
    free = relax(synapses, dynamics, x, start, free_steps)
    nudged = relax(synapses, dynamics, x, free, nudged_steps, target, beta, force)
    gradients = ep_gradient(synapses, dynamics, x, free, nudged, beta)
    result = BatchResult(free, nudged, gradients, [], [], [])
    for k, synapse in enumerate(synapses):
        g = gradients[k]
        sign, momentum, count = flip(
            synapse.sign, momenta[k], g["weight"], gammas[k], thresholds[k]
        )
        bias = synapse.bias + bias_rates[k] * g["bias"]
        scale = np.asarray(synapse.scale, dtype=np.float64)
        if scale_rates is not None:
            scale = np.asarray(np.maximum(scale + scale_rates[k] * g["scale"], SCALE_FLOOR))
        result.momenta.append(momentum)
        result.flips.append(count)
        result.synapses.append(replace(synapse, sign=sign, bias=bias, scale=scale))
    return result


# --------------------------------------------------------------------- Targets and predictions


def repeat_target(one_hot: Array, expand: int) -> Array:
    """Specification, "Dynamics" (binary): (B, classes) -> (B, classes * expand), class-major."""
    return np.repeat(one_hot, expand, axis=1)


def predict(
    output: Array, classes: int, readout: Literal["averaged", "single"]
) -> NDArray[np.int64]:
    """Specification, "Dynamics" (binary): class per sample, from (B, classes * expand)."""
    groups = output.reshape(len(output), classes, -1)
    scores = groups.mean(axis=2) if readout == "averaged" else groups[:, :, 0]
    return np.asarray(np.argmax(scores, axis=1))


# ---------------------------------- Softmax readout with cross-entropy (Laborieux et al., 2021)


def readout_error(weight: Array, bias: Array, state_top: Array, target: Array) -> Array:
    """y - softmax(W_out s + b), (B, classes)."""
    logits = state_top.reshape(len(state_top), -1) @ weight.T + bias
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(target - powers / powers.sum(axis=1, keepdims=True))


def readout_force(
    readout_weight: Array, readout_bias: Array, state_top: Array, target: Array
) -> Array:
    """-d(cross-entropy)/d(state_top) = W_out^T (y - softmax(W_out s + b)), like state_top."""
    error = readout_error(readout_weight, readout_bias, state_top, target)
    return (error @ readout_weight).reshape(state_top.shape)


def readout_gradient(
    readout_weight: Array, readout_bias: Array, state_top: Array, target: Array
) -> Gradient:
    """-d(mean cross-entropy)/d(W_out, b): {"weight": (classes, n), "bias": (classes,)}."""
    error = readout_error(readout_weight, readout_bias, state_top, target)
    flat = state_top.reshape(len(state_top), -1)
    return {"weight": error.T @ flat / len(flat), "bias": np.asarray(error.mean(axis=0))}
