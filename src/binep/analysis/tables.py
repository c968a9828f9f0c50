"""The paper's tables from logs of runs, as Markdown: what was claimed beside what was measured."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from statistics import mean
from urllib.parse import quote

from binep.analysis import claims
from binep.analysis.measurements import (
    Measured,
    epochs_of,
    errors_of,
    longest,
    mean_of,
    measured,
)
from binep.experiment.config import preset, preset_names


def rows(root: Path, wanted: Collection[str] = ()) -> list[claims.Row]:
    """The rows of the tables: the paper's, then other presets.

    Args:
        root: a folder of runs; presets without a claim have a row where they have a run in it.
        wanted: presets that have a row in any case.
    """
    others = [name for name in preset_names() if name not in claims.rows()]
    shown = [name for name in others if name in wanted or measured(root, name)]
    return [*claims.rows().values(), *map(claims.row_of, shown)]


def table(root: Path) -> str:
    """Every row, run or not, as Markdown with links relative to the folder."""
    lines = [
        "| row | network | test error (%) | runs × epochs | claimed | reference (%) "
        "| time per run | machine |",
        "|---|---|---|---|---|---|---|---|",
    ]
    machines: list[str] = []
    corrected = {row.corrects: row.preset for row in claims.rows().values()}
    for row in rows(root):
        config, found = preset(row.preset), longest(measured(root, row.preset))
        title = f"`{row.preset}`" + (f", which corrects `{row.corrects}`" if row.corrects else "")
        cells = [title, config.summary(), "not run", "", row.claim or "none"]
        if row.preset in corrected:
            cells[2] = f"not run: see `{corrected[row.preset]}`"
        if found:
            cells[0] = ", ".join(
                [title, *(f"[{m.folder.name}]({_link(m.folder, root)})" for m in found)]
            )
            cells[2:4] = [errors_of(found), f"{len(found)} × {epochs_of(found, config)}"]
        beside = reference_of(root, row, found)
        cells.append(f"`{row.reference}`: {beside}" if row.reference else beside)
        if found:
            hours, minutes = divmod(round(mean(m.seconds for m in found) / 60), 60)
            cells.append(f"{hours}:{minutes:02} h")
            cells.append(", ".join(_letters(machines, found)))
        else:
            cells += ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    named = map(_literal, machines)
    lines += [f"Machine {chr(65 + i)}: {machine}.  " for i, machine in enumerate(named)]
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


def _literal(text: str) -> str:
    """Text that Markdown shows as it is, but for code in backticks."""
    return re.sub(r"[\\|<>*_\[\]#&~]", r"\\\g<0>", text)


def _link(folder: Path, root: Path) -> str:
    return quote(folder.relative_to(root).as_posix())


def _letters(machines: list[str], found: Sequence[Measured]) -> Iterator[str]:
    for machine in dict.fromkeys(m.machine for m in found):
        if machine not in machines:
            machines.append(machine)
        yield chr(65 + machines.index(machine))


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
        "# Results",
        "Written by `binep reproduce` from the logs beside it: do not edit. A row's runs lie in "
        "`ROW/seedN` with `config.toml`, `metrics.csv`, `curves.png` and `environment.json`. "
        f"Claims are from {claims.SOURCE}. Errors are on the test set after the last epoch, mean ± "
        "standard deviation over seeds; none is the best of several epochs. A reference has real "
        "weights, learnt by gradient descent on equilibrium propagation's gradients at rates that "
        "are not tuned, and real activations. The class is read from the outputs' states, averaged "
        "over the neurons of a class; 'from fired bits', from the bits that they fire.",
        table(root).rstrip(),
        first_epochs(root).rstrip(),
        f"[{notes.name}]({notes.name}) discusses them." if notes.exists() else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
