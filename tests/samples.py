"""Small data sets in the standard layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_mnist(folder: Path, train: int = 20, test: int = 10) -> Path:
    """Random images and labels where MNIST would be; returns the data folder."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        images = random.integers(0, 256, (count, 28, 28), np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (raw / f"{part}-{kind}-ubyte").write_bytes(header + array.tobytes())
    return folder


def write_cifar10(folder: Path, count: int = 4) -> Path:
    """Random records where CIFAR-10 would be, so many in each file; returns the data folder."""
    batches = folder / "cifar-10-batches-bin"
    batches.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        records = random.integers(0, 256, (count, 3073), np.uint8)
        records[:, 0] %= 10
        (batches / f"{name}.bin").write_bytes(records.tobytes())
    return folder
