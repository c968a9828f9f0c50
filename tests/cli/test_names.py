"""Folders of any name, where the commands are called from anywhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import samples
from PIL import Image

from binep.cli import main as cli
from binep.experiment.config import Config

SMALL = "--layers.1.size 8 --max-batches 2 --threads 1 --epochs 1"
BYTES = os.fsdecode(b"r\xff")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BINEP_DATA", raising=False)


def binep(line: str) -> int:
    return cli.main(line.split())


@pytest.mark.skipif(not Path("/proc").exists(), reason="other systems refuse such names")
def test_a_name_that_is_not_utf8_is_a_name(tmp_path: Path) -> None:
    assert binep(f"train quickstart {SMALL} --run-dir {BYTES}") == 0
    for command in ("train --resume", "evaluate", "plot", "inspect", "report"):
        assert binep(f"{command} {BYTES}") == 0, command
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count(r"r\udcff")
    Image.new("L", (28, 28)).save(os.fsencode(f"{BYTES}.png"))
    assert binep(f"predict {BYTES} {BYTES}.png --output found.csv") == 0
    assert (tmp_path / "found.csv").read_text(encoding="utf-8").count(r"r\udcff.png") == 1
    assert binep(f"plot {BYTES} --output {BYTES}.png") == 0
    assert (tmp_path / f"{BYTES}.png").exists()


@pytest.mark.skipif(not Path("/proc").exists(), reason="other systems refuse such names")
def test_tensorboard_refuses_such_a_name_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert binep(f"train quickstart {SMALL} --run-dir {BYTES} --tensorboard") == 2
    assert "TensorBoard writes to names in UTF-8 only" in capsys.readouterr().err
    assert not (tmp_path / BYTES / "checkpoint.safetensors").exists()


def test_what_lies_beside_events_is_not_deleted(tmp_path: Path) -> None:
    assert binep(f"train quickstart {SMALL} --run-dir run --tensorboard") == 0
    (tmp_path / "run" / "tensorboard" / "mine").touch()
    assert binep("train --resume run --tensorboard") == 0
    names = sorted(path.name for path in (tmp_path / "run" / "tensorboard").iterdir())
    assert names[1] == "mine"
    assert len(names) == 2


# ---- data folders


@pytest.mark.parametrize("given", ["data", "~/data"])
def test_a_data_folder_is_the_same_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    samples.write_mnist(tmp_path / "data", 8, 4)
    flags = f"{SMALL} --dataset mnist --batch-size 4 --data-dir {given}"
    assert binep(f"train quickstart {flags} --run-dir run") == 0
    assert Config.load(tmp_path / "run" / "config.toml").data_dir == tmp_path / "data"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", "/nowhere")
    for command in ("evaluate", "train --resume"):
        assert binep(f"{command} {tmp_path}/run") == 0
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_relative_folder_of_an_older_run_is_not_downloaded_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    samples.write_mnist(tmp_path / "data", 8, 4)
    flags = f"{SMALL} --dataset mnist --batch-size 4 --data-dir data"
    assert binep(f"train quickstart {flags} --run-dir run") == 0
    path = tmp_path / "run" / "config.toml"
    text = path.read_text().replace(f'data_dir = "{tmp_path}/data"', 'data_dir = "data"')
    assert 'data_dir = "data"' in text
    path.write_text(text)
    assert binep("evaluate run") == 0  # from where it was started
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    capsys.readouterr()
    assert binep("evaluate ../run") == 2
    said = capsys.readouterr().err
    assert said.startswith("binep: ../run/config.toml: data_dir = data: there is no such folder ")
    assert "--data-dir" in said
    assert not list((tmp_path / "elsewhere").iterdir())
    assert binep("evaluate ../run --data-dir ../data") == 0
