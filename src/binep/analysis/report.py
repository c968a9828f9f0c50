"""The page about one run, or about several that differ in their seeds: one complete HTML file.

Nothing is fetched when it is opened, and it holds no script.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined

from binep.analysis import claims, pictures
from binep.analysis.measurements import (
    Measured,
    epochs_of,
    errors_of,
    longest,
    mean_of,
    measured,
    spread,
)
from binep.analysis.readings import Report, confusion
from binep.analysis.tables import reference_of
from binep.data.sources import Files
from binep.experiment import plugins
from binep.experiment.config import Config, ConvLayer, Layer, Learning, preset
from binep.experiment.kinds import ESTIMATORS, NEURONS
from binep.export import packed
from binep.runs import headers

READOUTS = {
    "test_error": "test error (%)",
    "test_error_single": "single (%)",
    "test_error_bits": "bits (%)",
    "test_error_bits_single": "bits, single (%)",
    "valid_error": "validation error (%)",
    "train_error": "train error (%)",
}
"""Columns of metrics.csv in the table of results."""


def page(report: Report) -> str:
    """The report as HTML."""
    environment = Environment(
        loader=PackageLoader("binep.analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        report=report,
        config=report.config,
        toml=report.config.to_toml(),
        epochs=epochs_of(report.longest, _planned(report)),
        result=_result(report),
        seeds=", ".join(str(run.config.seed) for run in report.runs),
        results=_results(report),
        claims=_claims(report),
        source=claims.SOURCE,
        curves=pictures.curves(report) if report.is_logged else [],
        confusion=_confusion(report),
        misread=pictures.misread(report),
        weights=pictures.first_weights(report),
        speed=_speed(report) if report.is_logged else None,
        setting=_setting(report.config),
        layers=_layers(report.config),
        origins=_origins(report),
    )


def _planned(report: Report) -> Config:
    """The setting with as many epochs as it is meant to have."""
    return preset(report.preset) if report.preset else report.config


def _result(report: Report) -> str:
    """Test error (%) after the last epoch; without a log, of the networks as they are."""
    if report.is_logged:
        return errors_of(report.longest)
    return spread([reading.error for reading in report.readings])


NAMES = {"ep": "equilibrium propagation", "bptt": "BPTT"}
"""Estimators by their names in a configuration; one of a user's own is called by that."""

Table = tuple[list[str], list[list[str]]]
"""Column names, and rows; the first cell of each names the row."""


def _results(report: Report) -> Table:
    """Errors after the last epoch of each run, and their mean."""
    if not report.is_logged:
        tested = [
            [str(r.run.folder), str(r.run.config.seed), f"{r.error:.2f}"] for r in report.readings
        ]
        if len(tested) > 1:
            tested.append([f"mean ± SD, n = {len(tested)}", "", _result(report)])
        return ["file", "seed", "test error (%)"], tested
    columns = {c: label for c, label in READOUTS.items() if c in report.runs[0].metrics[0]}
    again = {reading.run.folder: f"{reading.error:.2f}" for reading in report.readings}
    head = ["run", "seed", "epochs", *columns.values(), *(["tested again (%)"] if again else [])]
    rows = []
    for run in report.runs:
        cells = [str(run.folder), str(run.config.seed), str(run.epochs)]
        cells += [_number(run.last(column)) for column in columns]
        rows.append(cells + ([again.get(run.folder, "")] if again else []))
    averaged = report.longest
    if len(averaged) > 1:
        cells = [f"mean ± SD, n = {len(averaged)}", "", str(averaged[0].epochs)]
        cells += [mean_of(averaged, column) for column in columns]
        rows.append(cells + ([""] if again else []))
    return head, rows


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


@dataclass(frozen=True)
class _Claims:
    """Claim, measurement and reference; how they compare; the first epochs."""

    rows: list[list[str]]
    sentence: str
    first_epochs: Table | None


def _claims(report: Report) -> _Claims | None:
    """What the paper claims of this row beside what was measured; None if it is no row."""
    row = report.row
    if row is None:
        return None
    found = report.longest
    if other := _other_data(report):
        rows = [["the paper's claim", row.claim], ["measured", f"not compared: {other}"]]
        return _Claims(rows, "", None)
    if not report.is_logged:
        rows = [["the paper's claim", row.claim], ["of this network", _result(report)]]
        return _Claims(rows, "A file does not say after how many epochs.", None)
    root = found[0].folder.resolve().parent.parent
    epochs = epochs_of(found, preset(row.preset))
    reference = reference_of(root, row, found)
    rows = [
        ["the paper's claim", row.claim],
        ["measured", f"{errors_of(found)} (n = {len(found)}, epochs: {epochs})"],
    ]
    if reference:
        rows.append([f"full-precision reference {row.reference or ''}".strip(), reference])
    return _Claims(rows, _difference(root, row, found), _first_epochs(report, row))


def _other_data(report: Report) -> str:
    """What a run was trained on, in words, where it recorded that and it was not all of the set."""
    for run in report.runs:
        file = run.folder / "model.safetensors" if run.metrics else packed.located(run.folder)
        about = headers.about(file)
        held = about.get("data", about.get("run", {}).get("data"))
        source = run.config.source()
        if isinstance(held, dict) and isinstance(source, Files) and not source.is_whole(held):
            sizes = f"{held['train']} + {held['test']} samples"
            return f"{run.folder} was trained on other data than {run.config.dataset}, {sizes}"
    return ""


def _difference(root: Path, row: claims.Row, found: Sequence[Measured]) -> str:
    """How far the mean test error is from the reference's, in a sentence."""
    if row.reference is None:
        return ""
    beside = longest(measured(root, row.reference))
    if not beside:
        return (
            f"The reference {row.reference} was not run beside it, so the claim is not tested here."
        )
    means = [mean(m.last("test_error") or 0.0 for m in some) for some in (found, beside)]
    text = f"The difference from the reference is {means[0] - means[1]:+.2f} points"
    planned = {row.preset: found, row.reference: beside}
    if any(some[0].epochs < preset(name).epochs for name, some in planned.items()):
        text += ", after fewer epochs than the tables', so the claim is not tested here"
    return f"{text}."


def _first_epochs(report: Report, row: claims.Row) -> Table | None:
    """Test errors beside those of the paper's own program; None where it was not run."""
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
class _Confusion:
    """Counts by label and prediction, the largest off the diagonal, whose they are, in words."""

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
    """How often each class was read as each, summed over the runs; None without a network."""
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
    """What the network is trained with, by name."""
    dynamics, learning = config.dynamics, config.learning
    several = learning.output_copies > 1
    cut = f", every epoch cut to {config.max_batches}" if config.max_batches else ""
    shown = [
        ("data set", config.dataset),
        ("epochs", str(config.epochs)),
        ("batches", f"{config.batch_size} samples{cut}"),
        ("synapses", "±α" if learning.synapses == "binary" else "real"),
        ("activation", dynamics.activation),
        *([] if dynamics.solver == "steps" else [("solver", dynamics.solver)]),
        ("free phase", f"at most T = {dynamics.free_steps} steps"),
        ("nudged phase", f"at most Kmax = {dynamics.nudged_steps} steps"),
        ("gradient", NAMES.get(learning.estimator, learning.estimator)),
        ("cost", learning.cost + (f", {learning.output_copies} neurons per class" * several)),
    ]
    nudge = {
        "beta": f"β = {learning.beta:g}",
        "nudging": learning.nudging,
        "nudge": f"{learning.nudge} ρ",
        "hold_nudge": f"of the {'free' if learning.hold_nudge else 'current'} output",
    }
    estimator, neurons = ESTIMATORS[learning.estimator], NEURONS[dynamics.activation]
    taken = estimator.takes | (neurons.takes if "beta" in estimator.takes else set())
    if words := ", ".join(text for name, text in nudge.items() if name in taken):
        shown.append(("nudge", words))
    return [*shown, *_decays(learning)]


def _decays(learning: Learning) -> list[tuple[str, str]]:
    """Rates of which the table of layers shows those of the first epochs."""
    rates = {
        "momentum γ": (learning.gamma_decay, learning.gamma_decay_epochs),
        "α rate": (learning.scale_lr_decay, learning.scale_lr_decay_epochs),
    }
    return [
        (name, f"divided by {by:g} every {f'{epochs} epochs' if epochs > 1 else 'epoch'}")
        for name, (by, epochs) in rates.items()
        if by != 1
    ]


def _layers(config: Config) -> Table:
    """Size and learning rates of each layer."""
    real = config.learning.synapses == "real"
    fires = "threshold" in NEURONS[config.dynamics.activation].takes
    readout = list(config.layers)[-1] if config.has_readout else None
    head = ["layer", "kind", "size", *(["fires from"] if fires else []), "bias rate"]
    head += ["weight rate"] if real else ["momentum γ", "threshold τ", "α rate"]
    rows = []
    for number, layer in config.layers.items():
        cells = [number, _kind(layer), str(layer.size)]
        if fires:
            own, shared = layer.firing_threshold, config.dynamics.firing_threshold
            cells.append("" if number == readout else f"{shared if own is None else own:g}")
        cells.append(f"{layer.bias_lr:g}")
        if real:
            rate = layer.bias_lr if layer.weight_lr is None else layer.weight_lr
            cells.append(f"{rate:g}")
        else:
            cells += [f"{layer.gamma:g}", f"{layer.threshold:g}", f"{layer.scale_lr:g}"]
        rows.append(cells)
    return head, rows


def _kind(layer: Layer) -> str:
    if not isinstance(layer, ConvLayer):
        return layer.kind
    return f"conv {layer.kernel}×{layer.kernel}, {layer.pooling} pool {layer.pool}"


Facts = list[tuple[str, str]]
"""Names and values."""


@dataclass(frozen=True)
class _Origin:
    """What one run ran on, and the commands that train and test it again, where there are such."""

    folder: str
    facts: Facts
    train: str
    evaluate: str


def _origins(report: Report) -> tuple[Facts, list[_Origin]]:
    """Facts that all runs share, and the other facts of each with the commands that repeat it."""
    facts = [_facts(run) for run in report.runs]
    shared = [f for f in facts[0] if len(facts) > 1 and all(f in others for others in facts)]
    origins = []
    for run, own in zip(report.runs, facts, strict=True):
        folder = shlex.quote(str(run.folder)) + plugins.flags(run.config.plugins)
        train = f"binep train --config {folder}" if run.metrics else ""
        tested = not run.metrics or (run.folder / "model.safetensors").exists()
        own = [fact for fact in own if fact not in shared]
        evaluate = f"binep evaluate {folder}" if tested else ""
        origins.append(_Origin(str(run.folder), own, train, evaluate))
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
