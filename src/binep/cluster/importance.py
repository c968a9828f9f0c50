"""How much each setting of a sweep matters, and its trials as lines over all settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from binep.cluster.space import Setting
from binep.cluster.sweeps import Group

FEWEST = 4
"""Trials, or groups of them, of which an importance is told."""


def importance(groups: Sequence[Group], settings: Sequence[Setting]) -> dict[str, float]:
    """The share of each setting in what the error depends on, the largest first.

    Optuna's PED-ANOVA: how far the values of the better half are from those of all. Settings are
    not compared with how they interact, and trials that were ended early count with the error that
    they had then. Empty of fewer than `FEWEST` draws, or where all errors are equal.
    """
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    errors = [trial.error for group in groups for trial in group.trials]
    if len(groups) < FEWEST or len(set(errors)) < 2:
        return {}
    study = optuna.create_study(direction="minimize")
    for group in groups:
        for trial in group.trials:
            study.add_trial(
                optuna.trial.create_trial(
                    params={s.name: s.of(trial.config) for s in settings},
                    distributions={s.name: s.distribution() for s in settings},
                    value=trial.error,
                )
            )
    evaluator = PedAnovaImportanceEvaluator(target_quantile=0.5)
    return dict(get_param_importances(study, evaluator=evaluator))


def parallel(groups: Sequence[Group], settings: Sequence[Setting], epochs: int) -> Figure:
    """A line for each trial through the values of its settings, coloured by its error.

    Args:
        groups: the best first, which is drawn last and wide.
        settings: an axis each.
        epochs: trials that have ended so many are drawn in full, others faintly.
    """
    trials = [trial for group in groups[::-1] for trial in group.trials[::-1]]
    errors = [trial.error or 0.0 for trial in trials]
    axes_of = [_Axis(s.name, [s.of(t.config) for t in trials], s.log) for s in settings]
    log = min(errors) > 0 and max(errors) > 5 * min(errors)
    axes_of.append(_Axis("valid error (%)", errors, log))
    norm = (LogNorm if log else Normalize)(min(errors), max(max(errors), min(errors) + 1e-9))
    figure = Figure(figsize=(max(6.0, 1.7 * len(axes_of)), 4.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    best = len(trials) - 1
    for i, trial in enumerate(trials):
        heights = [axis.heights[i] for axis in axes_of]
        axes.plot(
            range(len(axes_of)),
            heights,
            color=colormaps["viridis"](norm(errors[i])),
            linewidth=2.6 if i == best else 1.1,
            alpha=1.0 if i == best or trial.epochs >= epochs else 0.35,
            linestyle="-" if trial.epochs >= epochs else "--",
        )
    for x, axis in enumerate(axes_of):
        axes.axvline(x, color="black", linewidth=0.8)
        for height, text in axis.ticks:
            axes.annotate(
                text,
                (x, height),
                xytext=(-4, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6},
            )
    axes.set_xticks(range(len(axes_of)), [_broken(axis.name) for axis in axes_of], fontsize=9)
    axes.set_xlim(-0.45, len(axes_of) - 0.9)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.suptitle(
        f"{len(trials)} trials, the best wide; dashed: ended before epoch {epochs}", fontsize=10
    )
    return figure


def _broken(name: str) -> str:
    """A name in two lines where it is of a table."""
    return "\n".join(name.rsplit(".", 1))


class _Axis:
    """Values of a setting, or of the error, as heights from 0 to 1, with ticks."""

    def __init__(self, name: str, values: Sequence[Any], log: bool) -> None:
        self.name = name
        self.ticks: list[tuple[float, str]]
        self.heights: list[float]
        numbers = all(type(value) in (int, float) for value in values)
        different = sorted(set(values)) if numbers else list(dict.fromkeys(sorted(values, key=str)))
        if not numbers or len(different) <= 4:
            span = max(1, len(different) - 1)
            at = {
                value: i / span if len(different) > 1 else 0.5 for i, value in enumerate(different)
            }
            self.heights = [at[value] for value in values]
            self.ticks = [(height, _text(value)) for value, height in at.items()]
            return
        scaled = np.log10(values) if log else np.array(values, float)
        low, high = float(scaled.min()), float(scaled.max())
        self.heights = ((scaled - low) / (high - low)).tolist()
        marks = np.linspace(low, high, 5)
        self.ticks = [
            (float((mark - low) / (high - low)), _text(float(10**mark if log else mark)))
            for mark in marks
        ]


def _text(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.3g}"
    return str(value)
