"""What a report shows: logs of runs, and their networks tested again; of exported files these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from binep.analysis import claims
from binep.analysis.measurements import Measured, longest, read
from binep.core.synapses import Synapse
from binep.data.sources import DataError
from binep.experiment.config import Config, ConfigError, differing, preset, preset_names
from binep.experiment.experiment import Experiment
from binep.export import packed
from binep.runs import folder as runs
from binep.runs.files import RunError
from binep.runs.metrics import read_alike, settings_differ
from binep.runs.settings import comparable


@dataclass(frozen=True)
class Reading:
    """The network of a run, tested again.

    Attributes:
        run: whose network.
        scores: a score per class, (samples, classes); the prediction is its argmax.
        labels: (samples,).
        images: of the test set, at least (samples, C, H, W), bytes.
        classes: their names.
        samples: training samples in an epoch.
    """

    run: Measured
    scores: Tensor
    labels: Tensor
    images: Tensor
    classes: tuple[str, ...]
    samples: int

    @property
    def error(self) -> float:
        """Share misread, in percent."""
        return 100 * float((self.scores.argmax(dim=1) != self.labels).double().mean())


@dataclass(frozen=True)
class Report:
    """Runs of one setting, to be shown on a page.

    Attributes:
        runs: the runs.
        preset: the name of that setting, if it has one.
        readings: of the runs whose network and data set are at hand.
        first: the first layer of the first network at hand, and whose it is.
        missing: what could not be shown, and why.
    """

    runs: list[Measured]
    preset: str | None
    readings: list[Reading]
    first: tuple[Measured, Synapse] | None
    missing: list[str]

    @property
    def is_logged(self) -> bool:
        """Whether what each epoch gave is known: an exported file holds the network alone."""
        return all(run.metrics for run in self.runs)

    @property
    def config(self) -> Config:
        """Of the first run; the others differ in seed, machine and length only."""
        return self.runs[0].config

    @property
    def longest(self) -> list[Measured]:
        """The runs of most epochs, of which means are taken."""
        return longest(self.runs)

    @property
    def row(self) -> claims.Row | None:
        """The row of the paper's tables that was run; None where the paper claims nothing."""
        return claims.rows().get(self.preset or "")


def gather(paths: Sequence[Path], **overrides: Any) -> Report:
    """Read runs and test their networks.

    A run without its network, or whose data set is not at hand, is shown from its log alone; an
    exported file, which holds no log, from its network.

    Args:
        paths: run folders; or files that `binep export` wrote, or names of networks that come
            with binep.
        overrides: settings of `Config` to replace for testing, such as device.

    Raises:
        ConfigError: runs of several settings, folders beside files, or a setting that cannot be.
        RunError: a file is missing or damaged.
        DataError: the data set of an exported file is not at hand.
    """
    for path in paths:
        if not packed.located(path).exists():
            raise RunError(f"{path}: not a run folder, nor a file: there is none of this name")
    exported = [path for path in paths if packed.located(path).is_file()]
    if exported and len(exported) < len(paths):
        raise ConfigError(f"{exported[0]}: holds no log, unlike run folders: report it apart")
    return _of_files(exported, overrides) if exported else _of_folders(paths, overrides)


def _of_files(paths: Sequence[Path], overrides: dict[str, Any]) -> Report:
    configs = [packed.read(path).config(path) for path in paths]
    for path, config in zip(paths, configs, strict=True):
        if others := differing(comparable(config), comparable(configs[0])):
            raise settings_differ(path, paths[0], others)
    missing = ["An exported file holds no log: there are no curves, and no times of training"]
    tested = [packed.experiment(path, warn=missing.append, **overrides) for path in paths]
    found = [Measured(path, config, [], {}) for path, config in zip(paths, configs, strict=True)]
    missing += _shared_seeds(found)
    readings = [_tested(run, experiment) for run, experiment in zip(found, tested, strict=True)]
    first = found[0], tested[0].network.synapses[0]
    return Report(found, _preset_of(configs[0]), readings, first, missing)


def _of_folders(folders: Sequence[Path], overrides: dict[str, Any]) -> Report:
    read_alike(folders)
    found = [read(folder) for folder in folders]
    missing: list[str] = []
    readings: list[Reading] = []
    first = None
    for run in found:
        model = run.folder / "model.safetensors"
        if not model.exists():
            missing.append(f"{run.folder} holds no model.safetensors: only its log is shown")
            continue
        if first is None:
            first = run, packed.read(run.folder).network.synapses[0]  # needs no data set
        try:
            experiment = runs.load(run.folder, warn=missing.append, **overrides)
        except DataError as error:
            missing.append(f"{run.folder} could not be tested again: {error}")
            continue
        readings.append(_tested(run, experiment))
    missing += _shared_seeds(found)
    return Report(found, _preset_of(found[0].config), readings, first, missing)


def _shared_seeds(found: Sequence[Measured]) -> list[str]:
    if len({run.config.seed for run in found}) == len(found):
        return []
    return ["some runs share a seed: deviations are not those of as many seeds"]


def _tested(run: Measured, experiment: Experiment) -> Reading:
    scores, labels = (tensor.cpu() for tensor in experiment.class_scores())
    images, classes = experiment.data.test.images.cpu(), experiment.data.classes
    return Reading(run, scores, labels, images, classes, experiment.samples_per_epoch)


def _preset_of(config: Config) -> str | None:
    """The preset of this setting; of several the one that the paper claims something of."""
    names = [*claims.rows(), *preset_names()]
    return next((n for n in names if comparable(preset(n)) == comparable(config)), None)


def confusion(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """How often each class was read as each: (labels, predictions), counts."""
    pairs = labels * classes + predictions
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def most_confident_errors(scores: Tensor, labels: Tensor, count: int) -> list[int]:
    """Samples whose predicted class outscores their own by most, the worst first.

    Args:
        scores: (samples, classes).
        labels: (samples,).
        count: at most so many.
    """
    margins = scores.amax(dim=1) - scores.gather(1, labels[:, None])[:, 0]
    wrong = (scores.argmax(dim=1) != labels).nonzero()[:, 0]
    order = margins[wrong].argsort(descending=True, stable=True)
    return [int(i) for i in wrong[order[:count]]]
