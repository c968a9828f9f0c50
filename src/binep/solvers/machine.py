"""What this machine's CPU has, and threads of compiled loops."""

from __future__ import annotations

import os
from functools import cache

import numba
import torch
from llvmlite import binding
from numba.core.registry import cpu_target


def has_uint8_products() -> bool:
    """Whether PyTorch multiplies uint8 with int8 quickly.

    That is where the CPU has instructions for it, VNNI or Arm's i8mm, and oneDNN uses them.
    Elsewhere PyTorch's ``_int_mm`` is a plain loop, a hundred times slower.
    """
    return _uses_onednn() and _has("avx512vnni", "avxvnni", "i8mm") and _takes_uint8()


@cache
def _takes_uint8() -> bool:
    """Whether this PyTorch does: 2.11 refuses uint8, 2.13 takes it."""
    try:
        ones = torch.ones(32, 32, dtype=torch.uint8, device="cpu")
        return bool((torch._int_mm(255 * ones, ones.to(torch.int8)) == 255 * 32).all())
    except RuntimeError:
        return False


def has_packed_int8() -> bool:
    """Whether oneDNN has packed int8 products that are about as quick as float32, or quicker.

    It has them for x86 with AVX2; measured there, with and without VNNI.
    """
    ops = torch.ops.onednn
    return (
        _uses_onednn()
        and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
        and hasattr(ops, "qlinear_prepack")
        and hasattr(ops, "qconv_prepack")
    )


@cache
def has_byte_dot_products() -> bool:
    """Whether numba compiles for a CPU with AVX-512's dot products of bytes (VNNI)."""
    features = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
    return {"+avx512bw", "+avx512vnni"} <= set(features)


def has_bfloat16_products() -> bool:
    """Whether the CPU has instructions for products of bfloat16, and oneDNN uses them."""
    return _uses_onednn() and _has("avx512bf16", "amx-bf16", "bf16")


def _uses_onednn() -> bool:
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and bool(torch.backends.mkldnn.enabled)


@cache
def _has(*instructions: str) -> bool:
    features = binding.get_host_cpu_features()
    return any(features.get(name, False) for name in instructions)


_FORKED = "this process was forked from one that had used binep's compiled loops, whose threads it \
lacks: start workers by multiprocessing's spawn method, or fork before the first use"
_used = _forked = False


def _after_fork() -> None:
    global _forked
    _forked = _used


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def use_threads() -> None:
    """Let compiled loops use as many threads as PyTorch does; call this before any.

    Raises:
        RuntimeError: in a process forked from one that had called this.
    """
    global _used
    if _forked:
        raise RuntimeError(_FORKED)
    _used = True
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    if torch.get_num_threads() != threads:  # numba's start resets OpenMP's number of threads
        torch.set_num_threads(threads)
