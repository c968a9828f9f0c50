"""Loops compiled by numba, and where what was compiled is kept for the next process.

numba's own cache lies beside the sources, where others may write, unpickles whatever it finds
there, and ends the process where it finds no place or a torn file. This one is a folder of the
user's that nobody else can enter; where it cannot be had, every process compiles its loops anew.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import platform
import stat
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import llvmlite
import numba
import platformdirs
from numba.core import serialize
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult

SOLVERS = Path(__file__).parent
"""Where all loops are, …"""
CONSTANTS = "core/optim.py", "core/overrelaxation.py"
"""… and what else they take constants from, as numba compiles them in."""


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator: `numba.njit` with these options, kept in the user's folder."""

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = numba.njit(**options)(function)
        dispatcher._cache = Kept(function)
        return dispatcher

    return decorate


class Kept(NullCache):
    """What was compiled of one function: a file for each signature and kind of CPU.

    A file is a SHA-256 digest and what it is of. Its name is another one, of all that the code
    hangs on: so nothing in the folder is ever out of date.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = f"{function.__module__}.{function.__qualname__}"

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled function, or None where there is none, or a torn one."""
        target_context.refresh()
        if (path := self._path(sig, target_context.codegen())) is None:
            return None
        with suppress(Exception):  # whatever is wrong with it: it is compiled, and written, anew
            content = path.read_bytes()
            if hashlib.sha256(content[32:]).digest() == content[:32]:
                rebuild: Any = CompileResult._rebuild
                return rebuild(target_context, *pickle.loads(content[32:]))
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled function, whole or not at all."""
        if (path := self._path(sig, data.codegen)) is None:
            return
        content: bytes = serialize.dumps(data._reduce())  # type: ignore[no-untyped-call]
        beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            beside.write_bytes(hashlib.sha256(content).digest() + content)
            beside.replace(path)
        except OSError as error:
            with suppress(OSError):
                beside.unlink()
            _warn(f"{path.parent}: {error.strerror}")

    def _path(self, sig: Any, codegen: Any) -> Path | None:
        if (folder := _folder()) is None:
            return None
        versions = platform.python_version(), numba.__version__, llvmlite.__version__
        of = (self.name, str(sig), codegen.magic_tuple(), _sources(), versions)
        return folder / hashlib.sha256(repr(of).encode()).hexdigest()


@functools.cache
def _sources() -> str:
    """A digest of the sources that loops, and what is compiled into them, come from."""
    digest = hashlib.sha256()
    for path in sorted(SOLVERS.rglob("*.py")) + [SOLVERS.parent / name for name in CONSTANTS]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _folder() -> Path | None:
    """The user's folder of compiled loops, which nobody else can enter; None, with a warning.

    It is in $NUMBA_CACHE_DIR, or else where the platform keeps what programs can make again.
    """
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        folder = Path(chosen, f"binep-numba-{numba.__version__}")
    else:
        folder = Path(platformdirs.user_cache_dir("binep"), f"numba-{numba.__version__}")
    try:
        if not folder.is_absolute() and not chosen:
            raise OSError(0, "this user has no home folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        about = folder.lstat()
        if not stat.S_ISDIR(about.st_mode):
            raise OSError(0, "is no folder")
        if os.name == "posix" and (about.st_uid != os.geteuid() or about.st_mode & 0o077):
            raise OSError(0, "others may read or write there: its mode must be 700, its owner you")
        tempfile.TemporaryFile(dir=folder).close()
        _sources()
    except OSError as error:
        _warn(f"{folder}: {error.strerror}")
        return None
    return folder


def _warn(reason: str) -> None:
    """Say it once in a process."""
    if _warned:
        return
    _warned.append(reason)
    warnings.warn(
        f"compiled loops cannot be kept, so each process compiles them again ({reason}); "
        "NUMBA_CACHE_DIR can name a folder of yours",
        RuntimeWarning,
        stacklevel=2,
    )


_warned: list[str] = []
