"""The configuration of a run folder, and what of it makes runs comparable."""

from __future__ import annotations

from pathlib import Path

from binep.experiment.config import Config, did_you_mean
from binep.runs.files import RunError


def read_config(folder: Path) -> Config:
    """The configuration of a run.

    Raises:
        RunError: the folder is not there, or no run folder.
        ConfigError: its config.toml cannot be read.
    """
    path = folder / "config.toml"
    if not path.is_file():
        if folder.exists():
            raise RunError(f"{folder}: not a run folder: it holds no config.toml")
        siblings = [found.parent.name for found in folder.parent.glob("*/config.toml")]
        hint = did_you_mean(folder.name, siblings)
        raise RunError(f"{folder}: not a run folder: there is none of this name{hint}")
    return Config.load(path)


def comparable(config: Config) -> Config:
    """A configuration with title, seed, length, machine and speed at their defaults.

    Runs whose configurations are equal then are repetitions of one experiment.
    """
    usual = Config()
    apart = (
        *("title", "seed", "epochs", "test_batch_size", "data_dir", "device", "deterministic"),
        *("warn_flip_rate", "checkpoint_minutes", "threads", "speed"),
    )
    return config.replace(**{name: getattr(usual, name) for name in apart})
