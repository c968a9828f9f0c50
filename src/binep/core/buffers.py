"""Memory that is written to again."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np

from binep.core.synapses import Synapse


class Buffers:
    """Where gradients are written: again where the last ones were, once nobody has them any more.

    For memory that is new to a process the system takes longer than a gradient does.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrays: dict[Synapse, np.ndarray[Any, Any]] = {}

    def rows(self, synapse: Synapse, count: int) -> np.ndarray[Any, Any]:
        """Memory for so many rows of a dense layer's weights, float32."""
        with self._lock:
            array = self._arrays.pop(synapse, None)
            if array is None or sys.getrefcount(array) > _ALONE:
                # NumPy asks the system for huge pages; what is not written to takes no memory.
                array = np.empty(synapse.values.shape, np.float32)
            self._arrays[synapse] = array
            return array[:count]


def _references() -> int:
    array = np.empty(0)
    return sys.getrefcount(array)


_ALONE = _references()
"""References to an array that one name has and nobody else."""
