"""What ends a command: errors in the input, no memory, Ctrl-C, a full disk."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence

from binep.cli.output import escaped
from binep.cli.streams import OutputError, outliving_readers

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""Of outputs, where an error names no file."""


@contextlib.contextmanager
def reporting_errors() -> Iterator[list[str]]:
    """Print errors in the user's input, a line each, instead of a traceback."""
    with outliving_readers(), _reporting_errors() as failed:
        yield failed


@contextlib.contextmanager
def _reporting_errors() -> Iterator[list[str]]:
    failed: list[str] = []
    _prepare_outputs()
    try:
        try:
            yield failed
        except (MemoryError, RuntimeError, ValueError) as error:
            failed.extend(_lines(error))
            if not failed:
                raise
            _say(failed)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        _say(["interrupted"])
        raise SystemExit(128 + signal.SIGINT) from None
    except OSError as error:
        if error.errno is None:  # not the system's
            raise
        if isinstance(error, OutputError) or (error.filename is None and error.errno in _FULL):
            _discard_outputs()
            failed.append(f"the output cannot be written: {error.strerror}")
        else:
            failed.append(f"{error.filename or 'a file'}: {error.strerror}")
        _say(failed[-1:])


def _prepare_outputs() -> None:
    """Let every letter be printed somehow, and an output that was closed be one to nowhere.

    Otherwise the next file that is opened would get its number.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 – for the process's life
        elif isinstance(stream, io.TextIOWrapper):  # a terminal need not have every letter
            stream.reconfigure(errors="replace" if name == "stdout" else "backslashreplace")


def _say(lines: Sequence[str]) -> None:
    """Print lines on the standard error output, whatever they hold and wherever it leads."""
    worker = os.environ.get("RANK", "0") if "TORCHELASTIC_RUN_ID" in os.environ else "0"
    who = "binep" if worker == "0" else f"binep, worker {worker}"
    text = "".join(f"{who}: {escaped(line)}\n" for line in lines)
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        _discard_outputs()


def _discard_outputs() -> None:
    """Lead what is still to be printed nowhere, also at the end of the process."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _lines(error: BaseException) -> list[str]:
    """What to print about an error that is the user's or the machine's; nothing about a bug.

    The classes are imported here, so that a command that raises none of them is quick to start.
    """
    from binep.data.errors import DataError
    from binep.experiment.settings import ConfigError, WorkerError
    from binep.runs.files import RunError

    if isinstance(error, MemoryError) or _is_no_memory(error):
        return [": ".join(["not enough memory", *str(error).splitlines()[:1]])]
    if reason := _refused_by_numba(error):
        return [reason]
    if isinstance(error, ConfigError | DataError | RunError | WorkerError):
        return str(error).splitlines() or [type(error).__name__]
    return []


def _refused_by_numba(error: BaseException) -> str:
    """What numba says of its settings, all of which are variables of the environment; or ""."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    settings = [f"{name} = {value}" for name, value in os.environ.items() if name[:6] == "NUMBA_"]
    module = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
    if not (settings and isinstance(error, ValueError) and module.split(".")[0] == "numba"):
        return ""
    return f"numba, with {', '.join(settings)}: {error}"


def _is_no_memory(error: BaseException) -> bool:
    """Whether PyTorch lacks memory; by name and text, so as not to load it for this."""
    if type(error).__name__ == "OutOfMemoryError":
        return True
    words = ("allocate memory", "bad_alloc", "Cannot allocate")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
