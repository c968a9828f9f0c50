"""`binep train --seeds`: several runs at once, and what they gave."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
from pathlib import Path
from statistics import mean, stdev

import pytest

from binep.cli import main as cli
from binep.cli import training
from binep.experiment.config import Config
from binep.runs.metrics import read_metrics

SMALL = "quickstart --layers.1.size 8 --max-batches 2 --threads 1 --epochs 1 --warn-flip-rate 1"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def binep(line: str) -> int:
    return cli.main(line.split())


def test_each_seed_has_its_folder_and_the_mean_is_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert binep(f"train {SMALL} --seeds 3 --seed 4 --run-dir f") == 0
    folders = [Path(f"f/seed{n}") for n in (4, 5, 6)]
    assert [Config.load(folder / "config.toml").seed for folder in folders] == [4, 5, 6]
    errors = [read_metrics(folder / "metrics.csv")[-1]["test_error"] or 0 for folder in folders]
    said = f"test error {mean(errors):.2f} ± {stdev(errors):.2f} % of 3 seeds"
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith(said)
    # One more seed, and one that was lost: only these are run.
    shutil.rmtree(folders[1])
    assert binep(f"train {SMALL} --seeds 4 --seed 4 --run-dir f") == 0
    out = capsys.readouterr().out
    assert re.findall(r"run folder (\S+)", out) == ["f/seed5", "f/seed7"]
    again = read_metrics(Path("f/seed5/metrics.csv"))[-1]["test_error"]
    assert again == errors[1]


def test_what_was_stopped_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = iter([[], [15]])  # signals during the first run and the second
    with monkeypatch.context() as patch:
        patch.setattr(training, "_stop_on_signals", lambda: contextlib.nullcontext(next(asked)))
        with pytest.raises(SystemExit):
            binep(f"train {SMALL} --seeds 3 --run-dir f")
    said = capsys.readouterr().out
    assert "what is missing of 3 seeds: the same command with --run-dir f" in said
    assert not Path("f/seed2").exists()
    held = Config.load(Path("f/seed1/config.toml"))
    speed = dataclasses.replace(held.speed, precision="fast")
    Path("f/seed1/config.toml").write_text(held.replace(speed=speed).to_toml())
    assert binep(f"train {SMALL} --seeds 3 --run-dir f --checkpoint-minutes 3") == 0
    now = Config.load(Path("f/seed1/config.toml"))  # what is given, and else what it had
    assert now == held.replace(speed=speed, checkpoint_minutes=3.0)
    said = capsys.readouterr().out
    assert "f/seed0" not in said
    assert "going on at epoch 1, batch 2" in said


def test_without_a_folder_they_share_a_new_one() -> None:
    assert binep(f"train {SMALL} --seeds 1") == 0
    (folder,) = Path("runs/quickstart").iterdir()
    assert (folder / "seed0" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (f"{SMALL} --seeds 0", "--seeds 0: must be a whole number from 1"),
        ("--resume run --seeds 2", "--seeds 2: is for new runs"),
        (f"{SMALL} --seeds 2 --run-dir run", "run: holds a run itself"),
        (f"{SMALL} --seeds 2 --run-dir other", "other/seed1: holds a run of other settings"),
        (f"{SMALL} --seeds 2 --seed {2**63 - 1} --run-dir new", "seed = 9223372036854775808"),
        (f"{SMALL} --seeds x", "--seeds"),
    ],
)
def test_bad_input_ends_with_a_line(
    flags: str, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("run", "other/seed1"):
        Path(folder).mkdir(parents=True)
        (Path(folder) / "config.toml").write_text(Config(batch_size=9).to_toml())
    assert binep(f"train {flags}") == 2
    said = capsys.readouterr()
    assert error in said.err
    assert (said.err.count("\n"), said.out) == (1, "")
    assert not Path("other/seed0").exists()
