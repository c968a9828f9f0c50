"""In a batch of training the host asks a device for nothing that it would have to wait for."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import graphs
import numpy as np
import pytest
import torch
from test_benchmarks import small
from torch.utils._python_dispatch import TorchDispatchMode

from binep.core.costs import SquaredError
from binep.core.network import Network
from binep.core.neurons import Binary
from binep.core.speed import SHORTCUTS, Speed
from binep.core.synapses import Dense
from binep.experiment.experiment import Experiment


class Asked(TorchDispatchMode):
    """Counts how often a number of a tensor is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += call is torch.ops.aten._local_scalar_dense.default
        return call(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "solver", [pytest.param("bits-on-gpu", marks=graphs.interpreted), "captured"]
)
def test_a_batch_asks_for_nothing(solver: str) -> None:
    pytest.importorskip("triton")
    speed = Speed(off=set(SHORTCUTS) - {solver})
    config = small("dense", "binary", beta=2.0, nudging="one-sided")
    dynamics = replace(config.dynamics, free_steps=3, nudged_steps=2)
    config = config.replace(dynamics=dynamics, speed=speed, batch_size=4, max_batches=3)
    with graphs.called():
        experiment = Experiment(config)
        asked, counts = Asked(), []
        with asked:
            experiment.train_epoch(lambda meter: counts.append(asked.count))
    looks = {"bits-on-gpu": 0, "captured": 3}[solver]  # on a CPU after each step
    one_hot = 2  # PyTorch looks at labels on a CPU alone
    assert [b - a for a, b in pairwise(counts)] == [looks + one_hot] * 2


def test_what_nobody_vouched_for_is_checked() -> None:
    net = Network([Dense(4, 3)], Binary(), SquaredError(3))
    x, labels = torch.full((2, 4), torch.nan), torch.tensor([0, 7])
    with pytest.raises(ValueError, match="not finite"):
        net.relax(x, 1)
    with pytest.raises(ValueError, match="labels hold 7"):
        net.cost.target(labels)
    net.vouch(x, labels)
    assert net.relax(x, 1).output.isnan().all()
    assert torch.equal(net.cost.labels(labels), labels)
    x += 1
    labels += 1
    with pytest.raises(ValueError, match="not finite"):
        net.relax(x, 1)
    with pytest.raises(ValueError, match="labels hold 8"):
        net.cost.target(labels)


@pytest.mark.parametrize("how", ["array", "seen", "vouched"])
def test_labels_that_numpy_refills_are_checked_again(how: str) -> None:
    net = Network([Dense(4, 3)], Binary(), SquaredError(3))
    labels: Any = torch.tensor([0, 1])
    if how == "array":
        labels = view = labels.numpy().copy()
    elif how == "vouched":
        view = labels.numpy().copy()
        labels = torch.from_numpy(view)
        net.vouch(torch.zeros(2, 4), labels)
    net.cost.labels(labels)
    if how == "seen":
        view = labels.numpy()
    view[0] = 3
    with pytest.raises(ValueError, match="labels hold 3"):
        net.cost.labels(labels)


def test_inputs_that_numpy_refills_are_checked_again() -> None:
    net, x = Network([Dense(4, 3)], Binary()), torch.zeros(2, 4)
    net.relax(x, 1)
    x.numpy()[0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        net.relax(x, 1)


def test_labels_are_checked_again_for_fewer_classes() -> None:
    cost, labels = SquaredError(10), torch.tensor([9])
    cost.labels(labels)
    cost.classes = 3
    with pytest.raises(ValueError, match="labels hold 9"):
        cost.labels(labels)


def test_what_an_experiment_has_not_read_is_checked() -> None:
    config = small("dense", "binary").replace(batch_size=4, max_batches=1)
    experiment = Experiment(config)
    experiment.data.train.labels[:] = 11
    with pytest.raises(ValueError, match="labels hold 11"):
        experiment.train_epoch()
    x = np.zeros((20, 1, 5, 5), np.float32)
    own = Experiment(config, data=(x, np.arange(20) % 10, x, np.arange(20) % 10))
    own.data.train.images[:] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        own.train_epoch()
