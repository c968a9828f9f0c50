"""Whatever a log holds can be drawn."""

from __future__ import annotations

import io

import matplotlib.image
import pytest

from binep.runs import curves
from binep.runs.metrics import Row


@pytest.mark.parametrize("value", [0.0, float("inf")])
def test_any_row_can_be_drawn(value: float) -> None:
    """Such as epochs without a flip, which a logarithmic axis cannot show."""
    panels = curves.panels(["layer1_flips"])
    names = ["layer1_flips", *(column for panel in panels for column in panel.columns.values())]
    row: Row = {**dict.fromkeys(names, value), "epoch": 1.0}
    picture = curves.rendered(curves.curves([[row, {**row, "epoch": 2.0}]]))
    assert matplotlib.image.imread(io.BytesIO(picture)).ndim == 3
