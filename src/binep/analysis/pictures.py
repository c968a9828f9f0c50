"""Figures and images as elements of an HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any
from xml.dom import minidom

import matplotlib
import numpy as np
import torch
from markupsafe import Markup
from matplotlib.image import imsave

from binep.analysis.readings import Report, most_confident_errors
from binep.core.synapses import Conv, Dense, Synapse
from binep.experiment import kinds
from binep.experiment.config import Dynamics
from binep.runs import curves as plots
from binep.runs.metrics import Row

MISREAD = 24
"""Misread images on a page."""
NEURONS = 36
"""Neurons, or channels, whose weights are on a page."""

MEANINGS = {
    "error": "Share of samples misread; training batches are read before their update.",
    "loss": "Mean cost at the end of the free phase.",
    "flip_rate": "Share of a layer's weights that change sign per batch.",
    "alpha": "Scaling factor of the binary weights, mean over channels.",
    "settle_steps": "Last time step of the free phase, of at most {free_steps}, that {moved}; mean "
    "over batches.",
    "residual": "Largest change of a state in the last step of a free phase: T is too small where "
    "this is large.",
}
"""What each panel of the curves shows."""


_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
    "font.size": 9,
}
"""Of a figure on a page whose background shows through."""


@dataclass(frozen=True)
class Curve:
    """A figure of the page.

    Attributes:
        svg: the element.
        meaning: what it shows.
        seen: where its lines begin and end.
    """

    svg: Markup
    meaning: str
    seen: str


def curves(report: Report) -> list[Curve]:
    """The panels that have values, as figures of their own."""
    metrics = [run.metrics for run in report.runs]
    drawn = []
    for panel in plots.shown(metrics):
        # References inside an SVG (to markers, clips) are hashed with the salt: no two figures of
        # the page share one.
        with matplotlib.rc_context({**_STYLE, "svg.hashsalt": panel.quantity}):
            content = plots.rendered(plots.curve(metrics, panel), "svg")
        svg = _element(content.decode(), f"{panel.label} against the epoch")
        meaning = _meaning(panel, report.config.dynamics)
        drawn.append(Curve(svg, meaning, _seen(metrics, panel)))
    return drawn


def _meaning(panel: plots.Panel, dynamics: Dynamics) -> str:
    moved = f"moved a state by more than {dynamics.settle_tol:g}"
    if kinds.NEURONS[dynamics.activation].fact("settle_exactly"):
        moved = "changed a bit"
    return MEANINGS[panel.quantity].format(free_steps=dynamics.free_steps, moved=moved)


def _seen(metrics: Sequence[Sequence[Row]], panel: plots.Panel) -> str:
    """The two ends of each line, in words."""
    last = min(map(len, metrics)) - 1
    ends = []
    for name, column in panel.columns.items():
        values = [[rows[i].get(column) for rows in metrics] for i in (0, last)]
        if any(v is None for both in values for v in both):
            continue
        start, end = (mean(v or 0.0 for v in both) for both in values)
        ends.append(f"{name}: {start:.3g} → {end:.3g}" if last else f"{name}: {start:.3g}")
    epochs = f"From epoch 1 to {last + 1}" if last else "In epoch 1"
    return f"{epochs}, {'; '.join(ends)}."


def _element(svg: str, label: str) -> Markup:
    """A figure of matplotlib's as an element of the page, in the colour of the page's text."""
    document = minidom.parseString(svg.replace("#000000", "currentColor"))
    root = document.documentElement
    assert root is not None
    for tag in ("metadata", "style"):  # the page's style has what matters of matplotlib's
        for element in root.getElementsByTagName(tag):
            parent = element.parentNode
            assert parent is not None
            parent.removeChild(element)
    for group in root.getElementsByTagName("g"):
        if group.hasAttribute("id"):  # unused, and not unique on the page
            group.removeAttribute("id")
    root.setAttribute("role", "img")
    root.setAttribute("aria-label", label)
    return Markup(root.toxml())


@dataclass(frozen=True)
class Tile:
    """An image, as a data URI, and its caption."""

    image: str
    text: str


@dataclass(frozen=True)
class Tiles:
    """Images side by side, and what is to be seen."""

    tiles: list[Tile]
    seen: str


def misread(report: Report) -> Tiles | None:
    """The most confident errors of the first network; None without a network."""
    if not report.readings:
        return None
    reading = report.readings[0]
    predictions, classes = reading.scores.argmax(dim=1), reading.classes
    indices = most_confident_errors(reading.scores, reading.labels, MISREAD)
    images = reading.images[indices].numpy()
    tiles = [
        Tile(
            _png(255 - image if len(image) == 1 else image),
            f"{classes[reading.labels[i]]} as {classes[predictions[i]]}",
        )
        for i, image in zip(indices, images, strict=True)
    ]
    wrong = int((predictions != reading.labels).sum())
    start = f"Seed {reading.run.config.seed}: "
    if not wrong:
        return Tiles([], f"{start}none of {len(reading.labels)} is misread.")
    seen = f"{start}{wrong} of {len(reading.labels)} are misread"
    seen += f"; these {len(tiles)}, " if len(tiles) < wrong else ", "
    seen += "the largest lead of the predicted class over the right one first."
    return Tiles(tiles, seen)


def first_weights(report: Report) -> Tiles | None:
    """The weights of the first network's first layer; None where there are no such images."""
    if report.first is None or not isinstance(report.first[1], (Dense, Conv)):
        return None
    run, layer = report.first
    images = weight_images(layer, NEURONS)
    total = len(layer.values)
    kind = "neurons" if isinstance(layer, Dense) else "channels"
    which = f"The first {len(images)} of {total}" if total > len(images) else f"All {total}"
    positive = f"{100 * float((layer.values > 0).double().mean()):.1f} %"
    if layer.scale is None:
        largest = float(layer.weight.detach()[:NEURONS].abs().max())
        meaning = f"white is {largest:.3g}, grey 0, black −{largest:.3g}"
    else:
        alpha = float(layer.scale.detach().mean())
        one = f"white is +α, black −α, with α = {alpha:.3g}"
        several = f"bright is +α, dark −α, each with its own α, {alpha:.3g} in the mean"
        meaning = several if layer.scale.dim() else one
    seen = (
        f"{which} {kind} of layer 1, seed {run.config.seed}: {meaning}. "
        f"Of all the layer's weights {positive} are positive."
    )
    return Tiles([Tile(_png(image), str(i + 1)) for i, image in enumerate(images)], seen)


def weight_images(layer: Synapse, count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The incoming weights of the first neurons, or channels, of a layer above images.

    Returns:
        (neurons, C, H, W): grey for 0, white and black for the largest of either sign.
    """
    weight = layer.weight.detach()[:count]
    if isinstance(layer, Dense):
        weight = weight.view(-1, *layer.input_shape)
    levels = 127.5 + 127.5 * weight / weight.abs().max().clamp(min=1e-30)
    return levels.round().to(torch.uint8).numpy(force=True)


def _png(image: np.ndarray[Any, Any]) -> str:
    """A data URI of an image (C, H, W): three channels are colours, others stand side by side.

    Features are a row of pixels; floating point is drawn from its least to its largest value.
    """
    image = image if image.ndim == 3 else image.reshape(1, 1, -1)
    if image.dtype != np.uint8:
        span = max(float(image.max() - image.min()), 1e-30)
        image = (255 * ((image - image.min()) / span)).round().astype(np.uint8)
    if len(image) != 3:
        image = np.repeat(np.concatenate(image, axis=1)[None], 3, axis=0)
    content = io.BytesIO()
    imsave(content, image.transpose(1, 2, 0), format="png", metadata={"Software": ""})
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
