"""Compiled loops are kept where nobody else writes, and done without where that cannot be."""

from __future__ import annotations

import ast
import importlib
import os
import pickle
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numba
import pytest
from numba.core.caching import FunctionCache

import binep
from binep.solvers import compiling

SOLVERS = Path(str(binep.__file__)).parent / "solvers"
MODULES = [
    ".".join(("binep.solvers", *p.relative_to(SOLVERS).with_suffix("").parts))
    for p in SOLVERS.rglob("*.py")
    if p.name != "__init__.py"
]


def made() -> Any:
    """A loop as a process that has just started has it."""

    @compiling.compiled()
    def twice(x: Any) -> Any:
        return 2 * x

    return twice


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where loops are kept, which is not there yet."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kept"))
    monkeypatch.setattr(compiling, "_warned", [])
    compiling._folder.cache_clear()
    yield tmp_path / "kept" / f"binep-numba-{numba.__version__}"
    compiling._folder.cache_clear()


def hits(loop: Any) -> int:
    assert loop(3) == 6
    return sum(loop.stats.cache_hits.values())


def test_no_loop_is_kept_by_numba_itself() -> None:
    """Not beside the sources, where a crafted file would be unpickled."""
    found = 0
    for name in MODULES:
        for value in vars(importlib.import_module(name)).values():
            if isinstance(value, numba.core.dispatcher.Dispatcher):
                assert type(value._cache) is compiling.Kept, (name, value)  # type: ignore[attr-defined]
                found += 1
    assert found > 30
    assert not issubclass(compiling.Kept, FunctionCache)


def test_a_loop_is_compiled_once(folder: Path) -> None:
    assert hits(made()) == 0
    (file,) = folder.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert hits(made()) == 1
    assert list(folder.iterdir()) == [file]


class Crafted:
    """Unpickled, it runs what its author wants."""

    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["CRAFTED"],)


@pytest.mark.parametrize("damage", ["empty", "torn", "changed", "crafted"])
def test_a_damaged_file_is_written_anew(
    folder: Path, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRAFTED", str(tmp_path / "crafted"))
    hits(made())
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    half = whole[: len(whole) // 2]
    changed = half + bytes([whole[len(half)] ^ 1]) + whole[len(half) + 1 :]
    contents = {"empty": b"", "torn": half, "changed": changed, "crafted": pickle.dumps(Crafted())}
    file.write_bytes(contents[damage])
    assert hits(made()) == 0
    assert hits(made()) == 1
    assert not (tmp_path / "crafted").exists()


@pytest.mark.skipif(os.name != "posix", reason="modes")
@pytest.mark.parametrize("what", ["open to others", "a file", "a link", "below a file"])
def test_without_a_private_folder_each_process_compiles(folder: Path, what: str) -> None:
    if what == "below a file":
        folder.parent.touch()
    else:
        folder.parent.mkdir()
    if what == "open to others":
        folder.mkdir()
        folder.chmod(0o755)
    elif what == "a file":
        folder.touch()
    elif what == "a link":
        (folder.parent / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to("elsewhere")
    with pytest.warns(RuntimeWarning, match="compiled loops cannot be kept") as given:
        assert hits(made()) == hits(made()) == 0
    assert len(given) == 1
    assert not folder.is_dir() or not list(folder.iterdir())


def test_a_full_disk_is_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.warns(RuntimeWarning, match="No space left on device") as given:
            assert hits(made()) == hits(made()) == 0
    assert len(given) == 1
    assert list(folder.iterdir()) == []


def test_sources_are_all_that_constants_come_from() -> None:
    """numba compiles in the value of a constant: what it is now must be part of a file's name."""
    taken: set[str] = set()
    for path in compiling.SOLVERS.rglob("*.py"):
        text = path.read_text()
        if not re.search(r"^@(parallel|inline|compiled|_sums)", text, re.MULTILINE):
            continue
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.ImportFrom) or node.module is None:
                continue
            if any(alias.name.isupper() for alias in node.names):
                taken.add(node.module)
    others = {module for module in taken if not module.startswith("binep.solvers")}
    files = {f"{module.removeprefix('binep.').replace('.', '/')}.py" for module in others}
    assert files == set(compiling.CONSTANTS)


def test_another_source_is_another_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hits(made())
    monkeypatch.setattr(compiling, "_sources", lambda: "changed")
    assert hits(made()) == 0
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("line", ["--version", "--help", "presets"])
def test_without_a_home_commands_that_compute_nothing_say_nothing(
    line: str, tmp_path: Path
) -> None:
    kept = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    done = subprocess.run(
        [sys.executable, "-m", "binep", line],
        env=kept | {"HOME": "/proc/nowhere"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_by_default_the_folder_is_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / name))
    compiling._folder.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiling._folder() == tmp_path / "binep" / f"numba-{numba.__version__}"
    compiling._folder.cache_clear()
