"""What ends a command: errors in the user's input, no memory, Ctrl-C."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from collections.abc import Iterator

from binep.cli.streams import outliving_readers


@contextlib.contextmanager
def reporting_errors() -> Iterator[list[str]]:
    """Print errors in the user's input, a line each, instead of a traceback."""
    with outliving_readers(), _reporting_errors() as failed:
        yield failed


@contextlib.contextmanager
def _reporting_errors() -> Iterator[list[str]]:
    failed: list[str] = []
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal need not have every letter
    try:
        try:
            yield failed
        finally:
            print(end="", flush=True)
    except KeyboardInterrupt:
        print("binep: interrupted", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except (MemoryError, RuntimeError, ValueError) as error:
        failed.extend(_lines(error))
        if not failed:
            raise
        print("\n".join(f"binep: {line}" for line in failed), file=sys.stderr)


def _lines(error: Exception) -> list[str]:
    """What to print about an error that is the user's or the machine's; nothing about a bug.

    The classes are imported here, so that a command that raises none of them is quick to start.
    """
    from binep.data.sources import DataError
    from binep.experiment.config import ConfigError
    from binep.runs.files import RunError

    # PyTorch's error is known by its name, so as not to load it for this.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return [": ".join(["not enough memory", *str(error).splitlines()[:1]])]
    if isinstance(error, ConfigError | DataError | RunError):
        return str(error).splitlines()
    return []
