"""`binep export`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from binep.cli.options import Pluggable, Run, parse


@dataclass(frozen=True)
class Options(Pluggable):
    """Write a trained network as a file for other programs."""

    run: Run
    """A run folder, or a packed file."""
    format: Literal["packed", "npz"] = "packed"
    """packed: .safetensors with a bit per binary weight, which `binep predict` and `binep.load`
    take, too. npz: the same as NumPy arrays, for programs without binep."""
    output: Path | None = None
    """The file; otherwise network.safetensors or network.npz beside the run's model."""


def main(arguments: Sequence[str]) -> None:
    """Write the file and print its name and size."""
    options = parse(Options, arguments, prog="binep export")
    from binep.experiment.settings import ConfigError
    from binep.export import packed
    from binep.runs.files import RunError

    trained = packed.read(options.run)
    suffix = {"packed": ".safetensors", "npz": ".npz"}[options.format]
    folder = options.run if options.run.is_dir() else options.run.parent
    path = options.output or folder / f"network{suffix}"
    write = {"packed": packed.save, "npz": packed.save_npz}[options.format]
    try:
        write(trained, path)
    except RunError:
        raise
    except ValueError as error:  # of a part of one's own
        raise ConfigError(f"{options.run}: {error}") from None
    print(f"{path}  {path.stat().st_size:,} bytes")
