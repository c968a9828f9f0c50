"""Measurements turned into a page and a figure: ``python -m benchmarks.report FOLDER``."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from binep.runs import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]

TABLES = {
    "batches": ("shape",),
    "roofline": ("shape",),
    "rates": ("shape",),
    "memory": ("shape", "program"),
    "scaling": ("sweep",),
}
"""Tables, one CSV file each, and the columns that say what a new measurement replaces."""


PROGRAMS = ("binep", "all at once", "fast")
"""Programs of `benchmarks.speed`, beside "plain"."""

ORIGINAL = {
    "mnist-fc1-ep": 0.5,
    "mnist-fc2-ep": 0.9,
    "mnist-conv-ep": 0.5,
    "cifar10-conv-ep": 0.6,
    "mnist-bits-fc1-ep": 0.7,
    "mnist-bits-fc2-ep": 3.0,
    "mnist-bits-conv-ep": 0.7,
}
"""The shapes in their order, and the peak memory of the paper's own program (GB)."""


def read(folder: Path, table: str) -> list[Row]:
    """The rows of a table, as text; none if it was never measured."""
    path = folder / f"{table}.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_table(
    path: Path, rows: Sequence[Mapping[str, object]], columns: Sequence[str] = ()
) -> None:
    """Write rows, at least one, as a CSV file, by default with the columns of the first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns or list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write(path, text.getvalue().encode())


def write_report(folder: Path) -> None:
    """Write README.md and speed.svg from the tables of a folder."""
    batches, scaling = read(folder, "batches"), read(folder, "scaling")
    timings = _timings(batches)
    original, since = read(folder, "original"), read(folder / "revisions", "original")
    page = _heading(folder, batches) + _original_table(original, since)
    page += _time_table(timings, batches)
    page += _memory_table(read(folder, "memory"))
    page += _roofline_table(timings, read(folder, "roofline"), read(folder, "rates"))
    page += _scaling_table(scaling)
    files.write(folder / "README.md", ("\n".join(page).rstrip() + "\n").encode())
    from binep.runs.curves import rendered  # matplotlib's memory is not to count among binep's

    files.write(folder / "speed.svg", rendered(_figure(timings, scaling, original), "svg"))


# The page ----------------------------------------------------------------------------------------


class Timing(NamedTuple):
    """Seconds of each program's batches at one stage of a shape's training."""

    shape: str
    trained: int
    seconds: Mapping[str, Sequence[float]]

    def of(self, program: str) -> float:
        """The median."""
        return median(self.seconds[program])


def _timings(batches: Sequence[Row]) -> list[Timing]:
    """A timing for each shape and stage of training, in the order of `ORIGINAL`."""
    runs: dict[tuple[str, int], dict[str, list[float]]] = {}
    for row in batches:
        programs = runs.setdefault((row["shape"], int(row["trained"])), {})
        programs.setdefault(row["program"], []).append(float(row["seconds"]))
    ordered = sorted(runs.items(), key=lambda item: (_rank(item[0][0]), item[0]))
    return [Timing(*key, of) for key, of in ordered]


def _rank(shape: str) -> int:
    order = list(ORIGINAL)
    return order.index(shape) if shape in order else len(order)


def _heading(folder: Path, batches: Sequence[Row]) -> list[str]:
    about = json.loads((folder / "machine.json").read_text(encoding="utf-8"))

    def all_of(column: str) -> str:
        return ", ".join(sorted({row[column] for row in batches if row[column]})) or "none"

    more = ""
    if (folder / "revisions").exists():
        more = " What made binep faster is in [revisions](revisions/README.md)."
    lines = [
        "# Speed, measured",
        "",
        f"Machine: {about['processor']}; {about['threads']} thread(s); PyTorch "
        f"{about['versions']['torch']}, Python {about['python']}. Measured: {all_of('date')}, "
        f"revisions {all_of('revision')}, threads {all_of('threads')}, data {all_of('dataset')}.",
        *([about["note"]] if about["note"] else []),
        "",
        "`make bench` measures; `python -m benchmarks.report FOLDER` writes this page and the "
        "figure from the tables beside it. What each column is, and how it is measured: "
        f"`benchmarks/`.{more}",
        "",
        "![Time per batch, and how it grows](speed.svg)",
    ]
    skipped = [f"- `{shape}` skipped: {why}" for shape, why in about["skipped"].items()]
    return lines + (["", *skipped] if skipped else [])


def _time_table(timings: Sequence[Timing], batches: Sequence[Row]) -> list[str]:
    networks = {row["shape"]: row["network"] for row in batches}
    rows = []
    for t in timings:
        plain = t.of("plain")
        cells = [f"`{t.shape}`", networks[t.shape]]
        cells += [f"after {t.trained} batches" if t.trained else "first batches"]
        cells += [f"{plain:.3g} ({len(t.seconds['plain'])})"]
        for program in PROGRAMS:
            if program not in t.seconds:
                cells += ["", ""]
                continue
            ratio = f"{plain / t.of(program):.3g}"
            cells += [f"{t.of(program):.3g} ({len(t.seconds[program])})", ratio]
        rows.append(cells)
    names = ["preset", "network", "when", "plain (s)"]
    names += [name for program in PROGRAMS for name in (f"{program} (s)", "times faster")]
    return section(
        "Seconds per training batch",
        "Medians, and in brackets of how many batches: settling, nudging, gradients and update of "
        "64 images. 'Plain' is the same step taken without any shortcut (`benchmarks/plain.py`), "
        "in the same process, in turn with binep. 'Times faster' is than 'plain'. "
        "'all at once' and 'fast' are binep with `--off odd-even` and with `--precision fast`.",
        names,
        rows,
    )


def _original_table(original: Sequence[Row], since: Sequence[Row]) -> list[str]:
    ratios = {row["shape"]: float(row["median_ratio"]) for row in since}
    rows = []
    for row in original:
        theirs, ours = float(row["original_seconds"]), float(row["binep_seconds"])
        cells = [f"{theirs:.3g}", f"{ours:.3g}", _times(theirs / ours), row["revision"]]
        if (ratio := ratios.get(row["shape"])) is None:
            cells += ["", ""]
        else:
            cells += [f"{ratio:.2f}", _times(theirs / (ours * ratio))]
        rows.append([f"`{row['shape']}`", *cells])
    return section(
        "Beside the paper's own program",
        "Seconds per batch of 64, medians of first batches, the two programs in turn in one "
        "process: two threads, an idle machine with instructions for 8-bit integers. 'Since then' "
        "is what a batch takes by today's binep, of what it took by that revision, the two in turn "
        "on another machine ([revisions](revisions/README.md)); 'times faster today' is by that.",
        [
            *("preset", "original (s)", "binep (s)", "times faster", "binep's revision"),
            *("since then", "times faster today"),
        ],
        rows,
    )


def _times(ratio: float) -> str:
    """In two or three digits."""
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"


def _memory_table(memory: Sequence[Row]) -> list[str]:
    peaks = {(row["shape"], row["program"]): row for row in memory}
    rows = []
    for shape in sorted({row["shape"] for row in memory}, key=lambda s: (_rank(s), s)):
        cells = [
            f"{float(peaks[shape, program]['peak']) / 1e9:.2f}" if (shape, program) in peaks else ""
            for program in ("plain", "binep")
        ]
        original = ORIGINAL.get(shape)
        rows.append([f"`{shape}`", *cells, f"{original:g}" if original else ""])
    imported = max((float(row["imported"]) / 1e9 for row in memory), default=0.0)
    return section(
        "Peak memory (GB)",
        "Of the whole process while it builds the network and trains a few batches, each program "
        f"in a process of its own; {imported:.2g} GB of it is Python with its imports. The data "
        "set is cut to 256 images, a megabyte at most; the original held all of its own.",
        ["preset", "plain", "binep", "original"],
        rows,
    )


def _roofline_table(
    timings: Sequence[Timing], stages: Sequence[Row], rates: Sequence[Row]
) -> list[str]:
    measured = {
        unit: median(float(row["per_second"]) for row in rates if row["rate"] == unit)
        for unit in dict.fromkeys(row["rate"] for row in rates)
    }
    speeds = ", ".join(f"{unit} {speed:.2g}" for unit, speed in measured.items())
    rows = []
    for t in timings:
        of = [row for row in stages if (row["shape"], int(row["trained"])) == (t.shape, t.trained)]
        bound = sum(float(row["seconds"]) for row in of)
        operations = {
            unit: sum(float(row["operations"]) for row in of if row["unit"] == unit)
            for unit in ("float32", "int8")
        }
        rows.append(
            [
                f"`{t.shape}`",
                f"after {t.trained} batches" if t.trained else "first batches",
                " + ".join(of[0][phase] for phase in ("free_steps", "nudged_steps")),
                *(f"{count / 1e9:.3g}" for count in operations.values()),
                f"{sum(float(row['bytes']) for row in of) / 1e9:.3g}",
                f"{bound:.3g}",
                f"{t.of('binep'):.3g}",
                f"{t.of('binep') / bound:.3g}",
            ]
        )
    names = ["preset", "when", "steps", "float32 (10⁹)", "int8 (10⁹)", "memory (10⁹ B)"]
    return section(
        "Roofline",
        "The least time in which the products of the steps taken (free + nudged, until settled) "
        "and the update could be done at this machine's measured rates: inputs in float32, bits in "
        "int8, real states in float32 or, where they travel as digits, in int8; "
        "`benchmarks/roofline.py` counts. A step can pass under it by leaving out products: of "
        "what has not changed, or of samples that settle before the last one. Rates, a second "
        f"(medians over the shapes): {speeds}; products in operations, memory in bytes.",
        [*names, "bound (s)", "binep (s)", "binep / bound"],
        rows,
    )


def _scaling_table(scaling: Sequence[Row]) -> list[str]:
    rows = []
    for sweep, points in _curves(scaling).items():
        for value, seconds, steps in points:
            rows.append([sweep, f"{value:g}", steps, f"{1000 * seconds:.3g}"])
    return section(
        "How time grows",
        "binep alone, 784-1024-10 with real activations, one thing changed at a time; depth "
        "counts hidden layers of 1024, with up to 250 free steps.",
        ["changed", "to", "steps (free + nudged)", "ms per batch"],
        rows,
    )


def section(title: str, text: str, names: Sequence[str], rows: Sequence[list[str]]) -> list[str]:
    """A heading, what is to be said, and a table; nothing without rows."""
    if not rows:
        return []
    head = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    return ["", f"## {title}", "", text, "", *head, *("| " + " | ".join(r) + " |" for r in rows)]


# The figure --------------------------------------------------------------------------------------


def _curves(scaling: Sequence[Row]) -> dict[str, list[tuple[float, float, str]]]:
    """Per sweep (value, median seconds, steps), in rising order."""
    runs: dict[str, dict[float, list[Row]]] = {}
    for row in scaling:
        runs.setdefault(row["sweep"], {}).setdefault(float(row["value"]), []).append(row)
    return {
        sweep: [
            (
                value,
                median(float(row["seconds"]) for row in rows),
                f"{rows[0]['free_steps']} + {rows[0]['nudged_steps']}",
            )
            for value, rows in sorted(points.items())
        ]
        for sweep, points in runs.items()
    }


def _figure(timings: Sequence[Timing], scaling: Sequence[Row], original: Sequence[Row]) -> Figure:
    from matplotlib.figure import Figure

    from binep.runs.curves import COLOURS

    figure = Figure(figsize=(11, 9), layout="constrained")
    grid = figure.add_gridspec(2, 1)
    above, below = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    _bars(above.subplots(), timings, original)
    panels = below.subplots(1, 4, sharey=True)
    curves = _curves(scaling)
    labels = {
        "width": "hidden neurons",
        "depth": "hidden layers",
        "steps": "most free steps T",
        "batch": "images per batch",
    }
    for axes, (sweep, label) in zip(panels, labels.items(), strict=True):
        for i, name in enumerate(n for n in curves if n.split(",")[0] == sweep):
            values, seconds, _ = zip(*curves[name], strict=True)
            text = "all steps taken" if "," in name else "until settled"
            milliseconds = [1000 * s for s in seconds]
            axes.plot(values, milliseconds, "os"[i] + "-", color=COLOURS[i], label=text)
        axes.set_xlabel(label)
        axes.set_xscale("linear" if sweep == "depth" else "log", **_base(sweep))
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
        if len(axes.lines) > 1:
            axes.legend()
    panels[0].set_ylabel("ms per batch, 784-1024-10")
    return figure


def _base(sweep: str) -> dict[str, int]:
    return {} if sweep == "depth" else {"base": 2}


def _bars(axes: Axes, timings: Sequence[Timing], original: Sequence[Row]) -> None:
    """Plain beside binep on a log scale, at the first and the last stage of training."""
    from binep.runs.curves import COLOURS

    shapes = list(dict.fromkeys(t.shape for t in timings))
    places = {shape: i for i, shape in enumerate(shapes)}
    looks: dict[str, dict[str, Any]] = {
        "plain": {"color": COLOURS[1]},
        "binep, first batches": {"color": COLOURS[0]},
        "binep, once trained": {"color": COLOURS[5], "hatch": "//"},
    }
    heights: dict[str, list[tuple[int, float]]] = {label: [] for label in looks}
    for i, shape in enumerate(shapes):
        stages = [t for t in timings if t.shape == shape]
        heights["plain"].append((i, stages[0].of("plain")))
        for stage in stages[:1] + stages[1:][-1:]:
            when = "once trained" if stage.trained else "first batches"
            heights[f"binep, {when}"].append((i, stage.of("binep")))
    for offset, (label, bars) in zip((-0.28, 0, 0.28), heights.items(), strict=True):
        if bars:
            at, seconds = [i + offset for i, _ in bars], [value for _, value in bars]
            axes.bar(at, seconds, 0.27, label=label, edgecolor="white", **looks[label])
    known = [
        (places[row["shape"]], float(row["original_seconds"]))
        for row in original
        if row["shape"] in places
    ]
    if known:
        at, seconds = [i for i, _ in known], [value for _, value in known]
        left, right = ([i + side for i in at] for side in (-0.43, 0.43))
        axes.hlines(seconds, left, right, COLOURS[6], label="the paper's program, another day")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False)
    axes.set_xticks(range(len(shapes)), [shape.removesuffix("-ep") for shape in shapes])
    axes.set_yscale("log")
    axes.set_ylabel("seconds per batch of 64")
    axes.grid(axis="y", alpha=0.3)


if __name__ == "__main__":
    write_report(Path(sys.argv[1]))
