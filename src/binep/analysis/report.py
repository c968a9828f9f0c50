"""A page about one run, or about several that differ in their seeds: one HTML file, complete.

`gather` reads logs and networks, `page` draws them. Nothing is fetched when the page is opened.
"""

from __future__ import annotations

import base64
import io
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import matplotlib
import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.image import imsave
from torch import Tensor

from binep.analysis import claims
from binep.analysis import tables as reproduce
from binep.analysis.tables import Measured
from binep.core.neurons import Binary
from binep.core.synapses import Dense, Synapse
from binep.data.sources import DataError
from binep.experiment.config import Config, Layer, preset, preset_names
from binep.experiment.experiment import build_neurons, initial_network
from binep.runs import curves as plots
from binep.runs import folder as runs
from binep.runs.checkpoints import load_network
from binep.runs.metrics import Row, read_alike
from binep.runs.settings import comparable

MISREAD = 24
"""Misread images on a page."""
NEURONS = 36
"""Neurons, or channels, whose weights are on a page."""

READOUTS = {
    "test_error": "test error (%)",
    "test_error_single": "single (%)",
    "test_error_bits": "bits (%)",
    "test_error_bits_single": "bits, single (%)",
    "train_error": "train error (%)",
}
"""Columns of metrics.csv in the table of results."""

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


# What there is to show ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """What the network of a run says of its test set.

    Attributes:
        run: whose network.
        scores: a score per class, (samples, classes); the prediction is its argmax.
        labels: (samples,).
        images: of the test set, at least (samples, C, H, W), bytes.
        classes: their names.
        samples: training samples in an epoch.
    """

    run: Measured
    scores: Tensor
    labels: Tensor
    images: Tensor
    classes: tuple[str, ...]
    samples: int

    @property
    def error(self) -> float:
        """Share misread, in percent."""
        return 100 * float((self.scores.argmax(dim=1) != self.labels).double().mean())


@dataclass(frozen=True)
class Report:
    """All that a page shows.

    Attributes:
        runs: the runs, of one setting.
        preset: the name of that setting, if it has one.
        readings: of the runs whose network and data set are at hand.
        first: the first layer of the first network at hand, and whose it is.
        missing: what could not be shown, and why.
    """

    runs: list[Measured]
    preset: str | None
    readings: list[Reading]
    first: tuple[Measured, Synapse] | None
    missing: list[str]

    @property
    def config(self) -> Config:
        """Of the first run; the others differ in seed, machine and length only."""
        return self.runs[0].config

    @property
    def row(self) -> claims.Row | None:
        """The row of the paper's tables that was run."""
        return claims.rows().get(self.preset or "")


def gather(folders: Sequence[Path], **overrides: Any) -> Report:
    """Read runs and test their networks.

    A run without its network, or whose data set is not at hand, is shown from its log alone.

    Args:
        folders: run folders.
        overrides: settings of `Config` to replace for testing, such as device.

    Raises:
        ConfigError: runs of several settings, or a setting that cannot be.
        RunError: a file is missing or damaged.
    """
    read_alike(folders)
    found = [reproduce.read(folder) for folder in folders]
    missing: list[str] = []
    readings: list[Reading] = []
    first = None
    for run in found:
        model = run.folder / "model.safetensors"
        if not model.exists():
            missing.append(f"{run.folder} holds no model.safetensors: only its log is shown")
            continue
        if first is None:
            first = run, _first_layer(run.config, model)
        try:
            experiment = runs.load(run.folder, **overrides)
        except DataError as error:
            missing.append(f"{run.folder} could not be tested again: {error}")
            continue
        scores, labels = (tensor.cpu() for tensor in experiment.class_scores())
        images, classes = experiment.data.test.images.cpu(), experiment.data.classes
        samples = experiment.samples_per_epoch
        readings.append(Reading(run, scores, labels, images, classes, samples))
    if len({run.config.seed for run in found}) < len(found):
        missing.append("some runs share a seed: deviations are not those of as many seeds")
    return Report(found, _preset_of(found[0].config), readings, first, missing)


def _first_layer(config: Config, model: Path) -> Synapse:
    """Needs no data set, unlike an experiment."""
    network = initial_network(config)
    load_network(network, model)
    return network.synapses[0]


def _preset_of(config: Config) -> str | None:
    setting = comparable(config)
    return next((n for n in preset_names() if comparable(preset(n)) == setting), None)


def confusion(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """How often each class was read as each: (labels, predictions), counts."""
    pairs = labels * classes + predictions
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def most_confident_errors(scores: Tensor, labels: Tensor, count: int) -> list[int]:
    """Samples whose predicted class outscores their own by most, the worst first.

    Args:
        scores: (samples, classes).
        labels: (samples,).
        count: at most so many.
    """
    margins = scores.amax(dim=1) - scores.gather(1, labels[:, None])[:, 0]
    wrong = (scores.argmax(dim=1) != labels).nonzero()[:, 0]
    order = margins[wrong].argsort(descending=True, stable=True)
    return [int(i) for i in wrong[order[:count]]]


def weight_images(layer: Synapse, count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The incoming weights of the first neurons, or channels, of a layer above images.

    Returns:
        (neurons, C, H, W): grey for 0, white and black for the largest of either sign.
    """
    weight = layer.weight.detach()[:count]
    if isinstance(layer, Dense):
        weight = weight.view(-1, *layer.input_shape)
    levels = 127.5 + 127.5 * weight / weight.abs().max().clamp(min=1e-30)
    return levels.round().to(torch.uint8).numpy()


# The page ----------------------------------------------------------------------------------------


def page(report: Report) -> str:
    """The report as HTML."""
    environment = Environment(
        loader=PackageLoader("binep.analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    longest = reproduce.longest(report.runs)
    return environment.get_template("report.html").render(
        report=report,
        config=report.config,
        toml=report.config.to_toml(),
        row=report.row,
        longest=longest,
        epochs=reproduce.epochs_of(longest, _planned(report)),
        result=reproduce.errors_of(longest),
        seeds=", ".join(str(run.config.seed) for run in report.runs),
        results=_results(report),
        claims=_claims(report),
        source=claims.SOURCE,
        curves=_curves(report),
        confusion=_confusion(report),
        misread=_misread(report),
        weights=_weights(report),
        speed=_speed(report),
        setting=_setting(report.config),
        layers=_layers(report.config),
        origins=_origins(report),
    )


def _planned(report: Report) -> Config:
    """The setting with as many epochs as it is meant to have."""
    return preset(report.preset) if report.preset else report.config


Table = tuple[list[str], list[list[str]]]
"""A heading, and rows; the first cell of each names it."""


def _results(report: Report) -> Table:
    columns = {c: label for c, label in READOUTS.items() if c in report.runs[0].metrics[0]}
    again = {reading.run.folder: f"{reading.error:.2f}" for reading in report.readings}
    head = ["run", "seed", "epochs", *columns.values(), *(["tested again (%)"] if again else [])]
    rows = []
    for run in report.runs:
        cells = [str(run.folder), str(run.config.seed), str(run.epochs)]
        cells += [_number(run.last(column)) for column in columns]
        rows.append(cells + ([again.get(run.folder, "")] if again else []))
    longest = reproduce.longest(report.runs)
    if len(longest) > 1:
        cells = [f"mean ± SD, n = {len(longest)}", "", str(longest[0].epochs)]
        cells += [reproduce.mean_of(longest, column) for column in columns]
        rows.append(cells + ([""] if again else []))
    return head, rows


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


@dataclass(frozen=True)
class _Claims:
    rows: list[list[str]]
    sentence: str
    first_epochs: Table | None


def _claims(report: Report) -> _Claims | None:
    """What the paper claims of this row beside what was measured; None if it is no row."""
    row = report.row
    if row is None:
        return None
    longest = reproduce.longest(report.runs)
    root = longest[0].folder.resolve().parent.parent
    epochs = reproduce.epochs_of(longest, preset(row.preset))
    reference = reproduce.reference_of(root, row, longest)
    measured = f"{reproduce.errors_of(longest)} (n = {len(longest)}, epochs: {epochs})"
    rows = [["the paper's claim", row.claim], ["measured", measured]]
    if reference:
        rows.append([f"full-precision reference {row.reference or ''}".strip(), reference])
    return _Claims(rows, _difference(root, row, longest), _first_epochs(report, row))


def _difference(root: Path, row: claims.Row, longest: Sequence[Measured]) -> str:
    if row.reference is None:
        return ""
    beside = reproduce.longest(reproduce.measured(root, row.reference))
    if not beside:
        return (
            f"The reference {row.reference} was not run beside it, so the claim is not tested here."
        )
    means = [mean(m.last("test_error") or 0.0 for m in some) for some in (longest, beside)]
    text = f"The difference from the reference is {means[0] - means[1]:+.2f} points"
    planned = {row.preset: longest, row.reference: beside}
    if any(found[0].epochs < preset(name).epochs for name, found in planned.items()):
        text += ", after fewer epochs than the tables', so the claim is not tested here"
    return f"{text}."


def _first_epochs(report: Report, row: claims.Row) -> Table | None:
    if not row.original_errors:
        return None
    count = len(row.original_errors)
    head = ["test error (%) after epoch", *(str(i + 1) for i in range(count))]
    rows = []
    for run in report.runs:
        errors = [_number(metrics["test_error"]) for metrics in run.metrics[:count]]
        rows.append([f"binep, seed {run.config.seed}", *errors, *[""] * (count - len(errors))])
    rows.append(
        ["the paper's own program, seed 0", *(f"{error:.2f}" for error in row.original_errors)]
    )
    return head, rows


@dataclass(frozen=True)
class _Curve:
    title: str
    svg: Markup
    meaning: str
    seen: str


def _curves(report: Report) -> list[_Curve]:
    """The panels that have values."""
    metrics = [run.metrics for run in report.runs]
    drawn = []
    for panel in plots.panels(list(metrics[0][0])):
        columns = [c for c in panel.columns.values() if metrics[0][0].get(c) is not None]
        if not columns:
            continue
        title = f"{panel.label} against the epoch"
        # The document's own colours: black becomes that of its text, white is left out.
        with matplotlib.rc_context(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": panel.quantity,
                "figure.facecolor": "none",
                "axes.facecolor": "none",
                "legend.frameon": False,
                "font.size": 9,
            }
        ):
            content = plots.rendered(plots.curve(metrics, panel), "svg").decode()
        dynamics = report.config.dynamics
        moved = f"moved a state by more than {dynamics.settle_tol:g}"
        meaning = MEANINGS[panel.quantity].format(
            free_steps=dynamics.free_steps,
            moved="changed a bit" if dynamics.activation == "heaviside" else moved,
        )
        svg = _inline(content, panel.quantity, title)
        drawn.append(_Curve(title, svg, meaning, _seen(metrics, panel)))
    return drawn


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


def _inline(svg: str, name: str, title: str) -> Markup:
    """A figure of matplotlib's as an element of the page, with ids that no other figure has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#{name}-", svg)
    svg = re.sub(r"#000000\b", "currentColor", svg)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    head = f'<svg role="img" aria-label="{Markup.escape(title)}" {box[0]}>'
    return Markup(head + svg[svg.index(">") + 1 :])


@dataclass(frozen=True)
class _Confusion:
    classes: tuple[str, ...]
    counts: list[list[int]]
    largest: int
    whose: str
    seen: str

    def errors(self, label: int) -> str:
        """Share of a class that was misread."""
        total = sum(self.counts[label])
        return f"{100 * (total - self.counts[label][label]) / total:.1f}" if total else ""


def _confusion(report: Report) -> _Confusion | None:
    if not report.readings:
        return None
    classes = report.readings[0].classes
    tables = [
        confusion(reading.labels, reading.scores.argmax(dim=1), len(classes))
        for reading in report.readings
    ]
    counts = torch.stack(tables).sum(dim=0)
    errors = counts - counts.diag().diag()
    whose = "Sum over seeds" if len(tables) > 1 else "Seed"
    whose += " " + ", ".join(str(reading.run.config.seed) for reading in report.readings)
    worst = errors.flatten().argsort(descending=True, stable=True)[:3]
    pairs = [divmod(int(i), len(classes)) for i in worst if errors.flatten()[i] > 0]
    named = [f"{classes[a]} as {classes[b]} ({int(errors[a, b])} times)" for a, b in pairs]
    seen = f"Most often misread: {', '.join(named)}." if named else "None was misread."
    return _Confusion(classes, counts.tolist(), int(errors.max()), whose, seen)


@dataclass(frozen=True)
class _Tile:
    image: str
    text: str


@dataclass(frozen=True)
class _Tiles:
    tiles: list[_Tile]
    seen: str


def _misread(report: Report) -> _Tiles | None:
    if not report.readings:
        return None
    reading = report.readings[0]
    predictions, classes = reading.scores.argmax(dim=1), reading.classes
    indices = most_confident_errors(reading.scores, reading.labels, MISREAD)
    images = reading.images[indices].numpy()
    tiles = [
        _Tile(
            _png(255 - image if len(image) == 1 else image),
            f"{classes[reading.labels[i]]} as {classes[predictions[i]]}",
        )
        for i, image in zip(indices, images, strict=True)
    ]
    wrong = int((predictions != reading.labels).sum())
    seen = f"Seed {reading.run.config.seed}: {wrong} of {len(reading.labels)} are misread"
    if len(tiles) < wrong:
        seen += f"; these {len(tiles)}"
    seen += " with the largest lead of the predicted class over the right one first."
    return _Tiles(tiles, seen)


def _weights(report: Report) -> _Tiles | None:
    if report.first is None:
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
    return _Tiles([_Tile(_png(image), str(i + 1)) for i, image in enumerate(images)], seen)


def _png(image: np.ndarray[Any, np.dtype[np.uint8]]) -> str:
    """A data URI of an image (C, H, W): three channels are colours, others stand side by side."""
    if len(image) != 3:
        image = np.repeat(np.concatenate(image, axis=1)[None], 3, axis=0)
    content = io.BytesIO()
    imsave(content, image.transpose(1, 2, 0), format="png", metadata={"Software": ""})
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _speed(report: Report) -> Table:
    """Medians over the epochs, since the first may include compiling."""
    samples = {reading.run.folder: reading.samples for reading in report.readings}
    head = ["seed", "samples/s", "training (s per epoch)", "test (s)", "whole run (s)", "machine"]
    rows = []
    for run in report.runs:
        train, test = (
            median(row.get(f"{part}_seconds") or 0.0 for row in run.metrics)
            for part in ("train", "test")
        )
        known = run.folder in samples and train > 0
        rate = f"{samples[run.folder] / train:.0f}" if known else "not known"
        cells = [str(run.config.seed), rate, f"{train:.3g}", f"{test:.3g}", f"{run.seconds:.0f}"]
        rows.append([*cells, run.machine])
    return head, rows


def _setting(config: Config) -> list[tuple[str, str]]:
    dynamics, learning = config.dynamics, config.learning
    several = learning.output_copies > 1
    cut = f", every epoch cut to {config.max_batches}" if config.max_batches else ""
    shown = [
        ("data set", config.dataset),
        ("epochs", str(config.epochs)),
        ("batches", f"{config.batch_size} samples{cut}"),
        ("synapses", "±α" if learning.synapses == "binary" else "real"),
        ("activation", dynamics.activation),
        ("free phase", f"at most T = {dynamics.free_steps} steps"),
        ("nudged phase", f"at most Kmax = {dynamics.nudged_steps} steps"),
        ("gradient", "equilibrium propagation" if learning.estimator == "ep" else "BPTT"),
        ("cost", learning.cost + (f", {learning.output_copies} neurons per class" * several)),
    ]
    if learning.estimator == "ep":
        where = f"{learning.nudge} ρ"
        if dynamics.activation == "heaviside":
            where = f"of the {'free' if learning.hold_nudge else 'current'} output"
        shown.append(("nudge", f"β = {learning.beta:g}, {learning.nudging}, {where}"))
    return shown


def _layers(config: Config) -> Table:
    real = config.learning.synapses == "real"
    bits = config.dynamics.activation == "heaviside"
    readout = list(config.layers)[-1] if config.learning.cost == "cross-entropy" else None
    head = ["layer", "kind", "size", *(["fires from"] if bits else []), "bias rate"]
    head += ["weight rate"] if real else ["momentum γ", "threshold τ", "α rate"]
    rows = []
    for number, layer in config.layers.items():
        cells = [number, _kind(layer), str(layer.size)]
        neurons = build_neurons(config, layer)
        if isinstance(neurons, Binary):
            cells.append("" if number == readout else f"{neurons.threshold:g}")
        cells.append(f"{layer.bias_lr:g}")
        if real:
            rate = layer.bias_lr if layer.weight_lr is None else layer.weight_lr
            cells.append(f"{rate:g}")
        else:
            cells += [f"{layer.gamma:g}", f"{layer.threshold:g}", f"{layer.scale_lr:g}"]
        rows.append(cells)
    return head, rows


def _kind(layer: Layer) -> str:
    if layer.kind == "dense":
        return "dense"
    return f"conv {layer.kernel}×{layer.kernel}, {layer.pooling} pool {layer.pool}"


Facts = list[tuple[str, str]]
"""Names and values."""


@dataclass(frozen=True)
class _Origin:
    folder: str
    facts: Facts
    again: list[str]


def _origins(report: Report) -> tuple[Facts, list[_Origin]]:
    """What all runs ran on; and of each what else it did, and the commands that repeat it."""
    facts = [_facts(run) for run in report.runs]
    shared = [f for f in facts[0] if len(facts) > 1 and all(f in others for others in facts)]
    origins = []
    for run, own in zip(report.runs, facts, strict=True):
        folder = shlex.quote(str(run.folder))
        again = [f"binep train --config {folder}"]
        if (run.folder / "model.safetensors").exists():
            again.append(f"binep evaluate {folder}")
        own = [fact for fact in own if fact not in shared]
        origins.append(_Origin(str(run.folder), own, again))
    return shared, origins


def _facts(run: Measured) -> Facts:
    about = run.about
    named = {
        "command": shlex.join(str(word) for word in about.get("command", [])),
        "started": about.get("started"),
        "versions": ", ".join(f"{k} {v}" for k, v in about.get("versions", {}).items()),
        "Python": about.get("python"),
        "git revision": about.get("git_revision"),
        "platform": about.get("platform"),
        "machine": run.machine,
    }
    return [(name, str(fact)) for name, fact in named.items() if fact]
