"""metrics.csv: in one order, read, or refused by name."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from binep.analysis import measurements
from binep.cli import main as cli
from binep.experiment.config import Config, Dynamics, Layer, Learning
from binep.experiment.experiment import Experiment
from binep.runs import folder as runs
from binep.runs.checkpoints import CHECKPOINT
from binep.runs.metrics import Row, checkpointed, ordered, read_metrics, table

ROW = "1,9,8,0.5,0.4,3,2"
HEAD = "epoch,train_error,test_error,train_loss,test_loss,train_seconds,test_seconds"
BITS = Config(
    layers={str(n): Layer(size) for n, size in enumerate([3] * 9 + [20], start=1)},
    dynamics=Dynamics("heaviside", free_steps=3, nudged_steps=2),
    learning=Learning(output_copies=2, beta=1.0),
    max_batches=2,
    epochs=3,
    threads=1,
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two epochs of three; of so many layers that 10 comes before 2 in the alphabet."""
    (tmp_path / "run").mkdir()
    stop = iter([0, 0, 0, 0, 1]).__next__
    with pytest.raises(runs.Stopped):
        runs.train(Experiment(BITS), tmp_path / "run", stop=stop)
    return tmp_path / "run"


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


def test_a_table_cut_anywhere_within_a_row_is_refused(tmp_path: Path) -> None:
    """Without a checkpoint, that whole rows are gone cannot be seen."""
    path = tmp_path / "metrics.csv"
    whole = f"{HEAD}\n{ROW}\n2,9,8,0.5,0.4,3,2\n"
    path.write_text(whole)
    assert len(read_metrics(path)) == 2
    for length in range(len(whole)):
        path.write_text(whole[:length])
        if length == len(f"{HEAD}\n{ROW}\n"):
            assert len(read_metrics(path)) == 1
            continue
        with refused(path, "no table of metrics"):
            read_metrics(path)


@pytest.mark.parametrize("column", [0, 1, 2, 6, 7])
def test_an_empty_cell_is_refused(tmp_path: Path, column: int) -> None:
    path = tmp_path / "metrics.csv"
    rows = [f"{ROW},5".split(","), f"2{ROW[1:]},5".split(",")]
    rows[1][column] = ""
    text = "\n".join([f"{HEAD},layer1_flips", *map(",".join, rows)]) + "\n"
    path.write_text(text)
    with refused(path, "no table of metrics"):
        read_metrics(path)


def test_columns_keep_their_order_when_a_run_goes_on(run: Path) -> None:
    first = (run / "metrics.csv").read_text().splitlines()[0]
    assert first.index("layer2_flips") < first.index("layer10_flips") < first.index("_single")
    experiment, rows = runs.resume(run)
    assert table(rows).splitlines()[0] == first
    runs.train(experiment, run, rows=rows)
    assert (run / "metrics.csv").read_text().splitlines()[0] == first


@given(seed=st.integers())
def test_a_row_has_one_order(seed: int) -> None:
    names = [*HEAD.split(",")]
    for n in (1, 2, 10):
        kinds = ("flips", "flip_rate", "settle_steps", "residual", "alpha")
        names += [f"layer{n}_{kind}" for kind in kinds]
    for error in ("error_single", "error_bits", "error_bits_single"):
        names += [f"train_{error}", f"test_{error}"]
    mixed = random.Random(seed).sample(names, len(names))
    row: Row = dict.fromkeys(mixed, 1.0)
    assert list(ordered(row)) == names


def test_a_table_that_is_not_the_checkpoints_is_refused_and_written_again(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment, rows = runs.resume(run)
    rows = runs.train(experiment, run, rows=rows)
    path = run / "metrics.csv"
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    alphabetical = sorted(rows[0])
    changed = {
        "epoch 2, train_error": table([rows[0], {**rows[1], "train_error": 0.5}, *rows[2:3]]),
        "epoch 3, epoch": "".join(lines[:3]),
        "layer10_alpha": "\n".join(line.rsplit(",", 8)[0] for line in lines) + "\n",
    }
    for where, text in changed.items():
        path.write_text(text)
        with refused(path, f"differs from {CHECKPOINT} in ", where, f"--resume {run} writes"):
            read_metrics(path)
        assert cli.main(["train", "--resume", str(run)]) == 0
        assert path.read_text() == whole
    old = [{name: row[name] for name in alphabetical} for row in read_metrics(path)]
    path.write_text(table(old))
    assert len(read_metrics(path)) == 3  # as an older version left it
    assert cli.main(["train", "--resume", str(run)]) == 0
    assert path.read_text() == whole
    capsys.readouterr()


def test_a_row_ahead_of_the_checkpoint_is_no_end_of_the_run(run: Path) -> None:
    """Killed between metrics.csv and the rest of an epoch."""
    path = run / "metrics.csv"
    rows = read_metrics(path)
    path.write_text(table([*rows, {**rows[-1], "epoch": 3}]))
    assert len(read_metrics(path)) == 3
    assert checkpointed(run) is not None
    assert measurements.is_unfinished(run, BITS)


def test_a_damaged_checkpoint_says_nothing_about_the_table(run: Path) -> None:
    for content in (b"", b"\xff" * 99, b"\x02" + b"\0" * 7 + b"[]"):
        (run / CHECKPOINT).write_bytes(content)
        assert checkpointed(run) is None
        assert len(read_metrics(run / "metrics.csv")) == 2
