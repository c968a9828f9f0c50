"""What ends a command: errors in the user's input, no memory, Ctrl-C, a closed pipe."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def reporting_errors() -> Iterator[list[str]]:
    """Print errors in the user's input, a line each, instead of a traceback.

    A pipe that its reader has closed ends the command without a message.
    """
    failed: list[str] = []
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal need not have every letter
    try:
        try:
            yield failed
        finally:
            print(end="", flush=True)
    except BrokenPipeError:  # `binep ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("binep: interrupted", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except (MemoryError, RuntimeError, ValueError) as error:
        failed.extend(_lines(error))
        if not failed:
            raise
        print("\n".join(f"binep: {line}" for line in failed), file=sys.stderr)


def _lines(error: BaseException) -> list[str]:
    """What to print about an error that is the user's or the machine's; nothing about a bug.

    The classes are imported here, so that a command that raises none of them is quick to start.
    """
    from binep.data.errors import DataError
    from binep.experiment.settings import ConfigError
    from binep.runs.files import RunError

    if isinstance(error, MemoryError) or _is_no_memory(error):
        return [": ".join(["not enough memory", *str(error).splitlines()[:1]])]
    if isinstance(error, ConfigError | DataError | RunError):
        return str(error).splitlines() or [type(error).__name__]
    return []


def _is_no_memory(error: BaseException) -> bool:
    """Whether PyTorch lacks memory; by name and text, so as not to load it for this."""
    if type(error).__name__ == "OutOfMemoryError":
        return True
    words = ("allocate memory", "bad_alloc", "Cannot allocate")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
