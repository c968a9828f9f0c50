"""Files that are written whole or not at all, and folders that one process writes at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


class RunError(ValueError):
    """A run folder that cannot be written or read: the message names the file and the reason."""


def write(path: Path, content: bytes) -> None:
    """Write a file beside its place, flush it to the disk, then rename it into place.

    Raises:
        RunError: it cannot be written; what was there before is as it was.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise RunError(f"{path}: cannot be written: {error.strerror}") from error


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where there is none.

    Raises:
        RunError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be made: {error.strerror}") from error


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process had begun to write."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A context in which no other process can train in a folder.

    Raises:
        RunError: one does already, or the folder cannot be written.
    """
    try:
        opened = (folder / ".lock").open("w")
    except OSError as error:
        raise RunError(f"{folder}: cannot be written: {error.strerror}") from error
    with opened as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(f"{folder}: another process trains here") from None
        yield
