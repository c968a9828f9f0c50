"""The figure of `binep check gradients`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from binep.analysis.gradient_check import Agreement, Traced
from binep.runs.curves import COLOURS

_PAIRS = {
    ("inside", "exact"): ("EP inside ρ and BPTT", COLOURS[0], "o", 9),
    ("outside", "exact"): ("EP outside ρ and BPTT", COLOURS[1], "s", 6),
    ("outside", "straight-through"): (
        "EP outside ρ and straight-through BPTT",
        COLOURS[2],
        "^",
        3.5,
    ),
}
"""What is compared: nudge and reference; with a name, a colour, a marker and its size.

Where curves coincide, each marker is seen around the next, smaller one.
"""


@dataclass(frozen=True)
class Setting:
    """What a network is trained with; the upper rows of the figure show it.

    Attributes:
        weights: "binary" or "real".
        beta: β, above 0.
    """

    weights: str
    beta: float


def drawn(agreements: Sequence[Agreement], traced: Sequence[Traced], setting: Setting) -> Figure:
    """A column per layer: single weights and the cosine over the steps, the error over β.

    Args:
        agreements: of one kind of weights or of both.
        traced: gradients of single weights.
        setting: whose β is one of theirs.
    """
    layers = max(row.layer for row in agreements)
    agreements = [row for row in agreements if row.parameter == "weight"]
    figure = Figure(figsize=(max(6.8, 2.4 * layers), 10), layout="constrained")
    upper, middle, lower = figure.subfigures(3, 1, squeeze=False)[:, 0]
    _weights(upper, layers, [t for t in traced if t.weights == setting.weights])
    own = [row for row in agreements if row.weights == setting.weights]
    _cosines(middle, layers, own, setting.beta)
    _errors(lower, layers, agreements)
    return figure


def _weights(figure: SubFigure, layers: int, rows: Sequence[Traced]) -> None:
    """Gradients of single weights after t steps, at the smallest β."""
    beta = min(row.beta for row in rows)
    rows = [row for row in rows if (row.beta, row.nudging) == (beta, "one-sided")]
    for layer, axes in enumerate(_panels(figure, layers), start=1):
        mine = [row for row in rows if row.layer == layer]
        for i, index in enumerate(dict.fromkeys(row.index for row in mine)):
            colour = COLOURS[3 + i % 3]
            inside, outside = (
                [row for row in mine if (row.index, row.nudge) == (index, nudge)]
                for nudge in ("inside", "outside")
            )
            steps = [row.step for row in inside]
            axes.plot(steps, [row.exact for row in inside], "-", color=colour)
            axes.plot(
                steps, [row.ep for row in outside], "s", color=colour, mfc="white", markersize=7
            )
            axes.plot(steps, [row.ep for row in inside], "o", color=colour, markersize=3.5)
            axes.plot(steps, [row.through for row in outside], "--", color=colour)
        axes.set_title(f"layer {layer}", fontsize=9)
        axes.set_xlabel("time step t", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.ticklabel_format(axis="y", scilimits=(-2, 3))
        axes.yaxis.get_offset_text().set_fontsize(8)
    figure.suptitle(f"Single weights, after t steps: one-sided EP, β = {power(beta)}", fontsize=9)
    figure.axes[0].set_ylabel("∂L/∂W", fontsize=9)
    lines = [
        _sample("BPTT", linestyle="-"),
        _sample("EP inside ρ", marker="o"),
        _sample("straight-through BPTT", linestyle="--"),
        _sample("EP outside ρ", marker="s", markerfacecolor="white"),
    ]
    _legend(figure, lines, 4)


def _cosines(figure: SubFigure, layers: int, rows: Sequence[Agreement], beta: float) -> None:
    """Cosine between the gradients of all weights after t steps."""
    styles = {min(row.beta for row in rows): "-", beta: ":"}
    drawn = [row.cosine for row in rows if row.beta in styles and row.nudging == "one-sided"]
    below = 1 - min([0.99, *(cosine for cosine in drawn if not math.isnan(cosine))])
    for layer, axes in enumerate(_panels(figure, layers), start=1):
        for pair, (_, colour, marker, size) in _PAIRS.items():
            for strength, style in styles.items():
                mine = [
                    row
                    for row in rows
                    if (row.nudge, row.reference) == pair
                    and (row.layer, row.beta, row.nudging) == (layer, strength, "one-sided")
                ]
                axes.plot(
                    [row.step for row in mine],
                    [row.cosine for row in mine],
                    style,
                    color=colour,
                    marker=marker,
                    markersize=size,
                    markerfacecolor="white" if style == ":" else colour,
                )
        axes.set_ylim(1 - 1.05 * below, 1 + 0.05 * below)
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.set_xlabel("time step t", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle("All weights, after t steps: one-sided EP", fontsize=9)
    figure.axes[0].set_ylabel("cosine", fontsize=9)
    lines = [
        _sample(f"β = {power(strength)}", linestyle=style, marker="o", markerfacecolor=face)
        for (strength, style), face in zip(styles.items(), ("black", "white"), strict=False)
    ]
    _legend(figure, [*_pairs(), *lines], 2)


def _errors(figure: SubFigure, layers: int, rows: Sequence[Agreement]) -> None:
    """Relative error after all steps over β."""
    steps = max(row.step for row in rows)
    kinds = list(dict.fromkeys((row.nudging, row.weights) for row in rows))
    for layer, axes in enumerate(_panels(figure, layers), start=1):
        for pair, (_, colour, marker, size) in _PAIRS.items():
            for nudging, weights in kinds:
                mine = [
                    row
                    for row in rows
                    if (row.nudge, row.reference) == pair
                    and (row.layer, row.step) == (layer, steps)
                    and (row.nudging, row.weights) == (nudging, weights)
                ]
                axes.plot(
                    [row.beta for row in mine],
                    [row.error for row in mine],
                    "-" if nudging == "one-sided" else "--",
                    color=colour,
                    marker=marker,
                    markersize=size,
                    linewidth=1.5 if weights == "binary" else 0.6,
                    markerfacecolor=colour if weights == "binary" else "white",
                )
        axes.set_xscale("log")
        if axes.dataLim.minposy < np.inf:  # else so few steps have not reached the layer
            axes.set_yscale("log")
        axes.set_xlabel("nudging strength β", fontsize=9)
    figure.suptitle(f"All weights, after {steps} steps", fontsize=9)
    figure.axes[0].set_ylabel("‖EP − BPTT‖ / ‖BPTT‖", fontsize=9)
    lines = [_sample("one-sided", linestyle="-"), _sample("centred", linestyle="--")]
    faces = {"binary": "black", "real": "white"}
    lines += [
        _sample(f"{weights} weights", marker="o", markerfacecolor=faces[weights])
        for weights in dict.fromkeys(row.weights for row in rows)
    ]
    _legend(figure, [*_pairs(), *lines], 3)


def _panels(figure: SubFigure, layers: int) -> list[Axes]:
    panels: list[Axes] = list(figure.subplots(1, layers, squeeze=False)[0])
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
    return panels


def _sample(label: str, **style: Any) -> Line2D:
    """A line for the legend."""
    return Line2D([], [], label=label, **{"color": "black", "linestyle": "", **style})


def _pairs() -> list[Line2D]:
    return [
        _sample(name, color=colour, marker=marker, markersize=size)
        for name, colour, marker, size in _PAIRS.values()
    ]


def _legend(figure: SubFigure, lines: Sequence[Line2D], columns: int) -> None:
    figure.legend(
        handles=lines,
        loc="outside lower center",
        ncols=columns,
        fontsize=7,
        handlelength=3,
        frameon=False,
    )


def power(number: float) -> str:
    """A number without zeros before its exponent: 1e-5 rather than 1e-05."""
    return f"{number:g}".replace("e-0", "e-")
