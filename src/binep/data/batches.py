"""Data sets held whole as uint8 tensors, and seeded batches of them.

A data set is a few hundred megabytes at most, so it lives on the training device from the start:
a batch is one gather, and neither a worker process nor the host stands between two batches.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from binep.data.errors import DataError

LIGHT = 0.6
"""Images from 0 to 1 of a larger mean are dark on light."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images (N, C, H, W), uint8 or float32, and their labels (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Number of images N."""
        return len(self.labels)

    def problem(self, shape: tuple[int, ...], classes: int) -> str:
        """What keeps it from being images of this shape with labels below `classes`, or ""."""
        images, labels = self.images, self.labels
        if images.dtype not in (torch.uint8, torch.float32) or images.shape[1:] != shape:
            found = f"{images.dtype} of shape {tuple(images.shape)}"
            return f"has images {found}: must be uint8 or float32 of shape (N, {str(shape)[1:]}"
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1] or not len(labels):
            found = f"{labels.dtype} of shape {tuple(labels.shape)}"
            return f"has labels {found}: must be int64, one for each of {len(images)} images"
        least, most = int(labels.min()), int(labels.max())
        if least < 0 or most >= classes:
            found = f"from {least} to {most}"
            return f"has labels {found}: must be from 0 to {classes - 1}"
        return ""

    def to(self, device: torch.device | str) -> Split:
        """A copy on `device`."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split, with their classes and their preparation.

    `valid` holds the samples that are kept from training, to choose settings by, if there are any.

    `classes` names the labels in order. `mean` and `std` are per channel, in units of x/255, or
    None for images that are not normalised. Before, pixels are raised to `power`. Training mirrors
    images left to right at random if `mirror`, and moves them by up to `shift` pixels.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    mirror: bool = False
    shift: int = 0
    valid: Split | None = None
    power: float = 1.0

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What it is, as JSON can hold it: digest, sizes, names of classes, shape, mean, std, type.

        The SHA-256 is of the images and labels as they are stored, which takes 0.06 s for MNIST.
        """
        digest = hashlib.sha256()
        for split in (self.train, self.test, *([self.valid] if self.valid else [])):
            for part in (split.images, split.labels):
                stored = part.detach().cpu().contiguous()
                digest.update(f"{stored.dtype} {tuple(stored.shape)} ".encode())
                digest.update(stored.view(-1).view(torch.uint8).numpy().data)
        return {
            "sha256": digest.hexdigest(),
            "train": len(self.train),
            "test": len(self.test),
            "valid": len(self.valid) if self.valid else 0,
            "classes": list(self.classes),
            "shape": list(self.train.images.shape[1:]),
            "mean": self.mean and list(self.mean),
            "std": self.std and list(self.std),
            "floats": self.train.images.is_floating_point(),
        }

    def to(self, device: torch.device | str) -> Dataset:
        """A copy on `device`."""
        valid = self.valid and self.valid.to(device)
        return replace(self, train=self.train.to(device), test=self.test.to(device), valid=valid)

    @property
    def nbytes(self) -> int:
        """Bytes of all images and labels."""
        splits = filter(None, (self.train, self.test, self.valid))
        return sum(split.images.nbytes + split.labels.nbytes for split in splits)

    @functools.cached_property
    def dark_on_light(self) -> float | None:
        """The mean of training images from 0 to 1 that are light, which do not train well as such.

        None of darker images, and of what is no image or is normalised.
        """
        images = self.train.images
        if self.mean is not None or images.dim() != 4:
            return None
        if images.dtype != torch.uint8 and not 0 <= images.min() <= images.max() <= 1:
            return None
        parts = torch.split(images, 1000)
        total = sum(float(self.prepare(some).sum(dtype=torch.float64)) for some in parts)
        mean = total / images.numel()
        return mean if mean > LIGHT else None

    def with_power(self, power: float) -> Dataset:
        """A copy whose pixels are raised to a power before all else.

        Raises:
            DataError: pixels that are not from 0 to 1, or bytes.
        """
        for split in filter(None, (self.train, self.test, self.valid)):
            _check_pixels(split.images, power)
        return replace(self, power=power)

    def standardized(self) -> Dataset:
        """A copy with the mean and the standard deviation of each channel of its training set.

        The deviation of a channel that never changes is taken as 1.
        """
        images, power = self.train.images, self.power
        shape = (len(images), images.shape[1], -1)
        sums, squares = (torch.zeros(shape[1], dtype=torch.float64) for _ in range(2))
        least, most = torch.full_like(sums, torch.inf), torch.full_like(sums, -torch.inf)
        count = len(images) * math.prod(images.shape[2:])
        for some in torch.split(images, 1000):
            x = prepared(some, power=power).cpu().double().view(len(some), *shape[1:])
            sums += x.sum(dim=(0, 2))
            least, most = least.minimum(x.amin(dim=(0, 2))), most.maximum(x.amax(dim=(0, 2)))
        mean = sums / count
        for some in torch.split(images, 1000):
            x = prepared(some, power=power).cpu().double().view(len(some), *shape[1:])
            squares += (x - mean[:, None]).square().sum(dim=(0, 2))
        std = (squares / count).sqrt()
        std[least == most] = 1  # rounding leaves a deviation that is not quite 0
        return replace(self, mean=tuple(mean.tolist()), std=tuple(std.tolist()))

    def held_out(self, share: float, seed: int) -> Dataset:
        """A copy with so large a share of each class in `valid`, and no longer in `train`.

        Of each class at least one sample, which the seed chooses; all others stay in their order.

        Raises:
            DataError: a class would have no sample left to train on.
        """
        generator = torch.Generator().manual_seed(seed)
        labels = self.train.labels
        kept = torch.ones(len(labels), dtype=torch.bool)
        for number, name in enumerate(self.classes):
            members = (labels == number).nonzero()[:, 0]
            count = max(1, round(share * len(members)))
            if 0 < len(members) <= count:
                raise DataError(
                    f"validation = {share:g}: leaves no sample of the class {name} to train on, "
                    f"of which there are {len(members)}"
                )
            kept[members[torch.randperm(len(members), generator=generator)[:count]]] = False
        images = self.train.images
        train, valid = Split(images[kept], labels[kept]), Split(images[~kept], labels[~kept])
        return replace(self, train=train, valid=valid)

    def training_batches(
        self, batch_size: int, generator: torch.Generator, start: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of training samples in random order, mirrored and shifted; see `batches`."""
        return batches(
            self.train,
            batch_size,
            generator=generator,
            mirror=self.mirror,
            shift=self.shift,
            start=start,
        )

    def prepare(self, images: Tensor) -> Tensor:
        """A network's input from images (b, C, H, W); see `prepared`."""
        return prepared(images, self.mean, self.std, self.power)


FEW = 8
"""Channels that are normalised one by one."""


def prepared(
    images: Tensor,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    power: float = 1.0,
) -> Tensor:
    """A network's input, float32, from images (b, C, H, W) or features (b, C).

    x/255 of uint8, x itself of float32, raised to `power`; then (x − mean)/std of each channel, if
    given.

    Raises:
        DataError: floats to be raised that are not from 0 to 1.
    """
    if power != 1:
        x = _raised(images, power)
    else:
        x = images.to(torch.float32, copy=True)
        if images.dtype == torch.uint8:
            x /= 255
    if mean is not None and std is not None and len(mean) > FEW:
        scales = (torch.tensor(scale, device=x.device) for scale in (mean, std))
        middle, deviation = (scale.view(-1, *[1] * (x.dim() - 2)) for scale in scales)
        return x.sub_(middle).div_(deviation)
    # Scalars channel by channel: a tensor of them would be copied from the host per batch.
    for channel, scale in enumerate(zip(mean or (), std or (), strict=True)):
        x[:, channel].sub_(scale[0]).div_(scale[1])
    return x


def _raised(images: Tensor, power: float) -> Tensor:
    """Pixels to a power, in float64: so exports, too, come to the same float32."""
    if images.dtype == torch.uint8:
        levels = _raised_levels(power, images.device)
        return levels.index_select(0, images.flatten().int()).view(images.shape)
    _check_pixels(images, power)
    return images.to(torch.float64, copy=True).pow_(power).to(torch.float32)


@functools.lru_cache(8)
def _raised_levels(power: float, device: torch.device) -> Tensor:
    """The 256 grey levels x/255 to a power, copied to a device once: a copy makes the host wait."""
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    with torch.inference_mode(False):
        return torch.from_numpy((levels.astype(np.float64) ** power).astype(np.float32)).to(device)


def _check_pixels(images: Tensor, power: float) -> None:
    """Refuse floats that are not from 0 to 1; so written, NaN too."""
    if images.dtype != torch.uint8 and not 0 <= images.min() <= images.max() <= 1:
        least, most = images.min(), images.max()
        raise DataError(
            f"pixel_power = {power:g}: takes pixels from 0 to 1, or bytes: there are some from "
            f"{least:g} to {most:g}"
        )


def batches(
    split: Split,
    batch_size: int,
    *,
    generator: torch.Generator | None = None,
    mirror: bool = False,
    shift: int = 0,
    start: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch: images (b, C, H, W) as stored and labels (b,) on the split's device.

    Every sample comes once; the last batch may be smaller. The call itself draws all that is
    random in the epoch, on the CPU, and moves it to the device: the same seed gives the same
    batches on every device, and the generator is done with before the first batch.

    Args:
        split: where the samples come from.
        batch_size: samples per batch, at least 1.
        generator: a CPU generator, for a random order; None takes the samples in order, as views.
        mirror: mirror each image with probability ½ (`mirror_and_shift`); needs a generator.
        shift: move each image by up to so many rows and columns; needs a generator.
        start: batches of this epoch to skip; those that follow do not depend on it.

    Raises:
        ValueError: batch_size < 1, start < 0, shift < 0, or mirror or shift without a generator.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    if start < 0:
        raise ValueError(f"start is {start}; it must be at least 0")
    if shift < 0:
        raise ValueError(f"shift is {shift}; it must be at least 0")
    if (mirror or shift) and generator is None:
        raise ValueError("mirror and shift need a generator to draw from")
    count, device = len(split), split.images.device
    order = mirrored = moves = None
    if generator is not None:
        order = torch.randperm(count, generator=generator).to(device)
    if mirror:
        mirrored = torch.randint(2, (count,), generator=generator).bool().to(device)
    if shift:
        moves = torch.randint(-shift, shift + 1, (count, 2), generator=generator).to(device)

    def epoch() -> Iterator[tuple[Tensor, Tensor]]:
        for begin in range(start * batch_size, count, batch_size):
            batch = slice(begin, begin + batch_size)
            samples = batch if order is None else order[batch]
            images = split.images[samples]
            if mirrored is not None or moves is not None:
                images = mirror_and_shift(images, _some(mirrored, batch), _some(moves, batch))
            yield images, split.labels[samples]

    return epoch()


def _some(drawn: Tensor | None, batch: slice) -> Tensor | None:
    return None if drawn is None else drawn[batch]


def mirror_and_shift(images: Tensor, mirrored: Tensor | None, moves: Tensor | None) -> Tensor:
    """Images, some mirrored left to right, then moved; pixels of the edge fill what is left free.

    Args:
        images: (b, C, H, W), any type.
        mirrored: (b,) bool, which images to mirror; None for none.
        moves: (b, 2) int64, rows and columns from which each image is read: (1, 0) moves it up by
            a pixel. None for no moves.

    Returns:
        (b, C, H, W), of the type and on the device of `images`.
    """
    channels, height, width = images.shape[1:]
    rows = torch.arange(height, device=images.device).expand(len(images), -1)
    columns = torch.arange(width, device=images.device).expand(len(images), -1)
    if moves is not None:
        # Clamping an index to the image reads what padding with edge pixels would have put there.
        rows = (rows + moves[:, :1]).clamp(0, height - 1)
        columns = (columns + moves[:, 1:]).clamp(0, width - 1)
    if mirrored is not None:
        columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
    pixels = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
    return images.flatten(2).gather(2, pixels[:, None].expand(-1, channels, -1)).view(images.shape)
