"""A network as C: a header that holds and runs it, and a program that classifies with it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from binep.core.costs import CrossEntropy
from binep.core.network import Network
from binep.core.neurons import Binary, Neurons, Real
from binep.core.synapses import Conv, Dense, Synapse
from binep.data.batches import prepared
from binep.export import description
from binep.export.packed import Trained
from binep.runs.files import RunError, write

_Array = np.ndarray[Any, Any]
_TEMPLATES = Path(__file__).parent / "templates"


def save(trained: Trained | Network, path: Path | str) -> None:
    """Write a header of C99 and, beside it, its test program: network.h and network_test.c.

    Args:
        trained: the parameters become float32.
        path: the header's.

    Raises:
        RunError: more inputs of a neuron than sums of 32 bits hold; or a file cannot be written.
        ValueError: a part that is no class of binep, or a solver that is named.
    """
    trained = Trained(trained) if isinstance(trained, Network) else trained
    path = Path(path)
    description.described(trained.network)
    description.require_steps(trained.network, "C")
    for number, synapse in enumerate(trained.network.synapses, start=1):
        if synapse.values[0].numel() > 2**23:
            raise RunError(f"layer {number} has over 2^23 inputs: too many for sums of 32 bits")
    values = _values(trained) | {"stem": path.stem, "header": path.name}
    for template, place in (("network.h", path), ("network_test.c", test_program(path))):
        text = (_TEMPLATES / template).read_text(encoding="utf-8")
        filled = re.sub(r"@(\w+)@", lambda match: str(values[match[1]]), text)
        write(place, filled.encode())


def test_program(path: Path) -> Path:
    """Where the test program of a header lies."""
    return path.with_name(f"{path.stem}_test.c")


def _values(trained: Trained) -> dict[str, Any]:
    """What stands in the place of each @name@ of the templates."""
    network = trained.network
    cost, shape = network.cost, network.synapses[0].input_shape
    inputs, sizes = math.prod(shape), [math.prod(s.output_shape) for s in network.synapses]
    patches = [s.values[0].numel() for s in network.synapses if isinstance(s, Conv)]
    readout = isinstance(cost, CrossEntropy)
    return {
        "title": f"A network of {'-'.join(map(str, [inputs, *sizes]))} neurons.",
        "inputs": inputs,
        "channels": shape[0],
        "classes": cost.classes,
        "copies": 1 if readout else cost.copies,
        "layers": len(network),
        "neurons": sum(sizes),
        "words": sum(map(_words, sizes)),
        "widest": max(sizes),
        "patch": max(patches, default=1),
        "input_words": _words(inputs),
        "steps": network.free_steps,
        "stops": int(network.tolerance > 0),
        "whole": int(trained.mean is None and trained.power == 1),
        "normalised": int(trained.mean is not None),
        "readout": int(readout),
        "data": "\n".join(_data(trained)),
    }


def _data(trained: Trained) -> Iterator[str]:
    """The constants: arrays, then the table of layers."""
    network, table = trained.network, []
    levels = prepared(torch.arange(256, dtype=torch.uint8), power=trained.power)
    yield _array("binep_levels", levels.numpy())
    for name, each in (("mean", trained.mean), ("std", trained.std)):
        yield _array(f"binep_{name}", np.array(each or (0,), np.float32))
    for number, (synapse, neurons) in enumerate(_layers(network), start=1):
        size, values = math.prod(synapse.output_shape), synapse.values.detach().float().numpy()
        values = values.reshape(len(values), -1)
        scale = np.ones(1) if synapse.scale is None else synapse.scale.detach().numpy().reshape(-1)
        yield _array(f"binep_bias_{number}", synapse.bias.detach().float().numpy())
        yield _array(f"binep_scale_{number}", scale.astype(np.float32))
        up, down = f"binep_rows_{number}", "NULL"
        yield _array(up, values.ravel() if synapse.scale is None else _packed(values))
        if isinstance(synapse, Dense) and synapse.scale is not None:
            down = f"binep_columns_{number}"
            yield _array(down, _packed(values.T))
        matrices = ", ".join(_matrices(synapse, up, down))
        rest = f"binep_scale_{number}, {len(scale)}, binep_bias_{number}"
        rules = _rules(neurons, network.tolerance)
        table.append(f"    {{{size}, {matrices}, {_geometry(synapse)}, {rest}, {rules}}},")
    yield "\n".join(["static const binep_layer binep_layers[] = {", *table, "};", ""])


def _matrices(synapse: Synapse, up: str, down: str) -> tuple[str, str]:
    """The weights up and down; a convolution needs those up alone."""
    outputs, inputs = len(synapse.values), synapse.values[0].numel()
    nothing = "{0, 0, 0, NULL, NULL, 0, 0}"
    if synapse.scale is None:
        above = f"{{{outputs}, {inputs}, 0, NULL, {up}, {inputs}, 1}}"
        below = f"{{{inputs}, {outputs}, 0, NULL, {up}, 1, {inputs}}}"
    else:
        above = f"{{{outputs}, {inputs}, {_words(inputs)}, {up}, NULL, 0, 0}}"
        below = f"{{{inputs}, {outputs}, {_words(outputs)}, {down}, NULL, 0, 0}}"
    return above, below if isinstance(synapse, Dense) else nothing


def _geometry(synapse: Synapse) -> str:
    """What `binep_conv` says of a convolution; zeros of dense synapses."""
    if not isinstance(synapse, Conv):
        return "{" + ", ".join(["0"] * 10) + "}"
    kernel, takes_max = synapse.values.shape[-1], int(not synapse.averages)
    numbers = (kernel, synapse.padding, synapse.pool, takes_max, *synapse.input_shape)
    places = (synapse.map_shape[1], *synapse.output_shape[1:])
    return "{" + ", ".join(map(str, (*numbers, *places))) + "}"


def _layers(network: Network) -> Iterator[tuple[Synapse, Neurons | None]]:
    """Synapses and the neurons that they lead to; a readout has none, and is the last."""
    yield from zip(network.synapses, network.neurons, strict=True)
    if isinstance(network.cost, CrossEntropy):
        yield network.cost.readout, None


def _rules(neurons: Neurons | None, tolerance: float) -> str:
    """Whether they are binary, their first state, threshold, filter, 1 − filter and tolerance."""
    if isinstance(neurons, Binary):
        numbers = [neurons.initial, neurons.threshold, neurons.filter, 1 - neurons.filter, 0.0]
    else:
        numbers = [neurons.initial if isinstance(neurons, Real) else 0.0, 0.0, 1.0, 0.0, tolerance]
    return ", ".join([str(int(isinstance(neurons, Binary))), *map(_float, numbers)])


def _words(size: int) -> int:
    """Words of 64 bits that hold a bit of each."""
    return -(-size // 64)


def _packed(signs: _Array) -> _Array:
    """A row of words for each row of signs, the first sign in the lowest bit."""
    bits = np.zeros((len(signs), 64 * _words(signs.shape[1])), bool)
    bits[:, : signs.shape[1]] = signs > 0
    return np.packbits(bits, axis=1, bitorder="little").view("<u8").ravel()


def _array(name: str, values: _Array) -> str:
    """The definition of a constant array."""
    words = values.dtype == np.uint64
    kind, shown = ("uint64_t", "0x{:016x}".format) if words else ("float", _float)
    numbers = [shown(value) for value in values.tolist()]
    at_once = 5 if words else 8
    rows = (", ".join(numbers[i : i + at_once]) for i in range(0, len(numbers), at_once))
    return "\n".join([f"static const {kind} {name}[] = {{", *(f"    {r}," for r in rows), "};", ""])


def _float(value: float) -> str:
    """A float32 in the fewest digits that give it back."""
    return f"{np.float32(value)!s}f"
