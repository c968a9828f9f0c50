"""Memory for large arrays on a CPU, in which others were before.

PyTorch and NumPy give it back to the system, which takes longer to clear new memory, page by page,
than a product takes to fill it.
"""

from __future__ import annotations

import mmap
import weakref
from collections import deque
from math import prod

import torch
from torch import Tensor

LARGE = 2**22
"""The fewest bytes that are kept, once nobody has them any more."""
_KEPT: deque[mmap.mmap] = deque(maxlen=16)
"""Nobody's; what is more goes back to the system, that which was not asked for longest first."""


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of any values, as `torch.empty` on a CPU."""
    size = prod(shape) * dtype.itemsize
    if size < LARGE or (pages := _kept(size) or _new(size)) is None:
        return torch.empty(shape, dtype=dtype, device="cpu")
    view = memoryview(pages)  # which the tensor has, and all that share its memory
    weakref.finalize(view, _KEPT.append, pages).atexit = False
    return torch.frombuffer(view, dtype=dtype).view(shape)


def _kept(size: int) -> mmap.mmap | None:
    for pages in list(_KEPT):
        if len(pages) == size:
            try:
                _KEPT.remove(pages)
            except ValueError:  # another thread has taken it
                continue
            return pages
    return None


def _new(size: int) -> mmap.mmap | None:
    """In pages of 2 MB, where the system has them; None where it has no private ones."""
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        pages.madvise(mmap.MADV_HUGEPAGE)
    except (AttributeError, OSError):  # none but Linux has them, if built so; or memory is used up
        return None
    return pages
