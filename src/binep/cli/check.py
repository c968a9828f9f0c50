"""`binep check gradients`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from binep.cli.base import completed
from binep.cli.options import Pluggable, given, parse
from binep.cli.output import print_table, warn
from binep.data.sources import SOURCES
from binep.experiment.config import Config, ConfigError, preset, preset_names
from binep.experiment.kinds import NEURONS
from binep.experiment.settings import REAL, Count, NamesOrPaths, Seed

if TYPE_CHECKING:
    from binep.analysis.gradient_check import Agreement, Check
    from binep.core.synapses import Weights
    from binep.experiment.experiment import Experiment


@dataclass(frozen=True)
class Options(Pluggable):
    """Compare equilibrium propagation with backpropagation, layer by layer.

    On one batch, in float64, for every time step of the nudged phase:
    - every β, nudge inside and outside ρ, one-sided and centred
    - binary weights and real ones

    Leaves gradients.csv, weights.csv and a figure; see docs/gradients.md.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A preset or a TOML file, with its initial weights; or a run folder, with its trained ones."""
    output: Path = Path("gradients")
    """Folder of the tables and the figure; what it holds under their names is replaced."""
    formats: tuple[Literal["pdf", "png", "svg"], ...] = ("pdf", "png")
    """Of the figure."""
    betas: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    """Nudging strengths; the β that the network is trained with comes with them."""
    samples: Count = 32
    """Training samples to take the gradients of."""
    steps: Count | None = None
    """Steps of the nudged phase, and of backpropagation; otherwise nudged_steps of the source."""
    free_steps: Count = 5000
    """The most steps of the free phase, which ends where no state moves by more than 1e-12."""
    seed: Seed | None = None
    """Of the initial weights, of a run folder of the samples alone, if not the source's."""
    dataset: Annotated[str, NamesOrPaths(SOURCES)] | None = None
    """Another data set than the source's, or the path of data of your own."""
    data_dir: Path | None = None
    """Folder of the data sets, if not the source's."""
    threads: int | None = None
    """CPU threads, if not the source's."""


def main(arguments: Sequence[str]) -> None:
    """Leave the tables and the figure, and print how well the gradients agree."""
    if not arguments or arguments[0] not in ("gradients", "-h", "--help"):
        raise ConfigError("check what? binep check gradients PRESET")
    flags = arguments[1:] if arguments[0] == "gradients" else arguments
    options = parse(Options, flags, prog="binep check gradients")
    _check_betas(options.betas)
    from binep.analysis import gradient_check, gradient_figure
    from binep.experiment import memory
    from binep.runs import curves, files

    experiments = _to_check(options)
    for experiment in experiments:
        if options.samples > len(experiment.data.train):
            raise ConfigError(
                f"--samples {options.samples}: must be at most {len(experiment.data.train)}, the "
                f"training samples of {experiment.config.dataset}"
            )
        steps = options.steps or experiment.config.dynamics.nudged_steps
        needs = gradient_check.needed(experiment.network, options.samples, steps)
        memory.require(needs, f"--samples {options.samples} and {steps} steps")
    files.make_folder(options.output)
    checked = [_checked(experiment, options) for experiment in experiments]
    agreements = [row for found in checked for row in found.agreements]
    traced = [row for found in checked for row in found.traced]
    learning = experiments[0].config.learning
    own = gradient_figure.Setting(learning.synapses, abs(learning.beta))
    figure = gradient_figure.drawn(agreements, traced, own)
    files.write(options.output / "gradients.csv", gradient_check.table(agreements).encode())
    files.write(options.output / "weights.csv", gradient_check.table(traced).encode())
    for kind in options.formats:
        files.write(options.output / f"gradients.{kind}", curves.rendered(figure, kind))
    _print_agreements(agreements)
    print(options.output)


def _check_betas(betas: Sequence[float]) -> None:
    for beta in betas:
        if not 1e-6 <= beta <= REAL:
            raise ConfigError(f"--betas {beta}: must be finite and at least 1e-6, at most 3.4e38")


def _to_check(options: Options) -> list[Experiment]:
    """The experiment; of one that is not trained also its twin with the other kind of weights."""
    from binep.experiment.experiment import Experiment
    from binep.runs import folder as runs
    from binep.runs import settings

    chosen = given(options, "seed", "dataset", "data_dir", "threads")
    path, trained = Path(options.source), False
    if options.source in preset_names():
        config = preset(options.source)
    elif path.is_dir():
        config, trained = settings.comparable(settings.read_config(path)), True
    else:
        config = Config.load(path) if path.suffix == ".toml" else preset(options.source)
    dynamics = config.dynamics
    if not NEURONS[dynamics.activation].fact("differentiable"):
        raise ConfigError(
            f"{options.source}: activation = {dynamics.activation} has no derivative, so "
            "there is no gradient to compare with: it must be one that has, such as hard-sigmoid"
        )
    if (dynamics.activation, dynamics.solver) != ("hard-sigmoid", "steps"):
        raise ConfigError(
            f"{options.source}: activation = {dynamics.activation}, solver = {dynamics.solver}: "
            "must be hard-sigmoid and steps, as the nudge is moved in and out of their ρ"
        )
    if trained:
        chosen.pop("seed", None)  # what a run holds out goes by its own
        return [runs.load(path, **chosen, device="cpu")]
    own = config.learning.synapses
    config, source = completed(config.replace(**chosen, device="cpu"), config)
    twin = all("weights" in layer.takes for layer in config.layers.values())
    kinds: list[Weights] = ["binary", "real"] if twin else [own]
    return [
        Experiment(
            config.replace(
                learning=dataclasses.replace(config.learning, synapses=kind)
            ).effective(),
            source,
        )
        for kind in sorted(kinds, key=lambda kind: kind != own)
    ]


def _checked(experiment: Experiment, options: Options) -> Check:
    import torch

    from binep.analysis import gradient_check
    from binep.data.batches import batches
    from binep.experiment.build import generators

    config, split = experiment.config, experiment.data.train
    seed = config.seed if options.seed is None else options.seed
    _, order, _ = generators(seed, 3)  # as `Experiment` has it
    images, labels = next(batches(split, options.samples, generator=order))
    with experiment.working():
        found = gradient_check.check(
            experiment.network,
            experiment.data.prepare(images),
            experiment.network.cost.target(labels),
            betas=sorted({*options.betas, abs(config.learning.beta)}),
            steps=options.steps or config.dynamics.nudged_steps,
            free_steps=options.free_steps,
            generator=torch.Generator().manual_seed(seed),
        )
    kind = config.learning.synapses
    print(
        f"{kind} weights: free phase of {found.free_steps} steps, residual {found.residual:.1g}; "
        f"{100 * found.stuck:.1f} % of the outputs are wrong where ρ is flat",
        flush=True,
    )
    if found.residual > gradient_check.SETTLED:
        warn(
            f"{kind} weights: the free phase has not settled, and only in a settled one does EP "
            "tend to BPTT: try a larger --free-steps"
        )
    return found


def _print_agreements(rows: Sequence[Agreement]) -> None:
    """The layer of the least agreement, after all steps: cosine and relative error."""
    from rich.table import Table

    from binep.analysis.gradient_figure import power

    last = [row for row in rows if row.step == rows[-1].step and row.parameter == "weight"]
    betas = [power(b) for b in dict.fromkeys(row.beta for row in last)]
    table = Table("weights", "nudge", "nudging", "BPTT", *(f"β = {beta}" for beta in betas))
    found: dict[tuple[str, ...], dict[float, list[Agreement]]] = {}
    for row in last:
        key = (row.weights, row.nudge, row.nudging, row.reference)
        found.setdefault(key, {}).setdefault(row.beta, []).append(row)
    for about, by_beta in found.items():
        cells = []
        for layers in by_beta.values():
            # So few steps may not have reached a layer: then there is nothing to compare in it.
            reached = [row for row in layers if not math.isnan(row.error)]
            worst = max(reached, key=lambda row: row.error, default=None)
            cells.append(f"{worst.cosine:.3f} ({worst.error:.0e})" if worst else "")
        table.add_row(*about, *cells)
    print_table(table)
    print("cosine (relative error) after all steps, in the layer where the error is largest")
