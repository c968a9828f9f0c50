"""Equilibrium propagation on a simulated Ising machine: python -m benchmarks.ising.

784-120-40, 4 outputs a class, learns 1,000 digits of MNIST's subset and is tested on 100: its
phases taken by simulated annealing, and the same network's by `Network.step`. The rates were
searched with `--validation`, which tests on other digits of the training set, for annealing;
`Network.step` is trained with the same. `python -m benchmarks.ising --help` has them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

from benchmarks.report import write_table
from binep.analysis.measurements import spread
from binep.core.costs import SquaredError
from binep.core.gradients import EquilibriumPropagation
from binep.core.network import Network
from binep.core.neurons import Binary
from binep.core.optim import BinaryFlip, GradientDescent
from binep.core.solvers import Plain
from binep.core.synapses import Dense
from binep.data.batches import Split, prepared
from binep.data.sources import load
from binep.experiment.config import Config, Layer
from binep.experiment.experiment import Experiment
from binep.experiment.training import train_epoch
from binep.ising import AnnealingSolver
from binep.runs import files
from binep.runs.environment import environment

WAYS = {"annealing": AnnealingSolver, "Network.step": Plain}
BATCH = 20


@dataclass(frozen=True)
class Rates:
    """How a kind of couplings learns."""

    gain: float
    """Of the first couplings and scaling factors, times the usual ones."""
    lr: float
    """Of biases and real couplings."""
    gamma: float = 5e-3
    """Of the momenta of binary couplings."""
    flip: float = 5e-4
    """Threshold τ of a flip."""
    beta: float = 4.0
    """Of the nudge, one-sided: +β alone."""
    threshold: float = 0.1
    """From which neurons fire."""


@dataclass(frozen=True)
class Options:
    """Train by annealing and by `Network.step`, and write a table."""

    epochs: int = 15
    seeds: int = 3
    ways: tuple[Literal["annealing", "Network.step"], ...] = ("annealing", "Network.step")
    couplings: tuple[Literal["binary", "real"], ...] = ("binary", "real")
    digits: int = 1000
    """To learn, in batches of 20."""
    validation: bool = False
    """Test on 100 other digits of the training set, and write nothing."""
    binary: Rates = field(default_factory=lambda: Rates(gain=0.5, lr=0.02))
    real: Rates = field(default_factory=lambda: Rates(gain=0.25, lr=0.05))
    output: Path = Path("results/ising")
    """Folder of errors.csv and README.md."""


def some(part: Split, count: int) -> tuple[Tensor, Tensor]:
    """Images (count, 784) and labels of a part, which need not be in a random order."""
    chosen = torch.randperm(len(part.labels), generator=torch.Generator().manual_seed(0))[:count]
    return prepared(part.images[chosen]).flatten(1), part.labels[chosen]


def digits(options: Options) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Those to learn, and 100 to be tested on."""
    data = load("mnist5k")
    x, labels = some(data.train, options.digits + 100)
    learnt, others = (x[: options.digits], labels[: options.digits]), some(data.test, 100)
    return learnt, (x[options.digits :], labels[options.digits :]) if options.validation else others


def trained(couplings: str, way: str, seed: int, options: Options) -> Iterator[dict[str, Any]]:
    """A row for each epoch."""
    rates: Rates = getattr(options, couplings)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = Network(
        [
            Dense(784, 120, weights=couplings, generator=generator),  # type: ignore[arg-type]
            Dense(120, 40, weights=couplings, generator=generator),  # type: ignore[arg-type]
        ],
        Binary(rates.threshold),
        SquaredError(10, 4),
        solver=WAYS[way],
    )
    values, biases = [s.values for s in network.synapses], [s.bias for s in network.synapses]
    with torch.no_grad():
        for synapse in network.synapses:
            (synapse.values if synapse.scale is None else synapse.scale).mul_(rates.gain)
    rule = (
        BinaryFlip(values, gamma=rates.gamma, threshold=rates.flip)
        if couplings == "binary"
        else GradientDescent([{"params": values, "lr": rates.lr}])
    )
    optimizers = [rule, GradientDescent([{"params": biases, "lr": rates.lr}])]
    estimator = EquilibriumPropagation(
        network, beta=rates.beta, free_steps=50, nudged_steps=20, nudging="one-sided"
    )
    (x, labels), (unseen, answers) = digits(options)
    begun = time.perf_counter()
    for epoch in range(1, options.epochs + 1):
        order = torch.split(torch.randperm(len(x), generator=generator), BATCH)
        scores = train_epoch(
            network, estimator, optimizers, [(x[batch], labels[batch]) for batch in order]
        )
        free = network.relax(unseen, 50)
        found = network.cost.scores(free.output, "averaged").argmax(dim=1)
        yield {
            "couplings": couplings,
            "way": way,
            "seed": seed,
            "epoch": epoch,
            "train_error": round(scores.error, 2),
            "test_error": round(float((found != answers).double().mean() * 100), 2),
            "seconds": round(time.perf_counter() - begun, 1),
        }


def page(rows: list[dict[str, Any]], options: Options, machine: str, load: float) -> str:
    """The errors after the last epoch, as a table."""
    last = [row for row in rows if row["epoch"] == options.epochs]
    lines = [
        "# Equilibrium propagation on a simulated Ising machine",
        "",
        "784-120-40, 4 outputs a class, binary neurons; the phases taken by `AnnealingSolver` with "
        "the simulated annealing of `dwave-samplers`, or by `Network.step`. "
        f"{options.digits} digits of mnist5k to train on, in batches of {BATCH}, 100 others to be "
        f"tested on: errors (%) after {options.epochs} epochs, mean ± standard deviation over "
        f"{options.seeds} seeds. Of 100 digits one is a point: much of the spread is theirs. Rates "
        "were searched for annealing, on 100 further digits of the training set and not on those "
        f"tested. Machine: {machine}, 1 thread; load at the end {load:.1f}: what ran beside it "
        "makes the seconds longer. `python -m benchmarks.ising` measures; errors.csv has each "
        "epoch of each seed.",
        "",
        "| couplings | phases | training error | test error | seconds a seed |",
        "|---|---|---|---|---|",
    ]
    for couplings in options.couplings:
        for way in options.ways:
            own = [row for row in last if (row["couplings"], row["way"]) == (couplings, way)]
            seconds = mean(row["seconds"] for row in own)
            errors = [spread([row[f"{part}_error"] for row in own]) for part in ("train", "test")]
            lines.append(f"| {couplings} | {way} | {' | '.join(errors)} | {seconds:.0f} |")
    lines += [
        "",
        "Published for D-Wave's hardware, the same shape and number of digits, real couplings: "
        "88.8 ± 1.5 % right, which is 11.2 % wrong (second-hand: the figure was not read in its "
        "source).",
    ]
    return "\n".join(lines) + "\n"


def main(options: Options) -> None:
    """Train, print a line for each epoch, and write."""
    torch.set_num_threads(1)
    rows = []
    for couplings in options.couplings:
        for way in options.ways:
            for seed in range(options.seeds):
                for row in trained(couplings, way, seed, options):
                    print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
                    rows.append(row)
    if not options.validation:
        files.make_folder(options.output)
        write_table(options.output / "errors.csv", rows)
        machine = environment(Experiment(Config(layers={"1": Layer(10)})))["processor"]
        files.write(
            options.output / "README.md", page(rows, options, machine, os.getloadavg()[0]).encode()
        )


if __name__ == "__main__":
    main(tyro.cli(Options))
