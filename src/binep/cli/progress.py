"""What is seen of a training while it goes on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from binep.cli.output import errors, join, warn

if TYPE_CHECKING:
    from binep.experiment.experiment import EpochResult, Experiment
    from binep.experiment.training import Meter


class Reporter:
    """Shows training: a progress bar on a terminal, a line per epoch elsewhere."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.console = Console()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TimeRemainingColumn(),
            TextColumn("{task.fields[scores]}", table_column=Column()),  # which may wrap
            console=self.console,
            disable=not self.console.is_terminal,
        )
        total = experiment.config.epochs * experiment.batches_per_epoch
        self.task = self.progress.add_task("", total=total, scores="")
        self.shown = 0.0

    def __enter__(self) -> Reporter:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def after_batch(self, meter: Meter) -> None:
        """Move the bar, and show the scores of the epoch so far."""
        # Reading the scores makes the host wait for the device: seldom enough not to matter.
        last = meter.batches == self.experiment.batches_per_epoch
        if self.progress.disable or not (last or time.monotonic() - self.shown > 0.5):
            return
        self.shown = time.monotonic()
        scores = meter.read()
        flips = [int(n) for n in self.experiment.flip.flips()] if self.experiment.flip else []
        text = (
            f"error {scores.error:5.2f} %  flips {join(flips)}  "
            f"settles in {join(scores.settle_steps)}  {scores.samples / scores.seconds:.0f}/s"
        )
        done = self.experiment.epoch * self.experiment.batches_per_epoch + meter.batches
        description = f"epoch {self.experiment.epoch + 1}/{self.experiment.config.epochs}"
        self.progress.update(self.task, completed=done, description=description, scores=text)

    def warn(self, text: str) -> None:
        """Print a warning, above the bar where there is one."""
        if self.progress.disable:
            warn(text)
        else:
            self.console.print(f"warning: {text}", highlight=False, soft_wrap=True, markup=False)

    def after_epoch(self, result: EpochResult) -> None:
        """Print the epoch's line."""
        flips = join([change.flips for change in result.layers if change])
        line = (
            f"epoch {result.epoch}/{self.experiment.config.epochs}"
            f"  train error {result.train.error:.2f} %"
            + (f"  valid error {result.valid.error:.2f} %" if result.valid else "")
            + f"  test error {errors(result.test)}"
            + (f"  flips {flips}" if flips else "")
            + f"  settles in {join(result.train.settle_steps)} steps"
            f"  {result.train.samples / result.train.seconds:.0f} samples/s"
            f"  {result.train.seconds + result.test.seconds:.1f} s"
        )
        if self.progress.disable:
            print(line, flush=True)
        else:
            self.console.print(line, highlight=False, soft_wrap=True)
