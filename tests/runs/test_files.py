"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from binep.runs import files


@given(old=st.binary(), new=st.binary())
def test_a_failed_write_leaves_the_old_file_whole(
    tmp_path_factory: pytest.TempPathFactory, old: bytes, new: bytes
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path_factory.mktemp("files") / "file"
    files.write(path, old)
    with pytest.MonkeyPatch.context() as patch, refused(path, os.strerror(errno.ENOSPC)):
        patch.setattr(os, "fsync", full)
        files.write(path, new)
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]
    files.write(path, new)
    assert path.read_bytes() == new


def test_a_file_in_no_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "file"
    with refused(path, "cannot be written"):
        files.write(path, b"")


@pytest.mark.parametrize("link", [False, True])
def test_a_device_or_a_fifo_is_not_replaced(tmp_path: Path, link: bool) -> None:
    """As root could: a file in the place of /dev/null would harm the whole machine."""
    fifo = path = tmp_path / "fifo"
    os.mkfifo(fifo)
    if link:
        path = tmp_path / "link"
        path.symlink_to(fifo)
    before = set(tmp_path.iterdir())
    with refused(path, "a FIFO, not a file"):
        files.write(path, b"content")
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert set(tmp_path.iterdir()) == before


def test_a_folder_is_no_file_to_write() -> None:
    with pytest.raises(files.RunError, match=r"^\.: is a folder: must be a file$"):
        files.write(Path(), b"")
