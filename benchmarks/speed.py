"""Seconds and memory of a training batch, binep beside the plain program: ``make bench``.

Each shape of the paper is timed in a process of its own: the programs in turn, from the same
network, first untrained, then (``--warm-batches``) trained. Peak memory is measured in further
processes, one for each program. What is measured again replaces what stood in the output folder's
tables; the rest stays.
"""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

from benchmarks.plain import Plain
from benchmarks.report import TABLES, Row, read, write_report, write_table
from benchmarks.roofline import measured_rates, stages
from binep.core.gradients import EquilibriumPropagation
from binep.core.speed import Speed
from binep.data.sources import DataError
from binep.experiment.config import Config, preset
from binep.experiment.experiment import Experiment
from binep.runs import files
from binep.runs.environment import environment

SHAPES = (
    "mnist-fc1-ep",
    "mnist-fc2-ep",
    "mnist-conv-ep",
    "cifar10-conv-ep",
    "mnist-bits-fc1-ep",
    "mnist-bits-fc2-ep",
    "mnist-bits-conv-ep",
)
"""Presets, one for each shape of network in the paper."""

OPTIONS = {
    "all at once": Speed(off=("odd-even",)),
    "fast": Speed(precision="fast"),
}
"""Programs beside "binep" as it is set by default, which networks of real activations are timed
with."""

Batch = tuple[Tensor, Tensor]
"""Inputs and targets."""


@dataclass(frozen=True)
class Options:
    """What to measure, and how often."""

    shapes: tuple[str, ...] = SHAPES
    """Presets."""
    parts: tuple[Literal["time", "memory", "scaling"], ...] = ("time", "memory", "scaling")
    """Time and memory of the shapes; how time grows with width, depth, steps and batch size."""
    repeats: int = 9
    """Batches of binep that are timed each time."""
    plain_seconds: float = 120.0
    """The plain program is run as often too, or less if it would take much longer than this."""
    warm_batches: int = 0
    """Train so many batches before measuring again; 0 measures the first batches only."""
    threads: int | None = None
    """CPU threads; otherwise what PyTorch chooses."""
    note: str = ""
    """A remark for the report, such as that a data set is a stand-in."""
    output: Path = Path("results/speed")
    """Folder of the tables, the report and the figure."""


# The programs ------------------------------------------------------------------------------------


def build(config: Config) -> Experiment:
    """The experiment, on MNIST-5k (the same shape) where MNIST is not at hand."""
    if config.threads is not None:  # an experiment sets them only while it trains or tests
        torch.set_num_threads(config.threads)
    try:
        return Experiment(config)
    except DataError:
        if config.dataset != "mnist":
            raise
        return Experiment(config.replace(dataset="mnist5k"))


def batches_of(experiment: Experiment) -> Iterator[Batch]:
    """Training batches, epoch after epoch, as the experiment would draw them; only full ones."""
    size, train = experiment.config.batch_size, experiment.data.train
    if len(train) < size:
        raise ValueError(f"batch_size = {size}: {experiment.data.name} has {len(train)} images")
    while True:
        epoch = experiment.data.training_batches(size, experiment.order)
        for images, labels in itertools.islice(epoch, len(train) // size):
            yield experiment.data.prepare(images), experiment.network.cost.target(labels)


def train(experiment: Experiment, x: Tensor, target: Tensor) -> None:
    """One training batch of binep."""
    experiment.estimator(x, target)
    for optimizer in experiment.optimizers:
        optimizer.step()


def settling(experiment: Experiment, x: Tensor, target: Tensor) -> tuple[int, int]:
    """Steps of the free and of the nudged phase until they have settled."""
    estimator, network = experiment.estimator, experiment.network
    assert isinstance(estimator, EquilibriumPropagation)
    tolerance, beta = estimator.tolerance, estimator.beta
    with torch.no_grad():
        free = network.relax(x, estimator.free_steps, tolerance=tolerance)
        nudged = network.relax(
            x,
            estimator.nudged_steps,
            start=free,
            target=target,
            beta=beta,
            tolerance=tolerance,
        )
    return free.steps, nudged.steps


def clock(act: Callable[..., object], *arguments: object) -> float:
    """Seconds that a call takes."""
    begin = time.perf_counter()
    act(*arguments)
    return time.perf_counter() - begin


# What is measured, each in a process of its own --------------------------------------------------

Measured = dict[str, list[Row]]
"""Rows for each of `report.TABLES`."""


def time_shape(shape: str, options: Options) -> Measured:
    """Time a shape's first batches, then those after training, with a roofline for each."""
    experiment = build(preset(shape).replace(threads=options.threads))
    rates = measured_rates()
    stream = batches_of(experiment)
    ran = environment(experiment)
    about: Row = {
        "dataset": experiment.data.name,
        "network": experiment.config.summary(),
        "threads": ran["threads"],
        "revision": ran["git_revision"] or "",
        "date": ran["started"][:10],
    }
    found: Measured = {
        "batches": [],
        "roofline": [],
        "rates": [{"shape": shape, "rate": k, "per_second": v} for k, v in rates.items()],
    }
    for trained in sorted({0, options.warm_batches}):
        for _ in range(trained):
            train(experiment, *next(stream))
        timed = compare(experiment, stream, options)
        found["batches"] += [{"shape": shape, "trained": trained, **row, **about} for row in timed]
        steps = settling(experiment, *next(stream))
        for stage in stages(experiment.network, experiment.config.batch_size, *steps):
            found["roofline"].append(
                {
                    "shape": shape,
                    "trained": trained,
                    "free_steps": steps[0],
                    "nudged_steps": steps[1],
                    "stage": stage.name,
                    "unit": stage.unit,
                    "operations": stage.operations,
                    "bytes": stage.bytes,
                    "seconds": stage.seconds(rates),
                }
            )
    return found


def compare(experiment: Experiment, stream: Iterator[Batch], options: Options) -> list[Row]:
    """Time the programs in turn, from the same network, on the same batches."""
    plain, every = Plain(experiment), 1
    network, default = experiment.network, experiment.network.speed
    real = network.neurons[0].differentiable
    programs = {"binep": default, **(OPTIONS if real else {})}
    for network.speed in programs.values():  # the first time, oneDNN compiles its convolutions
        train(experiment, *next(stream))
    rows: list[Row] = []
    for turn in range(options.repeats):
        batch = next(stream)
        if turn % every == 0:
            seconds = clock(plain.train, *batch)
            every = max(every, math.ceil(options.repeats * seconds / options.plain_seconds))
            rows.append({"program": "plain", "turn": turn, "seconds": seconds})
        for name, network.speed in programs.items():
            seconds = clock(train, experiment, *batch)
            rows.append({"program": name, "turn": turn, "seconds": seconds})
    network.speed = default
    return rows


def measure_memory(shape: str, program: str, folder: Path, options: Options) -> Measured:
    """The process's peak while it builds and trains, and what Python and its imports alone take."""
    imported = _peak_memory()
    experiment = build(preset(shape).replace(threads=options.threads, data_dir=folder))
    batches = list(itertools.islice(batches_of(experiment), 3))
    if program == "plain":
        plain = Plain(experiment)
        del experiment  # the plain program is to hold its own network only
        plain.train(*batches[0])
    else:
        for batch in batches:
            train(experiment, *batch)
    row: Row = {"shape": shape, "program": program, "imported": imported, "peak": _peak_memory()}
    return {"memory": [row]}


def _peak_memory() -> int:
    """Bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def write_small_data(shape: str, folder: Path, options: Options) -> None:
    """The first few batches of a shape's data set, in its own layout: a megabyte at most."""
    config = preset(shape)
    train = build(config.replace(threads=options.threads)).data.train
    images, labels = train.images[: 4 * config.batch_size], train.labels[: 4 * config.batch_size]
    if config.dataset == "cifar10":
        records = torch.cat([labels.to(torch.uint8)[:, None], images.flatten(1)], dim=1)
        contents = {f"data_batch_{i}.bin": records[i - 1 :: 5] for i in range(1, 6)}
        _write_all(folder / "cifar-10-batches-bin", {**contents, "test_batch.bin": records[:5]})
        return
    contents = {}
    for part in ("train", "t10k"):
        contents[f"{part}-images-idx3-ubyte"] = images[:, 0]
        contents[f"{part}-labels-idx1-ubyte"] = labels.to(torch.uint8)
    _write_all(folder / "MNIST" / "raw", contents, headers=True)


def _write_all(folder: Path, contents: dict[str, Tensor], headers: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        sizes = b"".join(size.to_bytes(4, "big") for size in content.shape)
        header = bytes([0, 0, 8, content.dim()]) + sizes if headers else b""
        (folder / name).write_bytes(header + content.numpy().tobytes())


def sweeps() -> Iterator[tuple[str, int, Config]]:
    """What is varied, its value, and the setting: 784-1024-10 with one thing changed."""
    paper = preset("mnist-fc1-ep")
    hidden, output = paper.layers.values()
    hidden = replace(hidden, size=1024)
    base = paper.replace(layers={"1": hidden, "2": output})
    for width in (256, 512, 1024, 2048, 4096, 8192):
        yield "width", width, base.replace(layers={"1": replace(hidden, size=width), "2": output})
    # Deeper networks settle more slowly; they get the steps that the paper gives two layers.
    patient = replace(base.dynamics, free_steps=preset("mnist-fc2-ep").dynamics.free_steps)
    for depth in (1, 2, 3, 4):
        layers = {str(i + 1): layer for i, layer in enumerate([hidden] * depth + [output])}
        yield "depth", depth, base.replace(layers=layers, dynamics=patient)
    for free_steps in (10, 20, 50, 100, 200):
        capped = replace(base.dynamics, free_steps=free_steps)
        yield "steps", free_steps, base.replace(dynamics=capped)
        every = replace(capped, settle_tol=0.0)
        yield "steps, all taken", free_steps, base.replace(dynamics=every)
    for batch_size in (16, 32, 64, 128, 256, 512):
        yield "batch", batch_size, base.replace(batch_size=batch_size)


def measure_scaling(options: Options) -> Measured:
    """Time binep alone over every sweep."""
    rows: list[Row] = []
    for sweep, value, config in sweeps():
        experiment = build(config.replace(threads=options.threads))
        stream = batches_of(experiment)
        train(experiment, *next(stream))  # the first one also sets memory aside
        for turn in range(options.repeats):
            seconds = clock(train, experiment, *next(stream))
            rows.append({"sweep": sweep, "value": value, "turn": turn, "seconds": seconds})
        free_steps, nudged_steps = settling(experiment, *next(stream))
        for row in rows[-options.repeats :]:
            row |= {"free_steps": free_steps, "nudged_steps": nudged_steps}
    return {"scaling": rows}


def machine(options: Options) -> dict[str, Any]:
    """What the measurements ran on."""
    experiment = build(preset("quickstart").replace(threads=options.threads))
    wanted = ("processor", "threads", "versions", "python", "platform", "git_revision", "started")
    found = environment(experiment)
    return {key: found[key] for key in wanted} | {"note": options.note, "skipped": {}}


# All of it ---------------------------------------------------------------------------------------


def apart(act: Callable[..., Any], *arguments: object) -> Any:
    """Call in a fresh process, which starts small: this one never holds a network or data set.

    A child's peak memory counts from its parent's size.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(act, *arguments).result()


def keep(folder: Path, found: Measured) -> None:
    """Put rows in their tables, in place of older ones of the same shape, program or sweep."""
    for name, rows in found.items():
        key = TABLES[name]
        again = {tuple(str(row[k]) for k in key) for row in rows}
        old = [row for row in read(folder, name) if tuple(row[k] for k in key) not in again]
        write_table(folder / f"{name}.csv", [*old, *rows], list(rows[0]))


def run(options: Options) -> None:
    """Measure, and write the tables as they grow; then the report."""
    options.output.mkdir(parents=True, exist_ok=True)
    about = apart(machine, options)
    for shape in options.shapes if {"time", "memory"} & set(options.parts) else ():
        try:
            measure_shape(shape, options)
        except DataError:
            about["skipped"][shape] = f"{preset(shape).dataset} is not on this machine"
    if "scaling" in options.parts:
        keep(options.output, apart(measure_scaling, options))
    files.write(options.output / "machine.json", (json.dumps(about, indent=2) + "\n").encode())
    write_report(options.output)


def measure_shape(shape: str, options: Options) -> None:
    """Time and memory of one shape, as far as they are wanted."""
    if "time" in options.parts:
        found = apart(time_shape, shape, options)
        keep(options.output, found)
        for trained in sorted({row["trained"] for row in found["batches"]}):
            print(shape, f"after {trained} batches:", *_medians(found["batches"], trained))
    if "memory" in options.parts:
        with tempfile.TemporaryDirectory() as name:
            apart(write_small_data, shape, Path(name), options)
            for program in ("binep", "plain"):
                found = apart(measure_memory, shape, program, Path(name), options)
                keep(options.output, found)
                print(shape, program, f"{found['memory'][0]['peak'] / 1e9:.2f} GB", flush=True)


def _medians(rows: Sequence[Row], trained: int) -> Iterator[str]:
    for program in ("plain", "binep"):
        wanted = (program, trained)
        seconds = [r["seconds"] for r in rows if (r["program"], r["trained"]) == wanted]
        yield f"{program} {median(seconds):.3g} s ({len(seconds)})"


if __name__ == "__main__":
    run(tyro.cli(Options, description=__doc__))
