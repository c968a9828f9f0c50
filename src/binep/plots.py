"""Figures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, float | None]]

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def curves_png(runs: Sequence[Rows]) -> bytes:
    """Errors, losses, flips and settling over the epochs of a run, as a PNG.

    Args:
        runs: rows of metrics.csv of each run; the runs have the same columns.
    """
    figure = curves(runs)
    png = io.BytesIO()
    figure.savefig(png, dpi=120, metadata={"Software": None})
    return png.getvalue()


def curves(runs: Sequence[Rows]) -> Figure:
    """The figure behind `curves_png`."""
    rows = runs[0]
    layers = [c.split("_")[0] for c in rows[0] if c.endswith("_flip_rate")]
    figure = Figure(figsize=(9, 6), layout="constrained")
    (errors, losses), (flips, steps) = figure.subplots(2, 2)
    _lines(errors, rows, {"train": "train_error", "test": "test_error"}, "error (%)")
    _lines(losses, rows, {"train": "train_loss", "test": "test_loss"}, "loss per sample")
    _lines(flips, rows, {n: f"{n}_flip_rate" for n in layers}, "flips per weight and batch", True)
    _lines(steps, rows, {n: f"{n}_settle_steps" for n in layers}, "steps to settle")
    for axes in (flips, steps):
        axes.set_xlabel("epoch")
    return figure


def _lines(
    axes: Axes, rows: Rows, columns: Mapping[str, str], label: str, logarithmic: bool = False
) -> None:
    for colour, (name, column) in zip(COLOURS, columns.items(), strict=False):
        points = [(r["epoch"], r[column]) for r in rows if r.get(column) is not None]
        if points:
            name = name.replace("layer", "layer ")
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name, markersize=3)
    if logarithmic:
        axes.set_yscale("log", nonpositive="mask")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
