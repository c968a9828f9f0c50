"""`binep inspect`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from binep.cli.options import Pluggable, Run, folder_of, given, parse
from binep.cli.output import join, warn
from binep.experiment.config import ConfigError
from binep.experiment.settings import Count

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from binep.analysis.inspection import Phases
    from binep.experiment.experiment import Experiment

ACTIVITY = 500
"""Test images over which it is counted which neurons ever fire."""


@dataclass(frozen=True)
class Options(Pluggable):
    """Follow one test image through a trained network, and draw what happens.

    In RUN/inspect (of a file, beside it) or the folder --output:
    - phases: scores, states, residuals, energy and cost in both phases
    - bits: what each layer fires
    - momenta: how far weights are from their flip
    - flips: which weights differ from their start

    phases.csv has the numbers of both phases. Runs on the CPU.
    """

    run: Run
    """A run folder; a file that `binep export --format packed` wrote; or a name (`binep
    models`)."""
    index: int | None = None
    """Which test image, from 0; otherwise the first that is misread, where the nudge has most to
    do, or of 500 the one that is nearest to it."""
    output: Path | None = None
    """Folder for the figures; otherwise inspect, in the run's folder, beside the file or here."""
    format: Literal["pdf", "svg", "png"] = "pdf"
    """Of the figures."""
    neurons: Count = 12
    """How many neurons of each layer are drawn."""
    data_dir: Path | None = None
    """Folder of the data sets, if not the run's."""


def main(arguments: Sequence[str]) -> None:
    """Print what one image does, and leave the figures and phases.csv."""
    options = parse(Options, arguments, prog="binep inspect")
    from binep.export import packed
    from binep.runs import checkpoints, curves, files, metrics
    from binep.runs import folder as runs

    whole = (options.run / checkpoints.CHECKPOINT).exists()
    load = runs.load_checkpoint if whole else packed.experiment
    experiment = load(options.run, warn=warn, device="cpu", **given(options, "data_dir"))
    solver = experiment.config.dynamics.solver
    if solver != "steps":
        raise ConfigError(f"{options.run}: solver = {solver}: must be steps, as inspect shows them")
    with experiment.working():
        index = _misread_or_nearest(experiment) if options.index is None else options.index
        found = _followed(experiment, index)
        drawn = {"phases": _phases(experiment, found, index, options.neurons)} | _drawings(
            experiment, found, options.run, whole
        )
    output = options.output or folder_of(options.run) / "inspect"
    files.make_folder(output)
    _print_summary(experiment, found, index)
    files.write(output / "phases.csv", metrics.table(found.rows(), digits=9).encode())
    print(output / "phases.csv")
    for name, figure in drawn.items():
        path = output / f"{name}.{options.format}"
        if isinstance(figure, str):
            print(f"no {path.name}: {figure}")
        else:
            files.write(path, curves.rendered(figure, options.format))
            print(path)


def _followed(experiment: Experiment, index: int) -> Phases:
    """Both phases of a test image."""
    from binep.analysis import inspection

    data, config = experiment.data, experiment.config
    if not 0 <= index < len(data.test):
        last = len(data.test) - 1
        raise ConfigError(
            f"--index {index}: must be from 0 to {last}, the test images of {data.name}"
        )
    return inspection.follow(
        experiment.network,
        data.prepare(data.test.images[index][None])[0],
        int(data.test.labels[index]),
        free_steps=config.dynamics.free_steps,
        nudged_steps=config.dynamics.nudged_steps,
        beta=config.learning.beta,
        tolerance=config.dynamics.settle_tol,
    )


def _misread_or_nearest(experiment: Experiment) -> int:
    """The first test image that is misread, or the one whose class leads by least."""
    import torch

    few = slice(ACTIVITY)
    images, labels = experiment.data.test.images[few], experiment.data.test.labels[few]
    scores = experiment.network(experiment.data.prepare(images))
    own = scores.gather(1, labels[:, None].long())[:, 0]
    lead = own - scores.scatter(1, labels[:, None].long(), -torch.inf).amax(dim=1)
    misread = (scores.argmax(dim=1) != labels).nonzero()
    return int(misread[0]) if len(misread) else int(lead.argmin())


def _phases(experiment: Experiment, found: Phases, index: int, neurons: int) -> Figure:
    from binep.analysis import inspection_figures
    from binep.core.neurons import Binary

    data = experiment.data
    return inspection_figures.phases(
        found,
        data.test.images[index].numpy(),
        data.classes,
        int(data.test.labels[index]),
        neurons=neurons,
        thresholds=[n.threshold for n in experiment.network.neurons if isinstance(n, Binary)],
    )


def _drawings(
    experiment: Experiment, found: Phases, run: Path, whole: bool
) -> dict[str, Figure | str]:
    """The figures besides the phases by name, or why there is none."""
    from binep.analysis import inspection, inspection_figures
    from binep.core.optim import BinaryFlip
    from binep.runs import start
    from binep.runs.files import CHECKPOINT, START

    drawn: dict[str, Figure | str] = {}
    network, flip = experiment.network, experiment.flip
    drawn["bits"] = inspection_figures.bits(found) if found.bits else "its neurons fire no bits"
    if flip is None:
        return drawn | dict.fromkeys(("momenta", "flips"), "its weights are real and do not flip")
    if not isinstance(flip, BinaryFlip):
        drawn["momenta"] = f"{type(flip).__name__} is a flip rule of its own"
    elif whole:
        drawn["momenta"] = inspection_figures.momenta(inspection.momenta(network, flip))
    else:
        drawn["momenta"] = f"there is no {CHECKPOINT}, which holds the momenta"
    if experiment.config.start is not None and not (run / START).exists():
        drawn["flips"] = f"the network that it started from ({START}) is not at hand"
        return drawn
    initial = start.initial(run, experiment.config)
    try:
        drawn["flips"] = inspection_figures.flips(inspection.signs(network, initial))
    except ValueError as error:
        drawn["flips"] = f"{error}, which its seed gives now"
    return drawn


def _print_summary(experiment: Experiment, found: Phases, index: int) -> None:
    """How the image is read and settles, and how many neurons it and others activate."""
    from binep.analysis import inspection

    data, dynamics = experiment.data, experiment.config.dynamics
    label = data.classes[int(data.test.labels[index])]
    read = data.classes[int(found.scores[found.free_steps].argmax())]
    print(
        f"test image {index} of {data.name}: label {label}, read as {read}; "
        f"settles in {join(found.settled[0])} steps, nudged in {join(found.settled[1])}"
    )
    few = data.test.images[:ACTIVITY]
    often, ever = inspection.activity(
        experiment.network,
        data.prepare(few),
        free_steps=dynamics.free_steps,
        tolerance=dynamics.settle_tol,
    )
    print(
        f"of {len(few)} test images, one activates {_percents(often)} of the layers' neurons, "
        f"all together {_percents(ever)}"
    )


def _percents(shares: Iterable[float]) -> str:
    return " ".join(f"{100 * share:.1f}" for share in shares) + " %"
