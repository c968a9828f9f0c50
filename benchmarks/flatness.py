"""Memory and open files while a network trains: ``python -m benchmarks.flatness``.

A small network of each kind (`benchmarks.kinds`) trains for some epochs in a process of its own,
with a checkpoint, a row of metrics and a figure after each. ``flatness.csv`` in the output folder
has a row for each epoch, and ``flatness.svg`` shows them.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import tyro
from matplotlib.figure import Figure

from benchmarks.kinds import KINDS
from benchmarks.report import write_table
from binep.experiment.experiment import EpochResult, Experiment
from binep.runs import files
from binep.runs import folder as runs
from binep.runs.curves import COLOURS, MARKERS, rendered

SHOWN = {
    "resident_mb": "resident memory (MB)",
    "allocated_mb": "allocated memory (MB)",
    "open_files": "open files",
}
"""Columns of flatness.csv that are drawn, with their labels."""


@dataclass(frozen=True)
class Options:
    """What to train, and how long."""

    kinds: tuple[str, ...] = tuple(KINDS)
    """Kinds of networks."""
    epochs: int = 30
    """Epochs of each."""
    output: Path = Path("results/reliability")
    """Folder of flatness.csv and flatness.svg."""


class _Heap(ctypes.Structure):
    """The C library's ``struct mallinfo2``."""

    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]


def used() -> dict[str, float]:
    """Memory of this process, in millions of bytes, and its open files; Linux with glibc alone."""
    library = ctypes.CDLL(None)
    library.mallinfo2.restype = _Heap
    heap = library.mallinfo2()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {
        "resident_mb": round(resident / 1e6, 3),
        "allocated_mb": round((heap.uordblks + heap.hblkhd) / 1e6, 3),
        "open_files": len(os.listdir("/proc/self/fd")) - 1,  # without that which lists them
    }


def measured(kind: str, epochs: int) -> list[dict[str, Any]]:
    """Rows of flatness.csv of one kind."""
    rows: list[dict[str, Any]] = []

    def after_epoch(result: EpochResult) -> None:
        rows.append({"kind": kind, "epoch": result.epoch, **used()})

    with tempfile.TemporaryDirectory() as scratch:
        experiment = Experiment(KINDS[kind].replace(epochs=epochs))
        runs.train(experiment, Path(scratch), after_epoch=after_epoch, warn=lambda text: None)
    return rows


def drawn(rows: list[dict[str, Any]]) -> Figure:
    """What is used after each epoch, a line for each kind."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    for axes, (column, label) in zip(figure.subplots(1, 3), SHOWN.items(), strict=True):
        for i, kind in enumerate(kinds):
            own = [row for row in rows if row["kind"] == kind]
            style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
            pairs = [row["epoch"] for row in own], [float(row[column]) for row in own]
            axes.plot(*pairs, label=kind, markersize=3, linewidth=1.2, **style)
        axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(kinds))
    return figure


def main(options: Options) -> None:
    """Train each kind in a process of its own, and write table and figure."""
    context = multiprocessing.get_context("spawn")
    rows: list[dict[str, Any]] = []
    for kind in options.kinds:
        with ProcessPoolExecutor(1, context) as process:
            rows += process.submit(measured, kind, options.epochs).result()
        print(kind, *(f"{rows[-1][column]:g} {label}" for column, label in SHOWN.items()), sep="  ")
    options.output.mkdir(parents=True, exist_ok=True)
    write_table(options.output / "flatness.csv", rows)
    with matplotlib.rc_context({"svg.hashsalt": "binep"}):
        files.write(options.output / "flatness.svg", rendered(drawn(rows), "svg"))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
