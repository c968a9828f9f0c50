"""Pickled batches of CIFAR, read by an unpickler that makes arrays and nothing else."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class _Arrays(pickle._Unpickler):
    """Admits what arrays are pickled with by protocols to 4, and runs nothing else.

    It is the unpickler in Python, since that in C takes as much memory as damaged bytes ask for.
    """

    def find_class(self, module: str, name: str) -> Any:
        found = _ADMITTED.get((module.replace("numpy.core", "numpy._core"), name))
        if found is None:
            raise pickle.UnpicklingError(f"it holds {module}.{name}: only arrays are read")
        return found

    def persistent_load(self, name: Any) -> Any:
        raise pickle.UnpicklingError("it refers to something outside: only arrays are read")


def _encoded(text: str, encoding: str) -> bytes:
    """Bytes, as Python 3 pickles them by a protocol of Python 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it holds text in {encoding!a}: only arrays are read")
    return text.encode("latin1")


def _empty(*_: Any) -> Array:
    """An array that then gets its state, whatever shape was asked for."""
    return np.empty(0, np.uint8)


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy._core.multiarray", "_reconstruct"): _empty,
    ("numpy", "ndarray"): "ndarray",  # only an argument of the above
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encoded,
}


def read_batch(content: bytes) -> tuple[Array, Array]:
    """Pixels (N, 3072) and labels (N,), uint8, of a batch.

    Raises:
        ValueError: it is no such batch, or holds more than arrays.
    """
    try:
        batch = _Arrays(io.BytesIO(content), encoding="bytes").load()
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # whatever an unpickler raises on what is no pickle
        raise ValueError(str(error) or type(error).__name__) from error
    pixels, labels = (
        (batch.get(name), batch.get(name.decode())) if isinstance(batch, dict) else (None, None)
        for name in (b"data", b"labels")
    )
    images = next((found for found in pixels if isinstance(found, np.ndarray)), None)
    if images is None or images.dtype != np.uint8 or images.shape[1:] != (3072,):
        raise ValueError("it holds no uint8 array of 3072 pixels a row, called data")
    numbers = next((found for found in labels if isinstance(found, list)), [])
    if len(numbers) != len(images) or not all(type(n) is int and 0 <= n < 256 for n in numbers):
        raise ValueError(f"it holds no list of {len(images)} labels")
    return images, np.array(numbers, np.uint8)
