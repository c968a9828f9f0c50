"""The script that completes words in a shell."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
from pathlib import Path

import pytest

from binep.cli import main as cli


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("tra", "train"),
        ("train quick", "quickstart"),
        ("train quickstart --layers.1.si", "--layers.1.size"),
        ("train quickstart --no-det", "--no-deterministic"),
        ("evaluate --data", "--data-dir"),
        ("check gra", "gradients"),
        ("sweep quick", "quickstart"),
        ("help pres", "presets"),
        ("predict digit.p", ""),
        ("train --config ''", ""),  # a file, which the shell itself completes
        ("evaluate ''", ""),
        ("train quickstart --beta ''", ""),
        ("train quickstart --activation h", "hard-sigmoid heaviside"),
        ("train quickstart --dataset kmn", "kmnist"),
        ("train --deterministic quick", "quickstart"),
        ("compare run --format ''", "text csv markdown"),
    ],
)
def test_bash_completes(script: Path, words: str, found: str) -> None:
    given = ["binep", *words.split()]
    asked = f"COMP_WORDS=({' '.join(given)}); COMP_CWORD={len(given) - 1}; _binep"
    lines = f'. {script}; {asked}; echo "${{COMPREPLY[*]}}"'
    done = subprocess.run(["bash", "-c", lines], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"{found}\n", "")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert cli.main(["completion"]) == 0
    path = tmp_path_factory.mktemp("shell") / "completion"
    path.write_text(said.getvalue())
    return path
