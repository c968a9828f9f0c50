"""Warnings while training: each once, with the layer and what to try, in the log too."""

from __future__ import annotations

import dataclasses
import warnings as python_warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from binep.experiment import kinds
from binep.experiment.config import Config, Dynamics, Layer, Learning
from binep.experiment.experiment import Experiment
from binep.experiment.kinds import FLIP_RULES
from binep.experiment.warnings import TrainingWarning
from binep.runs import folder as runs


def config(gamma: float = 1e-3, **settings: Any) -> Config:
    layer = Layer(10, gamma=gamma, threshold=1e-5, bias_lr=0.02)
    whole = Config(layers={"1": layer, "2": layer}, threads=1, max_batches=2, epochs=2)
    return dataclasses.replace(whole, **settings)


def warnings(setting: Config, folder: Path, spoil: Any = None) -> list[str]:
    experiment, given = Experiment(setting), []
    if spoil is not None:
        spoil(experiment)
    runs.train(experiment, folder, warn=given.append)
    log = (folder / "log.txt").read_text()
    assert log.count("warning: ") == len(given)
    assert all(text in log for text in given)
    return given


def spoil_bias(experiment: Experiment) -> None:
    experiment.network.synapses[1].bias.data[3] = torch.nan


CASES: dict[str, tuple[Config, Any, str]] = {
    "nan": (config(), spoil_bias, "layer 2: its states are not finite: lower "),
    "no flips": (config(gamma=1e-9), None, "layer 1: no weight flipped in epoch 1: "),
    "many flips": (config(gamma=0.5), None, "layer 1: "),
    "alpha": (
        config(
            layers={
                "1": Layer(10, gamma=1e-3, threshold=1e-5, scale_lr=1e-30),
                "2": Layer(10, gamma=1e-3, threshold=1e-5),
            }
        ),
        lambda experiment: experiment.network.synapses[0].scale.data.zero_(),
        "layer 1: its α has fallen to the floor 1e-06: lower layers.1.scale_lr",
    ),
    "huge alpha": (
        config(),
        lambda experiment: experiment.network.synapses[1].scale.data.fill_(3.6e24),
        "layer 2: its α has grown to 3.6e+24: lower layers.2.scale_lr",
    ),
    "unsettled": (
        config(dynamics=Dynamics(free_steps=1, nudged_steps=3)),
        None,
        "layer 1: its states still move by ",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_is_given_once(name: str, tmp_path: Path) -> None:
    setting, spoil, start = CASES[name]
    given = warnings(setting, tmp_path, spoil)
    assert any(text.startswith(start) for text in given)
    assert len(set(given)) == len(given)
    kinds = [text.split(":")[0] + text.split(" ")[3] for text in given]
    assert len(set(kinds)) == len(kinds)


def test_many_flips_are_counted_against_the_setting(tmp_path: Path) -> None:
    given = warnings(config(gamma=0.5), tmp_path)
    assert any("of its weights flip per batch: raise layers.1.threshold" in text for text in given)
    other = tmp_path / "other"
    other.mkdir()
    silent = warnings(config(gamma=0.5, warn_flip_rate=1.0), other)
    assert not any("flip per batch" in text for text in silent)


def test_advice_is_of_settings_that_the_flip_rule_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FLIP_RULES, "_kinds", dict(FLIP_RULES._kinds))

    @kinds.flip_rule("never")
    class Never(torch.optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {})

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            pass

    @kinds.flip_rule("by-threshold")
    class ByThreshold(Never):
        def __init__(self, params: Any, threshold: float = 0.0) -> None:
            super().__init__(params)

    start = "layer 1: no weight flipped in epoch 1: if it still has to learn, "
    for rule, advice in (
        ("never", "change the settings of flip_rule = never"),
        ("by-threshold", "lower layers.1.threshold"),
        ("momentum", "lower layers.1.threshold or raise layers.1.gamma; --auto-threshold "),
    ):
        layer = Layer(10, gamma=1e-9) if rule == "momentum" else Layer(10)
        layers = {"1": layer, "2": layer}
        setting = config(layers=layers, learning=Learning(flip_rule=rule))
        folder = tmp_path / rule
        folder.mkdir()
        (text,) = (text for text in warnings(setting, folder) if text.startswith(start))
        assert text.startswith(f"{start}{advice}")
        assert rule == "momentum" or text == f"{start}{advice}"


def test_a_run_that_goes_well_gives_none(tmp_path: Path) -> None:
    layers = {
        "1": Layer(40, gamma=1e-3, threshold=1e-5, bias_lr=0.05),
        "2": Layer(10, gamma=1e-3, threshold=1e-5, bias_lr=0.02),
    }
    setting = config(layers=layers, max_batches=None, warn_flip_rate=0.03)
    assert warnings(setting, tmp_path) == []


def test_they_are_not_given_again_after_a_resume(tmp_path: Path) -> None:
    first: list[str] = []
    setting = config(gamma=1e-9, epochs=4)
    batches = iter(range(99))
    with pytest.raises(runs.Stopped):
        runs.train(
            Experiment(setting), tmp_path, warn=first.append, stop=lambda: next(batches) == 2
        )
    experiment, rows = runs.resume(tmp_path)
    again: list[str] = []
    runs.train(experiment, tmp_path, rows=rows, warn=again.append)
    assert first
    assert again == []


def test_python_users_get_them_as_warnings_each_once() -> None:
    experiment = Experiment(config(gamma=1e-9))
    with pytest.warns(TrainingWarning) as given:
        experiment.train_epoch()
    said = [str(warning.message) for warning in given]
    assert any(text.startswith("layer 1: no weight flipped in epoch 1: ") for text in said)
    assert {Path(warning.filename) for warning in given} == {Path(__file__)}
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("error")
        experiment.train_epoch()


def test_whoever_takes_them_gets_no_python_warnings() -> None:
    experiment, taken = Experiment(config(gamma=1e-9)), []
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("error")
        experiment.train_epoch(warn=taken.append)
    assert any(text.startswith("layer 2: no weight flipped") for text in taken)
    experiment.train_epoch(warn=taken.append)
    assert len(taken) == len(set(taken)) == 2


def test_a_run_folder_gives_no_python_warnings(tmp_path: Path) -> None:
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("error", TrainingWarning)
        assert warnings(config(gamma=1e-9), tmp_path)
