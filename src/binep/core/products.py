"""Dense products of float32 on a CPU.

PyTorch leaves them to MKL, whose AVX-512 code is for Intel's processors alone. On those of AMD that
have AVX-512, oneDNN, which comes with PyTorch too, takes half the time (docs/speed.md).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = 2**16
"""The fewest weights whose products are left to oneDNN, …"""
FEWEST = 8
"""… and the fewest rows to be multiplied with them."""


def linear(x: Tensor, weights: Tensor) -> Tensor:
    """x·Wᵀ, (rows, outputs).

    Args:
        x: (rows, inputs).
        weights: W, (outputs, inputs), of the same dtype.
    """
    if not (
        onednn_is_quicker()
        and len(x) >= FEWEST
        and weights.numel() >= LEAST
        and x.dtype == weights.dtype == torch.float32
        and x.device.type == weights.device.type == "cpu"
        and torch.backends.mkldnn.enabled
        and not (torch.is_grad_enabled() and (x.requires_grad or weights.requires_grad))
        and not torch.compiler.is_compiling()
    ):
        return F.linear(x, weights)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weights, None, "none", [], "")
    return product


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
