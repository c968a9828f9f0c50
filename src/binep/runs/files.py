"""Files that are never half there, and tensors that are refused when they are damaged."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


class RunError(ValueError):
    """A run folder that cannot be written or read: the message names the file and the reason."""


def write(path: Path, content: bytes) -> None:
    """Write a file beside its place, flush it to the disk, then rename it into place.

    Raises:
        RunError: it cannot be written; what was there before is as it was.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise RunError(f"{path}: cannot be written: {error.strerror}") from error


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where there is none.

    Raises:
        RunError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be made: {error.strerror}") from error


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process had begun to write."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from training in the same folder.

    Raises:
        RunError: one does already, or the folder cannot be written.
    """
    try:
        opened = (folder / ".lock").open("w")
    except OSError as error:
        raise RunError(f"{folder}: cannot be written: {error.strerror}") from error
    with opened as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(f"{folder}: another process trains here") from None
        yield


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors as safetensors, with facts about them and a digest of both.

    Args:
        path: the file.
        tensors: on any device.
        about: what JSON can hold.
    """
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(about, sort_keys=True)
    # One key, since the library writes several in any order: the same tensors, the same bytes.
    header = {"binep": _digest(kept, text) + text}
    write(path, safetensors.torch.save(kept, header))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote.

    Raises:
        RunError: the file is missing, truncated, of another kind, or has been changed.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # the library's errors on damaged files have no common type
        raise RunError(f"{path}: damaged or no safetensors file: {error}") from error
    if "binep" not in header:
        raise RunError(f"{path}: not written by binep: it has no digest")
    digest, text = header["binep"][:64], header["binep"][64:]
    if digest != _digest(tensors, text):
        raise RunError(f"{path}: damaged or changed: its digest does not fit its content")
    about: dict[str, Any] = json.loads(text)
    return tensors, about


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
