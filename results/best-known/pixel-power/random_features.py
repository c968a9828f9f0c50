"""Bits of random binary weights, read out by least squares, for pixels to several powers.

    cd results/best-known/pixel-power
    python random_features.py > errors.csv

What a hidden layer that does not learn lets be told apart: Fashion-MNIST, 3,000 hidden bits, of
which about a third fire, and the errors on the validation split that the settings were chosen by
(`--validation 0.1667`, seed 0).
"""

from __future__ import annotations

import torch
from torch import Tensor

from binep.data import sources
from binep.data.batches import prepared

NEURONS, FIRES_FROM, RIDGE = 3000, 0.4, 100.0  # fires from so many deviations of the drive


def main() -> None:
    """Print a row for each power."""
    data = sources.load("fashion-mnist", None).held_out(0.1667, 0)
    assert data.valid is not None
    generator = torch.Generator().manual_seed(0)
    weights = torch.where(torch.rand(784, NEURONS, generator=generator) < 0.5, 1.0, -1.0)
    print("pixel_power,fires,validation_error")
    for power in (1.0, 0.7, 0.5, 0.35, 0.25):
        mean = prepared(data.train.images, power=power).mean()
        deviation = (
            (prepared(data.train.images[:2000], power=power) - mean).flatten(1) @ weights
        ).std()

        def bits(
            images: Tensor, power: float = power, mean: Tensor = mean, unit: Tensor = deviation
        ) -> Tensor:
            drive = (prepared(images, power=power) - mean).flatten(1) @ weights / unit
            return torch.cat([(drive > FIRES_FROM).float(), torch.ones(len(images), 1)], dim=1)

        gram, sums = torch.zeros(NEURONS + 1, NEURONS + 1), torch.zeros(NEURONS + 1, 10)
        batches = zip(
            torch.split(data.train.images, 2000), torch.split(data.train.labels, 2000), strict=True
        )
        for images, labels in batches:
            h = bits(images)
            gram += h.T @ h
            sums += h.T @ (2 * torch.nn.functional.one_hot(labels, 10).float() - 1)
        readout = torch.linalg.solve(gram + RIDGE * torch.eye(NEURONS + 1), sums)
        h = bits(data.valid.images)
        wrong = (h @ readout).argmax(dim=1) != data.valid.labels
        print(
            f"{power:g},{float(h[:, :-1].mean()):.3f},{100 * float(wrong.float().mean()):.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
