"""Momenta and flips in one pass over memory: see `binep.core.optim.Flip`."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from binep.core.optim import MOST_WRITES
from binep.solvers.machine import use_threads
from binep.solvers.primitives import parallel


def flip_in_one_pass(
    signs: Tensor,
    momentum: Tensor,
    writes: Tensor,
    rows: Tensor | None,
    grad: Tensor,
    rate: float,
    threshold: float,
) -> tuple[int, Tensor]:
    """Flips and changed rows, as `Flip`; on a CPU in float32, bit for bit as `flip_plainly`."""
    use_threads()
    with np.errstate(over="ignore"):  # beyond the largest float32 is a threshold that none passes
        least = np.float32(threshold)
    if rows is None:
        rows = torch.arange(len(signs), device="cpu")
    flips = torch.empty_like(rows)
    width = signs.shape[1:].numel()  # of a tensor without rows, too, as a worker's share may be
    _flip(
        signs.view(len(signs), width).numpy(),
        momentum.view(len(signs), width).numpy(),
        writes.view(len(signs), width).numpy(),
        rows.numpy(),
        grad.view(len(rows), width).numpy(),
        np.float32(rate),
        least,
        flips.numpy(),
    )
    return int(flips.sum()), rows[flips > 0]


@parallel
def _flip(signs, momentum, writes, rows, gradient, rate, threshold, flips):  # type: ignore[no-untyped-def]
    for n in numba.prange(len(rows)):
        row, count = rows[n], np.int64(0)
        for i in range(signs.shape[1]):
            m = momentum[row, i] + rate * gradient[n, i]
            momentum[row, i] = m
            count += np.int64(signs[row, i] * m > threshold)
        flips[n] = count
        if count == 0:  # the counts of most rows need not be read
            continue
        for i in range(signs.shape[1]):
            flipped = signs[row, i] * momentum[row, i] > threshold
            signs[row, i] = -signs[row, i] if flipped else signs[row, i]
            written = writes[row, i]
            writes[row, i] = written + np.int16(flipped and written < MOST_WRITES)
