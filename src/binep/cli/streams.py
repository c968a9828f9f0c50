"""Output that nobody reads any more ends no work."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO


@contextlib.contextmanager
def outliving_readers() -> Iterator[None]:
    """A context in which a closed pipe or a closed terminal swallows what is printed to it.

    `binep train … | head -1` trains to its end, and a run stopped by its terminal's end is saved.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_outliving, before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # of a full disk, which has been said
                stream.flush()
        sys.stdout, sys.stderr = before


def _outliving(stream: TextIO) -> TextIO:
    """A stream to the same file descriptor; itself where it has none, as in a test."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    try:
        raw = _Unread(stream.fileno())
    except OSError:
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class OutputError(OSError):
    """What is printed cannot be written."""


class _Unread(io.FileIO):
    """A file descriptor that leads nowhere once its reader has gone."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        # Of a terminal, which cannot be asked any more once it is closed.
        self.gone = (errno.EPIPE, errno.EIO) if self.isatty() else (errno.EPIPE,)

    def write(self, content: object) -> int:
        """Number of bytes that were written."""
        try:
            return super().write(content)  # type: ignore[arg-type]
        except OSError as error:
            if error.errno not in self.gone:
                raise OutputError(error.errno, error.strerror) from None
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return super().write(content)  # type: ignore[arg-type]
