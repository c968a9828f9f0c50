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


def test_what_cannot_be_drawn_is_one_line() -> None:
    figure = Figure()
    figure.suptitle("$\\frac$")
    with pytest.raises(RunError, match=r"^the figure cannot be drawn: .*\Z"):
        curves.rendered(figure)


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
