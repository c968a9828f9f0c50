"""Figures for print of what `inspection` finds: 7 inches wide, letters from 7 points."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from binep.analysis.inspection import Array, Momenta, Phases, Signs
from binep.runs.curves import COLOURS, logarithmic

P = ParamSpec("P")

_WIDTH = 7.0
_STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.edgecolor": "none",
    "figure.dpi": 300,
    "lines.linewidth": 1.0,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_FIELDS = 8  # receptive fields of one channel in a row
_DASHES = ("-", "--", "-.", ":")
_SIGNS = {
    "−1, kept": "#F2F2F2",
    "+1, kept": "#B8B8B8",
    "flipped to −1": COLOURS[0],
    "flipped to +1": COLOURS[1],
}


def _in_print(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the style of a printed page."""

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(_STYLE):
            figure = draw(*args, **kwargs)
            for axes in figure.axes:  # which look their style up only when they are rendered
                axes.tick_params(which="both", labelsize=_STYLE["xtick.labelsize"])
            return figure

    return styled


@_in_print
def phases(
    found: Phases,
    image: Array,
    classes: Sequence[str],
    label: int,
    *,
    neurons: int,
    thresholds: Sequence[float] = (),
) -> Figure:
    """A sample in both phases: scores, states, residuals, energy and cost over time.

    Args:
        found: from `inspection.follow`.
        image: the sample, (channels, height, width).
        classes: names of the classes.
        label: the sample's class.
        neurons: how many of each layer are drawn, evenly spaced.
        thresholds: per layer from which state binary neurons fire; none of real ones.
    """
    # An output of one neuron per class is drawn as the scores, which are its states.
    shown = len(found.states) - np.array_equal(found.scores, found.states[-1])
    figure = Figure(figsize=(_WIDTH, max(4.2, 1.2 * (shown + 2))), layout="constrained")
    halves = figure.add_gridspec(1, 2)
    rows = halves[0].subgridspec(shown + 2, 1, height_ratios=[1.0] * (shown + 1) + [0.7])
    panels = [figure.add_subplot(rows[i]) for i in range(shown + 1)]
    lines = _scores(panels[0], found, classes, label)
    for axes, layer in zip(panels[1:], range(shown, 0, -1), strict=True):
        states = found.states[layer - 1]
        picked = _evenly(states.shape[1], neurons)
        axes.plot(states[:, picked], color=_colour(layer), alpha=0.7, linewidth=0.8)
        if thresholds:
            axes.axhline(thresholds[layer - 1], color="black", linestyle=":", linewidth=0.8)
        axes.set_ylabel(f"layer {layer}\nstate $s$")
        axes.set_ylim(min(-0.05, states.min()), max(1.05, states.max()))
    below = figure.add_subplot(rows[-1])
    _picture(below, _drawable(image), cmap="gray_r")
    below.legend(handles=lines, loc="center left", bbox_to_anchor=(1.05, 0.5))

    count = 3 if len(found.energy) else 2
    columns = halves[1].subgridspec(count, 1)
    settling = [figure.add_subplot(columns[i]) for i in range(count)]
    _settling(settling, found)
    for column in (panels, settling):
        _time(column, found)
    return figure


def _scores(axes: Axes, found: Phases, classes: Sequence[str], label: int) -> list[Line2D]:
    """A line per class; returns those for the legend."""
    other, *_ = axes.plot(found.scores, color="0.75", linewidth=0.8, label="other classes")
    read = int(found.scores[found.free_steps].argmax())
    styles = {label: (COLOURS[0], "-", f"label: {classes[label]}")}
    if read != label:
        styles[read] = (COLOURS[1], "--", f"read: {classes[read]}")
    axes.set_ylabel("score\nof each class")
    named = [
        axes.plot(found.scores[:, one], style, color=colour, linewidth=1.5, label=name)[0]
        for one, (colour, style, name) in styles.items()
    ]
    return [*named, other]


def _settling(panels: Sequence[Axes], found: Phases) -> None:
    """Residuals, energy where there is one, and cost over time."""
    residual, *between, cost = panels
    for i, (name, style) in enumerate(_layers(found)):
        values = found.residual[:, i]
        residual.plot(values, style, color=_colour(i + 1), label=name, marker=".", markersize=2)
        ends = found.settled[:, i] + [0, found.free_steps]
        ends = ends[found.settled[:, i] > 0]
        residual.plot(ends, values[ends], "o", color=_colour(i + 1), fillstyle="none")
    residual.set_ylabel("residual\nmax|Δ$s$|")
    logarithmic(residual, found.residual, 1e-9)
    residual.legend(handlelength=2.5)
    for energy in between:
        end = found.energy[found.free_steps]
        above = abs(found.energy - end)
        energy.plot(above, color="black", marker=".", markersize=3)
        energy.set_ylabel(f"energy |$E − E^*$|\n$E^*$ = {end:.4g}".replace("-", "−"))
        logarithmic(energy, above, 1e-9 * above.max())
    cost.plot(found.cost, color="black", marker=".", markersize=3)
    cost.set_ylabel("cost $C$")
    cost.set_ylim(bottom=0)


def _time(column: Sequence[Axes], found: Phases) -> None:
    """One time axis for panels above each other, the nudged phase shaded."""
    for axes in column:
        edge = 0.02 * found.steps
        axes.axvspan(found.free_steps, found.steps + edge, color="0.93", linewidth=0, zorder=0)
        axes.axvline(found.free_steps, color="0.4", linewidth=0.6)
        axes.set_xlim(-edge, found.steps + edge)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        axes.tick_params(labelbottom=axes is column[-1])
    nudged = f"nudged, β = {found.beta:g}"
    for at, name, side in ((0.0, "free", "left"), (1.0, nudged, "right")):
        column[0].annotate(
            name,
            (at, 1),
            xytext=(0, 2),
            xycoords="axes fraction",
            textcoords="offset points",
            ha=side,
        )
    column[-1].set_xlabel("time step")


@_in_print
def bits(found: Phases) -> Figure:
    """The share of neurons that fire, and the bits that change, in each layer over time."""
    figure = Figure(figsize=(_WIDTH, 2.4), layout="constrained")
    fired, changed = figure.subplots(1, 2)
    for i, (name, style) in enumerate(_layers(found)):
        layer = found.bits[i]
        fired.plot(100 * (layer > 0).mean(axis=1), style, color=_colour(i + 1), label=name)
        flips = (layer[1:] != layer[:-1]).sum(axis=1)
        changed.plot(range(1, len(layer)), flips, style, color=_colour(i + 1), label=name)
    fired.set_ylabel("neurons that fire (%)")
    fired.set_ylim(0, 100)
    fired.legend(handlelength=2.5)
    changed.set_yscale("symlog", linthresh=1)
    changed.set_ylim(bottom=0)
    changed.set_ylabel("bits changed in the step")
    for axes in (fired, changed):
        _time([axes], found)
    return figure


@_in_print
def momenta(found: Sequence[Momenta]) -> Figure:
    """How many weights of each layer are how far from their flip, in units of the threshold."""
    figure = Figure(figsize=(_WIDTH, 2.4 * -(-len(found) // 3)), layout="constrained")
    panels = figure.subplots(-(-len(found) // 3), min(3, len(found)), squeeze=False).flat
    for axes, layer in zip(panels, found, strict=False):
        unit = layer.threshold or np.nanmax(abs(layer.push)) or 1
        push = layer.push[np.isfinite(layer.push)] / unit
        axes.hist(push, bins=100, color=_colour(layer.layer), histtype="stepfilled")
        axes.axvline(layer.threshold / unit, color="black", linestyle="--", label="threshold")
        axes.set_yscale("log")
        axes.set_title(f"layer {layer.layer}, τ = {layer.threshold:g}")
        axes.set_xlabel("push to flip −sign($w$)·$m$ " + ("/ τ" if layer.threshold else "/ max"))
    figure.axes[0].set_ylabel("weights")
    figure.axes[0].legend(loc="upper left")
    for axes in figure.axes[len(found) :]:
        axes.set_axis_off()
    return figure


@_in_print
def flips(found: Sequence[Signs]) -> Figure:
    """Which weights differ from their start: per layer, and where the first layer looks."""
    figure = Figure(figsize=(_WIDTH, 1.7), layout="constrained")
    mapped = found[0].now.ndim == 4
    if not mapped:
        _shares(figure.subplots(), found)
        return figure
    figure.set_figheight(3.4)
    parts = figure.add_gridspec(2, 1, height_ratios=(1.5, 1.0))
    above = figure.add_subfigure(parts[0])
    bars, share = above.subplots(1, 2)
    _shares(bars, found)
    per_pixel = 100 * found[0].flipped.mean(axis=(0, 1))
    shown = _picture(share, per_pixel, cmap="viridis", vmin=0)
    above.colorbar(shown, ax=share, label="flipped (%)")
    share.set_title("layer 1, mean over neurons")
    _fields(figure.add_subfigure(parts[1]), found[0])
    return figure


def _shares(axes: Axes, found: Sequence[Signs]) -> None:
    """A bar per layer, the input's side below."""
    names = [f"layer {layer.layer}" for layer in found]
    shares = [100 * layer.flipped.mean() for layer in found]
    bars = axes.barh(names, shares, color=[_colour(layer.layer) for layer in found])
    axes.bar_label(bars, fmt="%.2g %%", padding=2)
    axes.set_xlabel("weights that differ from their start (%)")
    axes.margins(x=0.15)


def _fields(figure: SubFigure, layer: Signs) -> None:
    """The signs of a few neurons' weights, where they are in the image; channels side by side."""
    picked = _evenly(len(layer.now), max(1, _FIELDS // layer.now.shape[1]))
    codes = layer.flipped * 2 + (layer.now > 0)
    for axes, i in zip(np.atleast_1d(figure.subplots(1, len(picked))), picked, strict=True):
        _picture(axes, np.hstack(codes[i]), cmap=ListedColormap([*_SIGNS.values()]), vmin=0, vmax=3)
        axes.set_title(f"no. {i}")
    patches = [Patch(facecolor=c, edgecolor="0.5", label=n) for n, c in _SIGNS.items()]
    figure.legend(handles=patches, ncols=4, loc="outside lower center")


def _evenly(size: int, count: int) -> Array:
    """So many places of `size`, or all, evenly spaced."""
    return np.linspace(0, size - 1, min(size, count)).round().astype(int)


def _colour(layer: int) -> str:
    return COLOURS[(layer - 1) % len(COLOURS)]


def _layers(found: Phases) -> list[tuple[str, str]]:
    """Name and line style of each layer."""
    return [(f"layer {i + 1}", _DASHES[i % 4]) for i in range(len(found.states))]


def _drawable(image: Array) -> Array:
    """A sample as an image: features are a row of pixels, odd numbers of channels side by side."""
    image = image if image.ndim == 3 else image.reshape(1, 1, -1)
    return image.transpose(1, 2, 0) if len(image) == 3 else np.concatenate([*image], axis=1)


def _picture(axes: Axes, image: Array, **colours: Any) -> AxesImage:
    """An image, its pixels repeated so that no viewer smooths them."""
    axes.set_axis_off()
    return axes.imshow(image.repeat(8, axis=0).repeat(8, axis=1), interpolation="none", **colours)
