"""Runs side by side, from folders that hold settings and a table of metrics."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from binep.analysis import comparison
from binep.cli.main import main
from binep.core.speed import Speed
from binep.experiment import plugins
from binep.experiment.config import Config, preset
from binep.runs.files import RunError
from binep.runs.metrics import table


def run_folder(folder: Path, config: Config, *errors: float, valid: float | None = None) -> Path:
    """A run folder that ended with the last of these errors."""
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(config.to_toml())
    rows = [
        {
            "epoch": epoch,
            "train_error": error / 2,
            "test_error": error,
            **dict.fromkeys(("train_loss", "test_loss", "train_seconds", "test_seconds"), 1.0),
            **({} if valid is None else {"valid_error": valid}),
        }
        for epoch, error in enumerate(errors, start=1)
    ]
    (folder / "metrics.csv").write_text(table(rows))
    return folder


def with_beta(beta: float, seed: int = 0) -> Config:
    config = preset("quickstart")
    return config.replace(seed=seed, learning=replace(config.learning, beta=beta))


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    made = [(0.5, 0, 9.0), (0.5, 1, 11.0), (0.1, 0, 30.0), (1.0, 0, 5.0)]
    return [
        run_folder(tmp_path / f"{beta}-{seed}", with_beta(beta, seed), 90, error)
        for beta, seed, error in made
    ]


def test_runs_that_differ_by_the_seed_are_one_row_and_the_best_comes_first(
    folders: list[Path],
) -> None:
    found = comparison.groups(folders)
    assert [group.settings for group in found] == [
        {"learning.beta": beta} for beta in (1.0, 0.5, 0.1)
    ]
    head, rows = comparison.table(found, comparison.results(found))
    assert head == ["learning.beta", "runs", "epoch", "train_error", "test_error", "folders"]
    assert [row[:5] for row in rows] == [
        ["1.0", "1", "2", "2.5", "5"],
        ["0.5", "2", "2", "5 ± 0.71", "10 ± 1.4"],
        ["0.1", "1", "2", "15", "30"],
    ]


def test_each_run_has_a_row_where_that_is_asked_for(folders: list[Path]) -> None:
    found = comparison.groups(folders, each=True)
    assert [group.settings["seed"] for group in found] == [0, 0, 1, 0]
    assert [len(group.folders) for group in found] == [1] * 4


def test_they_are_sorted_by_the_validation_error_where_there_is_one(tmp_path: Path) -> None:
    folders = [
        run_folder(tmp_path / str(beta), with_beta(beta), test, valid=valid)
        for beta, valid, test in ((0.1, 3, 9), (0.2, 4, 1))
    ]
    assert [g.settings["learning.beta"] for g in comparison.groups(folders)] == [0.1, 0.2]
    by_test = comparison.groups(folders, by="test_error")
    assert [g.settings["learning.beta"] for g in by_test] == [0.2, 0.1]


def test_a_validation_error_of_0_is_one(tmp_path: Path) -> None:
    folders = [
        run_folder(tmp_path / str(beta), with_beta(beta), test, valid=valid)
        for beta, valid, test in ((0.1, 0, 9), (0.2, 4, 1))
    ]
    found = comparison.groups(folders)
    assert comparison.judged_by(found) == "valid_error"
    assert [g.settings["learning.beta"] for g in found] == [0.1, 0.2]


def test_a_setting_of_some_runs_alone_is_empty_in_the_others(tmp_path: Path) -> None:
    one, two = preset("quickstart"), preset("quickstart")
    layers = {**two.layers, "3": two.layers["2"]}
    two = two.replace(layers=layers)
    folders = [run_folder(tmp_path / "one", one, 5), run_folder(tmp_path / "two", two, 6)]
    head, rows = comparison.table(comparison.groups(folders), ["test_error"])
    assert head[0] == "layers.3"
    assert rows[0][0] == ""


def test_the_command_prints_text_csv_and_markdown(
    folders: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    names = list(map(str, folders))
    assert main(["compare", *names, "--format", "csv"]) == 0
    read = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["test_error"] for row in read] == ["5", "10 ± 1.4", "30"]
    assert main(["compare", *names, "--format", "markdown"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "|" + " --- |" * 6
    assert main(["compare", *names]) == 0
    assert "learning" in capsys.readouterr().out


def test_a_result_is_drawn_over_a_setting(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = comparison.groups(folders)
    (axes,) = comparison.figure(found, "learning.beta", "test_error").axes
    *points, means = axes.lines
    drawn = sorted((x, y) for line in points for x, y in zip(*line.get_data(), strict=True))
    assert drawn == [(0.1, 30), (0.5, 9), (0.5, 11), (1.0, 5)]
    assert list(means.get_ydata()) == [30, 10, 5]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.1", "0.5", "1.0"]
    assert axes.get_xscale() == "log"
    assert not axes.get_xticks(minor=True).size
    output = tmp_path / "beta.svg"
    arguments = ["--plot", "beta", "--output", str(output)]  # as its flag is called
    assert main(["compare", *map(str, folders), *arguments]) == 0
    assert output.read_bytes().startswith(b"<?xml")


def test_errors_after_other_epochs_are_not_averaged(tmp_path: Path) -> None:
    errors = {0: (90, 5), 1: (10,), 2: (12,)}
    folders = [
        run_folder(tmp_path / str(seed), with_beta(0.5, seed), *ends)
        for seed, ends in errors.items()
    ]
    found = comparison.groups(folders)
    _, rows = comparison.table(found, comparison.results(found))
    assert [row[:4] for row in rows] == [
        ["1", "2", "2.5", "5"],
        ["2", "1", "5.5 ± 0.71", "11 ± 1.4"],
    ]


def test_settings_that_are_lists_or_tables_are_drawn_by_name(tmp_path: Path) -> None:
    base = preset("quickstart")
    deep = {**base.layers, "3": replace(base.layers["2"], size=10)}
    off = base.replace(speed=Speed(off=("digits", "events")))
    configs = {"a": base, "b": off, "c": base.replace(layers=deep)}
    folders = [run_folder(tmp_path / name, config, 9) for name, config in configs.items()]
    for pair, setting, ticks in (
        (folders[:2], "off", ["none", "digits events"]),
        (folders[::2], "layers.3", ["", "dense, 10"]),
    ):
        (axes,) = comparison.figure(comparison.groups(pair), setting, "test_error").axes
        assert [label.get_text() for label in axes.get_xticklabels()] == ticks


def test_plug_ins_that_differ_are_shown_by_their_digests(tmp_path: Path) -> None:
    base = preset("quickstart")
    folders = []
    for digit in "ab":
        config = base.replace(plugins={"parts.py": digit * 64})
        folder = run_folder(tmp_path / digit, base, 9)
        (folder / "config.toml").write_text(config.to_toml())
        folders.append(folder)
    with pytest.MonkeyPatch.context() as patch:  # as if they had been loaded
        patch.setattr(plugins, "require", lambda recorded: None)
        found = comparison.groups(folders)
    head, rows = comparison.table(found, [])
    assert head[0] == "plugins.parts.py"
    assert sorted(row[0] for row in rows) == ["a" * 8, "b" * 8]


def test_digests_are_shown_by_their_start() -> None:
    assert comparison._text("0123456789abcdef" * 4) == "01234567"
    assert comparison._text("0123456789abcdef") == "0123456789abcdef"


BAD = {
    "": "compare what?",
    "nosuch": "nosuch: not a run folder",
    "RUN --by tset_error": "has no such column (did you mean test_error?)",
    "RUN --plot learning.beat": "these do: learning.beta",
    "RUN --plot epochs --output page.html": "must end in .png, .pdf or .svg",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_ends_with_one_line(
    folders: list[Path], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = line.replace("RUN", " ".join(map(str, folders))).split()
    assert main(["compare", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert BAD[line] in said.err


def test_a_folder_without_a_table_is_refused(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", with_beta(0.5), 5)
    (folder / "metrics.csv").unlink()
    with pytest.raises(RunError, match=r"metrics\.csv: cannot be read"):
        comparison.groups([folder])
