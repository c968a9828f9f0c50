"""What README and docs say is so: their Python runs, their links and presets exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from binep.config import preset_names

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *ROOT.glob("results/*.md")]


def test_the_python_of_the_readme_learns(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(code, {})
    errors = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(errors) == 10
    assert errors[-1] < 5 < errors[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_presets_exist(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in link or (page.parent / link).exists(), link
    for name in re.findall(r"binep train ([a-z][\w-]*)", text):
        assert name in preset_names()
