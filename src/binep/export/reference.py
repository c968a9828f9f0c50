"""A packed network in NumPy alone: how to read the file, and what the network computes.

    network = read("network.safetensors")
    scores = class_scores(network, images)  # (batch, classes), of images (batch, ...) uint8

To be read, and to be carried over to other languages: nothing here is fast. Bits are added up in
integers and then scaled in float32, in the order in which binep does, so that networks of binary
neurons end in the same states, bit for bit; those of real neurons settle to the same equilibria, up
to the tolerance. docs/packed.md describes the file.
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
    """Synapses and the neurons that they lead to.

    Attributes:
        about: what the file says of the synapses.
        neurons: what it says of the neurons.
        weights: signs as ±1, or real weights; (outputs, inputs), or (channels, input channels,
            rows, columns).
        scale: α, or 1 of real weights; per channel (channels, 1, 1).
        bias: b, (outputs,) or (channels, 1, 1).
    """

    about: dict[str, Any]
    neurons: dict[str, Any]
    weights: Array
    scale: Array
    bias: Array


@dataclass
class Network:
    """Layers from the input to the output, and what the file says of the network."""

    layers: list[Layer]
    about: dict[str, Any]


def read(path: Path | str) -> Network:
    """The network in a packed file."""
    content = Path(path).read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, tensors = json.loads(content[8 : 8 + size]), content[8 + size :]
    about = json.loads(header["__metadata__"]["binep"][64:])

    def tensor(name: str) -> Array:
        entry = header[name]
        start, end = entry["data_offsets"]
        return np.frombuffer(tensors[start:end], TYPES[entry["dtype"]]).reshape(entry["shape"])

    layers = []
    for k, synapse in enumerate(about["network"]["synapses"]):
        conv = synapse["kind"] == "conv"
        if conv:
            shape = (synapse["channels"], synapse["input_shape"][0], *[synapse["kernel"]] * 2)
        else:
            shape = (synapse["outputs"], math.prod(synapse["input_shape"]))
        weights, scale = tensor(f"synapses.{k}.values"), np.ones((), np.float32)
        if synapse["weights"] == "binary":  # eight to a byte, row by row, the first the highest bit
            bits = np.unpackbits(weights, count=math.prod(shape)).reshape(shape)
            weights, scale = 2 * bits.astype(np.int32) - 1, tensor(f"synapses.{k}.scale")
        bias = tensor(f"synapses.{k}.bias")
        if conv:
            scale, bias = np.reshape(scale, (-1, 1, 1)), bias.reshape(-1, 1, 1)
        layers.append(Layer(synapse, about["network"]["neurons"][k], weights, scale, bias))
    return Network(layers, about)


def class_scores(network: Network, images: Array) -> Array:
    """A score per class at the end of the free phase, (batch, classes).

    Args:
        network: the network; with the squared error as its cost.
        images: (batch, *input_shape), uint8, which become images/255, or float32.
    """
    cost = network.about["network"]["cost"]
    output = states(network, images)[-1].reshape(len(images), cost["classes"], cost["copies"])
    scores: Array = output.mean(axis=2, dtype=np.float32)
    return scores


def states(network: Network, images: Array) -> list[Array]:
    """The states s_1 … s_L at the end of the free phase; see `class_scores`."""
    layers, dynamics = network.layers, network.about["network"]
    clamped = _input_drive(layers[0], images, network.about)
    s = [np.full_like(clamped[0], layers[0].neurons["initial"])]
    for layer in layers[1:]:
        s.append(_first_state(layer, len(images)))
    for _ in range(dynamics["free_steps"]):
        before, s = s, _step(layers, s, clamped)
        change = max(float(np.abs(a - b).max()) for a, b in zip(s, before, strict=True))
        real = all(layer.neurons["kind"] == "real" for layer in layers)
        if dynamics["tolerance"] > 0 and change <= (dynamics["tolerance"] if real else 0):
            break
    return s


def _step(layers: list[Layer], s: list[Array], clamped: tuple[Array, Array | None]) -> list[Array]:
    """All layers' next states: p_l = W_l ⋆ s_{l−1} + b_l + W_{l+1}ᵀ ⋆ s_{l+1}, then `_update`."""
    sent = [_fire(layer, state) for layer, state in zip(layers, s, strict=True)]
    up = [clamped, *(_up(layer, below) for layer, below in zip(layers[1:], sent, strict=False))]
    new = []
    for k, (layer, state) in enumerate(zip(layers, s, strict=True)):
        drive = up[k][0]
        if k + 1 < len(layers):
            drive = drive + _down(layers[k + 1], sent[k + 1], up[k + 1][1]).reshape(drive.shape)
        new.append(_update(layer, state, drive))
    return new


def _fire(layer: Layer, state: Array) -> Array:
    """What neurons send: a bit, 1 from the threshold on, or the state itself."""
    if layer.neurons["kind"] == "binary":
        return (state >= np.float32(layer.neurons["threshold"])).astype(np.int32)
    return state


def _update(layer: Layer, state: Array, drive: Array) -> Array:
    """The next state: clip(p, 0, 1), or clip((1 − filter)·s + filter·p, 0, 1) of binary neurons."""
    if layer.neurons["kind"] == "binary":
        share = layer.neurons["filter"]
        drive = np.float32(1 - share) * state + np.float32(share) * drive
    return np.clip(drive, 0, 1)


def _input_drive(layer: Layer, images: Array, about: dict[str, Any]) -> tuple[Array, Array | None]:
    """W_1 ⋆ x + b_1, and the places of the maxima."""
    x, unit = images, np.float32(1)
    if images.dtype == np.uint8 and about["mean"] is None and layer.weights.dtype == np.int32:
        x, unit = images.astype(np.int32), np.float32(1) / np.float32(255)  # exact until scaled
    elif images.dtype == np.uint8:
        x = images.astype(np.float32) / np.float32(255)
    for channel, (mean, std) in enumerate(
        zip(about["mean"] or (), about["std"] or (), strict=True)
    ):
        x = x.copy() if channel == 0 else x
        x[:, channel] = (x[:, channel] - np.float32(mean)) / np.float32(std)
    if layer.about["kind"] == "conv":  # one after the other: sums of floats are rounded
        x, unit = x * unit if unit != 1 else x, np.float32(1)
    return _up(layer, x, unit)


def _up(layer: Layer, below: Array, unit: Any = 1) -> tuple[Array, Array | None]:
    """W ⋆ below + b, and of a max-pooled convolution where in its map each maximum is."""
    if layer.about["kind"] == "dense":
        sums = below.reshape(len(below), -1) @ layer.weights.T
        return (sums * unit).astype(np.float32) * layer.scale + layer.bias, None
    pad, kernel, pool = (layer.about[name] for name in ("padding", "kernel", "pool"))
    padded = np.pad(below, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), (2, 3))
    maps = np.einsum("bixyuv,ciuv->bcxy", windows, layer.weights, optimize=True)
    pooled, route = maps, None
    if pool > 1:
        rows, columns = maps.shape[2] // pool, maps.shape[3] // pool
        blocks = maps[:, :, : rows * pool, : columns * pool]
        blocks = blocks.reshape(*maps.shape[:2], rows, pool, columns, pool).swapaxes(3, 4)
        blocks = blocks.reshape(*maps.shape[:2], rows, columns, pool * pool)
        if layer.about["pooling"] == "max":
            route = blocks.argmax(axis=4)
            pooled = blocks.max(axis=4)
        else:
            pooled = blocks.mean(axis=4, dtype=np.float32)
    return pooled.astype(np.float32) * layer.scale + layer.bias, route


def _down(layer: Layer, above: Array, route: Array | None) -> Array:
    """Wᵀ ⋆ above, from the places of the maxima where the layer is max-pooled."""
    if layer.about["kind"] == "dense":
        return (above @ layer.weights).astype(np.float32) * layer.scale
    pad, kernel, pool = (layer.about[name] for name in ("padding", "kernel", "pool"))
    sent = above.astype(np.float32) * layer.scale
    _, height, width = layer.about["input_shape"]
    shape = (height + 2 * pad - kernel + 1, width + 2 * pad - kernel + 1)
    maps = np.zeros((*above.shape[:2], *shape), np.float32)
    rows, columns = above.shape[2:]
    for place in range(pool * pool):
        share = sent / pool**2 if route is None else np.where(route == place, sent, 0)
        y, x = divmod(place, pool)
        maps[:, :, y : rows * pool : pool, x : columns * pool : pool] = share
    full = np.zeros(
        (len(above), layer.weights.shape[1], height + 2 * pad, width + 2 * pad), np.float32
    )
    for y in range(kernel):
        for x in range(kernel):
            share = np.einsum("bcxy,ci->bixy", maps, layer.weights[:, :, y, x], optimize=True)
            full[:, :, y : y + shape[0], x : x + shape[1]] += share
    return full[:, :, pad : pad + height, pad : pad + width]


def _first_state(layer: Layer, batch: int) -> Array:
    """Every neuron's state at the start."""
    about = layer.about
    if about["kind"] == "dense":
        shape: tuple[int, ...] = (about["outputs"],)
    else:
        sides = (s + 2 * about["padding"] - about["kernel"] + 1 for s in about["input_shape"][1:])
        shape = (about["channels"], *(side // about["pool"] for side in sides))
    return np.full((batch, *shape), layer.neurons["initial"], np.float32)
