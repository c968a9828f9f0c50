"""What this machine's CPU is quick at: tried once, when first needed.

Many CPUs multiply 8-bit integers several times faster than floats. On others PyTorch has plain
loops for some of these products, a hundred times slower.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch


def is_quicker(act: Callable[[], object], other: Callable[[], object]) -> bool:
    """Whether an act is not several times slower than another, so that noise decides nothing."""
    return _seconds(act) < 3 * _seconds(other)


def _seconds(act: Callable[[], object]) -> float:
    """The least of three, after one that sets things up."""
    seconds = []
    for _ in range(4):
        begin = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - begin)
    return min(seconds[1:])


@cache
def multiplies_integers() -> bool:
    """Whether `torch._int_mm` is to be used, rather than floats."""
    ones = torch.ones(512, 512, dtype=torch.int8)
    floats = ones.float()
    return is_quicker(lambda: torch._int_mm(ones[:32], ones), lambda: floats[:32] @ floats)
