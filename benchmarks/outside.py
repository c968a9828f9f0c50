"""Images a second of trained networks in C, in reference.py and in PyTorch, one thread each.

Seconds are of the processor, not of the clock, so that what else runs counts less.
`python -m benchmarks.outside --help` has the limits.
"""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from benchmarks.report import write_table
from binep.core.network import Network
from binep.core.speed import SHORTCUTS, Speed
from binep.data import sources
from binep.experiment.config import Config, Layer
from binep.experiment.experiment import Experiment
from binep.export import c_source, packed, reference
from binep.export.packed import Trained
from binep.runs import files
from binep.runs.environment import environment

COMPILER = ("cc", "-std=c99", "-O3", "-march=native", "-ffp-contract=off")


@dataclass(frozen=True)
class Options:
    """Measure how many images a second trained networks classify, and write a table."""

    models: tuple[str, ...] = ("mnist-fc1", "mnist-bits-fc1", "mnist-conv")
    """Networks, as `binep.load` takes them."""
    images: int = 100
    """Images of mnist5k's test set."""
    turns: int = 3
    """Times that each program runs, in turn."""
    output: Path = Path("results/speed/outside")
    """Folder of throughput.csv and README.md."""


def processor_seconds(who: int, work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that a processor spent on a piece of work, and what it gave."""
    before = resource.getrusage(who)
    given = work()
    after = resource.getrusage(who)
    spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return spent, given


def programs(
    trained: Trained, images: Tensor, folder: Path
) -> dict[str, tuple[int, Callable[[], Tensor]]]:
    """What classifies the images, by name, and whose seconds count."""
    network = trained.network
    plain = Network(
        list(network.synapses), network.neurons, network.cost,
        speed=Speed(off=SHORTCUTS, precision="exact"),
        free_steps=network.free_steps, tolerance=network.tolerance,
    )  # fmt: skip
    packed.save(trained, folder / "network.safetensors")
    c_source.save(trained, folder / "network.h")
    program = folder / "network_test"
    subprocess.run([*COMPILER, str(folder / "network_test.c"), "-o", str(program)], check=True)
    read = reference.read(folder / "network.safetensors")
    x = trained.prepare(images)

    def in_c() -> Tensor:
        done = subprocess.run(
            [program], input=images.numpy().tobytes(), capture_output=True, check=True
        )
        return torch.tensor([int(line.split()[0]) for line in done.stdout.splitlines()])

    def in_numpy() -> Tensor:
        return torch.from_numpy(reference.class_scores(read, images.numpy()).argmax(axis=1))

    own, child = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    return {
        "binep": (own, lambda: network.predict(x)),
        "PyTorch, step by step": (own, lambda: plain.predict(x)),
        "reference.py": (own, in_numpy),
        "C": (child, in_c),
    }


def measure(name: str, images: Tensor, turns: int) -> list[dict[str, Any]]:
    """A row for each turn of each program."""
    trained = packed.read(Path(name))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        compared = programs(trained, images, Path(folder))
        expected = compared["binep"][1]()  # compiles what it needs
        for turn in range(turns):
            for program, (who, work) in compared.items():
                begun = time.perf_counter()
                seconds, classes = processor_seconds(who, work)
                row = {"model": name, "program": program, "turn": turn, "images": len(images)}
                row |= {"processor_seconds": seconds, "seconds": time.perf_counter() - begun}
                row |= {"as_binep": int((classes == expected).sum())}
                rows.append(row | {"load": round(os.getloadavg()[0], 1)})
    return rows


def page(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """The least processor time of each program, as a table."""
    names = list(dict.fromkeys(row["program"] for row in rows))
    loads = [row["load"] for row in rows]
    lines = [
        "# Images a second, outside PyTorch",
        "",
        f"Networks that come with binep (`binep models`) classify {rows[0]['images']} "
        "images of MNIST, one thread, "
        "images per second of processor time: the best of "
        f"{1 + max(row['turn'] for row in rows)} turns. "
        "'binep' is `network.predict` of all images at once; 'PyTorch, step by step' the same "
        "without any shortcut; 'reference.py' the NumPy of docs/packed.md, all images at once; 'C' "
        f"what `--format c` writes, image by image, by `{' '.join(COMPILER)}`. "
        f"Machine: {about['processor']}; PyTorch {about['versions']['torch']}. Other programs ran "
        f"beside it: load {min(loads)} to {max(loads)}. `python -m benchmarks.outside` measures.",
        "",
        f"| network | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        cells = []
        for name in names:
            own = [row for row in rows if row["model"] == model and row["program"] == name]
            least = min(row["processor_seconds"] for row in own)
            cells.append(f"{own[0]['images'] / least:,.3g}".replace("e+03", "e3"))
        lines.append(f"| `{model}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(options: Options) -> None:
    """Measure, print and write."""
    torch.set_num_threads(1)
    test = sources.load("mnist5k").test
    images = test.images[:: max(1, len(test) // options.images)][: options.images]
    rows = [row for name in options.models for row in measure(name, images, options.turns)]
    files.make_folder(options.output)
    write_table(options.output / "throughput.csv", rows)
    text = page(rows, environment(Experiment(Config(layers={"1": Layer(10)}))))
    files.write(options.output / "README.md", text.encode())
    print(text)


if __name__ == "__main__":
    main(tyro.cli(Options))
