"""Momenta and flips in one pass over a GPU's memory: see `binep.core.optim.Flip`."""

from __future__ import annotations

import torch
from torch import Tensor

from binep.core.optim import MOST_WRITES, flip_plainly
from binep.solvers.bits_on_gpu import kernels


def flip(
    signs: Tensor,
    momentum: Tensor,
    writes: Tensor,
    rows: Tensor | None,
    grad: Tensor,
    rate: float,
    threshold: float,
) -> tuple[Tensor, None]:
    """Flips, as `Flip`; in float32, bit for bit as `flip_plainly`."""
    if rows is not None:
        return flip_plainly(signs, momentum, writes, rows, grad, rate, threshold)
    flips = torch.zeros((), dtype=torch.int64, device=signs.device)
    count = signs.numel()
    with torch.cuda.device_of(signs):  # type: ignore[no-untyped-call]
        kernels.flip[(-(-count // kernels.WEIGHTS.value),)](
            signs, momentum, writes, grad, flips, count, rate, threshold,
            most=MOST_WRITES, enable_fp_fusion=False,
        )  # fmt: skip
    return flips, None
