"""Outputs that cannot be written, and what may not reach a terminal as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from binep.cli import errors, output
from binep.cli.main import main
from binep.cli.streams import OutputError
from binep.experiment.config import ConfigError

FULL = Path("/dev/full")
SMALL = "--layers.1.size 8 --max-batches 2 --threads 1 --epochs 1 --warn-flip-rate 1"


def ends(line: str, folder: Path, redirected: str) -> tuple[int, str]:
    """Exit code and standard error output of a command in a shell."""
    command = f"'{sys.executable}' -m binep {line} {redirected}"
    done = subprocess.run(
        ["sh", "-c", command], cwd=folder, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
@pytest.mark.parametrize("line", ["presets", "--version", "--help", "plot --help"])
def test_a_full_disk_is_one_line(line: str, tmp_path: Path) -> None:
    code, error = ends(line, tmp_path, "> /dev/full")
    assert (code, error) == (2, "binep: the output cannot be written: No space left on device\n")


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_errors_on_a_full_disk_keep_their_exit_code(tmp_path: Path) -> None:
    code, error = ends("nonsense", tmp_path, "> /dev/full")
    assert code == 2
    assert error.startswith("binep: unknown command nonsense")
    assert ends("nonsense", tmp_path, "2> /dev/full") == (2, "")


@pytest.mark.parametrize("line", ["presets", "--help", f"train quickstart {SMALL}"])
def test_closed_outputs_are_outputs_to_nowhere(line: str, tmp_path: Path) -> None:
    assert ends(line, tmp_path, ">&- 2>&-") == (0, "")


def test_control_sequences_of_a_file_are_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.toml").write_text(r'"\u001b[31m" = 1')
    for name in ("x.toml", "\x1b]0;title\x07"):
        assert main(["train", "--config", name]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert error.rstrip("\n").isprintable()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError(3),
        ConfigError(),
        ConfigError("\ud800\x1b\x9b" + "x" * 10**5),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("std::bad_alloc"),
        UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
    ],
)
def test_printing_an_error_never_fails(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    known = not isinstance(error, UnicodeEncodeError)
    try:
        with errors.reporting_errors() as failed:
            raise error
    except UnicodeEncodeError:  # a bug: it stays one
        assert not known
        return
    assert len(failed) == 1
    said = capsys.readouterr().err
    assert said.startswith("binep: ")
    assert said.count("\n") == 1
    assert len(said) < 3000


def test_letters_stay_as_they_are() -> None:
    assert output.escaped("α ≥ 0: größer") == "α ≥ 0: größer"
    assert output.escaped("a\tb\udcff\x1b[0m") == r"a\tb\udcff\x1b[0m"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileNotFoundError(2, "not there", "/nowhere"), "/nowhere: not there"),
        (OSError(28, "full", "a place"), "a place: full"),
        (PermissionError(13, "may not"), "a file: may not"),
        (OSError(28, "full"), "the output cannot be written: full"),
        (OutputError(13, "may not"), "the output cannot be written: may not"),
    ],
)
def test_an_error_of_the_system_is_one_line(
    error: OSError, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with errors.reporting_errors() as failed:
        raise error
    assert failed == [line]
    assert capsys.readouterr().err == f"binep: {line}\n"


def test_an_error_that_is_not_the_systems_is_a_bug() -> None:
    with pytest.raises(OSError, match="of a library"), errors.reporting_errors():
        raise OSError("of a library")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--seed 1 --seed=2", "--seed is given 2 times: the last one counts"),
        ("--max-batches 1 --max_batches 1", "--max-batches is given 2 times"),
        ("--zero-bias --no-zero-bias", "--zero-bias is given 2 times"),
        ("--seed 1", ""),
    ],
)
def test_a_flag_given_twice_is_named_once(
    flags: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = SMALL.replace("--max-batches 2", "" if "max" in flags else "--max-batches 1")
    line = f"train quickstart {small} --run-dir {tmp_path / 'run'} {flags}"
    assert main(line.split()) == 0
    lines = [x for x in capsys.readouterr().err.splitlines() if "given" in x]
    assert len(lines) == bool(said)
    assert not said or lines[0].startswith(f"binep: warning: {said}")


def test_control_sequences_in_tables_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("folder")
    table.add_row("a\x1b[31m\nb")
    output.print_table(table)
    said = capsys.readouterr().out
    assert r"a\x1b[31m" in said
    assert "\x1b" not in said
    assert len(said.split()) == 4  # the head, a line, and two lines of the cell


@pytest.mark.parametrize("setting", ["NUMBA_NUM_THREADS=0", "NUMBA_THREADING_LAYER=none-such"])
def test_settings_that_numba_refuses_are_one_line(setting: str, tmp_path: Path) -> None:
    name, value = setting.split("=")
    done = subprocess.run(
        [sys.executable, "-m", "binep", "train", "quickstart", *SMALL.split()],
        cwd=tmp_path,
        env={**os.environ, name: value},
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("binep: numba, with")]
    assert (done.returncode, len(lines)) == (2, 1)
    assert f"{name} = {value}" in lines[0]
