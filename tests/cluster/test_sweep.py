"""Sweeps and rows on Ray: with a machine killed, and with Ctrl-C, they end with the same bits."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from binep.cli import main as cli
from binep.cluster import rays, sweeps
from binep.experiment.config import Config, ConfigError, preset
from binep.runs.metrics import read_metrics

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray, about itself

ray = pytest.importorskip("ray")

SWEEP = [
    *("sweep", "quickstart", "--layers.1.size", "32", "--max-batches", "4", "--epochs", "5"),
    *("--test-batch-size", "64", "--set", "beta=uniform(.1,1)", "--trials", "3", "--grace", "5"),
    *("--set", "layers.1.gamma=loguniform(1e-5,1e-3)"),
]
STORE = 80 * 2**20


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Of Ray's processes."""
    yield
    gone = time.monotonic() + 20
    while left := [p.info["name"] for p in psutil.process_iter(["name"]) if _is_ours(p)]:
        assert time.monotonic() < gone, left
        time.sleep(0.2)


def _is_ours(process: Any) -> bool:
    with contextlib.suppress(psutil.Error):
        name = process.info["name"]
        mine = os.getpid() in [above.pid for above in process.parents()]
        return mine and name.startswith(("raylet", "gcs_server", "ray::"))
    return False


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep on this machine alone."""
    folder = tmp_path_factory.mktemp("local") / "sweep"
    assert cli.main([*SWEEP, "--sweep-dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Of two machines, both of them this one."""
    rays.require()
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE}
    made = Cluster(initialize_head=True, head_node_args=head)
    made.add_node(num_cpus=1, object_store_memory=STORE)
    yield made
    made.shutdown()


def learned(folder: Path) -> dict[str, bytes]:
    """What each trial has learned, and its metrics but for seconds."""
    found = {}
    for path in sorted(folder.glob("trials/*/metrics.csv")):
        rows = [
            {name: value for name, value in row.items() if not name.endswith("seconds")}
            for row in read_metrics(path)
        ]
        bits = (path.parent / "model.safetensors").read_bytes()
        found[path.parent.name] = bits + json.dumps(rows).encode()
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def for_all(processes: list[psutil.Process], what: str) -> None:
    """What psutil.Process calls it: "suspend", "resume" or "kill"."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            getattr(process, what)()


def epochs_of(folder: Path) -> int:
    """Epochs of a run that have ended."""
    path = folder / "metrics.csv"
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0


def trained_by(raylet: psutil.Process) -> list[Path]:
    """The runs that the workers of a machine train, by the locks that they hold."""
    found = []
    for worker in raylet.children():
        with contextlib.suppress(psutil.Error):
            found += [Path(file.path).parent for file in worker.open_files()]
    return [folder for folder in found if folder.parent.name == sweeps.TRIALS]


def test_every_trial_is_a_run_and_the_best_one_is_trained_again(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = sweeps.trials(sweeps.read(reference))
    assert [(t.number, t.epochs) for t in found] == [(0, 5), (1, 5), (2, 5)]
    assert len({t.config.learning.beta for t in found}) == 3
    assert all(t.config.validation == 0.1667 and t.config.threads == 1 for t in found)
    assert cli.main(["compare", str(reference)]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.split("binep train")[0].splitlines())) <= 80
    best = sweeps.ranked(found)[0].trials[0]
    assert re.search(rf"^ +{best.number} +5/5 ", shown, re.MULTILINE)
    assert (reference / "parallel.png").read_bytes()[:4] == b"\x89PNG"
    config = ["--config", str(reference / "best.toml"), "--run-dir", str(tmp_path / "again")]
    assert cli.main(["train", *config]) == 0
    assert (tmp_path / "again/model.safetensors").read_bytes() == (
        best.folder / "model.safetensors"
    ).read_bytes()
    assert cli.main(["compare", str(reference), "--format", "csv"]) == 0
    assert capsys.readouterr().out.count("\n") >= 4


def test_ctrl_c_leaves_what_resume_ends(reference: Path, cluster: Any, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    command = [sys.executable, "-m", "binep", *SWEEP, "--sweep-dir", str(folder)]
    command += ["--address", cluster.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        wait_for(lambda: len([*folder.glob("trials/*/config.toml")]) == 2)  # and the third waits
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=240)
    assert process.returncode == 128 + signal.SIGINT
    again = f"binep sweep --resume {folder} --address {cluster.address}"
    assert f"go on with: {again}" in out
    assert learned(folder) != learned(reference)  # something is left to do
    assert cli.main(again.split()[1:]) == 0
    assert learned(folder) == learned(reference)


def test_a_machine_that_is_killed_loses_no_trial(
    reference: Path, cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweep"
    killed: list[bool] = []

    (machine,) = cluster.worker_nodes
    raylet = psutil.Process(machine.all_processes["raylet"][0].process.pid)

    def halted() -> bool:
        """Whether a trial is past its second epoch and before its last: it stays there, then."""
        workers = raylet.children()
        for_all(workers, "suspend")
        found = any(epochs_of(trial) in (2, 3, 4) for trial in trained_by(raylet))
        if not found:
            for_all(workers, "resume")
        return found

    def kill() -> None:
        wait_for(halted)  # of the second epoch, so that the first one's checkpoint is there, too
        workers = raylet.children()
        cluster.remove_node(machine, allow_graceful=False)
        for_all(workers, "kill")
        killed.append(not (folder / "best.toml").exists())

    thread = threading.Thread(target=kill)
    thread.start()
    status = cli.main([*SWEEP, "--sweep-dir", str(folder), "--address", cluster.address])
    thread.join()
    assert (status, killed) == (0, [True])
    assert "its worker was lost: begun again from its checkpoint" in capsys.readouterr().out
    about = [json.loads(p.read_text()) for p in folder.glob("trials/*/environment.json")]
    assert sum("resumed" in one for one in about) == 1
    assert learned(folder) == learned(reference)
    best = [(sweeps.BEST, where) for where in (folder, reference)]
    texts = [(where / name).read_text().split("dataset", 1)[1] for name, where in best]
    assert texts[0] == texts[1]


def test_rows_are_trained_on_a_cluster_and_not_again(
    cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr("binep.cli.reproduce.preset", _narrow)
    monkeypatch.setattr("binep.analysis.measurements.preset", _narrow)
    words = ["reproduce", "quickstart", "--seeds", "2", "--output", str(tmp_path / "rows")]
    words += ["--address", cluster.address]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "2 runs on the cluster" in out
    assert "(2/2)" in out
    for seed in (0, 1):
        assert len(read_metrics(tmp_path / f"rows/quickstart/seed{seed}/metrics.csv")) == 1
    assert cli.main(words) == 0
    assert "runs on the cluster" not in capsys.readouterr().out


def _narrow(name: str) -> Config:
    config = preset(name)
    layers = {**config.layers, "1": replace(config.layers["1"], size=32)}
    return config.replace(layers=layers, epochs=1, max_batches=2, test_batch_size=64)


def test_an_address_that_does_not_answer_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rays, "WAIT", 5)
    listening = socket.create_server(("127.0.0.1", 0))  # and is no cluster
    address = f"127.0.0.1:{listening.getsockname()[1]}"
    folder = tmp_path / "sweep"
    with listening:
        assert cli.main([*SWEEP, "--sweep-dir", str(folder), "--address", address]) == 2
    assert capsys.readouterr().err.startswith(
        f"binep: --address {address}: no Ray cluster answers there (waited up to 5 s)"
    )
    assert not folder.exists()


def test_a_cluster_that_asks_for_a_token_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    said = b"ray.exceptions.AuthenticationError: RPC error: InvalidAuthToken: ..."
    done = subprocess.CompletedProcess([], 1, b"", said)
    monkeypatch.setattr(rays.subprocess, "run", lambda *args, **kwargs: done)
    with pytest.raises(ConfigError, match="asks for a token: set RAY_AUTH_MODE=token, and have"):
        rays._check_answers("one:6379")


def test_a_trial_that_no_machine_can_take_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0}}, {"Alive": False, "Resources": {"GPU": 1}}]
    rays._check_fits(nodes, 4, 0)
    with pytest.raises(ValueError, match="no machine has as many: the cluster's have 4 and 0"):
        rays._check_fits(nodes, 1, 1)


SOMETIMES = """
from pathlib import Path

import torch

from binep.data.batches import Split
from binep.data.errors import DataError
from binep.data.sources import Source
from binep.experiment import kinds


@kinds.data_set("sometimes")
class Sometimes(Source):
    shape, classes = (1, 1, 4), ("a", "b")

    def read(self, data_dir, download):
        if not (Path(__file__).parent / "there").exists():
            raise DataError("sometimes: not there")
        split = Split(torch.eye(4).repeat(8, 1).view(-1, 1, 1, 4), torch.arange(32) % 2)
        return split, split
"""


def test_trials_that_could_not_be_trained_are_tried_again_by_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sometimes.py").write_text(SOMETIMES)
    plug_in = ["--plugin", str(tmp_path / "sometimes.py")]
    words = ["sweep", "quickstart", *plug_in, "--dataset", "sometimes", "--layers.1.size", "8"]
    words += ["--epochs", "3", "--grace", "3"]  # so that none is ended early
    words += ["--set", "beta=uniform(.1,1)", "--set", "seed=grid(0,1)"]
    folder = tmp_path / "sweep"
    assert cli.main([*words, "--trials", "1", "--sweep-dir", str(folder)]) == 2
    said = capsys.readouterr()
    assert said.out.count("warning: trial") == 2
    again = f"binep sweep --resume {folder} --plugin {tmp_path / 'sometimes.py'}"
    assert said.err == f"binep: all trials failed: sometimes: not there; once more: {again}\n"
    (tmp_path / "there").touch()
    assert cli.main(["sweep", "--resume", str(folder), *plug_in]) == 0
    assert "failed" not in capsys.readouterr().out
    assert [t.epochs for t in sweeps.trials(sweeps.read(folder))] == [3, 3]


@pytest.mark.parametrize("words", [SWEEP, ["reproduce", "quickstart"]], ids=["sweep", "rows"])
def test_machines_with_another_binep_are_refused(
    words: list[str],
    cluster: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = rays.revision()
    monkeypatch.setattr(rays, "revision", lambda: "9.9, revision c0ffee")
    folder = tmp_path / "folder"
    flag = "--sweep-dir" if words is SWEEP else "--output"
    words = [*words, flag, str(folder), "--address", cluster.address]
    assert cli.main(words) == 2
    refused = (
        f"{socket.gethostname()} has binep {own}, where this was begun is binep 9.9, "
        "revision c0ffee: install the same on all machines"
    )
    assert capsys.readouterr().err == f"binep: --address {cluster.address}: {refused}\n"
    monkeypatch.setattr(rays, "_check_revisions", lambda *args: None)  # of one that comes later
    assert cli.main(words) == 2
    assert refused in capsys.readouterr().err
    assert not [*folder.rglob("config.toml")]


def test_a_machine_without_binep_says_so() -> None:
    from ray import cloudpickle

    sent = cloudpickle.dumps(rays.revision_check())
    code = "import sys; sys.modules['binep'] = None; import pickle; "
    code += "print(pickle.loads(sys.stdin.buffer.read())())"
    done = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=True)
    assert b"has no binep, or one without sweeps, where this was begun is binep " in done.stdout
