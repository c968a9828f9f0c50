"""Modules of one's own that a command line names: run, and known by their digest.

A configuration records which modules its run was trained with. It never runs them: what it records
must have been loaded before it is read.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shlex
import sys
import types
from collections.abc import Iterable, Mapping
from pathlib import Path

from binep.data.regular import open_regular
from binep.experiment.settings import ConfigError

_LOADED: dict[str, str] = {}
"""SHA-256 of the modules that have been run, by the names of their files."""


def loaded() -> dict[str, str]:
    """SHA-256 of each module that was loaded, by the name of its file."""
    return dict(_LOADED)


def flags(names: Iterable[str]) -> str:
    """What a command line needs for some of the modules that were loaded, after a space."""
    paths = (str(sys.modules[Path(name).stem].__file__) for name in names)
    return "".join(f" --plugin {shlex.quote(path)}" for path in paths)


def load(path: Path) -> None:
    """Run a module of one's own, whose decorators then have added its kinds.

    It can be imported by its name afterwards, as by other such modules. One that has been run as
    it is is not run again.

    Args:
        path: a file NAME.py.

    Raises:
        ConfigError: it cannot be read or run, or NAME is that of another module.
    """
    name = path.stem
    if path.suffix != ".py" or not name.isidentifier():
        raise ConfigError(f"--plugin {path}: must be a Python file NAME.py, NAME a word")
    try:
        with open_regular(path) as file:
            source: bytes = file.read()
    except OSError as error:
        raise ConfigError(f"--plugin {path}: cannot be read: {error.strerror}") from None
    digest = hashlib.sha256(source).hexdigest()
    if _LOADED.get(path.name) == digest:
        return
    if path.name not in _LOADED and _is_another_module(name, path):
        raise ConfigError(f"--plugin {path}: {name} is a module already: must have another name")
    module = types.ModuleType(name)
    module.__file__ = str(path)
    before = sys.modules.get(name)
    sys.modules[name] = module  # as dataclasses and pickle expect of a module that is run
    try:
        exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        where = _line(error, str(path))
        raise ConfigError(f"--plugin {path}: cannot be run: {reason}{where}") from error
    _LOADED[path.name] = digest


def _is_another_module(name: str, path: Path) -> bool:
    """Whether importing the name gives something else than the file."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # of a module that was made by hand
        return True
    return spec is not None and (spec.origin is None or Path(spec.origin) != path.resolve())


def _line(error: BaseException, file: str) -> str:
    """The line of the file where an error came from, in brackets; "" if it is unknown."""
    lines, trace = [], error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f" (line {lines[-1]})" if lines else ""


def require(recorded: Mapping[str, object]) -> None:
    """Refuse a configuration whose modules have not been loaded as they were.

    Args:
        recorded: its SHA-256 of each module, by the name of its file.

    Raises:
        ConfigError: one is missing, or another one.
    """
    for name, digest in recorded.items():
        if name not in _LOADED:
            raise ConfigError(
                f"was trained with {name!a}: give it with --plugin, in Python to "
                "binep.experiment.plugins.load"
            )
        if _LOADED[name] != digest:
            raise ConfigError(
                f"was trained with a {name!a} of SHA-256 {str(digest)[:16]!a}, that of "
                f"--plugin has {_LOADED[name][:16]}: it was changed since"
            )
