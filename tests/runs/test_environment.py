"""What a run ran on."""

from __future__ import annotations

from pathlib import Path

import pytest

from binep.runs import environment


def test_the_revision_is_that_of_the_package_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of a project around the folder that the package is installed in."""
    folder = Path(environment.__file__).parent
    monkeypatch.setattr(environment, "__file__", str(folder / "inside" / "runs" / "environment.py"))
    assert environment._git_revision() is None
