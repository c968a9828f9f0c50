"""Memory that is written to again."""

from __future__ import annotations

import sys
import threading
from collections.abc import Hashable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from binep.core.synapses import Dense, Synapse

Array = np.ndarray[Any, Any]


class Buffers:
    """Where large arrays are written: again where the last were, once nobody has them any more.

    For memory that is new to a process the system takes longer than a gradient does.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrays: dict[Hashable, Array] = {}

    def array(self, of: Hashable, shape: tuple[int, ...], kind: type[np.number[Any]]) -> Array:
        """An array of which nobody has another of the same ``of``; its values are any."""
        with self._lock:
            array = self._arrays.pop(of, None)
            if array is None or array.shape != shape or sys.getrefcount(array) > _ALONE:
                # NumPy asks the system for huge pages; what is not written to takes no memory.
                array = np.empty(shape, kind)
            self._arrays[of] = array
            return array

    def rows(self, synapse: Synapse, count: int) -> Array:
        """Memory for so many rows of a dense layer's weights, float32."""
        return self.array(synapse, tuple(synapse.values.shape), np.float32)[:count]

    def correlate(self, synapse: Synapse, above: Tensor, below: Tensor) -> Tensor:
        """∂/∂W of a layer, see `Synapse.correlate`; of a dense one in such memory."""
        if type(synapse) is not Dense or above.dtype != torch.float32:
            return synapse.correlate(above, below)
        gradient = torch.from_numpy(self.rows(synapse, len(synapse.values)))
        return torch.mm(above.T, below.flatten(1).to(above.dtype), out=gradient)


def _references() -> int:
    array = np.empty(0)
    return sys.getrefcount(array)


_ALONE = _references()
"""References to an array that one name has and nobody else."""
