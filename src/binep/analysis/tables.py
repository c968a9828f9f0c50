"""The paper's tables from logs of runs: what was claimed beside what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from binep.analysis import claims
from binep.core.network import Speed
from binep.experiment.config import Config, differing, preset
from binep.runs.checkpoints import CHECKPOINT
from binep.runs.environment import read_environment
from binep.runs.files import RunError
from binep.runs.metrics import Row, read_metrics
from binep.runs.settings import comparable, read_config


@dataclass(frozen=True)
class Measured:
    """A run of a row.

    Attributes:
        folder: where its log is.
        config: its setting.
        metrics: a row for every epoch.
        about: what it ran on, from environment.json; empty if that was not kept.
    """

    folder: Path
    config: Config
    metrics: list[Row]
    about: dict[str, Any]

    @property
    def machine(self) -> str:
        """Processor, threads or device, and shortcuts that are not the usual ones."""
        if not self.about:
            return "not recorded"
        threads = self.about.get("threads", 1)
        on = self.about.get("device_name") or f"{threads} thread{'s' * (threads != 1)}"
        usual, chosen = vars(Speed()), vars(self.config.speed)
        shortcuts = [_flag(name, chosen[name]) for name in usual if chosen[name] != usual[name]]
        return ", ".join([str(self.about.get("processor")), on, *shortcuts])

    @property
    def epochs(self) -> int:
        """Epochs that have ended."""
        return len(self.metrics)

    @property
    def seconds(self) -> float:
        """Of training and testing."""
        columns = ("train_seconds", "test_seconds")
        return sum(row[column] or 0.0 for row in self.metrics for column in columns)

    def last(self, column: str) -> float | None:
        """Of metrics.csv, after the last epoch."""
        return self.metrics[-1].get(column)


def _flag(name: str, value: object) -> str:
    """A setting as on the command line."""
    flag = name.replace("_", "-")
    return (
        f"`--{'' if value else 'no-'}{flag}`" if isinstance(value, bool) else f"`--{flag} {value}`"
    )


def folder_of(root: Path, name: str, seed: int) -> Path:
    """Where a run of a row is kept."""
    return root / name / f"seed{seed}"


def is_unfinished(folder: Path, config: Config) -> bool:
    """Whether a run is still to be begun, or to go on.

    Raises:
        RunError: the folder holds another run, or its log without a checkpoint to go on from.
    """
    if not (folder / "config.toml").exists():
        return True
    held = Config.load(folder / "config.toml")
    done = 0
    if (folder / "metrics.csv").exists():
        done = len(read_metrics(folder / "metrics.csv"))
    if others := differing(comparable(held), comparable(config)):
        problem = f"a run of other settings: {', '.join(others)}"
    elif held.epochs != config.epochs:
        problem = f"a run of {held.epochs} epochs, not {config.epochs}"
    elif 0 < done < held.epochs and not (folder / CHECKPOINT).exists():
        problem = f"the log of {done} of {held.epochs} epochs, and no checkpoint to go on from"
    else:
        return done < held.epochs
    raise RunError(f"{folder}: holds {problem}: name another --output")


def measured(root: Path, name: str) -> list[Measured]:
    """The runs of a row that have a log, in the order of their seeds.

    Raises:
        RunError: a log that cannot be read, or is of another setting than the row's.
    """
    row = comparable(preset(name))
    found = []
    folders = [path.parent for path in root.glob(f"{name}/seed*/metrics.csv")]
    numbered = [folder for folder in folders if folder.name[4:].isdecimal()]
    for folder in sorted(numbered, key=lambda f: int(f.name[4:])):
        if others := differing(comparable(read_config(folder)), row):
            raise RunError(f"{folder}: its settings are not those of {name}: {', '.join(others)}")
        found.append(read(folder))
    return found


def read(folder: Path) -> Measured:
    """The log of a run.

    Raises:
        RunError: a file is missing or damaged.
        ConfigError: the same of its config.toml.
    """
    config = Config.load(folder / "config.toml")
    metrics = read_metrics(folder / "metrics.csv")
    return Measured(folder, config, metrics, read_environment(folder))


def table(root: Path) -> str:
    """Every row, run or not, as Markdown with links relative to the folder."""
    lines = [
        "| row | network | test error (%) | runs × epochs | claimed | reference (%) "
        "| time per run | machine |",
        "|---|---|---|---|---|---|---|---|",
    ]
    machines: list[str] = []
    for name, row in claims.rows().items():
        config, found = preset(name), longest(measured(root, name))
        title = f"`{name}`" + (f", which corrects `{row.corrects}`" if row.corrects else "")
        cells = [title, config.summary(), "not run", "", row.claim]
        if found:
            cells[0] = ", ".join(
                [title, *(f"[{m.folder.name}]({m.folder.relative_to(root)})" for m in found)]
            )
            cells[2:4] = [errors_of(found), f"{len(found)} × {epochs_of(found, config)}"]
        cells.append(reference_of(root, row, found))
        if found:
            hours, minutes = divmod(round(mean(m.seconds for m in found) / 60), 60)
            cells.append(f"{hours}:{minutes:02} h")
            cells.append(", ".join(_letters(machines, found)))
        else:
            cells += ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    lines += [f"Machine {chr(65 + i)}: {machine}.  " for i, machine in enumerate(machines)]
    return "\n".join(lines).rstrip() + "\n"


def reference_of(root: Path, row: claims.Row, found: Sequence[Measured]) -> str:
    """Test error (%) of a row's full-precision reference, if it was run in the same folder."""
    if row.reference is None:
        return "" if row.is_reference else "none"
    reference = longest(measured(root, row.reference))
    if not reference:
        return "not run"
    shown = f"{mean_of(reference)} (n = {len(reference)})"
    epochs = epochs_of(reference, preset(row.reference))
    return shown if epochs == epochs_of(found, preset(row.preset)) else f"{shown}, {epochs} epochs"


def _letters(machines: list[str], found: Sequence[Measured]) -> Iterator[str]:
    for machine in dict.fromkeys(m.machine for m in found):
        if machine not in machines:
            machines.append(machine)
        yield chr(65 + machines.index(machine))


def longest(found: Sequence[Measured]) -> list[Measured]:
    """Runs of the most epochs: errors after different ones are not averaged."""
    most = max((m.epochs for m in found), default=0)
    return [m for m in found if m.epochs == most]


def epochs_of(found: Sequence[Measured], config: Config) -> str:
    """How many epochs these runs had, and of how many."""
    epochs = found[0].epochs if found else config.epochs
    return str(epochs) if epochs >= config.epochs else f"{epochs} of {config.epochs}"


def mean_of(found: Sequence[Measured], column: str = "test_error") -> str:
    """Mean ± standard deviation of a column after the last epoch."""
    errors = [m.last(column) or 0.0 for m in found]
    return f"{mean(errors):.2f}" + (f" ± {stdev(errors):.2f}" if len(errors) > 1 else "")


def errors_of(found: Sequence[Measured]) -> str:
    """Test error (%) after the last epoch, and that of the fired bits."""
    text = mean_of(found)
    if all(m.last("test_error_bits") is not None for m in found):
        text += f"; from fired bits {mean_of(found, 'test_error_bits')}"
    return text


def first_epochs(root: Path) -> str:
    """Rows that the paper's own program was run on, beside each other epoch by epoch."""
    lines = []
    for name, row in claims.rows().items():
        found = [m for m in measured(root, name) if m.config.seed == 0]
        if not row.original_errors or not found:
            continue
        epochs = range(1, len(row.original_errors) + 1)
        lines += [f"| `{name}`, seed 0, after epoch | {' | '.join(map(str, epochs))} |"]
        lines += [f"|---{'|---' * len(row.original_errors)}|"]
        ours = [f"{m['test_error']:.2f}" for m in found[0].metrics[: len(row.original_errors)]]
        lines += [f"| binep (%) | {' | '.join(ours)} |"]
        theirs = [f"{error:.2f}" for error in row.original_errors]
        lines += [f"| the paper's own program (%) | {' | '.join(theirs)} |", ""]
    return "\n".join(lines)


def page(root: Path) -> str:
    """README.md of a folder of rows."""
    notes = root / "NOTES.md"
    parts = [
        "# Measured",
        "Written by `binep reproduce` from the logs beside it: do not edit. A row's runs lie in "
        "`ROW/seedN` with `config.toml`, `metrics.csv`, `curves.png` and `environment.json`. "
        f"Claims are from {claims.SOURCE}. Errors are on the test set after the last epoch, mean ± "
        "standard deviation over seeds; none is the best of several epochs. A reference has real "
        "weights, learnt by gradient descent on equilibrium propagation's gradients, and real "
        "activations.",
        table(root).rstrip(),
        first_epochs(root).rstrip(),
        f"[{notes.name}]({notes.name}) discusses them." if notes.exists() else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
