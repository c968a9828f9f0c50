"""`binep train`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from binep.cli.base import completed, from_file, started
from binep.cli.options import Pluggable, parse
from binep.data.sources import Source
from binep.experiment import plugins
from binep.experiment.config import Config, ConfigError, preset, preset_names
from binep.experiment.settings import Count
from binep.runs.settings import MACHINE, read_config

if TYPE_CHECKING:
    from torch import Tensor

    from binep.experiment.workers import Alone

PROG = "binep train"


@dataclass(frozen=True)
class Options(Pluggable):
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
    """The folder of a run to go on with, in the place of a preset. Of its settings --epochs,
    --device, --data-dir, --threads, --checkpoint-minutes, --test-batch-size and those of speed may
    change."""
    from_run: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """The trained network that a new run starts from: a run folder, a file that `binep export
    --format packed` wrote of one, or a name (`binep models`). Settings are that run's where no
    preset or file is named; flags replace them."""
    keep_momentum: bool = False
    """With --from: go on with its momenta, too, from its last checkpoint."""
    run_dir: Path | None = None
    """Folder for the run, new or empty; otherwise runs/PRESET/TIME-SEED."""
    auto_threshold: bool = False
    """Choose each layer's threshold τ by the gradients of the first batches, so that a thousandth
    of its weights flips per batch at the start, with binary activations a tenth of that;
    config.toml then has what was chosen."""
    seeds: Count | None = None
    """So many runs, whose seeds begin with --seed, in folders seed0, seed1, … of --run-dir. Given
    the same folder again, only what is missing of them is run."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard, too, in the run's folder; goes with --resume, too."""
    shard_momenta: bool = False
    """With torchrun: each worker keeps the momenta of a part of the weights, not of all."""
    experiment: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


def main(arguments: Sequence[str]) -> None:
    """Train a preset, a file or the rest of a run."""
    start, name = _start(arguments)
    options = parse(Options, arguments, prog=PROG, default=Options(experiment=start))
    from binep.cli.training import resume_training, run_training
    from binep.experiment.workers import are_started, joined
    from binep.runs.tensorboard import Board

    if options.shard_momenta and not are_started():
        raise ConfigError("--shard-momenta: goes with torchrun and several workers alone")
    if options.seeds is not None and are_started():
        raise ConfigError(f"--seeds {options.seeds}: goes with one process; torchrun makes one run")
    board = Board() if options.tensorboard else None
    if options.resume is not None:
        with joined(options.experiment.device, options.shard_momenta) as workers:
            changes = _changes(start, options.experiment)
            resume_training(options.resume, board, workers, **changes)
        return
    begun = _begun_from(options)
    config, source = completed(options.experiment, start)
    config = config.replace(plugins=plugins.loaded())
    with joined(config.device, options.shard_momenta) as workers:
        if options.auto_threshold:
            config = _with_thresholds(config, source, workers)
        if options.seeds is None:
            run_training(config, name, options.run_dir, board, begun, source, workers)
            return
    from binep.cli.seeds import run_seeds

    given = [setting for setting in _changes(start, options.experiment) if setting in MACHINE]
    run_seeds(config, options.seeds, name, options.run_dir, begun, options.tensorboard, given)


def _with_thresholds(config: Config, source: Source | None, workers: Alone) -> Config:
    """Settings with thresholds chosen from the first batches, which the first worker prints."""
    from binep.experiment.thresholds import auto_threshold

    chosen = auto_threshold(config, source)
    taus = (f"layers.{number}.threshold {at.threshold:g}" for number, at in chosen.layers.items())
    if not workers.rank:
        print(f"chosen: {', '.join(taus)}", flush=True)
    return chosen


def _begun_from(options: Options) -> tuple[Path, dict[str, Tensor]] | None:
    """Where the network that a new run starts from is, and what it is to take over."""
    from binep.export import packed
    from binep.runs import start

    if options.from_run is not None:
        run = options.from_run
        if packed.is_run(run):
            return run, start.trained(run, options.keep_momentum)
        return run, start.of_network(packed.read(run).network)
    if options.experiment.start is not None and options.config is not None:  # to run it again
        config = options.config
        folder = config if config.is_dir() else config.parent
        return folder, start.read(folder, options.experiment)
    return None


def _changes(before: Config, now: Config) -> dict[str, Any]:
    """The settings that differ, by name."""
    return {name: value for name, value in vars(now).items() if value != vars(before)[name]}


def _start(arguments: Sequence[str]) -> tuple[Config, str]:
    """The settings that flags replace, and what the run is called."""
    return started(Options, arguments, PROG, _named)


def _named(found: Options, complete: bool) -> tuple[Config, str]:
    """The settings of what is named, and what a run of it is called.

    Args:
        found: what was parsed.
        complete: without --help, something must be named.
    """
    _check_sources(found)
    if found.resume is not None:
        return read_config(found.resume), ""
    if found.preset is not None:
        return preset(found.preset), found.preset
    if found.config is not None:
        return from_file(found.config)
    if found.from_run is not None:
        return _of_trained(found.from_run)
    if not complete:
        return preset("quickstart"), "quickstart"
    taken = [name for name in found.experiment.speed.off if name in preset_names()]
    hint = f"; {taken[0]} was read as a value of --off: name it first" if taken else ""
    raise ConfigError(
        f"train what? Name a preset (binep presets lists them) or --config FILE{hint}"
    )


def _check_sources(found: Options) -> None:
    """Refuse two things to train, and a new folder for a run that goes on."""
    sources = {
        "the preset": found.preset,
        "--config": found.config,
        "--resume": found.resume,
    }
    named = [f"{what} {source}" for what, source in sources.items() if source is not None]
    if len(named) > 1:
        raise ConfigError(f"both {' and '.join(named)}: name one of them")
    if found.resume is not None and found.seeds is not None:
        raise ConfigError(f"--seeds {found.seeds}: is for new runs; --resume goes on with one")
    if found.auto_threshold and (other := found.resume or found.from_run) is not None:
        raise ConfigError(f"--auto-threshold with {other}: is for a network that starts anew")
    if found.keep_momentum and found.from_run is None:
        raise ConfigError("--keep-momentum: goes with --from RUN alone")
    if found.resume is not None and found.from_run is not None:
        raise ConfigError(f"--from {found.from_run}: is for a new run; --resume goes on with one")
    if found.resume is not None and found.run_dir is not None:
        raise ConfigError(f"--run-dir {found.run_dir}: a run goes on in its own folder")
    if found.from_run is not None:
        from binep.export import packed

        if packed.is_run(found.from_run):
            read_config(found.from_run)
        elif found.keep_momentum:
            raise ConfigError(
                f"--keep-momentum with {found.from_run}: it holds no momenta; a run folder does"
            )


def _of_trained(path: Path) -> tuple[Config, str]:
    """The settings of a run folder or of what was exported from one, and what a run is called."""
    from binep.export import packed

    if packed.is_run(path):
        return from_file(path)
    file, trained = packed.located(path), packed.read(path)
    if trained.run is None:
        raise ConfigError(
            f"--from {path}: does not say how it was trained: name a preset or --config FILE"
        )
    in_run = (file.parent / "config.toml").exists()
    return trained.config(path), file.resolve().parent.name if in_run else file.stem
