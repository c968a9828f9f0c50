"""Files that are opened at once or not at all: a FIFO would be waited for, a device goes on."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import IO, Any


def open_regular(path: Path, mode: str = "rb", **options: Any) -> IO[Any]:
    """A regular file, opened as `open` does; what is read may be a link to one, no other may.

    Raises:
        OSError: it cannot be opened, or is a FIFO, a device, a socket, or a link that would be
            written through.
    """
    return open(path, mode, opener=_opener, **options)


def require_regular(path: Path) -> None:
    """Refuse what is there and no regular file, nor a link to one.

    Raises:
        OSError: as `open_regular`.
    """
    _require(os.stat(path), path)


def _opener(path: str, flags: int) -> int:
    writes = flags & (os.O_WRONLY | os.O_RDWR)
    try:  # before it is opened, which alone may have an effect on a device
        _require(os.lstat(path) if writes else os.stat(path), path)
    except FileNotFoundError:
        if not writes:
            raise
    flags |= getattr(os, "O_NONBLOCK", 0) | (getattr(os, "O_NOFOLLOW", 0) if writes else 0)
    descriptor = os.open(path, flags, 0o666)
    try:
        _require(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _require(found: os.stat_result, path: str | Path) -> None:
    kinds = {
        stat.S_IFIFO: "a FIFO",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFSOCK: "a socket",
        stat.S_IFLNK: "a link",
    }
    kind = kinds.get(stat.S_IFMT(found.st_mode))
    if kind is not None:  # of a folder, the system says that itself
        raise OSError(errno.EINVAL, f"{kind}, not a file", str(path))
