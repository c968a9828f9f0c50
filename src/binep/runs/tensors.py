"""Tensors in files, which are refused when they are damaged."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from binep.runs.files import RunError, read, write
from binep.runs.headers import header_of


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write what `content_of` returns.

    Args:
        path: the file.
        tensors: on any device.
        about: what JSON can hold.
    """
    with _panics_are_errors(path, sum(tensor.nbytes for tensor in tensors.values())):
        content = content_of(tensors, about)
    write(path, content)


def content_of(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """Tensors as safetensors, with facts about them and a digest of both."""
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(about, sort_keys=True)
    # One key, since the library writes several in any order: equal tensors give equal bytes.
    header = {"binep": digest(kept, text) + text}
    content: bytes = safetensors.torch.save(kept, header)
    return content


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote.

    Raises:
        RunError: the file is missing, truncated, of another kind, or has been changed.
    """
    content = read(path)  # the library opens no path that is not UTF-8, and waits for a FIFO
    try:
        with _panics_are_errors(path, len(content)):
            tensors = dict(sorted(safetensors.torch.load(content).items()))
        header = header_of(io.BytesIO(content))
    except MemoryError:
        raise
    except Exception as error:  # the library's errors on damaged files have no common type
        raise RunError(f"{path}: damaged or no safetensors file: {error}") from error
    for name in tensors:
        if not name.isprintable():
            raise RunError(f"{path}: holds a tensor called {name!a}, which is no name")
    if "binep" not in header:
        raise RunError(f"{path}: not written by binep: it has no digest")
    written, text = header["binep"][:64], header["binep"][64:]
    if written != digest(tensors, text):
        raise RunError(f"{path}: damaged or changed: its digest does not fit its content")
    try:
        about = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: what it says of itself is no JSON: {error}") from None
    if not isinstance(about, dict):
        raise RunError(f"{path}: what it says of itself is no JSON object")
    return tensors, about


@contextlib.contextmanager
def _panics_are_errors(path: Path, size: int) -> Iterator[None]:
    """A context in which the library copies so many bytes, or there is a MemoryError.

    By itself it panics then, with lines of its own that no `except Exception` catches.
    """
    try:
        bytearray(2 * size)  # asks for them, and gives them back untouched
        yield
    except MemoryError:
        raise MemoryError(f"{path} of {size} bytes does not fit") from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise MemoryError(f"{path} does not fit: {error}") from None


def digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """SHA-256 of tensors on the CPU and a text."""
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
