"""What a data set is known by before it is read; without PyTorch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from binep.data.errors import DataError

if TYPE_CHECKING:
    from binep.data.batches import Split


class Source(ABC):
    """A data set, described before any of its files is read.

    Attributes:
        shape: of a sample: (channels, height, width) of an image.
        classes: names of the labels, in order.
        mean: per channel, in units of x/255; None for images that are not normalised.
        std: per channel, in units of x/255; None for images that are not normalised.
        mirror: whether training mirrors images left to right at random.
        shift: pixels by which training moves images at random, at most.
    """

    shape: tuple[int, ...]
    classes: tuple[str, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    mirror: bool = False
    shift: int = 0

    @abstractmethod
    def read(self, data_dir: Path | None, download: bool) -> tuple[Split, Split]:
        """Training and test split, on the CPU.

        Args:
            data_dir: where the user keeps data sets; None for the usual place.
            download: whether missing files may be fetched.

        Raises:
            DataError: a file is missing or damaged.
        """


@dataclass(frozen=True)
class Facts(Source):
    """What is known of a data set, without its samples."""

    shape: tuple[int, ...]
    classes: tuple[str, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    mirror: bool = False
    shift: int = 0

    def read(self, data_dir: Path | None, download: bool) -> tuple[Split, Split]:
        """Nothing: the samples are not there."""
        raise DataError("the samples of this data set are not there")
