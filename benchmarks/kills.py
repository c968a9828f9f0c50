"""Training that is killed over and over: ``python -m benchmarks.kills``.

A small network of each kind (`benchmarks.kinds`) trains in a process (`benchmarks.forked`) that is
killed by SIGKILL at a random moment and resumed, so many times. Then a run that nobody interrupts
trains as many epochs, and all that both have come to is compared, bit for bit. ``kills.csv`` in the
output folder has a row for each kind that has ended.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.forked import Forks
from benchmarks.kinds import KINDS
from benchmarks.report import write_table
from binep.experiment.config import Config
from binep.runs import folder as runs
from binep.runs.checkpoints import CHECKPOINT
from binep.runs.metrics import read_metrics
from binep.runs.tensors import load_tensors

FOREVER = 10**6
"""Epochs that no run comes to."""


@dataclass(frozen=True)
class Options:
    """How often, and for how long."""

    kinds: tuple[str, ...] = tuple(KINDS)
    """Kinds of networks."""
    kills: int = 100
    """Kills of each."""
    seconds: float = 2.0
    """Mean seconds from a process's start to its kill; at most twice as many."""
    seed: int = 0
    """Of the moments."""
    output: Path = Path("results/reliability")
    """Folder of kills.csv."""


def outcome(folder: Path) -> dict[str, Any]:
    """What a run has come to: all of its state, its metrics but for the clock, its networks."""
    state, _ = load_tensors(folder / CHECKPOINT)
    found: dict[str, Any] = {name: (t.dtype, t.tolist()) for name, t in state.items()}
    for row in read_metrics(folder / "metrics.csv"):
        kept = {k: v for k, v in row.items() if "seconds" not in k}
        found[f"epoch {row['epoch']:g}"] = repr(kept)  # in which NaN is NaN
    for name in ("model", "best"):
        found[name] = (folder / f"{name}.safetensors").read_bytes()
    return found


def differences(folder: Path, other: Path) -> list[str]:
    """Names of what two runs have not come to alike, down to the bits; empty if all is the same."""
    one, two = outcome(folder), outcome(other)
    return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))


def trained(forks: Forks, words: list[str], said: Path) -> None:
    """Train to the end.

    Raises:
        RuntimeError: it did not come to its end, with what it said.
    """
    forks.start(["train", *words], said)
    if code := forks.wait():
        raise RuntimeError(f"ended with {code}: {said.read_text()}")


def killed(config: Config, folder: Path, options: Options, forks: Forks) -> int:
    """Kill and resume a training, and end it with the epoch that it is in, which is returned.

    Raises:
        RuntimeError: a process ended by itself, with what it said.
    """
    moments, said = random.Random(options.seed), folder / "said"
    settings, run = folder / "settings.toml", folder / "run"
    settings.write_text(config.replace(epochs=FOREVER).to_toml())
    begin, on = ["--config", str(settings), "--run-dir", str(run)], ["--resume", str(run)]
    for _ in range(options.kills):
        begun = (run / "config.toml").exists()
        process = forks.start(["train", *(on if begun else begin)], said)
        time.sleep(moments.uniform(0, 2 * options.seconds))
        os.kill(process, signal.SIGKILL)
        if (code := forks.wait()) != -signal.SIGKILL:
            raise RuntimeError(f"ended with {code}: {said.read_text()}")
    epochs = runs.resume(run)[0].epoch + 1
    trained(forks, [*on, "--epochs", str(epochs)], said)
    return epochs


def measured(kind: str, options: Options, forks: Forks) -> dict[str, Any]:
    """A row of kills.csv."""
    config = KINDS[kind].replace(checkpoint_minutes=0.005)
    with tempfile.TemporaryDirectory() as scratch:
        begun = time.monotonic()
        epochs = killed(config, Path(scratch), options, forks)
        minutes = (time.monotonic() - begun) / 60
        run, whole, settings = (Path(scratch, name) for name in ("run", "whole", "settings.toml"))
        words = ["--config", str(settings), "--epochs", str(epochs), "--run-dir", str(whole)]
        trained(forks, words, Path(scratch, "said"))
        odd = differences(run, whole)
        left = [path.name for path in run.glob(".*.tmp")]
    return {
        "kind": kind,
        "kills": options.kills,
        "minutes": round(minutes, 1),
        "epochs": epochs,
        "differences": " ".join(odd + left),
    }


def main(options: Options) -> None:
    """Kill each kind, and write the table after it."""
    rows = []
    options.output.mkdir(parents=True, exist_ok=True)
    with Forks() as forks:
        for kind in options.kinds:
            rows.append(measured(kind, options, forks))
            print(*rows[-1].values(), sep="  ", flush=True)
            write_table(options.output / "kills.csv", rows)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
