"""Faster ways to take the steps of a phase.

Importing this registers them, in the order in which they are tried. Each loads its compiled loops,
and with them numba, when it is first used.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from binep.core.optim import flip_plainly
from binep.core.solvers import register
from binep.solvers.bfloat16 import Bfloat16Solver
from binep.solvers.bits_on_gpu.solver import BitsOnGpuSolver, has_triton
from binep.solvers.captured import CapturedSolver
from binep.solvers.changes.solver import ChangeSolver
from binep.solvers.digits.solver import DigitSolver
from binep.solvers.events.solver import EventSolver
from binep.solvers.in_cache.solver import InCacheSolver
from binep.solvers.int8 import Int8Solver
from binep.solvers.leaving import LeavingSolver

for _kind in (
    EventSolver,
    InCacheSolver,
    DigitSolver,
    ChangeSolver,
    BitsOnGpuSolver,
    CapturedSolver,
    Int8Solver,
    Bfloat16Solver,
    LeavingSolver,
):
    register(_kind)


def flip(signs: Tensor, *update: Any) -> tuple[Tensor | int, Tensor | None]:
    """Momenta and flips in one pass over memory, where the device has it: `binep.core.optim.Flip`.

    Args:
        signs: float32.
        update: what else a `Flip` takes.
    """
    if signs.device.type == "cpu":
        from binep.solvers.flips import flip_in_one_pass  # loads numba

        return flip_in_one_pass(signs, *update)
    if signs.device.type == "cuda" and has_triton():
        from binep.solvers.bits_on_gpu import flips  # loads Triton

        return flips.flip(signs, *update)
    return flip_plainly(signs, *update)
