"""Curves over the epochs, from the rows of metrics.csv, and figures as files."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from binep.runs.files import RunError

Rows = Sequence[Mapping[str, float | None]]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which colour-blind readers can distinguish, too."""


MARKERS = "os^DvP*"
"""Markers of the lines, for prints without colours."""


@dataclass(frozen=True)
class Panel:
    """One set of axes, over the epochs.

    Attributes:
        quantity: its name.
        columns: columns of metrics.csv by their names in the legend.
        label: of the axis, with its unit.
        scale: "linear" or "log".
        span: a linear axis is at least this long.
    """

    quantity: str
    columns: dict[str, str]
    label: str
    scale: str = "linear"
    span: float = 0.0


def panels(columns: Collection[str]) -> list[Panel]:
    """The six panels for the columns of a metrics.csv."""
    layers = [c.removesuffix("_flips") for c in columns if c.endswith("_flips")]

    def both(quantity: str) -> dict[str, str]:
        parts = ("train", "test", "valid")
        named = {part: f"{part}_{quantity}" for part in parts}
        return {part: name for part, name in named.items() if name in columns}

    def per_layer(quantity: str) -> dict[str, str]:
        return {layer.replace("layer", "layer "): f"{layer}_{quantity}" for layer in layers}

    return [
        Panel("error", both("error"), "error (%)"),
        Panel("loss", both("loss"), "loss per sample"),
        Panel("flip_rate", per_layer("flip_rate"), "flips per weight and batch", "log"),
        Panel("alpha", per_layer("alpha"), "scaling factor α", "log"),
        Panel("settle_steps", per_layer("settle_steps"), "steps to settle", span=2.0),
        Panel("residual", per_layer("residual"), "residual at the end", "log"),
    ]


def curves(runs: Sequence[Rows]) -> Figure:
    """Errors, losses, flips, scaling factors and settling over the epochs.

    Args:
        runs: rows of metrics.csv of each run. Of several runs the mean is drawn, with a band of
            one standard deviation to each side, as far as the shortest of them goes.
    """
    figure = Figure(figsize=(11, 6), dpi=120, layout="constrained")
    axes = figure.subplots(2, 3)
    for place, panel in zip(axes.flat, panels(runs[0][0]), strict=True):
        _lines(place, runs, panel)
    for below in axes[1]:
        below.set_xlabel("epoch")
    if len(runs) > 1:
        figure.suptitle(f"mean ± standard deviation of {len(runs)} runs")
    return figure


def curve(runs: Sequence[Rows], panel: Panel) -> Figure:
    """One panel of `curves`, as a figure of its own."""
    figure = Figure(figsize=(4, 2.8), layout="constrained")
    axes = figure.subplots()
    _lines(axes, runs, panel)
    axes.set_xlabel("epoch")
    return figure


def _lines(axes: Axes, runs: Sequence[Rows], panel: Panel) -> None:
    """Draw a line per column that has values."""
    length = min(map(len, runs))
    epochs = np.array([row["epoch"] for row in runs[0][:length]], float)
    for i, (name, column) in enumerate(panel.columns.items()):
        values = np.array([[row.get(column) for row in rows[:length]] for rows in runs], float)
        if np.isnan(values).all():
            continue
        mean = values.mean(axis=0)
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        axes.plot(epochs, mean, f"{marker}-", color=colour, label=name, markersize=3, linewidth=1.2)
        if len(runs) > 1:
            deviation = values.std(axis=0, ddof=1)
            axes.fill_between(
                epochs, mean - deviation, mean + deviation, color=colour, alpha=0.25, linewidth=0
            )
    if panel.scale == "log" and axes.dataLim.minposy < np.inf:  # else nothing to show
        axes.set_yscale("log", nonpositive="mask")
        low, high = axes.get_ylim()
        widen = max(1.0, (10 * low / high) ** 0.5)  # to a decade, lest rounding fill the axes
        axes.set_ylim(low / widen, high * widen)
    elif panel.scale == "linear":
        low, high = axes.get_ylim()
        widen = max(0.0, (panel.span - (high - low)) / 2)
        axes.set_ylim(low - widen, high + widen)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_ylabel(panel.label)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()


def rendered(figure: Figure, kind: str = "png") -> bytes:
    """The content of a figure's file: png, pdf or svg.

    Raises:
        RunError: matplotlib cannot draw it with the user's settings, as with LaTeX where there is
            none.
    """
    content = io.BytesIO()
    try:
        with matplotlib.rc_context({"pdf.fonttype": 42}):  # TrueType: publishers refuse Type 3
            figure.savefig(content, format=kind, dpi="figure")
    except (RuntimeError, ValueError) as error:
        raise RunError(f"the figure cannot be drawn: {str(error).splitlines()[0]}") from error
    return content.getvalue()
