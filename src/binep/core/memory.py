"""Memory for large arrays on a CPU, in which others were before.

PyTorch and NumPy give it back to the system, which takes longer to clear new memory, page by page,
than a product takes to fill it.
"""

from __future__ import annotations

import mmap
import weakref
from collections import deque
from contextlib import suppress
from math import prod

import torch
from torch import Tensor

LARGE = 2**22
"""The fewest bytes that are kept, once nobody has them any more, …"""
MOST = 2**31
"""… and the most in all; of more, those that were not asked for longest go back to the system."""
_kept: deque[mmap.mmap] = deque()


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of any values, as `torch.empty` on a CPU."""
    size = prod(shape) * dtype.itemsize
    if size < LARGE or (pages := _take(size) or _new(size)) is None:
        return torch.empty(shape, dtype=dtype, device="cpu")
    view = memoryview(pages)  # which the tensor has, and all that share its memory
    weakref.finalize(view, _keep, pages).atexit = False
    return torch.frombuffer(view, dtype=dtype).view(shape)


def _keep(pages: mmap.mmap) -> None:
    """Called at any time, in any thread."""
    _kept.append(pages)
    while sum(map(len, list(_kept))) > MOST:
        with suppress(IndexError):  # another thread has taken it
            _kept.popleft()


def _take(size: int) -> mmap.mmap | None:
    for pages in list(_kept):
        if len(pages) == size:
            with suppress(ValueError):  # likewise
                _kept.remove(pages)
                return pages
    return None


def _new(size: int) -> mmap.mmap | None:
    """In pages of 2 MB, where the system has them; None where it has none that are private."""
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except AttributeError:  # Windows
        return None
    except OSError:  # memory is used up
        _kept.clear()
        return None
    with suppress(AttributeError, OSError):  # none but Linux has them, if built so
        pages.madvise(mmap.MADV_HUGEPAGE)
    return pages
