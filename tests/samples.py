"""Small data sets in the standard layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_mnist(folder: Path, train: int = 20, test: int = 10, name: str = "MNIST") -> Path:
    """Random images and labels where MNIST would be, or FashionMNIST; returns the data folder."""
    raw = folder / name / "raw"
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


def write_own() -> None:
    """What docs/your-data.md speaks of, in the working directory."""
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (60, 12, 20), np.uint8), np.arange(60) % 3
    np.savez("shapes.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    np.save("new.npy", x[:2])
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            folder = Path("pictures", part, name)
            folder.mkdir(parents=True)
            Image.fromarray(x[0]).save(folder / "1.png")
        Path("flowers").mkdir(exist_ok=True)
        Path("flowers", f"{part}.csv").write_text("length,width,label\n1,2,lily\n3,1,rose\n")
