"""What a safetensors file says of itself, without its tensors and without PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

from binep.data.regular import open_regular

MOST = 100_000_000
"""Bytes that the format allows for a header."""


def header_of(file: IO[bytes]) -> dict[str, str]:
    """The facts in the header of a safetensors file, by name.

    Raises:
        ValueError: it is no such file.
    """
    length = int.from_bytes(file.read(8), "little")
    if length > MOST:
        raise ValueError(f"its header is of {length} bytes")
    try:
        facts: dict[str, str] = json.loads(file.read(length)).get("__metadata__") or {}
        return facts
    except (AttributeError, RecursionError) as error:
        raise ValueError(str(error)) from None


def about(path: Path) -> dict[str, Any]:
    """What was written about tensors beside them, unchecked; empty of a file that is damaged."""
    try:
        with open_regular(path) as file:
            facts = json.loads(header_of(file)["binep"][64:])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}
