"""What is seen of a training while it goes on: a table with a row per epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from binep.cli.output import warn

if TYPE_CHECKING:
    from binep.experiment.experiment import EpochResult, Experiment
    from binep.experiment.training import Meter, Scores

WIDTH = 80
"""Letters in a line, where a terminal is not narrower."""


class Columns(NamedTuple):
    """Columns side by side below a title.

    Attributes:
        title: above all of them.
        names: one above each.
        width: letters of each.
    """

    title: str
    names: list[str]
    width: int

    @property
    def room(self) -> int:
        """Letters of a line that they take."""
        return max(len(self.title), (self.width + 1) * len(self.names) - 1)

    def line(self, cells: Sequence[str]) -> str:
        """Cells in their columns, to the right."""
        return " ".join(f"{cell:>{self.width}}" for cell in cells).rjust(self.room)


class EpochTable:
    """The lines of a table of epochs, each of at most so many letters where that is possible.

    There are columns for what the experiment has: a validation set, bits that fire, several layers.
    Of more layers than there is room for, the flips are summed, and the last to settle is shown.
    """

    def __init__(self, experiment: Experiment, width: int = WIDTH) -> None:
        self.epochs = experiment.config.epochs
        self.bits = not experiment.network.neurons[-1].differentiable
        self.validates = experiment.config.validation > 0
        self.summed, self.rated = False, True
        learning = enumerate(experiment.network.learning_synapses(), start=1)
        flips = [number for number, synapse in learning if synapse.scale is not None]
        self.layers = {"flips": flips, "steps": range(1, len(experiment.network.neurons) + 1)}
        for self.summed, self.rated in ((False, True), (False, False), (True, False)):
            if sum(g.room + 2 for g in self.groups()) - 2 <= width:
                break

    def groups(self) -> list[Columns]:
        """The columns."""
        parts = ["train", *["valid"] * self.validates, "test", *["bits"] * self.bits]
        groups = [
            Columns("", ["epoch"], max(5, 2 * len(str(self.epochs)) + 1)),
            Columns("error (%)", parts, 6),
        ]
        for what, width in (("flips", 4), ("steps", 3)):
            numbers = [str(number) for number in self.layers[what]]
            if self.summed and len(numbers) > 1:
                groups.append(Columns(what, ["all" if what == "flips" else "last"], 5))
            elif numbers:
                groups.append(Columns(f"{what} by layer", numbers, width))
        rate = [Columns("", ["samples/s"], 9)] if self.rated else []
        return [*groups, *rate, Columns("", ["s"], 6)]

    def heading(self) -> str:
        """Two lines."""
        groups = self.groups()
        titles = "  ".join(group.title.center(group.room) for group in groups)
        return f"{titles.rstrip()}\n{'  '.join(g.line(g.names) for g in groups)}"

    def row(self, epoch: int, scores: Sequence[Scores | None], flips: Sequence[int]) -> str:
        """A line of an epoch, or of what has been trained of it.

        Args:
            epoch: its number.
            scores: of the training, validation and test sets; None where there are none yet.
            flips: of each layer with binary weights.
        """
        train, valid, test = scores
        assert train is not None
        shown = [train, *[valid] * self.validates, test]
        cells = [self._score(one, "error") for one in shown]
        cells += [self._score(test, "error_bits")] * self.bits
        steps = [f"{steps:.0f}" for steps in train.settle_steps]
        counts = [_short(count) for count in flips]
        if self.summed:
            steps = [f"{max(train.settle_steps):.0f}"]
            counts = [_short(sum(flips))] * bool(flips)
        seconds = sum(one.seconds for one in (train, test) if one is not None)
        every = [[f"{epoch}/{self.epochs}"], cells, *[counts] * bool(counts), steps]
        every += [[f"{train.samples / train.seconds:.0f}"]] * self.rated
        every += [[f"{seconds:.1f}" if seconds < 1000 else f"{seconds:.0f}"]]
        return "  ".join(g.line(c) for g, c in zip(self.groups(), every, strict=True))

    def _score(self, scores: Scores | None, name: str) -> str:
        return "" if scores is None else f"{scores.errors.get(name, math.nan):.2f}"


def _short(count: int) -> str:
    """A count in at most four letters: 9999, 83k, 834k, 1.2M."""
    if count < 10_000:
        return str(count)
    for unit in "kMGT":
        count_in = count / 1000
        if count_in < 999.5:
            return f"{count_in:.1f}{unit}" if count_in < 9.95 else f"{count_in:.0f}{unit}"
        count = round(count_in)
    return "many"


class Reporter:
    """Shows training: on a terminal also the epoch under way, with a bar; elsewhere the table."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.console = Console()
        self.quiet = not self.console.is_terminal
        self.table = EpochTable(experiment, WIDTH if self.quiet else min(WIDTH, self.console.width))
        self.headed = False
        bar = Progress(
            BarColumn(bar_width=min(40, self.console.width - 22)),
            TimeRemainingColumn(),
            TextColumn("to go"),
            console=self.console,
        )
        self.total = experiment.config.epochs * experiment.batches_per_epoch
        self.task = bar.add_task("", total=self.total)
        self.bar = bar
        self.live = Live(bar, console=self.console, transient=True)
        self.shown = 0.0

    def __enter__(self) -> Reporter:
        if not self.quiet:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.live.stop()

    def after_batch(self, meter: Meter) -> None:
        """Move the bar, and show the scores of the epoch so far."""
        # Reading the scores makes the host wait for the device: seldom enough not to matter.
        last = meter.batches == self.experiment.batches_per_epoch
        if self.quiet or not (last or time.monotonic() - self.shown > 0.5):
            return
        self.shown = time.monotonic()
        flip = self.experiment.flip
        flips = [int(n) for n in flip.flips()] if flip else []
        row = self.table.row(self.experiment.epoch + 1, (meter.read(), None, None), flips)
        self._head()
        done = self.experiment.epoch * self.experiment.batches_per_epoch + meter.batches
        self.bar.update(self.task, completed=done)
        self.live.update(Group(Text(row), self.bar), refresh=last)

    def warn(self, text: str) -> None:
        """Print a warning, above the bar where there is one."""
        if self.quiet:
            warn(text)
        else:
            self.console.print(f"warning: {text}", highlight=False, soft_wrap=True, markup=False)

    def after_epoch(self, result: EpochResult) -> None:
        """Print the epoch's line."""
        flips = [change.flips for change in result.layers if change]
        self._head()
        self.live.update(self.bar)  # of the epoch under way nothing is left below its line
        self._print(self.table.row(result.epoch, (result.train, result.valid, result.test), flips))

    def _head(self) -> None:
        if not self.headed:
            self._print(self.table.heading())
        self.headed = True

    def _print(self, text: str) -> None:
        if self.quiet:
            print(text, flush=True)
        else:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)
