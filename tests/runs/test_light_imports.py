"""Logs are read, compared and drawn without PyTorch, whose import takes longer than all of that."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

import binep

SOURCE = Path(binep.__file__).parent
LIGHT = ("curves", "environment", "files", "headers", "metrics", "settings")
WITHOUT_TORCH = {"binep.data.regular", "binep.experiment.config"}
"""Of the packages below: shown to do without it by the tests of its own."""


def imported(module: str) -> Iterator[str]:
    """Modules that a module imports when it is itself imported."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            inner = [f"{node.module}.{name.name}" for name in node.names]
            modules = [name for name in inner if (SOURCE.parent / as_path(name)).exists()]
            yield from modules or [node.module]


def as_path(module: str) -> Path:
    return Path(*module.split(".")).with_suffix(".py")


@pytest.mark.parametrize("name", LIGHT)
def test_reading_and_drawing_logs_needs_no_torch(name: str) -> None:
    seen, new = set(), {f"binep.runs.{name}"}
    while new:
        module = new.pop()
        seen.add(module)
        for other in imported(module):
            assert other.split(".")[0] not in ("torch", "safetensors"), module
            if other.startswith("binep.") and other not in WITHOUT_TORCH:
                assert other.startswith("binep.runs."), (module, other)
                new |= {other} - seen
