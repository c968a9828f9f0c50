"""What a network consists of, as a table: layers, weights, memory and operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from binep.core.shapes import map_shape_of
from binep.core.synapses import Conv, Synapse

if TYPE_CHECKING:
    from binep.core.network import Network

HEAD = ("layer", "synapses", "shape", "1-bit weights", "numbers", "memory", "operations")


@dataclass(frozen=True)
class LayerSummary:
    """What the synapses of a layer consist of.

    Attributes:
        kind: their class.
        shape: of one sample below and above.
        bits: binary weights.
        numbers: of floating point: biases, scaling factors, real weights.
        memory: bytes, at a bit per binary weight.
        operations: additions, or multiplications and additions, of W ⋆ s for a sample.
    """

    kind: str
    shape: str
    bits: int
    numbers: int
    memory: int
    operations: int

    def cells(self) -> list[str]:
        """The cells of its row behind the layer's number."""
        counts = f"{self.bits:,}", f"{self.numbers:,}", size(self.memory), f"{self.operations:,}"
        return [self.kind, self.shape, *counts]


def layers(network: Network) -> list[LayerSummary]:
    """Each layer's, from the input to the output; a softmax readout is the last."""
    return [_summary(synapse) for synapse in network.learning_synapses()]


def _summary(synapse: Synapse) -> LayerSummary:
    weights = synapse.values.numel()
    # Also those from which a parametrization computes others.
    numbers = sum(p.numel() for p in synapse.parameters())
    bits = 0 if synapse.scale is None else weights
    numbers -= bits
    places = 1
    if isinstance(synapse, Conv):
        kernel = synapse.values.shape[-1]
        rows, columns = map_shape_of(synapse.input_shape, kernel, synapse.padding, 1)
        places = rows * columns
    return LayerSummary(
        kind=type(synapse).__name__,
        shape=f"{_sides(synapse.input_shape)} → {_sides(synapse.output_shape)}",
        bits=bits,
        numbers=numbers,
        memory=-(-bits // 8) + numbers * synapse.bias.element_size(),
        operations=weights * places,
    )


def _sides(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def size(count: int) -> str:
    """So many bytes in words, such as 49.2 KiB."""
    if count < 1024:
        return f"{count} B"
    return f"{count / 1024:,.1f} KiB" if count < 2**20 else f"{count / 2**20:,.1f} MiB"


def text(network: Network) -> str:
    """Neurons, cost and steps of the free phase, and a table of the layers."""
    found = layers(network)
    rows = [[str(number), *layer.cells()] for number, layer in enumerate(found, start=1)]
    bits, numbers = (sum(getattr(layer, n) for layer in found) for n in ("bits", "numbers"))
    total = ["", "all", "", f"{bits:,}", f"{numbers:,}", size(sum(x.memory for x in found)), ""]
    neurons = dict.fromkeys(map(repr, network.neurons))
    about = f"{type(network.cost).__name__}, T = {network.free_steps}"
    return "\n".join(
        [f"Network: {', '.join(neurons)}", about, *aligned([list(HEAD), *rows, total])]
    )


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, in columns: words to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        pairs = enumerate(zip(row, widths, strict=True))
        cells = [
            cell.ljust(width) if 0 < i < 3 else cell.rjust(width) for i, (cell, width) in pairs
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
