"""A folder whose configuration does not describe the network is not written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import binep
from binep.core.neurons import Real
from binep.core.solvers import Plain
from binep.experiment.config import Config, Layer, Learning
from binep.experiment.experiment import Experiment
from binep.runs import folder as runs
from binep.runs.files import RunError


def config() -> Config:
    layers = {"1": Layer(6, scale_lr=0.1), "2": Layer(10)}
    return Config(layers=layers, epochs=2, max_batches=1, threads=1)


class Own(Real):
    """Neurons that a configuration does not name."""


def replace_neurons(exp: Any) -> None:
    exp.network.neurons[0] = Own()


def replace_output(exp: Any) -> None:
    exp.network.neurons[1] = dataclasses.replace(exp.network.neurons[1], nudge="inside")


def replace_synapses(exp: Any) -> None:
    exp.network.synapses[0] = binep.Dense((1, 28, 28), 6, weights="real")


def replace_cost(exp: Any) -> None:
    exp.network.cost.copies = 5


def replace_estimator(exp: Any) -> None:
    exp.estimator = binep.BackpropThroughTime(exp.network, free_steps=9, nudged_steps=3)


def change_beta(exp: Any) -> None:
    exp.estimator.beta = 0.7


def replace_optimizer(exp: Any) -> None:
    exp.optimizers[1] = torch.optim.SGD([exp.network.synapses[0].bias], 0.1)


def change_threshold(exp: Any) -> None:
    exp.flip.param_groups[1]["threshold"] = 1.0


def change_gamma(exp: Any) -> None:
    exp.flip.param_groups[0]["gamma"] = 0.9


def change_rate(exp: Any) -> None:
    exp.descent.param_groups[0]["lr"] = 0.5


def replace_solver(exp: Any) -> None:
    exp.network.solver = Plain


def change_layers(exp: Any) -> None:
    exp.config.layers["1"] = Layer(7)


CHANGES = {
    replace_neurons: "neurons of layer 1 is a Own, that of its config a Real",
    replace_output: "neurons of layer 2 has nudge = inside, that of its config outside",
    replace_synapses: "synapses of layer 1",
    replace_cost: "cost has copies = 5, that of its config 1",
    replace_estimator: "estimator is a BackpropThroughTime",
    change_beta: "estimator has beta = 0.7, that of its config 0.3",
    replace_optimizer: "optimizer 2 is a SGD",
    change_threshold: "optimizer 1 has threshold of group 2 = 1.0, that of its config 5e-07",
    change_gamma: "optimizer 1 has gamma of group 1 = 0.9, that of its config 0.0001",
    change_rate: "optimizer 2 has lr of group 1 = 0.5, that of its config 0.0",
    replace_solver: "solver is a Plain",
    change_layers: "config was changed",
}


@pytest.mark.parametrize("change", CHANGES)
def test_parts_that_a_configuration_does_not_describe_are_refused(
    change: Callable[[Any], None], tmp_path: Path
) -> None:
    exp = Experiment(config())
    change(exp)
    with pytest.raises(RunError) as error:
        runs.train(exp, tmp_path)
    assert CHANGES[change] in str(error.value)
    assert not list(tmp_path.glob("*"))


def test_a_scheduler_that_changes_nothing_is_no_change() -> None:
    exp = Experiment(config())
    torch.optim.lr_scheduler.StepLR(exp.descent, 1)
    assert exp.changed() == ""


def test_rates_that_decay_as_they_are_to_are_no_change(tmp_path: Path) -> None:
    learning = Learning(gamma_decay=2.0, scale_lr_decay=2.0)
    exp = Experiment(config().replace(learning=learning))
    runs.train(exp, tmp_path)
    assert exp.flip.param_groups[0]["gamma"] < Layer.gamma


def test_a_change_while_it_trains_is_not_saved(tmp_path: Path) -> None:
    exp = Experiment(config())
    with pytest.raises(RunError, match="neurons of layer 1"):
        runs.train(exp, tmp_path, after_epoch=lambda _: replace_neurons(exp))
    experiment, rows = runs.resume(tmp_path)  # what was whole before
    assert experiment.epoch == len(rows) == 1


def test_the_configuration_of_an_experiment_stays(tmp_path: Path) -> None:
    exp: Any = Experiment(config())
    with pytest.raises(AttributeError):
        exp.config = config().replace(epochs=9)
    exp.network.eval()
    exp.network.speed = binep.Speed(off=("digits",))
    runs.train(exp, tmp_path)
    assert exp.changed() == ""
