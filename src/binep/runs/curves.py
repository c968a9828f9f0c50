"""Curves over the epochs, from the rows of metrics.csv, and figures as files."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    SymmetricalLogLocator,
)
from numpy.typing import NDArray

from binep.runs.files import RunError

Array = NDArray[Any]
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
        title: what is drawn.
        columns: columns of metrics.csv by their names in the legend.
        label: of the axis, with its unit.
        scale: "linear" or "log".
        span: a linear axis is at least this long.
    """

    quantity: str
    title: str
    columns: dict[str, str]
    label: str
    scale: str = "linear"
    span: float = 0.0


def panels(columns: Collection[str]) -> list[Panel]:
    """The panels for the columns of a metrics.csv."""
    layers = [c.removesuffix("_flips") for c in columns if c.endswith("_flips")]

    def both(quantity: str) -> dict[str, str]:
        parts = ("train", "valid", "test")
        named = {part: f"{part}_{quantity}" for part in parts}
        return {part: name for part, name in named.items() if name in columns}

    def per_layer(quantity: str) -> dict[str, str]:
        return {layer.replace("layer", "layer "): f"{layer}_{quantity}" for layer in layers}

    return [
        Panel("error", "Error", both("error"), "error (%)"),
        Panel("loss", "Loss", both("loss"), "loss per sample"),
        Panel("flip_rate", "Flips", per_layer("flip_rate"), "flips per weight and batch", "log"),
        Panel("settle_steps", "Settling", per_layer("settle_steps"), "steps to settle", span=4.0),
        Panel("residual", "Residual", per_layer("residual"), "residual at the end", "log"),
        Panel("alpha", "Scaling factor", per_layer("alpha"), "scaling factor α", "log"),
    ]


def shown(runs: Sequence[Rows]) -> list[Panel]:
    """The panels that have something to show: values, and scaling factors only where they learn."""
    found = []
    for panel in panels(runs[0][0]):
        values = {name: {row.get(name) for row in runs[0]} for name in panel.columns.values()}
        fixed = panel.quantity == "alpha" and all(len(some) == 1 for some in values.values())
        if set().union(*values.values()) - {None} and not fixed:
            found.append(panel)
    return found


def curves(runs: Sequence[Rows]) -> Figure:
    """Errors, losses, flips, scaling factors and settling over the epochs.

    Args:
        runs: rows of metrics.csv of each run. Of several runs the mean is drawn, with a band of
            one standard deviation to each side, as far as the shortest of them goes.
    """
    drawn = shown(runs)
    columns = 2 if len(drawn) in (2, 4) else 3
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(11, 3.1 * rows), dpi=120, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for place, panel in zip(axes.flat, drawn, strict=False):
        _lines(place, runs, panel)
        place.set_xlabel("epoch")
    for empty in axes.flat[len(drawn) :]:
        empty.remove()
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
        size = 3 if length < 60 else 0
        axes.plot(
            epochs, mean, f"{marker}-", color=colour, label=name, markersize=size, linewidth=1.2
        )
        if len(runs) > 1:
            deviation = values.std(axis=0, ddof=1)
            axes.fill_between(
                epochs, mean - deviation, mean + deviation, color=colour, alpha=0.25, linewidth=0
            )
    if panel.scale == "log":
        logarithmic(axes, np.concatenate([line.get_ydata() for line in axes.lines] or [[]]))
    else:
        low, high = axes.get_ylim()
        widen = max(0.0, (panel.span - (high - low)) / 2)
        axes.set_ylim(max(low - widen, min(low, 0.0)), high + widen)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.set_ylabel(panel.label)
    axes.grid(alpha=0.3)
    axes.set_title(panel.title, loc="left", fontweight="bold")
    if axes.lines:  # beside the title, off the data
        handles, names = axes.get_legend_handles_labels()
        names = [name if i == 0 else name.removeprefix("layer ") for i, name in enumerate(names)]
        axes.legend(
            handles,
            names,
            loc="lower right",
            bbox_to_anchor=(1.02, 0.98),
            ncols=len(names),
            frameon=False,
            fontsize="small",
            handlelength=1.2,
            columnspacing=1.0,
        )


def logarithmic(axes: Axes, values: Array, floor: float = 0.0) -> None:
    """Make the y-axis logarithmic; zeros, and what is below `floor`, stand at its bottom, at 0."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if not (values > floor).any():  # nothing to show on it
        return
    low, high = values[values > floor].min(), values.max()
    widen = max(1.2, (10 * low / high) ** 0.5)  # to a decade, lest rounding fill the axes
    if (values > floor).all():
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(low / widen, high * widen)
        if high / low < 100:  # few powers of ten: label numbers between them, too
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    else:
        least = 10.0 ** math.floor(math.log10(low))
        axes.set_yscale("symlog", linthresh=least, linscale=0.5)
        axes.set_ylim(-0.15 * least, high * widen)
        locator = SymmetricalLogLocator(base=10, linthresh=least)
        locator.set_params(numticks=6)
        axes.yaxis.set_major_locator(locator)
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())


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
