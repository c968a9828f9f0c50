"""`binep predict`."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from binep.cli.options import Pluggable, Run, parse
from binep.cli.output import warn
from binep.experiment.config import ConfigError
from binep.experiment.settings import Count

if TYPE_CHECKING:
    from torch import Tensor

    from binep.export.packed import Trained

Files = Annotated[
    tuple[Path, ...],
    tyro.conf.Positional,
    tyro.conf.arg(metavar="FILE...", help_behavior_hint=""),
]


@dataclass(frozen=True)
class Options(Pluggable):
    """Classify pictures and arrays: a line of CSV each, with class and scores."""

    run: Run
    """A run folder; a file that `binep export --format packed` or `Network.save` wrote; or a name
    (`binep models`)."""
    files: Files
    """Pictures (.png, .jpg, …) and arrays (.npy, or .npz with an x). uint8 becomes x/255."""
    output: Path | None = None
    """File for the lines; otherwise they are printed."""
    batch_size: Count = 512
    """Samples that settle at a time."""


def main(arguments: Sequence[str]) -> None:
    """Print or write the class and the scores of each sample."""
    options = parse(Options, arguments, prog="binep predict")
    if not options.files:
        raise ConfigError("predict what? Name pictures or arrays after the run")
    import torch

    from binep.data.inputs import read_inputs
    from binep.export import packed
    from binep.runs import files

    trained = packed.read(options.run)
    network = trained.network
    shape = tuple(network.synapses[0].input_shape)
    samples = [read_inputs(path, shape) for path in options.files]
    for path, images in zip(options.files, samples, strict=True):
        _warn_of_scale(trained, path, images)
    names = trained.classes or tuple(map(str, range(network.cost.classes)))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "row", "class", *(f"score {name}" for name in names)])
    for path, images in zip(options.files, samples, strict=True):
        row = 0
        for some in torch.split(images, options.batch_size):
            for scores in network(trained.prepare(some)):
                cells = [f"{score:.6g}" for score in scores.tolist()]
                writer.writerow([path, row, names[int(scores.argmax())], *cells])
                row += 1
    if options.output is None:
        print(text.getvalue(), end="")
    else:
        files.write(options.output, text.getvalue().encode(errors="backslashreplace"))
        print(options.output)


def _warn_of_scale(trained: Trained, path: Path, images: Tensor) -> None:
    """Say that images are of another kind than those that the network has learnt."""
    if trained.learnt_floats is None or trained.learnt_floats == images.is_floating_point():
        return
    if trained.learnt_floats:
        warn(
            f"{path}: bytes, taken as x/255; the network has learnt floats as they are: right "
            "where those were from 0 to 1"
        )
        return
    least, most = (value.item() for value in images.aminmax())
    if least < 0 or most > 1:
        warn(
            f"{path}: floats from {least:.6g} to {most:.6g}, taken as they are; the network has "
            "learnt bytes as x/255, from 0 to 1"
        )
