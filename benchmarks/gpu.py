"""Seconds and memory of a training batch on a GPU, steps captured and launched one by one.

Each shape of the paper is timed from its first batches: the programs in turn, on the same network,
the device waited for before and after each batch. `python -m benchmarks.gpu --help` has the limits.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import tyro

from benchmarks.report import Row, write_table
from benchmarks.speed import SHAPES, Batch, batches_of, build, clock, settling, train
from binep.core.speed import Speed
from binep.data.sources import DataError
from binep.experiment.config import preset
from binep.experiment.experiment import Experiment
from binep.runs import files
from binep.runs.environment import environment

PROGRAMS = {
    "eager": Speed(off=("bits-on-gpu", "captured")),
    "captured": Speed(off=("bits-on-gpu",)),
    "captured, TF32": Speed(off=("bits-on-gpu",), precision="fast"),
    "binep": Speed(),
}
"""What is timed in turn."""

WARM = 3
"""Batches before any is timed: of the first, libraries choose kernels and steps are captured."""


@dataclass(frozen=True)
class Options:
    """What to measure, and for how long."""

    shapes: tuple[str, ...] = SHAPES
    """Presets."""
    repeats: int = 30
    """Batches of each program that are timed ..."""
    seconds: float = 9.0
    """... or fewer, but three, where they would take longer than this for a shape."""
    limit: float = 80.0
    """Seconds after which no other shape is begun."""
    device: str = "cuda"
    """cuda or cuda:N."""
    data_dir: Path | None = None
    """Folder of the data sets; otherwise $BINEP_DATA, otherwise a cache folder."""
    output: Path = Path("results/speed/gpu")
    """Folder of the tables and of README.md."""


def act(experiment: Experiment, name: str, batch: Batch) -> None:
    """One training batch of a program, to its end on the device."""
    speed = PROGRAMS[name]
    experiment.network.speed = speed
    tf32 = speed.precision == "fast"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    train(experiment, *batch)
    wait(experiment.device)


def wait(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(experiment: Experiment, options: Options) -> tuple[list[Row], list[Row]]:
    """Rows of seconds and of memory, of all programs."""
    stream, device = batches_of(experiment), experiment.device
    memory = []
    for name in PROGRAMS:
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        for _ in range(WARM):
            act(experiment, name, next(stream))
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
            memory.append({"program": name, "allocated": peak[0], "reserved": peak[1]})
    seconds: list[Row] = []
    begin = time.perf_counter()
    for turn in range(options.repeats):
        if turn >= 3 and time.perf_counter() - begin > options.seconds:
            break
        batch = next(stream)
        wait(device)
        for name in PROGRAMS:
            seconds.append(
                {"program": name, "turn": turn, "seconds": clock(act, experiment, name, batch)}
            )
    return seconds, memory


def run(options: Options) -> None:
    """Measure, and write the tables and the page after each shape."""
    begin = time.perf_counter()
    tables: dict[str, list[Row]] = {"batches": [], "memory": []}
    skipped: list[str] = []
    for shape in options.shapes:
        if time.perf_counter() - begin > options.limit:
            skipped.append(f"{shape}: the time was up")
            continue
        config = preset(shape).replace(device=options.device, data_dir=options.data_dir)
        try:
            experiment = build(config)
        except DataError as error:
            skipped.append(f"{shape}: {error}")
            continue
        seconds, memory = measure(experiment, options)
        about = about_of(experiment, *settling(experiment, *next(batches_of(experiment))))
        tables["batches"] += [{"shape": shape, **row, **about} for row in seconds]
        tables["memory"] += [{"shape": shape, **row} for row in memory]
        del experiment
        write(options.output, tables, skipped)
        print(shape, *(f"{k} {v:.3g} s" for k, v in medians(seconds).items()), flush=True)
    write(options.output, tables, skipped)


def about_of(experiment: Experiment, free_steps: int, nudged_steps: int) -> Row:
    """What was measured, and on what."""
    ran = environment(experiment)
    return {
        "dataset": experiment.data.name,
        "network": experiment.config.summary(),
        "free_steps": free_steps,
        "nudged_steps": nudged_steps,
        "device": ran["device_name"] or ran["device"],
        "torch": ran["versions"]["torch"],
        "cuda": torch.version.cuda or "",
        "revision": ran["git_revision"] or "",
        "date": ran["started"][:10],
    }


def medians(rows: Sequence[Row]) -> dict[str, float]:
    """Seconds of each program."""
    return {
        name: median(float(row["seconds"]) for row in rows if row["program"] == name)
        for name in dict.fromkeys(row["program"] for row in rows)
    }


def write(folder: Path, tables: dict[str, list[Row]], skipped: Sequence[str]) -> None:
    """Write batches.csv, memory.csv and README.md."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        if rows:
            write_table(folder / f"{name}.csv", rows)
    files.write(folder / "README.md", "\n".join([*page(tables), *skipped, ""]).encode())


def page(tables: dict[str, list[Row]]) -> Iterator[str]:
    """Lines of README.md: medians, and peaks of memory. Older rows may lack a program."""
    batches, memory = tables["batches"], tables["memory"]
    yield "# Speed on a GPU\n"
    yield "`python -m benchmarks.gpu` measures, with PyTorch of the version that batches.csv has.\n"
    yield (
        "Seconds per training batch of 64 (settling, nudging, gradients, update), medians of first "
        "batches, how many in brackets; the programs in turn. 'Eager' launches each kernel of a "
        "step, 'captured' replays CUDA graphs of eight steps, 'binep' is as it is set by default: "
        "'captured', or for dense layers of bits `bits-on-gpu`. Memory is the most that PyTorch "
        "reserved, the data set on the device with it.\n"
    )
    heads = [*PROGRAMS, "eager / binep", "eager (GB)", "binep (GB)", "device, revision"]
    yield f"| preset | network | steps | {' | '.join(heads)} |"
    yield "|---" * (3 + len(heads)) + "|"
    for shape in dict.fromkeys(row["shape"] for row in batches):
        rows = [row for row in batches if row["shape"] == shape]
        found, first = medians(rows), rows[0]
        peaks = {m["program"]: m["reserved"] / 1e9 for m in memory if m["shape"] == shape}
        cells: list[Any] = [f"`{shape}`", first["network"]]
        cells.append(f"{first['free_steps']} + {first['nudged_steps']}")
        count = len(rows) // len(found)
        cells += [f"{found[name]:.3g} ({count})" if name in found else "" for name in PROGRAMS]
        cells.append(f"{found['eager'] / found['binep']:.2g}" if "binep" in found else "")
        cells += [f"{peaks[k]:.2f}" if k in peaks else "" for k in ("eager", "binep")]
        cells.append(f"{first['device']}, {first['revision']}")
        yield f"| {' | '.join(cells)} |"
    yield ""


if __name__ == "__main__":
    run(tyro.cli(Options, description=__doc__))
