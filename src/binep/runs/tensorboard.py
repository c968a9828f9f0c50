"""The rows of metrics.csv as TensorBoard's event files, in a folder of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from binep.runs.files import RunError

FOLDER = "tensorboard"


class Board:
    """Writes each column of metrics.csv as a scalar of its name, with the epoch as its step.

    Raises:
        RunError: TensorBoard is not installed.
    """

    def __init__(self) -> None:
        try:
            from torch.utils import tensorboard
        except ImportError:
            raise RunError(
                "--tensorboard: TensorBoard is not installed: pip install 'binep[tensorboard]'"
            ) from None
        self._open = tensorboard.SummaryWriter
        self._writer: tensorboard.SummaryWriter | None = None
        self._shown = 0

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def check(self, folder: Path) -> None:
        """Refuse a folder whose name TensorBoard cannot write.

        Raises:
            RunError: the name is not UTF-8.
        """
        try:
            str(folder).encode()
        except UnicodeEncodeError:
            raise RunError(
                f"{folder}: TensorBoard writes to names in UTF-8 only: leave out --tensorboard"
            ) from None

    def show(self, folder: Path, rows: Sequence[Mapping[str, float | None]]) -> None:
        """Write those of a run's rows that are not written yet.

        The first call begins anew with all of them: what a killed process had written, which may
        be an epoch more or less than its checkpoint's, is left behind. So each epoch stands once.

        Raises:
            RunError: they cannot be written.
        """
        try:
            if self._writer is None:
                for old in (folder / FOLDER).glob("events.out.tfevents.*"):
                    old.unlink()  # and nothing that somebody else has put there
                self._writer = self._open(str(folder / FOLDER))
            for row in rows[self._shown :]:
                for column, value in row.items():
                    if column != "epoch" and value is not None:
                        self._writer.add_scalar(column, value, int(row["epoch"] or 0))
            self._writer.flush()
        except OSError as error:
            raise RunError(f"{folder / FOLDER}: cannot be written: {error.strerror}") from error
        self._shown = len(rows)
