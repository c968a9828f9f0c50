"""metrics.csv: read, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusals import refused

from binep.runs.metrics import read_metrics


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"epoch,train_error\n1,2\n",
        *(b"epoch,test_error\n" + row for row in (b"", b"1,x\n", b"1,2,3\n", b"1,\xff\n")),
    ],
)
def test_no_table_of_metrics_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "metrics.csv"
    if content is not None:
        path.write_bytes(content)
    with refused(path):
        read_metrics(path)
