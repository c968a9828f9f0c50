"""Dense products of float32 on a CPU.

PyTorch leaves them to MKL, whose AVX-512 code is for Intel's processors alone. On those of AMD that
have AVX-512, oneDNN, which comes with PyTorch too, takes half the time (docs/speed.md).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from binep.core import memory

LEAST = 2**21
"""The fewest multiplications of products that are left to oneDNN, which takes longer to begin, …"""
FEWEST = 3
"""… and the fewest rows to be multiplied."""
LARGE = 2**23
"""The fewest numbers that are written to `memory.empty`, as what is smaller is kept anyway, …"""
AT_ONCE = 2**20
"""… and how many oneDNN computes at a time, to be copied there."""


def linear(x: Tensor, weights: Tensor) -> Tensor:
    """x·Wᵀ, (rows, outputs).

    Args:
        x: (rows, inputs).
        weights: W, (outputs, inputs), of the same dtype.
    """
    if torch.is_grad_enabled() or _is_traced() or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weights)
    if not (_is_float32(x) and _is_float32(weights) and x.shape[1] == weights.shape[1]):
        return F.linear(x, weights)  # which says what is wrong
    by_onednn = (
        len(x) >= FEWEST
        and len(x) * weights.numel() >= LEAST
        and torch.backends.mkldnn.enabled
        and onednn_is_quicker()
    )
    if len(x) * len(weights) < LARGE:
        return _by_onednn(x, weights) if by_onednn else F.linear(x, weights)
    product = memory.empty(len(x), len(weights))
    if not by_onednn:
        return torch.mm(x, weights.T, out=product)
    rows = max(1, AT_ONCE // len(weights))
    for i in range(0, len(x), rows):
        product[i : i + rows] = _by_onednn(x[i : i + rows], weights)
    return product


def _is_float32(matrix: Tensor) -> bool:
    """Whether it is a matrix of float32 on the CPU, and no tensor of another kind."""
    return (
        type(matrix) in (Tensor, nn.Parameter)
        and matrix.dim() == 2
        and matrix.dtype == torch.float32
        and matrix.device.type == "cpu"
    )


def _is_traced() -> bool:
    """Whether anything but autograd differentiates or records what is computed."""
    return (
        forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or torch.compiler.is_compiling()
    )


@cache
def onednn_is_quicker() -> bool:
    """Whether this CPU has AVX-512 and MKL does not use it."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not (
        available
        and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    ):
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _by_onednn(x: Tensor, weights: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weights, None, "none", [], "")
    return product
