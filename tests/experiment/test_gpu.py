"""Training on a GPU: what a CPU learns, without waiting, in a run that a CPU goes on with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import graphs
import pytest
import torch
from test_benchmarks import small
from torch import Tensor

from binep.core.gradients import EquilibriumPropagation
from binep.core.phases import Phase
from binep.core.solvers import Plain
from binep.core.speed import SHORTCUTS, Speed
from binep.experiment.config import Config, preset
from binep.experiment.experiment import Experiment
from binep.runs.folder import load_checkpoint, train
from binep.solvers.bits_on_gpu.solver import BitsOnGpuSolver
from binep.solvers.captured import CapturedSolver

pytestmark = graphs.on_gpu

CONFIGS = {
    "dense, real": small("dense", "real"),
    "dense, centred": small("dense", "real", nudging="centred"),
    "dense, bits": small("dense", "binary", beta=2.0, nudging="one-sided"),
    "conv, real": small("conv", "real", clip_nudged=False),
    "conv, bits, held": small("conv", "binary", beta=1.0, hold_nudge=True, momentum_noise=True),
    "dense, bptt": small("dense", "real", estimator="bptt"),
}
BY = {"dense, bits": BitsOnGpuSolver}
NO_NUMBA = Speed(off=set(SHORTCUTS) - {"bits-on-gpu", "captured", "odd-even"})
"""A machine with a GPU need not compile the CPU's solvers."""
every_config = pytest.mark.parametrize("name", CONFIGS)


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    with graphs.exact():
        yield


def on(device: str, name: str, **settings: Any) -> Experiment:
    config = CONFIGS[name].replace(device=device, batch_size=16, test_batch_size=50, **settings)
    experiment = Experiment(config)
    for synapse in experiment.network.synapses:
        assert synapse.scale is not None
        with torch.no_grad():  # powers of two: other orders of sums of bits are rounded alike
            synapse.scale.log2_().round_().exp2_()
    return experiment


def batches(experiment: Experiment, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(0)
    network = experiment.network
    for _ in range(count):
        x = torch.rand(16, *network.synapses[0].input_shape, generator=random)
        labels = torch.randint(10, (16,), generator=random)
        yield x.to(experiment.device), network.cost.target(labels.to(experiment.device))


@every_config
def test_training_is_that_of_the_cpu_to_rounding(name: str) -> None:
    ours, theirs = on("cuda", name), on("cpu", name, speed=Speed(off=SHORTCUTS))
    ours.network.speed = Speed(off=("odd-even",))
    weights = flipped = 0
    for mine, given in zip(batches(ours, 5), batches(theirs, 5), strict=True):
        end, other = ours.estimator(*mine), theirs.estimator(*given)
        if name != "dense, bptt":
            assert end.by is BY.get(name, CapturedSolver)
        for a, b in zip(end.states, other.states, strict=True):
            # Of single samples: another maximum may be pooled, or another bit fire, by rounding.
            wrong = (a.cpu() - b).abs().flatten(1).amax(dim=1) > 1e-3
            assert int(wrong.sum()) <= 2
        for experiment in (ours, theirs):
            for optimizer in experiment.optimizers:
                optimizer.step()
        for a, b in zip(ours.network.synapses, theirs.network.synapses, strict=True):
            weights += a.values.numel()
            flipped += int((a.values.cpu() != b.values).sum())
            torch.testing.assert_close(a.bias.cpu(), b.bias, rtol=0, atol=2e-3)
    assert flipped <= 0.01 * weights
    assert ours.flip is not None
    assert sum(int(n) for n in ours.flip.flips()) > 0


@every_config
def test_a_batch_with_captured_steps_is_one_of_the_plain_solver(name: str) -> None:
    ours, plain = on("cuda", name), on("cuda", name)
    plain.network.speed = Speed(off=("captured", "bits-on-gpu"))
    for mine, given in zip(batches(ours, 4), batches(plain, 4), strict=True):
        end, other = ours.estimator(*mine), plain.estimator(*given)
        assert all(map(torch.equal, end.states, other.states))
        for a, b in zip(ours.network.parameters(), plain.network.parameters(), strict=True):
            if a.grad is not None:
                torch.testing.assert_close(a.grad, b.grad)
        for experiment in (ours, plain):
            for optimizer in experiment.optimizers:
                optimizer.step()
    if name != "dense, bptt":
        assert (end.by, other.by) == (BY.get(name, CapturedSolver), Plain)


@every_config
def test_gradients_and_updates_do_not_make_the_host_wait(name: str) -> None:
    experiment = on("cuda", name)
    network, estimator = experiment.network, experiment.estimator
    if not isinstance(estimator, EquilibriumPropagation):
        pytest.skip("autograd waits where it likes")
    x, target = next(batches(experiment, 1))
    phase = Phase.of(network, x, 5)
    free = network.settle(phase)
    nudged = network.settle(phase.nudged(free, 3, target.to(x.dtype), 0.5))

    def act() -> None:
        estimator.compare(free, nudged, 0.5)
        for optimizer in experiment.optimizers:
            optimizer.step()

    act()
    graphs.without_waiting(act)


@pytest.mark.parametrize("name", ["dense, real", "conv, bits, held"])
def test_a_run_of_a_gpu_goes_on_on_a_cpu(name: str, tmp_path: Path) -> None:
    config: Config = CONFIGS[name].replace(
        device="cuda", epochs=1, max_batches=10, batch_size=16, test_batch_size=50, speed=NO_NUMBA
    )
    first = Experiment(config)
    rows = train(first, tmp_path)
    experiment = load_checkpoint(tmp_path, device="cpu", epochs=2)
    assert experiment.epoch == 1
    pairs = zip(first.state().items(), experiment.state().items(), strict=True)
    for (key, a), (same_key, b) in pairs:
        assert key == same_key
        assert b.device.type == "cpu"
        assert torch.equal(a.cpu(), b)
    assert abs(experiment.evaluate().error - (rows[0]["test_error"] or 0)) < 2
    assert experiment.train_epoch().epoch == 2


def test_an_epoch_of_learning_learns() -> None:
    experiment = Experiment(preset("quickstart").replace(device="cuda"))
    assert experiment.train_epoch().test.error < 25
