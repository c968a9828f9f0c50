"""Files that are written whole or not at all, and folders that one process writes at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import filelock

from binep.data.regular import open_regular, require_regular

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

CHECKPOINT, START = "checkpoint.safetensors", "start.safetensors"
LOCK, SOFT_LOCK = ".lock", ".lock.soft"
"""The file whose lock a training process holds; and that which is there while it trains, where
a file system has no locks."""
_TEMPORARY = re.compile(
    r"\.(config\.toml|environment\.json|metrics\.csv|curves\.png"
    r"|(model|best|start|checkpoint)\.safetensors)\.\d+\.tmp"
)
"""What `write` leaves in a run folder when it is killed."""
_UNSUPPORTED = {
    getattr(errno, name, None)
    for name in ("ENOSYS", "ENOLCK", "EOPNOTSUPP", "ENOTSUP", "EIO", "EINVAL", "EBADF")
}


class RunError(ValueError):
    """A run folder that cannot be written or read: the message names the file and the reason."""


class BusyError(RunError):
    """A folder that another process trains in."""


def write(path: Path, content: bytes) -> None:
    """Write a file beside its place, flush it to the disk, then rename it into place.

    Raises:
        RunError: it cannot be written, or a device, a FIFO or a socket has its name; what was there
            before is as it was.
    """
    if not path.name:
        raise RunError(f"{path}: is a folder: must be a file")
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with contextlib.suppress(FileNotFoundError):
            require_regular(path)
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()  # of another process of this number, long ago
        with beside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise RunError(f"{path}: cannot be written: {error.strerror}") from error


def read(path: Path) -> bytes:
    """The content of a file.

    Raises:
        RunError: it cannot be read; a FIFO or a device is not waited for.
    """
    try:
        with open_regular(path) as file:
            content: bytes = file.read()
            return content
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error


def append(path: Path, line: str) -> None:
    """Add a line to a text, with nothing of the others written again.

    Raises:
        RunError: it cannot be written; a link is not followed.
    """
    try:
        with open_regular(path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{line}\n")
    except OSError as error:
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


def is_ours(path: Path) -> bool:
    """Whether a killed process of `write` left this file, which is of no use."""
    return _TEMPORARY.fullmatch(path.name) is not None and path.is_file() and not path.is_symlink()


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process had begun to write, and nothing of anybody else's."""
    for leftover in filter(is_ours, folder.glob(".*.tmp")):
        with contextlib.suppress(OSError):
            leftover.unlink()


def is_unused(folder: Path) -> bool:
    """Whether a folder holds nothing, or only what a process leaves that was killed at once."""
    return all(path.name in (LOCK, SOFT_LOCK, START) or is_ours(path) for path in folder.iterdir())


class Lock:
    """No other process can train in a folder while this is held; see `locked`.

    Attributes:
        folder: which one.
        note: what is not as usual about it, or "".
    """

    def __init__(self, folder: Path, note: str = "") -> None:
        self.folder, self.note = folder, note


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Lock]:
    """A context in which no other process can train in a folder.

    Two locks are held: of the file ``.lock``, which holds on NFS and Windows, too; and of the
    folder itself where its file system can, so that nobody is let in by deleting the file. Where
    there is no lock of files, ``.lock.soft`` is there instead, and holds the process's number.

    Raises:
        BusyError: one does already.
        RunError: the folder cannot be written.
    """
    with contextlib.ExitStack() as held:
        try:
            _lock_folder(folder, held)
            lock = _lock_file(folder, held)
        except filelock.Timeout:
            where = f"{folder}: another process trains here"
            if (folder / SOFT_LOCK).exists():
                where += f"; if none does, on any machine, delete {folder / SOFT_LOCK}"
            raise BusyError(where) from None
        except OSError as error:
            path = error.filename or folder
            raise RunError(f"{path}: cannot be written: {error.strerror}") from error
        yield lock


def _lock_folder(folder: Path, held: contextlib.ExitStack) -> None:
    if fcntl is None:
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    held.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise filelock.Timeout(str(folder)) from None
    except OSError as error:  # NFS locks files only
        if error.errno not in _UNSUPPORTED:
            raise


def _lock_file(folder: Path, held: contextlib.ExitStack) -> Lock:
    path = folder / LOCK
    with contextlib.suppress(FileNotFoundError):
        if path.is_symlink():
            raise OSError(errno.EINVAL, "a link, not a file", str(path))
        require_regular(path)
    try:
        held.enter_context(filelock.FileLock(path, blocking=False, fallback_to_soft=False))
    except filelock.Timeout:
        raise
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        held.enter_context(filelock.SoftFileLock(folder / SOFT_LOCK, blocking=False))
        return Lock(
            folder,
            f"{folder}: no locks on this file system ({error.strerror}): {SOFT_LOCK} keeps other "
            "processes out",
        )
    return Lock(folder)
