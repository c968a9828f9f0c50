"""`binep summary`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from binep.cli.options import Pluggable, Run, parse


@dataclass(frozen=True)
class Options(Pluggable):
    """Say what a trained network consists of, and how often weights flipped.

    A row for each layer:
    - shape of a sample below and above
    - binary weights, and numbers of floating point (biases, real weights)
    - memory at a bit per binary weight
    - operations of W ⋆ s for a sample: additions where weights are binary
    - of a run folder also writes (flips) per weight, mean and most
    """

    run: Run
    """A run folder, a packed file, or the name of a network that comes with binep."""


def main(arguments: Sequence[str]) -> None:
    """Print the tables."""
    options = parse(Options, arguments, prog="binep summary")
    from binep.core import summary
    from binep.export import packed
    from binep.runs.metrics import read_metrics

    network = packed.read(options.run).network
    print(summary.text(network))
    if not options.run.is_dir():
        return
    rows = read_metrics(options.run / "metrics.csv")
    writes = [["layer", "flips", "", "mean", "most", "last epoch's mean"]]
    for number, layer in enumerate(summary.layers(network), start=1):
        flips = [row.get(f"layer{number}_flips") for row in rows]
        counted = [count for count in flips if count is not None]
        if layer.bits and counted:
            mean, last = (f"{count / layer.bits:.4g}" for count in (sum(counted), counted[-1]))
            most = rows[-1].get(f"layer{number}_most_flips")  # not counted by version 0.1
            shown = "" if most is None else f"{most:,.0f}"
            writes.append([str(number), f"{sum(counted):,.0f}", "", mean, shown, last])
    if len(writes) > 1:
        print(f"writes in {len(rows)} epochs, per weight")
        print("\n".join(summary.aligned(writes)))
