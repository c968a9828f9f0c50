"""Runs on one machine of a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
from samples import write_mnist

from binep.cluster import runs
from binep.experiment.config import Config, ConfigError, preset
from binep.runs.metrics import Row, read_metrics


def test_no_gpu_is_named_by_its_number() -> None:
    for device in ("cpu", "cuda", "cuda:0"):
        assert runs.placed(Config(device=device), 2).device == device
    with pytest.raises(ConfigError, match="device = cuda:1: must be cuda: through Ray"):
        runs.placed(Config(device="cuda:1"), 2)


def test_a_run_goes_on_as_it_is_told_now(tmp_path: Path) -> None:
    folder, seen = tmp_path / "run", list[Row]()
    config = preset("mnist-fc1-ep").replace(epochs=2, max_batches=1, threads=2)
    config = config.replace(data_dir=write_mnist(tmp_path / "data"))

    def interrupt(row: Row) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.train(folder, config, interrupt)
    moved = (tmp_path / "data").rename(tmp_path / "moved")
    changes = {"data_dir": moved, "checkpoint_minutes": 3.0}
    runs.train(folder, config.replace(epochs=9, **changes), seen.append, [*changes])
    assert [row["epoch"] for row in seen] == [1, 2]
    assert len(read_metrics(folder / "metrics.csv")) == 2
    held = Config.load(folder / "config.toml")
    assert held == config.replace(**changes)
