"""Captured steps without a GPU: what would be captured is called again."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch

from binep.solvers import captured, halves
from binep.solvers.bits_on_gpu.solver import BitsOnGpuSolver

GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # it is read where kernels are defined
needs_gpu = pytest.mark.skipif(not GPU, reason="needs a GPU")
on_gpu = [pytest.mark.gpu, needs_gpu]
interpreted = pytest.mark.skipif(GPU, reason="Triton interprets where there is no GPU")


LOCK = threading.RLock()


class Calls:
    """In the place of `captured.Graphs`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        work()
        return work


@contextmanager
def called() -> Iterator[None]:
    """A context in which the solvers for GPUs fit networks on the CPU; Triton interprets."""
    with (
        patch.object(captured.CapturedSolver, "device", "cpu"),
        patch.object(BitsOnGpuSolver, "device", "cpu"),
        patch.object(captured, "Graphs", Calls),
        patch.object(captured, "one_at_a_time", lambda device: LOCK),
        patch.object(halves, "multiply", lambda a, b: a.float() @ b.float()),
    ):
        yield


@contextmanager
def exact() -> Iterator[None]:
    """A context in which kernels repeat themselves bit for bit, in float32."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    cudnn.deterministic = True
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic = before


def without_waiting(act: Callable[[], object]) -> None:
    """Call, and fail where the host waits for the device."""
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it does not see all ways of waiting
        torch.cuda.set_sync_debug_mode("error")
    try:
        act()
    finally:
        torch.cuda.set_sync_debug_mode("default")
