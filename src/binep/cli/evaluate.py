"""`binep evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from binep.cli.options import Pluggable, Run, given, parse
from binep.cli.output import errors, join, warn


@dataclass(frozen=True)
class Options(Pluggable):
    """Test a trained network again."""

    run: Run
    """A run folder, a file that `binep export` wrote of one, or a name (`binep models`)."""
    data_dir: Path | None = None
    """Folder of the data sets, if not the run's."""
    device: str | None = None
    """cpu, cuda or cuda:N, if not the run's."""


def main(arguments: Sequence[str]) -> None:
    """Print the scores of a trained network on its test set."""
    options = parse(Options, arguments, prog="binep evaluate")
    from binep.export import packed

    chosen = given(options, "data_dir", "device")
    scores = packed.experiment(options.run, warn=warn, **chosen).evaluate()
    print(
        f"test error {errors(scores)}  test loss {scores.loss:.6g}  "
        f"settles in {join(scores.settle_steps)} steps  {scores.samples} samples"
    )
