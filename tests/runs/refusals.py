"""What an error about a file says."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from binep.runs.files import RunError


@contextlib.contextmanager
def refused(path: Path, *reasons: str) -> Iterator[None]:
    """A RunError of one line that names the file and the reasons."""
    with pytest.raises(RunError) as error:
        yield
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    for reason in reasons:
        assert reason in message
