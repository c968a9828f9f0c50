"""Runs side by side: what differs between their settings, and what came of it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from binep.experiment.config import Config, ConfigError, did_you_mean, differing
from binep.experiment.toml import plain
from binep.runs.metrics import Row, read_metrics
from binep.runs.settings import read_config

if TYPE_CHECKING:
    from matplotlib.figure import Figure

APART = ("title", "data_dir", "warn_flip_rate", "checkpoint_minutes")
"""Settings that no result depends on."""


@dataclass(frozen=True)
class Group:
    """Runs of equal settings, or a single run.

    Attributes:
        folders: of the runs.
        settings: those that differ between groups, by their dotted names; None where there is none.
        last: the last row of metrics.csv of each run.
    """

    folders: tuple[Path, ...]
    settings: dict[str, Any]
    last: list[Row]

    def values(self, column: str) -> list[float]:
        """A result of each run."""
        found = [row.get(column) for row in self.last]
        return [value for value in found if value is not None]


def groups(folders: Sequence[Path], by: str | None = None, each: bool = False) -> list[Group]:
    """Runs of equal settings and as many epochs together, those of the lowest result first.

    Args:
        folders: run folders.
        by: the column of metrics.csv to sort by; `judged_by` if None.
        each: whether every run is a group of its own, and its seed a setting.

    Raises:
        RunError, ConfigError: a folder is no run folder, has no such column, or cannot be read.
    """
    configs = [_compared(read_config(folder), each) for folder in folders]
    last = [read_metrics(folder / "metrics.csv")[-1] for folder in folders]
    names = list(dict.fromkeys(n for config in configs for n in differing(configs[0], config)))
    together: dict[Any, list[int]] = {}
    for i, config in enumerate(configs):
        key = i if each else (config.to_toml(), last[i]["epoch"])
        together.setdefault(key, []).append(i)
    found = [
        Group(
            tuple(folders[i] for i in chosen),
            {name: _setting(configs[chosen[0]], name) for name in names},
            [last[i] for i in chosen],
        )
        for chosen in together.values()
    ]
    by = by or judged_by(found)
    for folder, row in zip(folders, last, strict=True):
        if row.get(by) is None:
            hint = did_you_mean(by, row)
            raise ConfigError(f"--by {by}: {folder / 'metrics.csv'} has no such column{hint}")
    return sorted(found, key=lambda group: mean(group.values(by)))


def _compared(config: Config, each: bool) -> Config:
    usual = Config()
    apart = APART if each else (*APART, "seed")
    return config.replace(**{name: getattr(usual, name) for name in apart})


def _setting(config: Config, name: str) -> Any:
    value, rest = plain(config), name
    while rest and isinstance(value, Mapping):
        key = rest if rest in value else rest.partition(".")[0]  # as parts.py, a plug-in's
        value, rest = value.get(key), rest[len(key) + 1 :]
    return None if rest else value


def table(found: Sequence[Group], columns: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: settings that differ, results with their deviation, and the folders."""
    names = list(found[0].settings)
    several = any(len(group.folders) > 1 for group in found)
    head = [*names, *(["runs"] if several else []), *columns, "folders" if several else "folder"]
    rows = []
    for group in found:
        cells = [_text(value) for value in group.settings.values()]
        cells += [str(len(group.folders))] if several else []
        cells += [_spread(group.values(column)) for column in columns]
        rows.append([*cells, " ".join(map(str, group.folders))])
    return head, rows


def results(found: Sequence[Group]) -> list[str]:
    """The columns of metrics.csv that say how a run ended, as far as all runs have them."""
    wanted = ("epoch", "train_error", "valid_error", "test_error")
    return [
        name
        for name in wanted
        if all(len(group.values(name)) == len(group.last) for group in found)
    ]


def judged_by(found: Sequence[Group]) -> str:
    """The result that says which settings are best: on the validation set, if all runs had one."""
    return "valid_error" if "valid_error" in results(found) else "test_error"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, Mapping):  # a layer that other runs do not have
        return f"{value['kind']}, {value['size']}" if "kind" in value else str(value)
    text = "" if value is None else str(value)
    return text[:8] if re.fullmatch("[0-9a-f]{64}", text) else text  # a digest


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    deviation = f" ± {stdev(values):.2g}" if len(set(values)) > 1 else ""
    return f"{mean(values):.4g}{deviation}"


def as_csv(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as the text of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    return text.getvalue()


def as_markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |\n" for line in lines
    )


def figure(found: Sequence[Group], setting: str, result: str) -> Figure:
    """A result over a setting: a point for each run, a line through the means.

    Raises:
        ConfigError: a setting that does not differ.
    """
    import matplotlib.figure
    from matplotlib.ticker import NullLocator

    names = found[0].settings
    ends = [name for name in names if name.rpartition(".")[2] == setting]  # as its flag is called
    setting = ends[0] if len(ends) == 1 else setting
    if setting not in names:
        hint = did_you_mean(setting, names)
        raise ConfigError(f"--plot {setting}: must differ between the runs{hint}; {_those(names)}")
    points: dict[Any, list[float]] = {}
    for group in found:
        value = group.settings[setting]
        key = _text(value) if isinstance(value, list | Mapping) else value
        points.setdefault(key, []).extend(group.values(result))
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in points)
    order = sorted(points) if numbers else list(points)
    places = order if numbers else list(range(len(order)))
    drawn = matplotlib.figure.Figure(figsize=(5.5, 3.6), dpi=150, layout="constrained")
    axes = drawn.subplots()
    for place, name in zip(places, order, strict=True):
        axes.plot([place] * len(points[name]), points[name], "o", color="#0072B2", alpha=0.5)
    axes.plot(places, [mean(points[name]) for name in order], "-", color="#0072B2")
    if not numbers:
        axes.set_xticks(places, [_text(name) for name in order])
    elif order[0] > 0 and order[-1] >= 10 * order[0]:
        axes.set_xscale("log")
    if numbers and len(order) <= 8:
        axes.set_xticks(order, [_text(x) for x in order])
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(setting)
    axes.set_ylabel(result.replace("_", " ") + (" (%)" if "error" in result else ""))
    axes.grid(alpha=0.3)
    return drawn


def _those(names: Mapping[str, Any]) -> str:
    return f"these do: {', '.join(names)}" if names else "nothing does"
