"""Whatever a log holds can be drawn."""

from __future__ import annotations

import gc
import io
import weakref
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from matplotlib.figure import Figure

from binep.experiment.config import Config, Layer
from binep.experiment.experiment import Experiment
from binep.runs import curves, folder
from binep.runs.files import RunError
from binep.runs.metrics import Row


@pytest.mark.parametrize("value", [0.0, float("inf")])
def test_any_row_can_be_drawn(value: float) -> None:
    """Such as epochs without a flip, which a logarithmic axis cannot show."""
    panels = curves.panels(["layer1_flips"])
    names = ["layer1_flips", *(column for panel in panels for column in panel.columns.values())]
    row: Row = {**dict.fromkeys(names, value), "epoch": 1.0}
    picture = curves.rendered(curves.curves([[row, {**row, "epoch": 2.0}]]))
    assert matplotlib.image.imread(io.BytesIO(picture)).ndim == 3


def rows(**columns: list[float]) -> list[Row]:
    length = len(next(iter(columns.values())))
    return [
        {"epoch": i + 1.0, **{name: values[i] for name, values in columns.items()}}
        for i in range(length)
    ]


def test_what_does_not_change_by_construction_has_no_panel() -> None:
    known = {"train_error": [9.0, 5.0], "valid_error": [9.0, 6.0], "test_error": [8.0, 6.0]}
    found = rows(**known, layer1_flips=[9.0, 3.0], layer1_alpha=[0.1, 0.1])
    assert [panel.quantity for panel in curves.shown([found])] == ["error"]
    found[1]["layer1_alpha"] = 0.2
    assert [panel.quantity for panel in curves.shown([found])] == ["error", "alpha"]
    figure = curves.curves([found])
    assert [axes.get_title("left") for axes in figure.axes] == ["Error", "Scaling factor"]
    assert len(figure.axes[0].lines) == 3
    figure.draw_without_rendering()
    for axes in figure.axes:
        ticks = axes.get_xticks()
        assert list(ticks) == [round(tick) for tick in ticks]
        legend, drawn = axes.get_legend(), axes.get_window_extent()
        assert legend is not None
        assert not legend.get_window_extent().shrunk(0.9, 0.9).overlaps(drawn)


def test_zeros_stand_on_a_logarithmic_axis() -> None:
    found = rows(layer1_flips=[1.0] * 3, layer1_flip_rate=[1e-3, 0.0, 1e-5])
    (axes,) = curves.curves([found]).axes
    (line,) = axes.lines
    assert axes.get_yscale() == "symlog"
    assert axes.get_ylim()[0] < 0.0 == line.get_ydata()[1]


def test_what_cannot_be_drawn_is_one_line() -> None:
    figure = Figure()
    figure.suptitle("$\\frac$")
    with pytest.raises(RunError, match=r"^the figure cannot be drawn: .*\Z"):
        curves.rendered(figure)


@pytest.mark.curves
def test_a_figure_that_cannot_be_drawn_stops_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(rows: Any) -> Figure:
        raise RuntimeError("no latex\nat all")

    monkeypatch.setattr(curves, "curves", broken)
    said: list[str] = []
    setting = Config(layers={"1": Layer(8), "2": Layer(10)}, max_batches=1, epochs=2, threads=1)
    folder.train(Experiment(setting), tmp_path, warn=said.append)
    line = "curves.png cannot be drawn: no latex"
    assert [text for text in said if "drawn" in text] == [line]
    assert (tmp_path / "log.txt").read_text().count(f"warning: {line}\n") == 1
    assert folder.resume(tmp_path)[0].epoch == 2


@pytest.mark.parametrize("apart", [0.0, 1e9])
def test_figures_are_drawn_as_often_as_there_is_time_and_at_the_end(
    apart: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped or ended, killed before and gone on with: the last one has all epochs."""
    drawn: list[int] = []
    monkeypatch.setattr(folder, "_curves", lambda rows: drawn.append(len(rows)) or b"")
    monkeypatch.setattr(folder, "_APART", apart)
    setting = Config(layers={"1": Layer(8), "2": Layer(10)}, max_batches=2, epochs=6, threads=1)
    experiment = Experiment(setting)
    with pytest.raises(folder.Stopped):
        folder.train(experiment, tmp_path, stop=lambda: experiment.epoch == 3)
    assert drawn == ([1, 2, 3] if not apart else [1, 3])
    experiment, rows = folder.resume(tmp_path)
    folder.train(experiment, tmp_path, rows=rows)
    assert drawn[-2:] == ([5, 6] if not apart else [4, 6])
    assert len(drawn) == len(set(drawn))


@pytest.mark.curves
def test_a_figure_is_gone_once_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds megabytes, in a cycle of references: one each epoch is much."""
    made: list[weakref.ref[Figure]] = []
    real = curves.curves

    def making(rows: Any) -> Figure:
        figure = real(rows)
        made.append(weakref.ref(figure))
        return figure

    monkeypatch.setattr(curves, "curves", making)
    content = folder._curves([{"epoch": 1.0, "train_error": 2.0}])
    assert content.startswith(b"\x89PNG")
    assert gc.isenabled()
    assert made[0]() is None
