"""`binep train`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from binep.cli.options import parse
from binep.data.sources import Source
from binep.experiment.config import Config, ConfigError, Layer, preset, preset_names

PROG = "binep train"


@dataclass(frozen=True)
class Options:
    """Train a network, and keep all of the run in a folder.

    A preset or --config FILE says what to train; flags replace its settings.
    - Layers count from 1 above the input to the output.
    - A preset may stand before or behind flags.
    """

    preset: Annotated[
        str | None,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="PRESET", help_behavior_hint=""),
    ] = None
    """What to train: `binep presets` lists them. Defaults below are quickstart's, or those of
    the preset or file that is named beside --help."""
    config: Path | None = None
    """A TOML file in the place of a preset; or a run folder, to run the same again."""
    resume: Path | None = None
    """The folder of a run to go on with, in the place of a preset; takes no other setting."""
    run_dir: Path | None = None
    """Folder for the run, new or empty; otherwise runs/PRESET/TIME-SEED."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard, too, in the run's folder; goes with --resume, too."""
    experiment: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


def main(arguments: Sequence[str]) -> None:
    """Train a preset, a file or the rest of a run."""
    folder = _resumed([word for word in arguments if word != "--tensorboard"])
    if folder is not None:
        from binep.cli.training import resume_training
        from binep.runs.tensorboard import Board

        resume_training(folder, Board() if "--tensorboard" in arguments else None)
        return
    start, name = _start(arguments)
    options = parse(Options, arguments, prog=PROG, default=Options(experiment=start))
    from binep.cli.training import run_training
    from binep.runs.tensorboard import Board

    board = Board() if options.tensorboard else None
    config, source = _on_its_data(options.experiment, start)
    run_training(config, name, options.run_dir, board, source)


def _on_its_data(config: Config, start: Config) -> tuple[Config, Source | None]:
    """Settings with a last layer that fits the data set's classes, where that was not the start's.

    One that was resized, too, is left for the check of all settings.
    """
    last = list(config.layers)[-1:]
    resized = any(config.layers[n].size != start.layers[n].size for n in last if n in start.layers)
    if config.dataset == start.dataset or resized or [*start.layers][-1:] != last:
        return config, None
    source = config.source()
    return config.fitted(source), source


def _resumed(words: Sequence[str]) -> Path | None:
    """The run of --resume RUN or --resume=RUN, if there is one: they stand alone."""
    match words:
        case ["--resume", folder]:
            return Path(folder)
        case [word] if word.startswith("--resume="):
            return Path(word.removeprefix("--resume="))
    if any(word.split("=")[0] == "--resume" for word in words):
        raise ConfigError("--resume takes one run folder and no other setting: they are the run's")
    return None


def _start(arguments: Sequence[str]) -> tuple[Config, str]:
    """The settings that flags replace, and what the run is called.

    The preset may stand behind flags, whose values only the parser tells from it: so all is
    parsed once with whatever layers are spoken of, to find the preset or the file.
    """
    flags = [word for word in arguments if word not in ("-h", "--help")]
    numbers = re.findall(r"^--layers\.(\d+)\.", "\n".join(flags), re.MULTILINE)
    layers = {number: Layer(1) for number in numbers}
    found = parse(Options, flags, prog=PROG, default=Options(experiment=Config(layers=layers)))
    if found.preset is not None and found.config is not None:
        raise ConfigError(
            f"both the preset {found.preset} and --config {found.config}: name one of them"
        )
    if found.preset is not None:
        return preset(found.preset), found.preset
    if found.config is not None:
        return _from_file(found.config)
    if flags != list(arguments):
        return preset("quickstart"), "quickstart"
    taken = [name for name in found.experiment.speed.off if name in preset_names()]
    hint = f"; {taken[0]} was read as a value of --off: name it first" if taken else ""
    raise ConfigError(
        f"train what? Name a preset (binep presets lists them) or --config FILE{hint}"
    )


def _from_file(file: Path) -> tuple[Config, str]:
    path = file / "config.toml" if file.is_dir() else file
    config = Config.load(path)
    folder = path.resolve().parent
    name = folder.name if path.name == "config.toml" else path.stem
    if folder == (Path("runs") / name).resolve():  # not into the run that it repeats
        name = f"{name}-again"
    return config, name or "run"
