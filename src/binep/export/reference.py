"""A packed network in NumPy alone: how to read the file, and what the network computes.

    network = read("network.safetensors")
    scores = class_scores(network, images)  # (batch, classes), of images (batch, ...) uint8

To be read, and to be carried over to other languages: nothing here is fast. Sums of signs and bits
are whole numbers, which float32 holds exactly below 2^24: a language with integers may add them up
in integers, in any order. They are scaled afterwards, with the same roundings as in binep, so that
networks of binary neurons go through the same states, bit for bit; but for what a convolution sends
down, sums of its channels' scaling factors, which are rounded. Real neurons take the steps of
`binep.Network.step`, up to the rounding of sums. docs/packed.md describes the file.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
TYPES = {"U8": np.uint8, "F32": np.float32, "F64": np.float64}


@dataclass
class Layer:
    """Synapses.

    Attributes:
        about: what the file says of them.
        weights: signs ±1, or real weights; (outputs, inputs), or (channels, input channels, rows,
            columns).
        scale: α, or 1 of real weights; of a convolution (channels, 1, 1) or 1.
        bias: b, (outputs,) or (channels, 1, 1).
    """

    about: dict[str, Any]
    weights: Array
    scale: Array
    bias: Array


@dataclass
class Network:
    """What a packed file holds.

    Attributes:
        layers: synapses from the input to the output.
        readout: those of the softmax layer that cross-entropy has; otherwise None.
        about: what the file says of the network.
        mean, std: of each input channel, which inputs are normalised by; empty if they are not.
        power: to which pixels are raised before.
    """

    layers: list[Layer]
    readout: Layer | None
    about: dict[str, Any]
    mean: list[float]
    std: list[float]
    power: float = 1.0


def read(path: Path | str) -> Network:
    """The network in a packed file."""
    content = Path(path).read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, tensors = json.loads(content[8 : 8 + size]), content[8 + size :]
    about = json.loads(header["__metadata__"]["binep"][64:])
    network = about["network"]
    if "solver" in network:
        raise ValueError(f"{path}: solver = {network['solver']}: must be steps, as computed here")

    def tensor(name: str) -> Array:
        start, end = header[name]["data_offsets"]
        found = np.frombuffer(tensors[start:end], TYPES[header[name]["dtype"]])
        return found.reshape(header[name]["shape"])

    def layer(name: str, about: dict[str, Any]) -> Layer:
        conv = about["kind"] == "conv"
        weights, bias = tensor(f"{name}.values"), tensor(f"{name}.bias")
        scale: Array = np.ones((), bias.dtype)
        if about["weights"] == "binary":  # eight to a byte, the first the highest bit
            below = about["input_shape"]
            shape = (about["outputs"], math.prod(below)) if not conv else (
                about["channels"], below[0], about["kernel"], about["kernel"]
            )  # fmt: skip
            bits = np.unpackbits(weights, count=math.prod(shape)).reshape(shape)
            weights, scale = 2 * bits.astype(bias.dtype) - 1, tensor(f"{name}.scale")
        if conv:
            scale, bias = scale.reshape(-1, 1, 1), bias.reshape(-1, 1, 1)
        return Layer(about, weights, scale, bias)

    layers = [layer(f"synapses.{k}", each) for k, each in enumerate(network["synapses"])]
    readout = network["cost"].get("readout")
    softmax = readout and layer("cost.readout", readout)
    mean, std, power = about["mean"] or [], about["std"] or [], about.get("power", 1.0)
    return Network(layers, softmax, network, mean, std, power)


def class_scores(network: Network, images: Array) -> Array:
    """A score per class at the end of the free phase, (batch, classes): the highest is predicted.

    Args:
        network: from `read`.
        images: (batch, *input_shape), uint8, which become images/255, or floating point.
    """
    output, cost = states(network, images)[-1], network.about["cost"]
    if network.readout is not None:
        return up(network.readout, output)[0]
    scores: Array = output.reshape(len(images), cost["classes"], cost["copies"]).mean(axis=2)
    return scores


def states(network: Network, images: Array) -> list[Array]:
    """The states s_1 … s_L at the end of the free phase; see `class_scores`."""
    about, neurons = network.about, network.about["neurons"]
    clamped = input_drive(network, images)
    s: list[Array] = []
    below = clamped[0]
    for layer, kind in zip(network.layers, neurons, strict=True):
        below = below if not s else up(layer, s[-1])[0]
        s.append(np.full_like(below, kind["initial"]))
    allowed = [0 if kind["kind"] == "binary" else about["tolerance"] for kind in neurons]
    for _ in range(about["free_steps"]):
        before, s = s, step(network, clamped, s)
        change = [np.abs(new - old).max() for new, old in zip(s, before, strict=True)]
        settled = all(moved <= most for moved, most in zip(change, allowed, strict=True))
        if about["tolerance"] > 0 and settled:
            break
    return s


def step(network: Network, clamped: tuple[Array, Array | None], s: list[Array]) -> list[Array]:
    """The states after a time step: p_l = W_l ⋆ r_{l−1} + b_l + W_{l+1}ᵀ ⋆ r_{l+1}, then `update`.

    Args:
        network: from `read`.
        clamped: from `input_drive`.
        s: the states s_1 … s_L, of which all move at once.
    """
    kinds, layers = network.about["neurons"], network.layers
    r = [fire(kind, state) for kind, state in zip(kinds, s, strict=True)]
    arrived = [clamped, *(up(layer, below) for layer, below in zip(layers[1:], r, strict=False))]
    drives = [drive for drive, _ in arrived]
    for k, (layer, above) in enumerate(zip(layers[1:], r[1:], strict=True)):
        feedback = down(layer, above, arrived[k + 1][1])
        drives[k] = drives[k] + feedback.reshape(drives[k].shape)
    return [update(*all_of) for all_of in zip(kinds, s, drives, strict=True)]


def fire(kind: dict[str, Any], state: Array) -> Array:
    """What neurons send: a bit, 1 from the threshold on, or the state itself."""
    return state if kind["kind"] == "real" else (state >= kind["threshold"]).astype(state.dtype)


def update(kind: dict[str, Any], state: Array, drive: Array) -> Array:
    """The next state: clip(p, 0, 1), or clip((1 − filter)·s + filter·p, 0, 1) of binary neurons."""
    if kind["kind"] == "binary":
        drive = (1 - kind["filter"]) * state + kind["filter"] * drive
    return np.clip(drive, 0, 1)


def input_drive(network: Network, images: Array) -> tuple[Array, Array | None]:
    """W_1 ⋆ x + b_1, and where the maxima are: see `up`."""
    first, real = network.layers[0], network.layers[0].bias.dtype.type
    x, unit = images.astype(real), real(1)
    if images.dtype == np.uint8:
        unit = real(1) / real(255)
        # Grey levels and signs have exact sums, which are scaled; all else is scaled before.
        whole = first.about["kind"] == "dense" and first.about["weights"] == "binary"
        if network.mean or network.power != 1 or not whole:
            x, unit = x / real(255), real(1)
    if network.power != 1:
        x = (x.astype(np.float64) ** network.power).astype(real)
    for channel, (mean, std) in enumerate(zip(network.mean, network.std, strict=True)):
        x[:, channel] = (x[:, channel] - real(mean)) / real(std)
    return up(first, x, unit)


def up(layer: Layer, below: Array, unit: Any = 1) -> tuple[Array, Array | None]:
    """W ⋆ below·unit + b, and of max-pooling which place of its window each maximum is at."""
    about = layer.about
    if about["kind"] == "dense":
        sums = below.reshape(len(below), -1) @ layer.weights.T
        return sums * unit * layer.scale + layer.bias, None
    margin = (about["padding"], about["padding"])
    seen = windows(np.pad(below, ((0, 0), (0, 0), margin, margin)), about["kernel"])
    maps = np.tensordot(seen, layer.weights, ((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)
    pool = about["pool"]
    blocks = windows(maps, pool)[:, :, ::pool, ::pool]  # what does not fill a window is dropped
    blocks = blocks.reshape(*blocks.shape[:4], pool * pool)
    if about["pooling"] == "max":
        return blocks.max(axis=4) * layer.scale + layer.bias, blocks.argmax(axis=4)
    return blocks.mean(axis=4) * layer.scale + layer.bias, None


def down(layer: Layer, above: Array, route: Array | None) -> Array:
    """Wᵀ ⋆ above: to the places of the maxima of max-pooling, to all places of an average."""
    about = layer.about
    if about["kind"] == "dense":
        return above @ layer.weights * layer.scale
    pad, kernel, pool = about["padding"], about["kernel"], about["pool"]
    height, width = (side + 2 * pad - kernel + 1 for side in about["input_shape"][1:])
    maps = np.zeros((*above.shape[:2], height, width), above.dtype)
    sent, rows, columns = above * layer.scale, above.shape[2] * pool, above.shape[3] * pool
    for place in range(pool * pool):
        share = sent / pool**2 if route is None else sent * (route == place)
        maps[:, :, place // pool : rows : pool, place % pool : columns : pool] = share
    edge = (kernel - 1, kernel - 1)
    seen = windows(np.pad(maps, ((0, 0), (0, 0), edge, edge)), kernel)
    full = np.tensordot(seen, layer.weights[:, :, ::-1, ::-1], ((1, 4, 5), (0, 2, 3)))
    cut = slice(pad, full.shape[1] - pad), slice(pad, full.shape[2] - pad)
    return full[:, cut[0], cut[1]].transpose(0, 3, 1, 2)


def windows(maps: Array, side: int) -> Array:
    """The square windows of maps, (batch, channels, rows, columns, side, side)."""
    return np.lib.stride_tricks.sliding_window_view(maps, (side, side), (2, 3))
