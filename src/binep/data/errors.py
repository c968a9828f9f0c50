"""What is wrong with a data set."""

from __future__ import annotations


class DataError(ValueError):
    """A data set is unknown, missing or damaged; one line that names the file and the remedy."""


def reason_of(error: BaseException) -> str:
    """What an error says, in a line."""
    lines = (getattr(error, "strerror", None) or str(error)).splitlines()
    return lines[0] if lines else type(error).__name__
