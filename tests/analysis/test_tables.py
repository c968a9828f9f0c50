"""The paper's tables, from runs and from their logs."""

from __future__ import annotations

import importlib.resources
import re
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import pytest
from samples import write_mnist

from binep.analysis import claims, measurements, readings, tables
from binep.cli import main as cli
from binep.experiment.config import Config, preset, preset_names
from binep.runs import checkpoints
from binep.runs.checkpoints import CHECKPOINT
from binep.runs.metrics import read_metrics

ROOT = Path(__file__).parents[2]


def cells(page: str, row: str) -> list[str]:
    """A row of the table, without its name."""
    (line,) = re.findall(rf"^\| `{row}`.*$", page, re.MULTILINE)[:1]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_committed_tables_are_those_of_the_committed_logs() -> None:
    assert (ROOT / "results" / "README.md").read_text() == tables.page(ROOT / "results")


def test_rows_are_the_presets_and_their_references_have_real_weights() -> None:
    assert set(claims.rows()) <= set(preset_names())
    for row in claims.rows().values():
        if row.reference is not None:
            assert preset(row.reference).learning.synapses == "real"
            assert preset(row.reference).dataset == preset(row.preset).dataset


def test_rows_are_run_resumed_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BINEP_DATA", str(write_mnist(tmp_path / "data")))
    output = tmp_path / "tables"
    command = ["reproduce", "mnist-fc1-ep-alpha", "--seeds", "2", "--epochs", "2", "--threads", "1"]
    command += ["--output", str(output)]
    assert cli.main(command) == 0
    assert capsys.readouterr().out.count("training on cpu") == 2
    page = (output / "README.md").read_text()
    logs = [read_metrics(output / f"mnist-fc1-ep-alpha/seed{n}/metrics.csv") for n in (0, 1)]
    errors = [rows[-1]["test_error"] or 0 for rows in logs]
    row = cells(page, "mnist-fc1-ep-alpha")
    assert row[1:3] == [f"{mean(errors):.2f} ± {stdev(errors):.2f}", "2 × 2 of 50"]
    assert row[4] == "`mnist-fc1-100-reference`: not run"
    assert cells(page, "mnist-fc1-ep")[1] == "not run"
    assert cells(page, "mnist-bits-fc2-ep")[1] == "not run: see `mnist-bits-fc2-ep-final`"

    # A finished run is left alone, one cut short after its first epoch goes on.
    before = (output / "mnist-fc1-ep-alpha/seed0/metrics.csv").stat().st_mtime_ns
    third = [*command[:3], "3", *command[4:]]
    assert cli.main(third) == 0
    assert capsys.readouterr().out.count("training on cpu") == 1
    assert (output / "mnist-fc1-ep-alpha/seed0/metrics.csv").stat().st_mtime_ns == before
    assert cells((output / "README.md").read_text(), "mnist-fc1-ep-alpha")[2] == "3 × 2 of 50"

    # A run that took other shortcuts counts, and the table says which.
    folder = output / "mnist-fc1-ep-alpha" / "seed3"
    train = ["train", "mnist-fc1-ep-alpha", "--seed", "3", "--epochs", "2", "--off", "odd-even"]
    assert cli.main([*train, "--threads", "1", "--run-dir", str(folder)]) == 0
    assert cli.main(["reproduce", "--output", str(output)]) == 0
    page = (output / "README.md").read_text()
    assert cells(page, "mnist-fc1-ep-alpha")[2] == "4 × 2 of 50"
    assert cells(page, "mnist-fc1-ep-alpha")[6] == "A, B"
    assert re.search("^Machine B: .*, 1 thread, `--off odd-even`\\.", page, re.M)


def test_what_was_interrupted_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BINEP_DATA", str(write_mnist(tmp_path / "data")))
    output = tmp_path / "tables"
    command = ["reproduce", "mnist-fc1-ep-alpha", "--seeds", "1", "--epochs", "2"]
    command += ["--output", str(output)]
    folder = measurements.folder_of(output, "mnist-fc1-ep-alpha", 0)
    original, batches = checkpoints.save_tensors, []

    def stop_in_the_second_epoch(*arguments: object) -> None:
        original(*arguments)  # type: ignore[arg-type]
        batches.append(arguments)
        if (folder / "metrics.csv").exists() and len(read_metrics(folder / "metrics.csv")) == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_tensors", stop_in_the_second_epoch)
        with pytest.raises(SystemExit):
            cli.main(command)
    assert "1 × 1 of 50" in (output / "README.md").read_text()
    monkeypatch.delenv("BINEP_DATA")  # and elsewhere, if so told
    moved = (tmp_path / "data").rename(tmp_path / "moved")
    assert cli.main([*command, "--threads", "1", "--data-dir", str(moved)]) == 0
    config = Config.load(folder / "config.toml")
    assert (config.data_dir, config.threads) == (moved, 1)
    assert "going on at epoch" in capsys.readouterr().out
    assert "1 × 2 of 50" in (output / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mnist-fc1-epp"], "no row mnist-fc1-epp (did you mean mnist-fc1-ep?)"),
        (["mnist-fc1-ep", "--epochs", "51"], "--epochs 51: must be at most 50, the row's own"),
        (["mnist-fc1-ep", "--seeds", "0"], "--seeds 0: must be a whole number from 1"),
        (["mnist-fc1-ep", "--epochs", "0"], "--epochs 0: must be a whole number from 1"),
    ],
)
def test_bad_input_is_told_before_any_work(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "tables"
    assert cli.main(["reproduce", *arguments, "--output", str(output)]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_a_run_of_other_settings_or_without_a_checkpoint_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BINEP_DATA", str(write_mnist(tmp_path / "data")))
    output = tmp_path / "tables"
    command = ["reproduce", "mnist-fc1-ep-alpha", "--seeds", "1", "--output", str(output)]
    assert cli.main([*command, "--epochs", "1"]) == 0
    capsys.readouterr()
    assert cli.main([*command, "--epochs", "2"]) == 2
    assert "holds a run of 1 epochs, not 2: name another folder" in capsys.readouterr().err
    folder = measurements.folder_of(output, "mnist-fc1-ep-alpha", 0)
    text = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(text.replace("\nepochs = 1\n", "\nepochs = 3\n"))
    (folder / CHECKPOINT).unlink()
    assert cli.main([*command, "--epochs", "3"]) == 2
    assert "the log of 1 of 3 epochs, and no checkpoint" in capsys.readouterr().err
    (folder / "config.toml").write_text(text.replace("size = 100", "size = 101"))
    assert cli.main([*command, "--epochs", "1"]) == 2
    assert "holds a run of other settings: layers.1.size" in capsys.readouterr().err
    assert cli.main(["reproduce", "--output", str(output)]) == 2
    assert "its settings are not those of mnist-fc1-ep-alpha" in capsys.readouterr().err
    folder.rename(folder.with_name("seed0-old"))  # no run of the row any more
    assert cli.main(["reproduce", "--output", str(output)]) == 0


# ---- presets without a claim


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A preset of a name full of marks, beside those of the package."""
    name = "my [net] *100*-reference"
    package = tmp_path / "package"
    shutil.copytree(str(importlib.resources.files("binep.experiment")), package)
    config = preset("quickstart").replace(title="Odd", max_batches=2, epochs=2)
    layers = {**config.layers, "1": replace(config.layers["1"], size=7)}
    (package / "presets" / f"{name}.toml").write_text(config.replace(layers=layers).to_toml())
    monkeypatch.setattr(importlib.resources, "files", lambda _: package)
    return name


def test_a_preset_without_a_claim_is_reproduced_and_reported(
    odd: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "tables"
    command = ["reproduce", odd, "--seeds", "2", "--threads", "1", "--output", str(output)]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert said.count("training on cpu") == 2
    assert re.search(rf"{re.escape(odd)} .*\n  claimed: nothing\n", said)
    page = (output / "README.md").read_text()
    *paper, last = re.findall("^\\| `(.*?)`", page, re.MULTILINE)
    assert (paper, last) == ([*claims.rows()], odd)
    (line,) = (line for line in page.splitlines() if f"`{odd}`" in line)
    assert "[seed1](my%20%5Bnet%5D%20%2A100%2A-reference/seed1)" in line
    logs = [read_metrics(output / odd / f"seed{n}/metrics.csv") for n in (0, 1)]
    errors = [rows[-1]["test_error"] or 0 for rows in logs]
    measured = f"{mean(errors):.2f} ± {stdev(errors):.2f} | 2 × 2 | none | none |"
    assert measured in line

    # Nothing is left to do; and without a run the preset has no row.
    assert cli.main(command) == 0
    assert "training on cpu" not in capsys.readouterr().out
    assert odd not in tables.page(tmp_path)
    assert [row.preset for row in tables.rows(tmp_path, {odd})][-1] == odd

    folders = [str(output / odd / f"seed{n}") for n in (0, 1)]
    assert cli.main(["report", *folders, "--output", str(tmp_path / "page.html")]) == 0
    html = (tmp_path / "page.html").read_text()
    assert f"Preset <code>{odd}</code>, Odd." in html
    assert "no row of the paper's tables, so the paper claims nothing of it" in html
    assert "epochs: 2 of" not in html
    assert "After the last epoch (2)" in html


def test_a_report_names_the_preset_that_has_a_claim(
    odd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another of the same setting comes first in the alphabet."""
    presets = tmp_path / "package" / "presets"
    shutil.copy(presets / "mnist-fc1-ep.toml", presets / "a copy.toml")
    found = readings.gather([ROOT / "results/mnist-fc1-ep/seed0"])
    assert found.preset == "mnist-fc1-ep"
    assert found.row == claims.rows()["mnist-fc1-ep"]
    assert claims.row_of("a copy").claim == ""


def test_a_machine_is_shown_as_it_is_called(tmp_path: Path) -> None:
    """Whatever its name holds: in Markdown it is neither a table, a link nor HTML."""
    about = {"processor": "A_B | <img src=x>\n| `c` [d](e) *f*", "threads": 2}
    config = preset("quickstart").replace(
        speed=replace(preset("quickstart").speed, off=("events",))
    )
    machine = measurements.Measured(tmp_path, config, [], about).machine
    assert machine == "A_B | <img src=x> | 'c' [d](e) *f*, 2 threads, `--off events`"
    shown = tables._literal(machine)
    assert shown == (r"A\_B \| \<img src=x\> \| 'c' \[d\](e) \*f\*, 2 threads, `--off events`")
