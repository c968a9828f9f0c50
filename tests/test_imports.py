"""Packages: imports run one way, the core knows torch alone, and starting is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest

from docs.draw_packages import FIGURE, FLOORS, SOURCE, drawn, graph, package_of, packages

GRAPH = graph()
LEVEL = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def modules_imported(module: str) -> set[str]:
    return GRAPH[module] & GRAPH.keys() - {module, "binep"}


def test_every_package_has_its_floor() -> None:
    assert {package_of(module) for module in GRAPH} == {*LEVEL, "", "__main__"}


@pytest.mark.parametrize("module", sorted(GRAPH))
def test_imports_run_down(module: str) -> None:
    """To the same package or a lower floor, also those inside functions."""
    mine = package_of(module)
    if mine in ("", "__main__"):  # its public names are from everywhere
        return
    for other in modules_imported(module):
        theirs = package_of(other)
        assert theirs == mine or LEVEL[theirs] > LEVEL[mine], f"{module} imports {other}"


def test_there_is_no_circle() -> None:
    """Not between packages, nor between modules."""
    tuple(TopologicalSorter({module: modules_imported(module) for module in GRAPH}).static_order())
    tuple(TopologicalSorter(packages(GRAPH)).static_order())


def test_only_two_modules_know_the_solvers() -> None:
    """`binep` itself and what builds networks; each imports them all, as plug-ins are."""
    outside = {
        module
        for module in GRAPH
        if package_of(module) != "solvers"
        and any(name.startswith("binep.solvers") for name in GRAPH[module])
    }
    assert outside <= {"binep", "binep.experiment.build"}


def test_the_core_imports_torch_and_nothing_heavier() -> None:
    allowed = {"torch", "binep", *sys.stdlib_module_names}
    for module, imported in GRAPH.items():
        if package_of(module) == "core":
            assert {name.split(".")[0] for name in imported} <= allowed, module
            inside = {name for name in imported if name.startswith("binep")}
            assert all(package_of(name) == "core" for name in inside), module


def test_no_function_is_long() -> None:
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                lines = node.end_lineno - node.lineno + 1
                assert lines <= 60, f"{path.name}: {node.name} has {lines} lines"


def test_the_picture_is_of_these_packages() -> None:
    assert FIGURE.read_text() == drawn(packages(GRAPH)), "run python docs/draw_packages.py"


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import binep; binep.Network", ("numba", "matplotlib", "safetensors")),
        ("import binep", ("torch", "numba")),
        ("import binep.core.network", ("numba", "binep.solvers.primitives")),
        ("import binep.experiment.config", ("torch", "numba")),
        ("import binep.data.sources", ("torch", "pooch")),
        ("import binep.runs.metrics, binep.runs.curves, binep.runs.settings", ("torch", "numba")),
        (
            "import binep, torch; n = binep.Network([binep.Dense(3, 2)], binep.Real(), "
            "speed=binep.Speed(off=binep.core.speed.SHORTCUTS)); n.relax(torch.rand(1, 3), 3)",
            ("numba",),
        ),
    ],
)
def test_nothing_is_loaded_before_it_is_needed(code: str, absent: tuple[str, ...]) -> None:
    check = f"{code}\nimport sys\nprint(sorted(set({absent!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_library_sets_no_environment_variable() -> None:
    code = "import os; before = dict(os.environ); import binep; binep.Experiment; binep.Network"
    check = f"{code}\nassert dict(os.environ) == before"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_the_faster_solvers_are_there_whatever_is_imported() -> None:
    """Also with nothing but the core."""
    code = """
import torch
from binep.core.network import Network
from binep.core.neurons import Real
from binep.core.synapses import Dense
end = Network([Dense(3, 2)], Real()).relax(torch.rand(1, 3), 3)
assert end.by.name == "in-cache", end.by
"""
    subprocess.run([sys.executable, "-c", code], check=True)
