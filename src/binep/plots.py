"""Figures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, float | None]]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, told apart by colour-blind readers too."""


def curves(runs: Sequence[Rows]) -> Figure:
    """Errors, losses, flips, scaling factors and settling over the epochs.

    Args:
        runs: rows of metrics.csv of each run. Of several runs the mean is drawn, with a band of
            one standard deviation to each side, as far as the shortest of them goes.
    """
    layers = [c.removesuffix("_flips") for c in runs[0][0] if c.endswith("_flips")]
    figure = Figure(figsize=(11, 6), dpi=120, layout="constrained")
    axes = figure.subplots(2, 3)

    def per_layer(quantity: str) -> dict[str, str]:
        return {layer.replace("layer", "layer "): f"{layer}_{quantity}" for layer in layers}

    _lines(axes[0, 0], runs, {"train": "train_error", "test": "test_error"}, "error (%)")
    _lines(axes[0, 1], runs, {"train": "train_loss", "test": "test_loss"}, "loss per sample")
    _lines(axes[0, 2], runs, per_layer("flip_rate"), "flips per weight and batch", "log")
    _lines(axes[1, 0], runs, per_layer("alpha"), "scaling factor α", "log")
    _lines(axes[1, 1], runs, per_layer("settle_steps"), "steps to settle")
    _lines(axes[1, 2], runs, per_layer("residual"), "residual at the end", "log")
    for below in axes[1]:
        below.set_xlabel("epoch")
    if len(runs) > 1:
        figure.suptitle(f"mean ± standard deviation of {len(runs)} runs")
    return figure


def _lines(
    axes: Axes, runs: Sequence[Rows], columns: Mapping[str, str], label: str, scale: str = "linear"
) -> None:
    """A line per column that has values."""
    length = min(map(len, runs))
    epochs = np.array([row["epoch"] for row in runs[0][:length]], float)
    for i, (name, column) in enumerate(columns.items()):
        values = np.array([[row.get(column) for row in rows[:length]] for rows in runs], float)
        if np.isnan(values).all():
            continue
        mean = values.mean(axis=0)
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(epochs, mean, "o-", color=colour, label=name, markersize=2.5, linewidth=1.2)
        if len(runs) > 1:
            deviation = values.std(axis=0, ddof=1)
            axes.fill_between(
                epochs, mean - deviation, mean + deviation, color=colour, alpha=0.25, linewidth=0
            )
    if scale == "log" and axes.dataLim.minposy < np.inf:  # else there is nothing to show on it
        axes.set_yscale("log", nonpositive="mask")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()


def rendered(figure: Figure, kind: str = "png") -> bytes:
    """A figure as the content of a file: png, pdf or svg."""
    content = io.BytesIO()
    with matplotlib.rc_context({"pdf.fonttype": 42}):  # TrueType: publishers refuse Type 3
        figure.savefig(content, format=kind, dpi="figure")
    return content.getvalue()
