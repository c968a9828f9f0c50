"""Equilibrium propagation on a simulated Ising machine: python -m benchmarks.ising.

784-120-40, 4 outputs a class, learns 1,000 digits of MNIST's subset and is tested on 100: its
phases taken by simulated annealing, and the same network's by `Network.step`. Prints a line for
each of couplings (binary or real), way and seed, with the errors of each epoch. Rates are flags, to
be searched: with those of the defaults no result is claimed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from binep.core.costs import SquaredError
from binep.core.gradients import EquilibriumPropagation
from binep.core.network import Network
from binep.core.neurons import Binary
from binep.core.optim import BinaryFlip, GradientDescent
from binep.core.solvers import Plain
from binep.core.synapses import Dense, Weights
from binep.data.batches import Split, prepared
from binep.data.sources import load
from binep.experiment.training import train_epoch
from binep.ising import AnnealingSolver

WAYS = {"annealing": AnnealingSolver, "Network.step": Plain}


def some(part: Split, count: int) -> tuple[Tensor, Tensor]:
    """Images (count, 784) and labels of a part, which need not be in a random order."""
    chosen = torch.randperm(len(part.labels), generator=torch.Generator().manual_seed(0))[:count]
    return prepared(part.images[chosen]).flatten(1), part.labels[chosen]


def trained(
    way: str, couplings: Weights, seed: int, epochs: int, rates: argparse.Namespace
) -> list[float]:
    """The test error in percent after each epoch."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    synapses = [
        Dense(784, 120, weights=couplings, generator=generator),
        Dense(120, 40, weights=couplings, generator=generator),
    ]
    network = Network(synapses, Binary(rates.threshold), SquaredError(10, 4), solver=WAYS[way])
    data = load("mnist5k")
    x, labels = some(data.train, rates.digits + 100)
    unseen, answers = some(data.test, 100)
    if rates.validation:
        unseen, answers = x[rates.digits :], labels[rates.digits :]
    estimator = EquilibriumPropagation(
        network, beta=rates.beta, free_steps=50, nudged_steps=20, nudging=rates.nudging
    )
    values, biases = [s.values for s in synapses], [s.bias for s in synapses]
    rules = (
        [BinaryFlip(values, gamma=rates.gamma, threshold=rates.flip)]
        if couplings == "binary"
        else [GradientDescent([{"params": values, "lr": rates.lr}])]
    )
    optimizers = [*rules, GradientDescent([{"params": biases, "lr": rates.lr}])]
    errors = []
    for _ in range(epochs):
        order = torch.randperm(rates.digits, generator=generator).view(-1, 20)
        train_epoch(network, estimator, optimizers, [(x[batch], labels[batch]) for batch in order])
        free = network.relax(unseen, 50)
        found = network.cost.scores(free.output, "averaged").argmax(dim=1)
        errors.append(float((found != answers).float().mean() * 100))
    return errors


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--couplings", nargs="+", default=["binary", "real"])
    parser.add_argument("--digits", type=int, default=1000, help="to learn, in batches of 20")
    parser.add_argument(
        "--validation", action="store_true", help="test on 100 other digits of the training set"
    )
    parser.add_argument("--beta", type=float, default=1.0)
    parser.add_argument(
        "--nudging", choices=("one-sided", "random-sign", "centred"), default="one-sided"
    )
    parser.add_argument("--threshold", type=float, default=0.1, help="from which neurons fire")
    parser.add_argument("--gamma", type=float, default=1e-3, help="of the momenta")
    parser.add_argument("--flip", type=float, default=1e-3, help="threshold of a flip")
    parser.add_argument("--lr", type=float, default=0.01, help="of biases and real couplings")
    rates = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for couplings in rates.couplings:
        for way in rates.ways:
            for seed in range(rates.seeds):
                start = time.perf_counter()
                errors = trained(way, couplings, seed, rates.epochs, rates)
                shown = " ".join(f"{error:.0f}" for error in errors)
                print(
                    f"{couplings:6}  {way:12}  seed {seed}  errors {shown} %  "
                    f"{time.perf_counter() - start:.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
