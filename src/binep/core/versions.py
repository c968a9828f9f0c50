"""Versions of tensors: whether one has changed since a copy of it was made in another form."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakTensorKeyDictionary


class Version:
    """The state of a tensor at one moment.

    Keeps a reference to its memory, so that no other tensor can come to lie at its address, and
    PyTorch's count of changes in place. A change through ``.data`` is not counted. For tensors
    whose changes PyTorch does not count (shared with other processes, or made in inference mode)
    `holds` is always False.

    Args:
        tensor: to look at; it is not copied.
    """

    __slots__ = ("_memory", "count")

    def __init__(self, tensor: Tensor) -> None:
        self._memory = tensor.detach()
        self.count = _count(tensor)

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor is this one, unchanged."""
        # Sharing memory moves it: where it was not shared, it is not.
        unchanged = self.count is not None and not tensor.is_inference()
        return unchanged and self.count == tensor._version and self.is_at(tensor)

    def precedes(self, other: Version) -> bool:
        """Whether a later version is of this memory, unchanged."""
        return self.count is not None and self.count == other.count and self.is_at(other._memory)

    def is_at(self, tensor: Tensor) -> bool:
        """Whether a tensor lies where this one does, changed or unchanged."""
        mine = self._memory
        return (
            mine.data_ptr() == tensor.data_ptr()
            and mine.shape == tensor.shape
            and mine.stride() == tensor.stride()
            and mine.dtype == tensor.dtype
            and mine.device == tensor.device
        )


def _count(tensor: Tensor) -> int | None:
    """How often a tensor was changed in place; None where PyTorch does not count that."""
    return None if tensor.is_inference() or is_shared(tensor) else tensor._version


def _count_fused_steps(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Count the changes of PyTorch's fused optimizers, which it leaves out."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("fused") else []:
            if not parameter.is_inference():
                torch.autograd.graph.increment_version(parameter)


register_optimizer_step_post_hook(_count_fused_steps)


def is_shared(tensor: Tensor) -> bool:
    """Whether another process may see a tensor's memory; PyTorch says so of all GPUs' memory."""
    return tensor.device.type == "cpu" and tensor.untyped_storage().is_shared()


_Flips = tuple[Version, Version, Tensor | None]

# By tensor: before and after its last flips, and the rows that hold them, or None for any.
_FLIPS: MutableMapping[Tensor, _Flips] = WeakTensorKeyDictionary()


def note_flips(signs: Tensor, before: Version, rows: Tensor | None) -> None:
    """Record that flips alone changed some signs, so that only their rows need be copied again.

    Args:
        signs: as they are now; a change that PyTorch has not seen is counted.
        before: their version before the flips.
        rows: those in which weights may have flipped; None if all.
    """
    if before.holds(signs) and not signs.is_inference():
        torch.autograd.graph.increment_version(signs)
    _FLIPS[signs] = (before, Version(signs), rows)


def only_flipped(signs: Tensor, since: Version) -> bool:
    """Whether signs differ from an earlier version by their last flips alone."""
    flips = _FLIPS.get(signs)
    return flips is not None and since.precedes(flips[0]) and flips[1].holds(signs)


def flipped_rows(signs: Tensor, since: Version) -> Tensor | None:
    """The rows in which signs may differ from an earlier version; None if that is not known."""
    return _FLIPS[signs][2] if only_flipped(signs, since) else None
