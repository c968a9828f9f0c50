"""Inputs that are images of 256 grey levels: products and sums of whole numbers are exact."""

from __future__ import annotations

import torch
from torch import Tensor

GREY_LEVEL = 1 / 255
"""The unit of images of 256 grey levels."""


def grey_levels(x: Tensor) -> Tensor | None:
    """The whole numbers from 0 to 255 (uint8) of 255ths that x is; None where it is not.

    In any batch of grey levels a sample's sums are the same.
    """
    if len(x) > 1 and grey_levels(x[:1]) is None:  # as soon as may be
        return None
    if not (x.min() >= 0 and x.max() <= 1):
        return None
    whole = (x * 255).round_()
    if not ((whole * GREY_LEVEL - x).abs_() <= 2**-22 * x).all():
        return None
    return whole.to(torch.uint8)
