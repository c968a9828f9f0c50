"""What workers send per batch, how long that takes, and where the network sets the pace.

`torchrun --nproc-per-node 2 -m benchmarks.workers` times the shapes of the paper: in turn, worker 0
alone takes a whole batch while the others wait, and all take it together. The tables are of what
was measured; the page also has what a model makes of it for more workers, and says so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import tyro
from torch import distributed

from benchmarks.report import Row, write_table
from benchmarks.speed import SHAPES, batches_of, build
from binep.experiment.config import preset
from binep.experiment.experiment import Experiment
from binep.experiment.workers import Alone, Workers, joined
from binep.runs import files
from binep.runs.environment import described, environment

LATENCY, BANDWIDTHS = 20e-6, (10, 100)
"""Of the model's network: seconds until a message arrives, and Gbit/s."""

COUNTS = (2, 8, 64, 1000)
"""Workers of the model."""


@dataclass(frozen=True)
class Options:
    """What to measure, and how often."""

    shapes: tuple[str, ...] = SHAPES
    """Presets."""
    repeats: int = 7
    """Batches that are timed, after two that are not."""
    output: Path = Path("results/speed/workers")
    """Folder of the table and of README.md."""


@dataclass
class Sent:
    """What has been sent, and how long that took."""

    messages: int = 0
    bytes: int = 0
    seconds: float = 0.0


@contextmanager
def counting() -> Iterator[Sent]:
    """A context in which all that is sent is counted."""
    sent, reduce, gather = Sent(), distributed.all_reduce, distributed.all_gather

    def counted(act: Callable[..., Any], size: Callable[..., torch.Tensor]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            distributed.barrier()  # the wait for a slower worker is not the network's
            begin = time.perf_counter()
            found = act(*arguments)
            sent.seconds += time.perf_counter() - begin
            sent.messages += 1
            tensor = size(*arguments)
            sent.bytes += tensor.numel() * tensor.element_size()
            return found

        return call

    distributed.all_reduce = counted(reduce, lambda tensor, *_: tensor)
    distributed.all_gather = counted(gather, lambda _, tensor: tensor)
    try:
        yield sent
    finally:
        distributed.all_reduce, distributed.all_gather = reduce, gather


def measure(experiment: Experiment, together: Alone, options: Options) -> list[Row]:
    """A row for each batch that is timed."""
    rows: list[Row] = []
    estimator, draws = experiment.estimator, experiment.nudge
    for turn, (x, target) in zip(range(options.repeats + 2), batches_of(experiment), strict=False):
        distributed.barrier()
        begin = time.perf_counter()
        if together.rank == 0:
            state = draws.get_state()
            estimator(x, target)
            draws.set_state(state)
        alone = time.perf_counter() - begin
        distributed.barrier()
        begin = time.perf_counter()
        together.estimate(estimator, x, target)
        shared = time.perf_counter() - begin
        state = draws.get_state()
        with counting() as sent:
            together.estimate(estimator, x, target)
        draws.set_state(state)
        begin = time.perf_counter()
        for optimizer in experiment.optimizers:
            optimizer.step()
        update = time.perf_counter() - begin
        times = {"alone": alone, "together": shared, "sending": sent.seconds, "update": update}
        if turn > 1:
            rows.append(
                {"turn": turn - 2, **times, **{k: vars(sent)[k] for k in ("messages", "bytes")}}
            )
    return rows


def efficiency(row: Row, count: int, gigabits: float) -> float:
    """The share of its time that a worker computes, with a batch of 64 of its own.

    A sum among N workers sends each number 2·(N − 1)/N times in a ring, in 2·log2 N rounds.
    """
    computed = float(row["alone"]) + float(row["update"])
    sent = float(row["bytes"]) * 8 / (gigabits * 1e9) * 2 * (count - 1) / count
    rounds = float(row["messages"]) * 2 * math.ceil(math.log2(count)) * LATENCY
    return computed / (computed + sent + rounds)


def medians(rows: Sequence[Row]) -> list[Row]:
    """A row of medians for each shape."""
    shapes = dict.fromkeys(row["shape"] for row in rows)
    names = ("alone", "together", "sending", "update", "messages", "bytes")
    return [
        {"shape": shape}
        | {n: median(float(row[n]) for row in rows if row["shape"] == shape) for n in names}
        for shape in shapes
    ]


def page(rows: Sequence[Row], count: int, about: str) -> str:
    """README.md of what was measured and of what the model makes of it."""
    lines = [
        "# Workers",
        "",
        f"{about}; {count} workers on one machine, which send by Gloo. "
        f"`torchrun --nproc-per-node {count} -m benchmarks.workers` measures.",
        "",
        "## Measured",
        "",
        "Per batch of 64, medians: seconds of settling, nudging and gradients by one process and "
        f"by {count} workers in turn; of these, the seconds of sending; the update of momenta and "
        "weights, which every worker makes; messages, and what each worker gives to be sent.",
        "",
        "| preset | alone (s) | together (s) | times faster | sending (s) | update (s) | messages "
        "| sent (MB) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        alone, shared, sending, update = (
            float(row[k]) for k in ("alone", "together", "sending", "update")
        )
        lines.append(
            f"| `{row['shape']}` | {alone:.3g} | {shared:.3g} | "
            f"{(alone + update) / (shared + update):.2f} | {sending:.2g} | {update:.2g} | "
            f"{row['messages']:.0f} | {float(row['bytes']) / 1e6:.3g} |"
        )
    lines += [
        "",
        "## Computed",
        "",
        "Not measured: the share of its time that a worker computes where each has a batch of 64 "
        "of its own, from the columns alone, update, messages and sent above, with a network of "
        f"{LATENCY * 1e6:g} µs a message and of {' or '.join(map(str, BANDWIDTHS))} Gbit/s, sums "
        "formed in a ring.",
        "",
        "| preset | " + " | ".join(f"{n} workers" for n in COUNTS) + " |",
        "|---|" + "---|" * len(COUNTS),
    ]
    for row in rows:
        cells = (
            " / ".join(f"{100 * efficiency(row, n, g):.0f}" for g in BANDWIDTHS) + " %"
            for n in COUNTS
        )
        lines.append(f"| `{row['shape']}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and let worker 0 write."""
    options = tyro.cli(Options, description=__doc__)
    with joined("cpu") as together:
        if not isinstance(together, Workers):
            raise SystemExit("start it with torchrun --nproc-per-node 2 -m benchmarks.workers")
        rows: list[Row] = []
        for shape in options.shapes:
            experiment = build(preset(shape).replace(threads=1))
            rows += [{"shape": shape, **row} for row in measure(experiment, together, options)]
        if together.rank:
            return
        files.make_folder(options.output)
        write_table(options.output / "batches.csv", rows)
        text = page(medians(rows), together.count, described(environment(experiment)))
        files.write(options.output / "README.md", text.encode())
        print(text)


if __name__ == "__main__":
    main()
