"""Published files of data sets, fetched: no longer and no larger than can be expected."""

from __future__ import annotations

import contextlib
import os
import shutil
import tarfile
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from binep.data.errors import DataError

if TYPE_CHECKING:
    from binep.data.sources import Files

TIMEOUT = 10
"""Seconds without an answer from a server before a download is given up."""

PATIENCE = 30
"""Seconds in which a server has to send at least `SLOWEST` bytes for each."""

SLOWEST = 1000
"""Bytes per second; slower than any line, and quicker than a server that only keeps it open."""

_STALE = 3600  # seconds in which a download that still goes on has written something
_BEGUN = ".binep-download-"


def fetch(source: Files, root: Path, missing: list[str]) -> None:
    """Download files of a data set into its folder below ``root``, whole or not at all.

    Raises:
        OSError, ValueError: no answer, too slow or large a one, or one of another sum.
        DataError: an archive that lacks a file.
    """
    folder = root / source.folder
    addresses = (source.url, *source.mirrors)
    with _made(root), _scratch(root) as scratch:
        if "NAME" not in source.url:
            archive = _first(addresses, source.md5[0], scratch, source.largest)
            folder.mkdir(parents=True, exist_ok=True)
            inside = source.member or f"{folder.name}/NAME"
            _unpack(archive, folder, {inside.replace("NAME", file) for file in missing}, scratch)
            return
        for file, md5 in zip(source.files, source.md5, strict=True):
            if file in missing:
                urls = [address.replace("NAME", file) for address in addresses]
                found = _first(urls, md5, scratch, source.largest)
                folder.mkdir(parents=True, exist_ok=True)
                found.replace(folder / found.name)


@contextlib.contextmanager
def _made(root: Path) -> Iterator[None]:
    """A context in which a folder is there; where nothing comes into a new one, it goes again."""
    new = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for folder in new:
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def _scratch(root: Path) -> Iterator[Path]:
    """A folder for what is begun, which is then removed, as are those of killed processes."""
    for old in root.glob(f"{_BEGUN}*"):
        with contextlib.suppress(OSError):
            last = max(path.lstat().st_mtime for path in (old, *old.iterdir()))
            if time.time() - last > _STALE:
                shutil.rmtree(old)
    with tempfile.TemporaryDirectory(prefix=_BEGUN, dir=root) as name:
        yield Path(name)


def _first(urls: Sequence[str], md5: str, folder: Path, largest: int) -> Path:
    """Fetch a file from the first address that gives it; if none does, the first one's error."""
    errors: list[Exception] = []
    for url in urls:
        try:
            return _download(url, md5, folder, largest)
        except (OSError, ValueError) as error:
            errors.append(error)
    raise errors[0]


def _download(url: str, md5: str, folder: Path, largest: int) -> Path:
    """Fetch a file into a folder; pooch checks its sum."""
    import pooch  # type: ignore[import-untyped]

    server = Bounded(largest)
    return Path(pooch.retrieve(url, f"md5:{md5}", url.split("/")[-1], folder, downloader=server))


class Bounded:
    """A downloader for pooch that gives up what is too large, or comes too slowly.

    Args:
        largest: bytes that are expected at most.
    """

    def __init__(self, largest: int) -> None:
        self.largest = largest

    def __call__(self, url: str, output_file: Any, pooch_: Any, check_only: bool = False) -> None:
        """Write what an address holds into a file.

        Raises:
            OSError: no answer, or too slow a one.
            ValueError: more than is expected.
        """
        import pooch

        errors: list[BaseException] = []
        answers: list[Any] = []
        keep = {"response": lambda answer, **_: answers.append(answer)}
        with open(output_file, "wb") as file:
            counted = _Counted(file, self.largest)

            def receive() -> None:
                try:
                    pooch.HTTPDownloader(timeout=TIMEOUT, hooks=keep)(url, counted, pooch_)
                except BaseException as error:  # for the thread that waits
                    errors.append(error)
                finally:
                    for answer in answers:
                        answer.close()

            # In a thread, since a server that sends a byte now and then stops every other wait.
            thread = threading.Thread(target=receive, daemon=True)
            thread.start()
            while thread.is_alive():
                before = counted.count
                thread.join(PATIENCE)
                if thread.is_alive() and counted.count - before < SLOWEST * PATIENCE:
                    counted.largest = -1  # what still comes is not written
                    raise TimeoutError(f"fewer than {SLOWEST} bytes a second came")
        if errors:
            raise errors[0]


class _Counted:
    """A file that takes so many bytes."""

    def __init__(self, file: IO[bytes], largest: int) -> None:
        self.file, self.largest, self.count = file, largest, 0

    def write(self, content: bytes) -> int:
        """Write, and count."""
        self.count += len(content)
        if self.count > self.largest:
            raise ValueError(f"it is larger than {self.largest} bytes")
        return self.file.write(content)

    def flush(self) -> None:
        """Flush the file."""
        self.file.flush()


def _unpack(archive: Path, folder: Path, wanted: set[str], scratch: Path) -> None:
    """Write these members of an archive into a folder, by the ends of their names."""
    left = set(wanted)
    with _members(archive) as members:
        for member, opened in members:
            if member not in left:
                continue
            left.remove(member)
            part = scratch / member.rpartition("/")[2]
            with opened() as stream, part.open("wb") as file:
                shutil.copyfileobj(stream, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(folder / part.name)
    if left:
        raise DataError(f"{archive} holds no {', '.join(sorted(left))}")


Members = Iterator[tuple[str, Callable[[], IO[bytes]]]]


@contextlib.contextmanager
def _members(archive: Path) -> Iterator[Members]:
    """A context with the files in an archive, .zip or .tar.gz: their names, and what opens them."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as zipped:
            yield ((name, partial(zipped.open, name)) for name in zipped.namelist())
        return
    with tarfile.open(archive, "r:gz") as tar:
        regular = (member for member in tar if member.isreg())
        yield ((member.name, partial(_extracted, tar, member)) for member in regular)


def _extracted(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    stream = tar.extractfile(member)
    assert stream is not None  # it is a regular file
    return stream
