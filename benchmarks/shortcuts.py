"""Train with each shortcut switched on and off: ``python -m benchmarks.shortcuts``.

Each network learns MNIST-5k from the same start with every setting of its switches, for several
seeds. Rows already in the folder's errors.csv are kept, so that an interrupted run goes on.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from benchmarks.report import Row, write_table
from binep.analysis.measurements import spread
from binep.core.speed import SHORTCUTS, Speed
from binep.experiment.config import Config, preset
from binep.experiment.experiment import Experiment
from binep.runs import files


def _only(*names: str, **settings: Any) -> Speed:
    return Speed(off=tuple(set(SHORTCUTS) - set(names)), **settings)


_CERTAIN = _only("certain-outputs", "zero-nudge", "digits")  # where it serves
REAL = {
    "plain": _only(),
    "digits": _only("digits"),
    "odd-even": _only("odd-even"),
    "certain-outputs": _CERTAIN,
    "all": Speed(),
}
SMALL = {
    "plain": _only(),
    "in-cache": _only("in-cache"),
    "digits": _only("digits"),
    "digits, fast": _only("digits", precision="fast"),
    "odd-even": _only("odd-even"),
    "zero-nudge": _only("zero-nudge"),
    "certain-outputs": _CERTAIN,
    "one-pass-flips": _only("one-pass-flips"),
    "all": Speed(),
}
REFERENCE = {
    "plain": _only(),
    "leaving": _only("leaving"),
    "bfloat16": _only("bfloat16"),
    "int8": _only("int8"),
    "all": Speed(),
}
REFERENCE_CONV = {
    "plain": _only(),
    "leaving": _only("leaving"),
    "changes": _only("changes"),
    "all": Speed(),
}
THROUGH_TIME = {
    "plain": _only(),
    "linearised": _only("linearised"),
    "all": Speed(),
}
BITS = {
    "plain": _only(),
    "events": _only("events"),
    "all": Speed(),
}


@dataclass(frozen=True)
class Options:
    """What to train."""

    seeds: int = 10
    """Seeds, from 0."""
    threads: int | None = None
    """CPU threads; otherwise what PyTorch chooses."""
    networks: tuple[str, ...] = ()
    """Names of networks in the report; all if none is given."""
    output: Path = Path("results/shortcuts")
    """Folder of errors.csv and the report."""


def _narrow(name: str, sizes: Sequence[int], epochs: int, free_steps: int | None = None) -> Config:
    config = preset(name)
    layers = {
        key: replace(layer, size=size)
        for (key, layer), size in zip(config.layers.items(), sizes, strict=True)
    }
    learning = replace(config.learning, output_copies=sizes[-1] // 10)
    dynamics = config.dynamics
    if free_steps is not None:
        dynamics = replace(dynamics, free_steps=free_steps)
    return config.replace(
        dataset="mnist5k", layers=layers, epochs=epochs, dynamics=dynamics, learning=learning
    )


def networks() -> dict[str, tuple[Config, dict[str, Speed]]]:
    """Settings and switches by name: networks that learn, to well under 10 % error."""
    bits = _narrow("mnist-bits-fc1-ep", (1024, 100), 8)
    # From where most hidden neurons fire, as in results/NOTES.md.
    hidden = replace(bits.layers["1"], firing_threshold=0.25)
    deep = _narrow("mnist-fc2-ep-alpha", (256, 256, 10), 12, 60)
    # Thresholds for the width, as in results/mnist5k.
    layers = {key: replace(layer, threshold=2e-6) for key, layer in deep.layers.items()}
    # With the thresholds of 4096 neurons too many weights flip.
    bptt = _narrow("mnist-fc1-bptt", (512, 10), 10, 40)
    fewer = {
        key: replace(layer, threshold=4 * layer.threshold) for key, layer in bptt.layers.items()
    }
    reference = _narrow("mnist-fc2-reference", (1024, 1024, 10), 4, 60)
    return {
        "784-512-10": (_narrow("mnist-fc1-ep", (512, 10), 10), SMALL),
        "bits 784-1024-100": (bits.replace(layers=bits.layers | {"1": hidden}), BITS),
        "784-256-256-10, learnt α": (deep.replace(layers=layers), REAL),
        "conv 1-8-16-10, learnt α": (_narrow("mnist-conv-ep-alpha", (8, 16, 10), 4, 60), REAL),
        "784-1024-1024-10, real weights": (reference, REFERENCE),
        "conv 1-8-16-10, real weights": (
            _narrow("mnist-conv-reference", (8, 16, 10), 4, 60),
            REFERENCE_CONV,
        ),
        "784-512-10, BPTT": (bptt.replace(layers=fewer), THROUGH_TIME),
    }


def train(config: Config) -> Row:
    """Train to the last epoch; the errors, flips and seconds."""
    experiment = Experiment(config)
    flips, errors = 0, []
    for _ in range(config.epochs):
        result = experiment.train_epoch()
        flips += sum(change.flips for change in result.layers if change)
        errors.append(result.test.error)
    return {
        "epochs": config.epochs,
        "test_error": errors[-1],
        "test_loss": result.test.loss,
        "flips": flips,
    }


def run(options: Options) -> None:
    """Train what has not been trained, and write the report."""
    path = options.output / "errors.csv"
    options.output.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    for name, config, switch, speed, seed in _jobs(options):
        if any((r["network"], r["switch"], r["seed"]) == (name, switch, str(seed)) for r in rows):
            continue
        found = train(config.replace(speed=speed, seed=seed, threads=options.threads))
        rows.append({"network": name, "switch": switch, "seed": str(seed)} | found)
        print(*rows[-1].values(), flush=True)
        write_table(path, rows)
    files.write(options.output / "README.md", report(rows).encode())


def _jobs(options: Options) -> Iterator[tuple[str, Config, str, Speed, int]]:
    for name, (config, switches) in networks().items():
        if options.networks and name not in options.networks:
            continue
        for seed in range(options.seeds):
            for switch, speed in switches.items():
                yield name, config, switch, speed, seed


def report(rows: Sequence[Row]) -> str:
    """A table of the mean and standard deviation of each network and switch."""
    lines = [
        "# Shortcuts of CPUs, on and off",
        "",
        "Test error on MNIST-5k after training from the same start, mean ± standard deviation over "
        "seeds, and what each seed gave: `python -m benchmarks.shortcuts`, rows in "
        "[errors.csv](errors.csv). A network of real activations that is rounded otherwise takes "
        "another path, so its errors differ as those of seeds do. With binary activations only the "
        "first layer's drive is rounded otherwise, in integers, which moves a bit now and then.",
        "",
        "| network | on | epochs | test error (%) | of each seed | flips of each seed |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["network"] for row in rows):
        for switch in dict.fromkeys(row["switch"] for row in rows if row["network"] == name):
            of = [row for row in rows if (row["network"], row["switch"]) == (name, switch)]
            errors = [float(row["test_error"]) for row in of]
            each = ", ".join(f"{error:.1f}" for error in errors)
            flips = ", ".join(str(row["flips"]) for row in of)
            lines.append(
                f"| {name} | {switch} | {of[0]['epochs']} | {spread(errors)} | {each} | {flips} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run(tyro.cli(Options, description=__doc__))
