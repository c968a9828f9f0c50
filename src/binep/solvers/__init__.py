"""Faster ways to take the steps of a phase.

Importing this registers them, in the order in which they are tried. Each loads its compiled loops,
and with them numba, when it is first used.
"""

from __future__ import annotations

from typing import Any

import binep.solvers.events.solver  # noqa: F401
from binep.core.optim import BinaryFlip


def _flip(*arguments: Any) -> Any:
    from binep.solvers.flips import flip_in_one_pass

    return flip_in_one_pass(*arguments)


BinaryFlip.quick = staticmethod(_flip)
