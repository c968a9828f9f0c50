"""The scripts for Slurm: what they call, with stand-ins for its commands; when they requeue."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from binep.runs.metrics import read_metrics

SCRIPTS = Path(__file__).parents[2] / "docs" / "slurm"
STANDS = {
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "scontrol": 'echo "scontrol $*" >> calls; if [ "$1" = show ]; then echo one; echo two; fi',
    "ray": 'echo "ray $*" >> calls',
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With stand-ins for the commands."""
    for name, text in STANDS.items():
        stand(tmp_path, name, text)
    stand(tmp_path, "binep", f'exec {sys.executable} -m binep "$@"')
    return tmp_path


def stand(folder: Path, name: str, text: str) -> None:
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def start(folder: Path, script: str, *words: str) -> subprocess.Popen[bytes]:
    job = {
        "SLURM_JOB_NAME": "job",
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "[one,two]",
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
    }
    command = ["bash", str(SCRIPTS / script), *words]
    return subprocess.Popen(command, cwd=folder, env=os.environ | job)


def ended(job: subprocess.Popen[bytes]) -> int:
    """The exit code of a script."""
    try:
        return job.wait(120)
    finally:
        job.kill()


def calls(folder: Path) -> list[str]:
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_a_run_is_requeued_until_it_has_ended(folder: Path) -> None:
    stand(  # gets the signal that Slurm sends it before the time is over
        folder,
        "srun",
        '"$@" & work=$!\n'
        "if ! grep -q requeue calls 2> /dev/null; then\n"
        "    until [ -e runs/job-7/metrics.csv ]; do sleep 0.02; done\n"
        "    kill -USR1 $work\n"
        "fi\n"
        "wait $work",
    )
    words = [
        "quickstart",
        "--layers.1.size",
        "8",
        "--max-batches",
        "4",
        "--epochs",
        "3",
        "--test-batch-size",
        "8",
    ]
    first = start(folder, "train.sbatch", *words)
    assert ended(first) == 128 + signal.SIGUSR1
    assert calls(folder) == ["scontrol requeue 7"]
    done = len(read_metrics(folder / "runs/job-7/metrics.csv"))
    assert done < 3
    assert ended(start(folder, "train.sbatch", *words)) == 0
    assert len(read_metrics(folder / "runs/job-7/metrics.csv")) == 3
    assert calls(folder) == ["scontrol requeue 7"]


@pytest.mark.parametrize(("code", "queued"), [(0, 0), (2, 0), (1, 0), (137, 0), (138, 1), (143, 1)])
def test_only_a_run_with_something_left_is_requeued(folder: Path, code: int, queued: int) -> None:
    stand(folder, "binep", f"exit {code}")
    assert ended(start(folder, "train.sbatch", "quickstart")) == code
    assert len(calls(folder)) == queued


def test_a_sweep_has_a_cluster_and_is_requeued(folder: Path) -> None:
    stand(
        folder,
        "binep",
        'echo "binep $*" >> calls; mkdir -p sweeps/job-7; touch sweeps/job-7/sweep.toml\n'
        'trap "sleep 0.2; exit 143" TERM; for i in $(seq 500); do sleep 0.02; done',
    )
    for attempt in (1, 2):
        job = start(folder, "sweep.sbatch", "quickstart", "--set", "beta=uniform(0.1,1)")
        end = time.monotonic() + 20
        while sum(line.startswith("binep") for line in calls(folder)) < attempt:
            assert time.monotonic() < end
            time.sleep(0.02)
        time.sleep(0.1)
        job.send_signal(signal.SIGUSR1)
        assert ended(job) == 143
    said = calls(folder)
    at = "--address one:6379"
    assert said.count("scontrol requeue 7") == 2
    assert "ray start --head --port=6379 --num-cpus=1 --include-dashboard=false --block" in said
    assert f"ray start {at} --num-cpus=1 --block" in said
    assert [line for line in said if line.startswith("binep")] == [
        f"binep sweep quickstart --set beta=uniform(0.1,1) --sweep-dir sweeps/job-7 {at}",
        f"binep sweep --resume sweeps/job-7 {at}",
    ]
