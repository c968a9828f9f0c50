"""Workers that share every batch learn what one process learns."""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import together
import torch
from hypothesis import given
from hypothesis import strategies as st

from binep.core.costs import SquaredError
from binep.core.gradients import EquilibriumPropagation
from binep.core.network import Network
from binep.core.neurons import Binary, Real
from binep.core.synapses import Conv, Dense
from binep.experiment import workers
from binep.experiment.settings import ConfigError, WorkerError
from binep.experiment.sharding import ShardedFlip
from binep.experiment.workers import Alone, Workers
from binep.runs import folder as runs
from binep.runs.checkpoints import place_of
from binep.runs.metrics import read_metrics
from binep.runs.tensors import load_tensors

SCRIPT = Path(together.__file__)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1"]
TRAIN = [
    *("-m", "binep", "train", "mnist-bits-fc1-ep-alpha-final", "--dataset", "mnist5k"),
    *("--layers.1.size", "64", "--epochs", "3", "--max-batches", "30", "--threads", "1"),
]


def torchrun(count: int, *arguments: str | Path, port: int = 0) -> list[str]:
    """The command that starts so many workers."""
    rendezvous = ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}"]
    return [*TORCHRUN, *rendezvous, f"--nproc-per-node={count}", *map(str, arguments)]


def run(*command: str, **changes: Any) -> subprocess.CompletedProcess[str]:
    """A command's end."""
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **changes)


@functools.cache
def shared(count: int, folder: Path) -> dict[str, Any]:
    """What so many workers found."""
    file = folder / f"{count}.json"
    done = run(*torchrun(count, SCRIPT, file))
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workers")


@functools.cache
def alone(name: str) -> dict[str, Any]:
    return together.results(together.SETTINGS[name])


@pytest.mark.parametrize("count", [2, 3])
def test_split_momenta_change_nothing(count: int, folder: Path) -> None:
    found = shared(count, folder)
    assert found["bits, momenta split"] == alone("bits, centred, held")
    assert found["real, momenta split"] == found["real"]


@pytest.mark.parametrize("name", together.SETTINGS)
@pytest.mark.parametrize("count", [2, 3])
def test_workers_learn_what_one_process_learns(count: int, name: str, folder: Path) -> None:
    found, expected = shared(count, folder)[name], alone(name)
    assert np.sum(expected["flips"]) > 0  # else there was nothing to differ in
    if name.startswith("bits"):
        assert found == expected
        return
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=0.05, atol=1)
    losses = (np.array(which["scores"])[:, 1] for which in (found, expected))
    np.testing.assert_allclose(*losses, rtol=0, atol=0.02)
    for key, values in expected["parameters"].items():
        if key.startswith(("writes.", "momentum.")):
            continue
        differ = np.abs(np.subtract(found["parameters"][key], values)) > 1e-3
        assert differ.mean() < 1e-2, key


def alone_of(count: int) -> Iterator[Workers]:
    """Each of so many workers, without the others."""
    for rank in range(count):
        worker = Workers.__new__(Workers)
        worker.rank, worker.count, worker.splits_momenta = rank, count, False
        yield worker


def test_gradients_of_unequal_shares_are_weighted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.distributed, "all_reduce", lambda tensor, _: None)
    network = Network([Dense(6, 9), Dense(9, 4)], Real(), SquaredError(4))
    estimate = EquilibriumPropagation(
        network, beta=0.5, free_steps=60, nudged_steps=20, nudging="one-sided"
    )
    x, target = torch.rand(7, 6), network.cost.target(torch.arange(7) % 4)
    estimate(x, target)
    whole = [p.grad for p in network.parameters() if p.grad is not None]
    parts = []
    for worker in alone_of(3):
        network.zero_grad()
        share = worker.share(7)
        estimate(x[share], target[share])
        worker._sum_gradients(estimate, x)
        parts.append([p.grad for p in network.parameters() if p.grad is not None])
    for gradient, *summands in zip(whole, *parts, strict=True):
        torch.testing.assert_close(sum(summands), gradient, rtol=1e-4, atol=1e-6)


def test_a_lack_of_memory_is_no_death_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network([Dense(6, 9), Dense(9, 4)], Binary(0.1), SquaredError(4))
    estimate = EquilibriumPropagation(network, beta=0.5, free_steps=9, nudged_steps=3)
    x, target = torch.rand(7, 6), network.cost.target(torch.arange(7) % 4)
    (worker,) = alone_of(1)

    def fail(error: Exception) -> Any:
        def reduce(*_: Any) -> None:
            raise error

        return reduce

    monkeypatch.setattr(workers.distributed, "all_reduce", fail(RuntimeError("[a.cc:1] closed")))
    with pytest.raises(WorkerError, match="another worker has ended, or does not answer: closed"):
        worker.estimate(estimate, x, target)
    monkeypatch.setattr(workers.distributed, "all_reduce", lambda *_: None)
    monkeypatch.setattr(workers._Whole, "counts", fail(torch.OutOfMemoryError("2 GiB")))
    with pytest.raises(torch.OutOfMemoryError, match="2 GiB"):
        worker.estimate(estimate, x, target)


@pytest.mark.parametrize("one_pass", [True, False])
def test_of_split_momenta_only_what_flipped_is_sent(
    one_pass: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an update does not know in which rows, as on a GPU."""
    sent: list[int] = []

    def gathered(self: Workers, tensor: torch.Tensor) -> torch.Tensor:
        sent.append(tensor.numel())
        return torch.stack([tensor, torch.zeros_like(tensor)])

    monkeypatch.setattr(Workers, "gathered", gathered)
    first, _ = alone_of(2)
    signs = torch.ones(8, 5, requires_grad=True)
    flip = ShardedFlip([{"params": [signs], "gamma": 1.0, "threshold": 0.5}], first, one_pass)
    signs.grad = torch.full((8, 5), 0.1)
    flip.step()
    assert sent == [2]  # how many
    signs.grad[1, 2] = 1.0
    flip.step()
    assert len(sent) > 2
    assert int((signs < 0).sum()) == int(signs[1, 2] < 0) == 1


@pytest.mark.parametrize("moved", [False, True])
def test_parameters_that_differ_end_training(moved: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, theirs = (Network([Dense(6, 4)], Real()) for _ in range(2))
    theirs.load_state_dict(mine.state_dict())
    if moved:
        theirs.synapses[0].bias.data[2] += 1e-6
    sent: list[torch.Tensor] = []
    monkeypatch.setattr(workers.distributed, "all_reduce", lambda sums, _: sent.append(sums))
    monkeypatch.setattr(Workers, "_sent_from", "cpu")
    one, other = alone_of(2)
    other.check_parameters(theirs)

    def largest(sums: torch.Tensor, _: Any) -> None:
        sums.copy_(torch.maximum(sums, sent[0]))

    monkeypatch.setattr(workers.distributed, "all_reduce", largest)
    with pytest.raises(WorkerError, match="no longer the same") if moved else nullcontext():
        one.check_parameters(mine)


class Faded(Dense):
    """Whose lower neurons count by other numbers than 1."""

    def correlate(self, above: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
        return super().correlate(above, below) * 0.3


@given(pool=st.sampled_from((1, 2, 3)), average=st.booleans(), seed=st.integers(0, 2**32))
def test_what_is_sent_as_whole_numbers_is_whole(pool: int, average: bool, seed: int) -> None:
    torch.manual_seed(seed)
    pooling: Any = "average" if average else "max"
    first = Conv((1, 6, 6), 3, kernel=3, padding=1, pool=pool, pooling=pooling)
    second = Conv(first.output_shape, 4, kernel=1, padding=0, pool=2, pooling=pooling)
    layers = [first, second, Faded(second.output_shape, 8), Dense(8, 4)]
    network = Network(layers, Binary(0.1), SquaredError(2, 2))
    estimator = EquilibriumPropagation(network, beta=0.7, free_steps=9, nudged_steps=3)
    x = torch.randint(256, (5, 1, 6, 6)) / 255
    estimator(x, network.cost.target(torch.arange(5) % 2))
    found = workers._wholes(estimator, x)
    assert layers[2].values not in found
    for parameter, whole in found.items():
        gradient = parameter.grad
        assert gradient is not None
        back = whole.counts(gradient, len(x)).float() * whole.unit(len(x))
        torch.testing.assert_close(back, gradient, rtol=1e-5, atol=1e-2 * whole.unit(len(x)))


def parameters(run_folder: Path) -> dict[str, Any]:
    tensors, _ = load_tensors(run_folder / "checkpoint.safetensors")
    names = [
        name for name in tensors if name.startswith(("network.", "momentum.", "flips.", "writes."))
    ]
    return {name: tensors[name].tolist() for name in names}


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A run of one process that nothing interrupted."""
    done = run(sys.executable, *TRAIN, "--run-dir", folder / "whole")
    assert done.returncode == 0, done.stderr
    return folder / "whole"


@pytest.mark.parametrize("split", [[], ["--shard-momenta"]], ids=["whole", "split"])
def test_a_killed_worker_ends_all_and_another_number_goes_on(
    split: list[str], whole: Path, tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    started = subprocess.Popen(
        torchrun(3, *TRAIN, "--run-dir", killed, *split),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while (place_of(killed) or (0, 0)) < (1, 0):
        assert started.poll() is None, started.communicate()[1]
        time.sleep(0.02)
    os.kill(workers_of(started.pid)[-1], signal.SIGKILL)
    said = started.communicate(timeout=60)[1]
    assert started.returncode not in (0, None)
    assert len(read_metrics(killed / "metrics.csv")) < 3, "it was killed too late"
    assert "src/binep" not in said  # no traceback of ours
    again = run(*torchrun(2, "-m", "binep", "train", "--resume", killed, *split))
    assert again.returncode == 0, again.stderr
    assert parameters(killed) == parameters(whole)
    about = json.loads((killed / "environment.json").read_text())
    assert (about["workers"], about["resumed"][0]["workers"]) == (3, 2)


def workers_of(parent: int) -> list[int]:
    """Processes that torchrun has started, by their rank."""
    found = {}
    for process in Path("/proc").iterdir():
        try:
            ours = int((process / "stat").read_text().rsplit(")", 1)[1].split()[1]) == parent
            environment = (process / "environ").read_bytes().split(b"\0") if ours else []
        except (OSError, ValueError, IndexError):
            continue
        for word in environment:
            if word.startswith(b"RANK="):
                found[int(word[5:])] = int(process.name)
    return [found[rank] for rank in sorted(found)]


def test_ctrl_c_ends_all_with_a_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    started = subprocess.Popen(
        torchrun(2, *TRAIN, "--epochs", "500", "--run-dir", folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    while not (folder / "metrics.csv").exists():
        assert started.poll() is None
        time.sleep(0.02)
    os.killpg(started.pid, signal.SIGINT)
    said = started.communicate(timeout=60)[0]
    assert f"go on with: binep train --resume {folder}" in said
    assert "stopped in epoch" in (folder / "log.txt").read_text()


def test_workers_of_other_settings_are_refused(tmp_path: Path) -> None:
    each = f"exec {sys.executable} {' '.join(TRAIN)} --run-dir {tmp_path / 'run'} --seed $RANK"
    done = run(*torchrun(2, "--no-python", "bash", "-c", each))
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("binep")]
    assert len(lines) == 1
    assert lines[0].startswith("binep: worker 1: settings ")


def test_a_run_without_a_checkpoint_goes_on_among_the_workers_given(tmp_path: Path) -> None:
    config = together.SETTINGS["real"]
    (tmp_path / "config.toml").write_text(config.to_toml())
    given = Alone()
    experiment, rows = runs.resume(tmp_path, workers=given)
    assert (experiment.workers, experiment.epoch, rows) == (given, 0, [])


def started(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    """Let this process look like the first of two that torchrun has started."""
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    variables = {"RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **variables}
    two = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**two, "LOCAL_RANK": "0", **variables}.items():
        if value:
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "device", "why"),
    [
        ({"RANK": ""}, "cpu", "torchrun's variables .* RANK expected, but not set"),
        ({"WORLD_SIZE": "many"}, "cpu", "torchrun's variables .* 'many'"),
        ({}, "cpu", "another worker has ended, or does not answer: Timed out"),
        ({}, "cuda:0", "device = cuda:0: must be cuda: each worker takes a GPU"),
        ({"LOCAL_RANK": "99"}, "cuda", "device = cuda:99: this machine has . CUDA devices"),
    ],
    ids=["not started", "not a number", "one never comes", "one GPU", "too few GPUs"],
)
def test_workers_that_cannot_meet_are_refused(
    variables: dict[str, str], device: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(monkeypatch, **variables)
    monkeypatch.setattr(workers, "WAIT", timedelta(seconds=0.5))
    with pytest.raises((ConfigError, WorkerError), match=why), workers.joined(device):
        pass
