"""The benchmark of a GPU times its programs in turn and writes what it found; no times."""

from __future__ import annotations

import csv
from pathlib import Path

import graphs
import pytest
from test_benchmarks import small

from benchmarks import gpu
from benchmarks.gpu import PROGRAMS, Options, measure, run
from binep.core.network import Network
from binep.core.speed import Speed
from binep.data.sources import DataError
from binep.experiment.config import Config
from binep.experiment.experiment import Experiment


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=graphs.on_gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_programs_are_timed_in_turn(device: str) -> None:
    experiment = Experiment(small("dense", "real").replace(device=device))
    with graphs.called(), graphs.exact():
        rows, memory = measure(experiment, Options(repeats=4, device=device))
    assert [row["program"] for row in rows] == [*PROGRAMS] * 4
    assert {row["program"] for row in memory} == (set(PROGRAMS) if device == "cuda" else set())
    with graphs.exact():
        rows, _ = measure(experiment, Options(repeats=40, seconds=0, device=device))
    assert len(rows) == 3 * len(PROGRAMS)


def test_tables_and_page_say_what_was_measured(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds: list[Speed] = []

    def settle(self: Network, phase: object, settle: object = Network.settle) -> object:
        speeds.append(self.speed)
        return settle(self, phase)  # type: ignore[operator]

    def build(config: Config) -> Experiment:
        if config.title == "none":
            raise DataError("no data of this kind")
        return Experiment(config)

    config = small("conv", "binary", beta=1.0)
    monkeypatch.setattr(gpu, "preset", lambda shape: config.replace(title=shape))
    monkeypatch.setattr(gpu, "build", build)
    monkeypatch.setattr(Network, "settle", settle)
    with graphs.exact():
        run(Options(("a", "none", "b"), repeats=3, output=tmp_path, device=device))
    assert set(speeds) == set(PROGRAMS.values())
    with (tmp_path / "batches.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["shape"] for row in rows] == [
        *["a"] * 3 * len(PROGRAMS),
        *["b"] * 3 * len(PROGRAMS),
    ]
    assert all(float(row["seconds"]) > 0 for row in rows)
    page = (tmp_path / "README.md").read_text()
    assert page.count("| `a` | mnist5k, 1-4-6-20, binary activations") == 1
    assert "none: no data of this kind" in page
    with graphs.exact():
        run(Options(("a", "b"), repeats=3, output=tmp_path, limit=0, device=device))
    assert "b: the time was up" in (tmp_path / "README.md").read_text()
