"""`binep export`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from binep.cli.options import Pluggable, Run, folder_of, parse
from binep.cli.output import warn


@dataclass(frozen=True)
class Options(Pluggable):
    """Write a trained network as a file for other programs."""

    run: Run
    """A run folder, a packed file, or the name of a network that comes with binep."""
    format: Literal["packed", "npz", "c", "onnx"] = "packed"
    """packed: .safetensors with a bit per binary weight, which `binep predict` and `binep.load`
    take, too. npz: the same as NumPy arrays, for programs without binep. c: a header of C99 that
    holds and runs the network, and a program beside it that classifies images.
    onnx: a graph from images to class scores, for onnxruntime and others."""
    output: Path | None = None
    """The file; otherwise network.safetensors, network.npz, network.h or network.onnx beside the
    run's model, or here."""


SUFFIXES = {"packed": ".safetensors", "npz": ".npz", "c": ".h", "onnx": ".onnx"}


def main(arguments: Sequence[str]) -> None:
    """Write the file and print its name and size."""
    options = parse(Options, arguments, prog="binep export")
    from binep.experiment.settings import ConfigError
    from binep.export import c_source, onnx_graph, packed
    from binep.runs.files import RunError

    trained = packed.read(options.run)
    path = options.output or folder_of(options.run) / f"network{SUFFIXES[options.format]}"
    save = {
        "packed": packed.save,
        "npz": packed.save_npz,
        "c": c_source.save,
        "onnx": onnx_graph.save,
    }[options.format]
    try:
        save(trained, path)
    except RunError:
        raise
    except ValueError as error:  # of a part of one's own
        raise ConfigError(f"{options.run}: {error}") from None
    if options.format == "c" and trained.learnt_floats:
        warn(
            f"{options.run}: was trained on floats; the program takes a byte for each, as x/255: "
            "right where these were from 0 to 1"
        )
    written = [path, c_source.test_program(path)] if options.format == "c" else [path]
    for file in written:
        print(f"{file}  {file.stat().st_size:,} bytes")
