"""Shapes of layers, without PyTorch."""

from __future__ import annotations

from collections.abc import Sequence


def map_shape_of(
    input_shape: Sequence[int], kernel: int, padding: int, pool: int
) -> tuple[int, int]:
    """Rows and columns of a convolution's map, before pooling.

    Args:
        input_shape: (channels, height, width) of what it convolves.
        kernel: side of the square kernel.
        padding: zeros around the input.
        pool: side of the pooling window.

    Raises:
        ValueError: the input is no map, or the kernel or the pool is larger than its map.
    """
    if len(input_shape) != 3:
        raise ValueError(
            "a convolution needs (channels, height, width) below it, not the shape "
            f"{tuple(input_shape)}"
        )
    if min(*input_shape, kernel, pool) < 1 or padding < 0:
        raise ValueError("sizes, kernel and pool must be at least 1 and padding at least 0")
    height, width = (side + 2 * padding for side in input_shape[1:])
    rows, columns = height - kernel + 1, width - kernel + 1
    if min(rows, columns) < 1:
        raise ValueError(f"kernel = {kernel} is larger than its map of {height}x{width}")
    if pool > min(rows, columns):
        raise ValueError(f"pool = {pool} is larger than its map of {rows}x{columns}")
    return rows, columns
