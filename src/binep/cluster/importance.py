"""How much each setting of a sweep matters, and its trials as lines over all settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from binep.cluster.space import RANGES, Setting
from binep.cluster.sweeps import Group
from binep.runs.files import RunError

FEWEST = 4
"""From so many trials, or groups of them, on there are importances."""


def importance(groups: Sequence[Group], settings: Sequence[Setting]) -> dict[str, float]:
    """The share of each setting in what the error depends on, the largest first.

    Optuna's PED-ANOVA: how far the values of the better half are from those of all. Settings are
    not compared with how they interact, and trials that were ended early count with the error that
    they had then. A trial without a setting does not count for it. Empty of fewer than `FEWEST`
    draws, or where all errors are equal.

    Raises:
        RunError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise RunError("Optuna is not installed: pip install 'binep[sweep]'") from None
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    errors = [trial.error for group in groups for trial in group.trials]
    if len(groups) < FEWEST or len(set(errors)) < 2:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="minimize")
    for group in groups:
        for trial in group.trials:
            has = [s for s in settings if s.of(trial.config) is not None]
            study.add_trial(
                optuna.trial.create_trial(
                    params={s.name: s.of(trial.config) for s in has},
                    distributions={s.name: s.distribution() for s in has},
                    value=trial.error,
                )
            )
    evaluator = PedAnovaImportanceEvaluator(target_quantile=0.5)
    return dict(get_param_importances(study, evaluator=evaluator))


def parallel(groups: Sequence[Group], settings: Sequence[Setting], epochs: int) -> Figure:
    """A line for each trial through the values of its settings, coloured by its error.

    Args:
        groups: the best first, whose lines are wide and drawn last.
        settings: an axis each, from one end of its range to the other.
        epochs: trials that have ended fewer are dashed.
    """
    trials = [trial for group in groups[::-1] for trial in group.trials[::-1]]
    errors = [trial.error or 0.0 for trial in trials]
    log = min(errors) > 0 and max(errors) > 5 * min(errors)
    low, high = min(errors), max(max(errors), min(errors) + 1e-9)
    axes_of = [_axis(setting, [setting.of(t.config) for t in trials]) for setting in settings]
    axes_of.append(_Axis.between("valid error (%)", errors, low, high, log))
    shade = (LogNorm if log else Normalize)(low, high)
    figure = Figure(figsize=(max(6.0, 1.7 * len(axes_of)), 4.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    for i, trial in enumerate(trials):
        best, whole = trial in groups[0].trials, trial.epochs >= epochs
        axes.plot(
            range(len(axes_of)),
            [axis.heights[i] for axis in axes_of],
            color=colormaps["viridis"](0.9 * shade(errors[i])),  # its yellow end is too pale
            linewidth=2.6 if best else 1.1,
            linestyle="-" if whole else "--",
            alpha=1.0 if best or whole else 0.6,
        )
    for x, axis in enumerate(axes_of):
        _draw(axes, x, axis)
    axes.set_xticks(range(len(axes_of)), [_broken(axis.name) for axis in axes_of], fontsize=9)
    axes.set_xlim(-0.45, len(axes_of) - 0.9)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.suptitle(
        f"{len(trials)} trials, the best wide; dashed: ended before epoch {epochs}", fontsize=10
    )
    return figure


@dataclass(frozen=True)
class _Axis:
    """Values as heights from 0 to 1, and ticks: heights and what stands there."""

    name: str
    heights: list[float]
    ticks: list[tuple[float, str]]

    @classmethod
    def between(
        cls, name: str, values: Sequence[float], low: float, high: float, log: bool
    ) -> _Axis:
        """Of numbers in a range."""
        ends, scaled = np.array([low, high], float), np.array(values, float)
        if log:
            ends, scaled = np.log10(ends), np.log10(scaled)
        marks = np.linspace(0, 1, 5)
        at = ends[0] + marks * (ends[1] - ends[0])
        texts = [f"{value:.3g}" for value in (10**at if log else at)]
        heights = ((scaled - ends[0]) / (ends[1] - ends[0])).tolist()
        return cls(name, heights, list(zip(marks.tolist(), texts, strict=True)))


def _axis(setting: Setting, values: Sequence[Any]) -> _Axis:
    """The axis of a setting: its range, or its values at equal distances.

    Below it is where lines of trials pass that do not have the setting.
    """
    if None in values:
        axis = _axis(setting, [value for value in values if value is not None])
        heights = iter(axis.heights)
        places = [-0.1 if value is None else next(heights) for value in values]
        return _Axis(axis.name, places, [*axis.ticks, (-0.1, "none")])
    if setting.kind in RANGES:
        low, high = setting.values
        return _Axis.between(setting.name, values, low, high, setting.log)
    steps = np.linspace(0, 1, len(setting.values)) if len(setting.values) > 1 else [0.5]
    at = {value: float(step) for value, step in zip(setting.values, steps, strict=True)}
    ticks = [(height, str(value)) for value, height in at.items()]
    return _Axis(setting.name, [at[value] for value in values], ticks)


def _draw(axes: Axes, x: int, axis: _Axis) -> None:
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


def _broken(name: str) -> str:
    """A name in two lines where it is of a table."""
    return "\n".join(name.rsplit(".", 1))
