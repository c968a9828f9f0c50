"""Checks and conversions of single arguments."""

from __future__ import annotations

import math
import operator

from torch import Tensor


def bare(tensor: Tensor) -> Tensor:
    """A tensor's numbers: without history, subclass or a lazy negation."""
    return tensor.detach().as_subclass(Tensor).resolve_neg()


def whole(name: str, value: int, least: int = 1) -> int:
    """A setting that must be a whole number from 1, or another least one.

    Raises:
        TypeError, ValueError: it is not.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} = {value!r}: must be a whole number") from None
    if number < least or isinstance(value, bool):
        raise ValueError(f"{name} = {value}: must be at least {least}")
    return number


def as_tolerance(value: float) -> float:
    """A tolerance: a finite number from 0.

    Raises:
        ValueError: it is not.
    """
    tolerance = float(value)
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance = {tolerance}: must be a finite number from 0")
    return tolerance
