"""`binep summary` and `binep help`."""

from __future__ import annotations

from pathlib import Path

import pytest

from binep.cli import main as cli
from binep.experiment.config import Config, Layer, Learning
from binep.experiment.experiment import Experiment
from binep.runs import folder as runs
from binep.runs.metrics import read_metrics

FAST = {"gamma": 1e-2, "threshold": 1e-6, "bias_lr": 0.05}
LAYERS = {"1": Layer(8, **FAST), "2": Layer(10, **FAST)}


def test_a_run_is_summed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs.train(Experiment(Config(layers=LAYERS, max_batches=2, epochs=3, threads=1)), tmp_path)
    assert cli.main(["summary", str(tmp_path)]) == 0
    *table, title, _, first, second = capsys.readouterr().out.splitlines()
    assert table[3].split() == [
        "1",
        "Dense",
        "1×28×28",
        "→",
        "8",
        "6,272",
        "9",
        "820",
        "B",
        "6,272",
    ]
    assert title == "writes in 3 epochs, per weight"
    rows = read_metrics(tmp_path / "metrics.csv")
    for number, weights, line in ((1, 6272, first), (2, 80, second)):
        flips = [row[f"layer{number}_flips"] or 0 for row in rows]
        assert sum(flips) > 0
        assert line.split() == [
            str(number),
            f"{sum(flips):,.0f}",
            f"{sum(flips) / weights:.4g}",
            f"{rows[-1][f'layer{number}_most_flips']:,.0f}",
            f"{flips[-1] / weights:.4g}",
        ]
    assert cli.main(["export", str(tmp_path)]) == 0
    capsys.readouterr()
    assert cli.main(["summary", str(tmp_path / "network.safetensors")]) == 0
    assert capsys.readouterr().out.splitlines() == table


def test_real_weights_have_no_flips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    learning = Learning(synapses="real")
    layers = {number: Layer(layer.size, bias_lr=0.05) for number, layer in LAYERS.items()}
    setting = Config(layers=layers, learning=learning, max_batches=1, epochs=1, threads=1)
    runs.train(Experiment(setting), tmp_path)
    assert cli.main(["summary", str(tmp_path)]) == 0
    assert "writes" not in capsys.readouterr().out


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        assert cli.main(["summary", str(path)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("words", "wanted"), [("help", "--help"), ("help train", "train --help")])
def test_help_is_a_command(words: str, wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for line in (words, wanted):
        try:
            assert cli.main(line.split()) == 0
        except SystemExit as exit:
            assert not exit.code
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != ""


def test_help_of_what_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["help", "trane"]) == 2
    assert "unknown command trane (did you mean train?)" in capsys.readouterr().err
