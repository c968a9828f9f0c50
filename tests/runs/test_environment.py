"""What a run ran on, and what it went on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numba
import pytest
import torch

from binep.analysis.measurements import Measured
from binep.cli import main as cli
from binep.experiment.config import Config, Layer
from binep.experiment.experiment import Experiment
from binep.runs import environment
from binep.runs import folder as runs
from binep.runs.environment import changed, read_environment

CONFIG = Config(layers={"1": Layer(8), "2": Layer(10)}, max_batches=2, epochs=2)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that stopped after its first batch, on the threads of this process."""
    (tmp_path / "run").mkdir()
    with pytest.raises(runs.Stopped):
        runs.train(Experiment(CONFIG), tmp_path / "run", stop=lambda: True)
    return tmp_path / "run"


def record(folder: Path) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((folder / "environment.json").read_text())
    return about


def test_the_revision_is_that_of_the_package_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of a project around the folder that the package is installed in."""
    folder = Path(environment.__file__).parent
    monkeypatch.setattr(environment, "__file__", str(folder / "inside" / "runs" / "environment.py"))
    assert environment._git_revision() is None


def test_each_resume_leaves_a_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = record(run)
    assert "resumed" not in first
    for _ in range(2):
        experiment, rows = runs.resume(run)
        with pytest.raises(runs.Stopped):
            runs.train(experiment, run, rows=rows, stop=lambda: True)
    assert cli.main(["train", "--resume", str(run)]) == 0
    last = record(run)
    resumed = last.pop("resumed")
    assert last == first
    assert [about["at"] for about in resumed] == [
        *("epoch 1, batch 2", "epoch 1, batch 3", "epoch 2, batch 2")
    ]
    said, log = capsys.readouterr(), (run / "log.txt").read_text()
    line = environment.described(resumed[-1])
    assert "PyTorch" in line
    assert f"numba {numba.__version__}" in line
    assert resumed[-1]["processor"] in line
    assert f"{run}: now {line}\n" in said.out
    assert said.err.count("the bits may be others") == 0
    assert log.count(f" on cpu: {line}\n") == 4
    assert log.count("learns mnist5k: 4000 + 1000 images, SHA-256 ") == 4
    assert cli.main(["train", "--resume", str(run)]) == 0  # has ended: trains nothing
    assert len(record(run)["resumed"]) == 3


def test_other_threads_are_warned_of(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = record(run)["threads"]
    torch.set_num_threads(before + 1)
    try:
        assert cli.main(["train", "--resume", str(run)]) == 0
    finally:
        torch.set_num_threads(before)
    warning = f"threads {before + 1}, before {before}: the bits may be others"
    assert warning in capsys.readouterr().err
    assert warning in (run / "log.txt").read_text()
    assert record(run)["resumed"][0]["threads"] == before + 1
    many = f"{before + 1} threads"
    about = read_environment(run)
    machine = Measured(run, CONFIG, [], about).machine
    assert machine.startswith(f"{about['processor']}, {before} thread")
    assert machine.endswith(f"; then {about['processor']}, {many}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("processor", "a"), ("git_revision", "a"), ("device_name", "a")),
        *(("versions", {name: "a"}) for name in environment.VERSIONS),
    ],
)
def test_what_bits_depend_on_is_compared(run: Path, name: str, value: Any) -> None:
    now = record(run)
    assert changed(now, now) == changed({}, now) == ""
    assert ", before a" in changed({**now, name: value}, now)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"resumed": 1}', b'{"resumed": [1]}', None])
def test_a_damaged_record_is_begun_anew_with_a_warning(run: Path, content: bytes | None) -> None:
    path = run / "environment.json"
    path.unlink()
    if content is not None:  # an old run kept none
        path.write_bytes(content)
    said: list[str] = []
    experiment, rows = runs.resume(run)
    runs.train(experiment, run, rows=rows, warn=said.append)
    assert any(f"{path}: " in text for text in said) == (content is not None)
    assert [about["at"] for about in read_environment(run)["resumed"]] == ["epoch 1, batch 2"]
    assert Measured(run, CONFIG, [], read_environment(run)).machine == "not recorded"
