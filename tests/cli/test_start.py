"""What is loaded when: a start is quick, and the library leaves the environment alone."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import binep
from binep.experiment.config import Config, Layer
from binep.experiment.experiment import Experiment
from binep.runs import folder as runs


def loaded(code: str, folder: Path) -> set[str]:
    """The heavy modules that a fresh process has loaded when it has run some code."""
    heavy = ("torch", "matplotlib", "numba", "torch._inductor")
    asked = f"import sys\n{code}\nprint(*(name for name in {heavy} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", asked], cwd=folder, capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


def command(line: str) -> str:
    return f"from binep.cli.main import main\nassert main({line.split()}) == 0"


@pytest.mark.parametrize("line", ["--help", "--version", "presets"])
def test_what_computes_nothing_loads_nothing_heavy(line: str, tmp_path: Path) -> None:
    assert loaded(command(line), tmp_path) == set()


def test_curves_are_drawn_without_pytorch(tmp_path: Path) -> None:
    layers = {"1": Layer(8), "2": Layer(10)}
    config = Config(layers=layers, max_batches=1, epochs=1, threads=1)
    runs.train(Experiment(config), runs.claim_folder(tmp_path / "run"))
    assert loaded(command("plot run"), tmp_path) == {"matplotlib"}
    assert (tmp_path / "curves.png").exists()


def test_training_does_not_load_the_compiler_of_pytorch(tmp_path: Path) -> None:
    quick = "quickstart --max-batches 1 --epochs 1 --threads 1 --run-dir run"
    assert "torch._inductor" not in loaded(command(f"train {quick}"), tmp_path)


def test_importing_the_package_loads_nothing_heavy(tmp_path: Path) -> None:
    assert loaded("import binep\nassert binep.__version__", tmp_path) == set()


def test_the_library_sets_no_environment_variable(tmp_path: Path) -> None:
    code = "import os\nbefore = dict(os.environ)\nfrom binep import *\n"
    code += "assert dict(os.environ) == before"
    environment = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)


def test_the_command_line_shortens_spinning(tmp_path: Path) -> None:
    """Before PyTorch reads it, unless the user has chosen."""
    code = (
        "import sys, binep.cli.main, os\n"
        "assert 'torch' not in sys.modules\nprint(os.environ.get('GOMP_SPINCOUNT'))"
    )
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    kept = {k: v for k, v in os.environ.items() if k not in names}
    for chosen, wanted in (
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "passive"}, "None"),
    ):
        said = subprocess.check_output([sys.executable, "-c", code], env=kept | chosen, text=True)
        assert said.strip() == wanted


def test_public_names_resolve() -> None:
    for name in binep.__all__:
        assert getattr(binep, name).__name__ == name
    assert {*binep.__all__, "__version__"} <= set(dir(binep))
    with pytest.raises(AttributeError, match="'binep' has no attribute 'Netwrok'"):
        _ = binep.Netwrok  # type: ignore[attr-defined]


def test_type_checkers_see_the_names_where_they_are() -> None:
    tree = ast.parse(Path(str(binep.__file__)).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == binep._HOME
    optional = {"Classifier"}  # whose library need not be there
    assert sorted(seen.keys() - optional) == binep.__all__
