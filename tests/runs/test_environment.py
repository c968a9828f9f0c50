"""What a run ran on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from refusals import refused

from binep.runs import environment
from binep.runs.environment import read_environment


def test_the_revision_is_that_of_the_package_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of a project around the folder that the package is installed in."""
    folder = Path(environment.__file__).parent
    monkeypatch.setattr(environment, "__file__", str(folder / "inside" / "runs" / "environment.py"))
    assert environment._git_revision() is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 10**5, "not JSON"),
        ('{"more": ' + 900 * "[" + 900 * "]" + "}", "not JSON"),
        ("[]", "does not say"),
        ('{"threads": [1]}', "'threads' must be a whole"),
        ('{"threads": true}', "'threads' must be a whole"),
        ('{"command": [3]}', "'command' must be a list of words"),
        ('{"versions": {"torch": 3}}', "'versions' must be names with"),
        ('{"processor": null}', "'processor' must be text"),
        ('{"device_name": 3}', "'device_name' must be text"),
    ],
)
def test_facts_that_cannot_be_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "environment.json"
    path.write_text(text)
    with refused(path, reason):
        read_environment(tmp_path)


def test_names_that_are_not_utf_8_are_spelt_out(tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text(json.dumps({"command": ["a\udcff"], "more": 3}))
    assert read_environment(tmp_path) == {"command": [r"a\udcff"], "more": 3}
