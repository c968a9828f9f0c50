"""The configuration of a run folder, and what of it makes runs comparable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from binep.experiment.config import Config, ConfigError, did_you_mean, differing
from binep.runs.files import RunError

MACHINE = ("device", "data_dir", "threads", "checkpoint_minutes", "test_batch_size", "speed")
"""Settings of where and how a run is trained."""

GOES_ON = ("epochs", *MACHINE)
"""Settings that may change when a run goes on: what it has trained stays what it was."""


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


def past(config: Config) -> Config:
    """A configuration with the settings that may change when a run goes on at their defaults."""
    usual = Config()
    return config.replace(**{name: getattr(usual, name) for name in GOES_ON})


def continued(config: Config, **changes: Any) -> Config:
    """The configuration that a run goes on with.

    Args:
        config: the run's.
        changes: settings of `GOES_ON`.

    Raises:
        ConfigError: another setting, or another part of the test set than before.
    """
    new = config.replace(**changes)
    if others := differing(past(new), past(config)):
        raise ConfigError(
            f"{', '.join(others)}: cannot change while a run goes on; "
            f"{', '.join(GOES_ON)} can, and --from starts a new run from a trained network"
        )
    check_test_set(new, config)
    return new


def check_test_set(config: Config, before: Config) -> None:
    """Refuse settings of which a run would test on another part of the test set than before.

    Raises:
        ConfigError: test_batch_size, of a run that tests on so many batches.
    """
    if config.max_batches is not None and config.test_batch_size != before.test_batch_size:
        raise ConfigError(
            f"test_batch_size = {config.test_batch_size}: must stay {before.test_batch_size}: "
            f"the run tests on max_batches = {config.max_batches} of these"
        )


def comparable(config: Config) -> Config:
    """A configuration with title, seed, length, machine and speed at their defaults.

    Runs whose configurations are equal then are repetitions of one experiment.
    """
    usual = Config()
    apart = ("title", "seed", "deterministic", "warn_flip_rate", *GOES_ON)
    return config.replace(**{name: getattr(usual, name) for name in apart})
