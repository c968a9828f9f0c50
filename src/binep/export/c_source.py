"""A network as C: a header that holds and runs it, and a program that classifies with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from binep.core.costs import CrossEntropy
from binep.core.network import Network
from binep.core.neurons import Binary, Neurons, Real
from binep.core.synapses import Dense, Synapse
from binep.export import description
from binep.export.packed import Trained
from binep.runs.files import RunError, write

_Array = np.ndarray[Any, Any]
_TEMPLATES = Path(__file__).parent / "templates"


def save(trained: Trained | Network, path: Path | str) -> None:
    """Write a header of C99 and, beside it, its test program: network.h and network_test.c.

    Args:
        trained: dense layers; the parameters become float32.
        path: the header's.

    Raises:
        RunError: it has convolutions, or more inputs than sums of 32 bits hold; or a file cannot be
            written.
        ValueError: a part that is no class of binep.
    """
    trained = Trained(trained) if isinstance(trained, Network) else trained
    path = Path(path)
    description.described(trained.network)
    for number, synapse in enumerate(trained.network.synapses, start=1):
        if not isinstance(synapse, Dense):
            raise RunError(f"layer {number} is a convolution: --format c writes dense layers only")
        if synapse.values.shape[1] > 2**23:
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
    inputs, sizes = network.synapses[0].values.shape[1], [len(s.bias) for s in network.synapses]
    readout = isinstance(cost, CrossEntropy)
    return {
        "title": f"A network of {'-'.join(map(str, [inputs, *sizes]))} neurons.",
        "inputs": inputs,
        "channels": shape[0] if len(shape) == 3 else 1,
        "classes": cost.classes,
        "copies": 1 if readout else cost.copies,
        "layers": len(network),
        "neurons": sum(sizes),
        "words": sum(map(_words, sizes)),
        "widest": sizes[0],
        "input_words": _words(inputs),
        "steps": network.free_steps,
        "stops": int(network.tolerance > 0),
        "normalised": int(trained.mean is not None),
        "readout": int(readout),
        "data": "\n".join(_data(trained)),
    }


def _data(trained: Trained) -> Iterator[str]:
    """The constants: arrays, then the table of layers."""
    network, table = trained.network, []
    for name, each in (("mean", trained.mean), ("std", trained.std)):
        yield _array(f"binep_{name}", np.array(each or (0,), np.float32))
    for number, (synapse, neurons) in enumerate(_layers(network), start=1):
        outputs, inputs = synapse.values.shape
        values = synapse.values.detach().float().numpy()
        yield _array(f"binep_bias_{number}", synapse.bias.detach().float().numpy())
        if synapse.scale is None:
            yield _array(f"binep_weights_{number}", values.ravel())
            up = f"{{{outputs}, {inputs}, 0, NULL, binep_weights_{number}, {inputs}, 1}}"
            down = f"{{{inputs}, {outputs}, 0, NULL, binep_weights_{number}, 1, {inputs}}}"
        else:
            yield _array(f"binep_rows_{number}", _packed(values))
            yield _array(f"binep_columns_{number}", _packed(values.T))
            up = f"{{{outputs}, {inputs}, {_words(inputs)}, binep_rows_{number}, NULL, 0, 0}}"
            down = f"{{{inputs}, {outputs}, {_words(outputs)}, binep_columns_{number}, NULL, 0, 0}}"
        scale = 1.0 if synapse.scale is None else float(synapse.scale.detach())
        rules = _rules(neurons, network.tolerance)
        table.append(f"    {{{up}, {down}, {_float(scale)}, binep_bias_{number}, {rules}}},")
    yield "\n".join(["static const binep_layer binep_layers[] = {", *table, "};", ""])


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
