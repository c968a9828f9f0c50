"""Seconds of a training batch of two revisions, in turn: ``python -m benchmarks.revisions BEFORE``.

Each revision runs in a process of its own, from its own source tree, on the same batches from the
same network. The two take a batch each in alternation, so that what else the machine does meets
both. A table of the output folder has a row for each shape and number of threads; earlier ones of
others stay. Where ``tables.toml`` there says what its tables are of, ``README.md`` shows them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import tyro

from benchmarks.report import read, section, write_table
from benchmarks.speed import SHAPES
from binep.runs import files
from binep.runs.metrics import read_metrics

_WORKER = """
import importlib, itertools, sys, time, warnings
warnings.simplefilter("ignore")
shape, threads = sys.argv[1], int(sys.argv[2])
def first(*names):
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            pass
from pathlib import Path
if Path(shape).is_dir():  # on which this writes nothing
    folder = importlib.import_module("binep.runs.folder")
    experiment = folder.load_checkpoint(Path(shape), device="cpu")
    config = experiment.config
else:
    settings = first("binep.experiment.config", "binep.config")
    path = Path(shape)
    config = settings.Config.load(path) if path.is_file() else settings.preset(shape)
    config = config.replace(threads=threads)
    experiment = first("binep.experiment.experiment", "binep.experiment").Experiment(config)
import torch
torch.set_num_threads(threads)
data, order = experiment.data, experiment.order
if hasattr(data, "training_batches"):
    stream = data.training_batches(config.batch_size, order)
else:
    batches = first("binep.data.batches", "binep.data").batches
    stream = batches(data.train, config.batch_size, generator=order, augment=data.augmented)
for line in sys.stdin:
    images, labels = next(stream)
    x, target = experiment.data.prepare(images), experiment.network.cost.target(labels)
    begin = time.perf_counter()
    experiment.estimator(x, target)
    for optimizer in experiment.optimizers:
        optimizer.step()
    print(time.perf_counter() - begin, flush=True)
"""


_COLUMNS = {
    "threads": "threads",
    "batches": "batches",
    "before_seconds": "before (s)",
    "after_seconds": "after (s)",
    "ratio_of_medians": "after / before",
    "median_ratio": "median ratio",
}


@dataclass(frozen=True)
class Options:
    """What to time, and how often."""

    before: tyro.conf.Positional[Path]
    """Source folder (src) of the other revision."""
    shapes: tuple[str, ...] = SHAPES
    """Presets, or files of settings; or run folders, to go on from their last checkpoint without
    changing it."""
    batches: int = 15
    """Batches of each revision that are timed, after three that are not."""
    threads: int = 1
    """CPU threads."""
    output: Path = Path("results/speed/revisions")
    """Folder of the table."""
    table: str = "revisions"
    """Its name."""


class _Revision:
    """A process that trains a batch whenever it is asked to."""

    def __init__(self, source: Path, shape: str, threads: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WORKER, shape, str(threads)],
            env={**os.environ, "PYTHONPATH": str(source.resolve())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def seconds(self) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()


def timed(shape: str, options: Options) -> dict[str, str | float | int]:
    """Medians of both revisions' seconds a batch, and of the ratio of each pair."""
    here = Path(__file__).parents[1] / "src"
    revisions = [_Revision(source, shape, options.threads) for source in (options.before, here)]
    pairs = []
    for i in range(options.batches + 3):
        order = revisions if i % 2 else revisions[::-1]
        found = {id(revision): revision.seconds() for revision in order}
        pairs.append([found[id(revision)] for revision in revisions])
    for revision in revisions:
        revision.close()
    before, after = zip(*pairs[3:], strict=True)
    run = Path(shape)
    return {
        "shape": f"{run.parent.name}, epoch {_epochs(run)}" if run.is_dir() else run.stem,
        "threads": options.threads,
        "batches": options.batches,
        "before_seconds": round(median(before), 6),
        "after_seconds": round(median(after), 6),
        "ratio_of_medians": round(median(after) / median(before), 4),
        "median_ratio": round(median(b / a for a, b in pairs[3:]), 4),
    }


def _epochs(run: Path) -> int:
    """How many epochs of a run are complete: none in a run stopped in its first."""
    path = run / "metrics.csv"
    return len(read_metrics(path)) if path.exists() else 0


def main(options: Options) -> None:
    """Time the shapes, and write the table after each."""
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"{options.table}.csv"
    rows = {(row["shape"], row["threads"]): row for row in read(options.output, options.table)}
    for shape in options.shapes:
        found = timed(shape, options)
        rows[found["shape"], str(found["threads"])] = found
        print(*found.values(), flush=True)
        write_table(path, [*rows.values()])
    if (options.output / "tables.toml").exists():
        files.write(options.output / "README.md", page(options.output).encode())


def page(folder: Path) -> str:
    """README.md of a folder of tables, by what ``tables.toml`` says of each."""
    about = tomllib.loads((folder / "tables.toml").read_text(encoding="utf-8"))
    machines = about.pop("machines")
    lines = [
        "# Revisions, side by side",
        "",
        "Seconds per training batch of 64 of a revision and of a later one, a batch of each in "
        "turn: medians, and the median of each pair's ratio. `python -m benchmarks.revisions` "
        "measures, and writes this page from the tables beside it and `tables.toml`. First batches "
        "of a preset, or those after so many epochs or batches of a training.",
    ]
    for name, what in about.items():
        rows = [
            [f"`{row['shape']}`", *(row[column] for column in _COLUMNS)]
            for row in read(folder, name)
        ]
        text = f"{machines[what['machine']]}; [{name}.csv]({name}.csv). {what['text'].strip()}"
        lines += section(what["title"], text, ["preset", *_COLUMNS.values()], rows)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
