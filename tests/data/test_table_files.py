"""CSV and Parquet: features and labels read back, and anything else refused in one line."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from binep.cli.main import main
from binep.data.errors import DataError
from binep.data.sources import source_of

pandas = pytest.importorskip("pandas")

HEAD = "width,label,height\n"
TRAIN = HEAD + "1,yes,0.5\n2,no,300\n-3,yes,1e-3\n"
TEST = HEAD + "4,no,7\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.csv").write_text(TRAIN)
    (tmp_path / "test.csv").write_text(TEST)
    return tmp_path


def read(path: Path) -> tuple[Any, ...]:
    source = source_of(str(path))
    (train, test) = source.read(None, False)
    return source.classes, train.images.tolist(), train.labels.tolist(), test.images.tolist()


WANTED = (
    ("no", "yes"),
    [[1, 0.5], [2, 300], [-3, pytest.approx(1e-3)]],
    [1, 0, 1],
    [[4, 7]],
)


def test_two_files_are_a_data_set(folder: Path) -> None:
    assert read(folder) == WANTED
    (folder / "test.csv").write_text("height,width,label\n7,4,no\n")  # in their own order
    assert read(folder) == WANTED


def test_one_file_says_which_rows_are_for_testing(tmp_path: Path) -> None:
    lines = [line + ",train" for line in TRAIN.splitlines()[1:]]
    lines.insert(1, TEST.splitlines()[1] + ",test")
    path = tmp_path / "all.csv"
    path.write_text("\n".join([HEAD.strip() + ",split", *lines]))
    assert read(path) == WANTED


def test_a_class_may_be_called_none(folder: Path) -> None:
    for name in ("train", "test"):
        path = folder / f"{name}.csv"
        path.write_text(path.read_text().replace("yes", "None").replace("no", "NA"))
    assert read(folder) == (("NA", "None"), WANTED[1], [1, 0, 1], WANTED[3])


def test_rows_of_parquet_are_counted_whatever_its_index(folder: Path) -> None:
    pytest.importorskip("pyarrow")
    for name in ("train", "test"):
        table = pandas.read_csv(folder / f"{name}.csv")
        table.index = [f"row {i}" for i in range(len(table))]
        if name == "train":
            table.loc["row 1", "height"] = None
        table.to_parquet(folder / f"{name}.parquet")
        (folder / f"{name}.csv").unlink()
    with pytest.raises(DataError, match="the column height, row 2 is empty: must be a number"):
        read(folder)


def test_parquet_is_read_as_the_csv_of_it(folder: Path) -> None:
    pytest.importorskip("pyarrow")
    for name in ("train", "test"):
        pandas.read_csv(folder / f"{name}.csv").to_parquet(folder / f"{name}.parquet")
        (folder / f"{name}.csv").unlink()
    assert read(folder) == WANTED


def test_labels_may_be_numbers(folder: Path) -> None:
    (folder / "train.csv").write_text("a,label\n1,1\n2,2\n")
    (folder / "test.csv").write_text("a,label\n1,2\n")
    assert read(folder)[:3] == (("1", "2"), [[1], [2]], [0, 1])


def _file(name: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(text)


BAD = [
    (
        _file("train.csv", HEAD + "1,yes,red\n2,no,3\n"),
        "the column height holds 'red': must",
    ),
    (
        _file("train.csv", HEAD + "1,yes,2\n2,no,blue\n"),
        "the column height holds 'blue': must",
    ),
    (_file("train.csv", HEAD + "1,yes,1\n2,no,\n"), "the column height, row 2 is empty"),
    (_file("train.csv", HEAD + "1,,1\n2,no,1\n"), "label, row 1 is empty: must be a class"),
    (_file("train.csv", HEAD + "1,yes,NA\n2,no,1\n"), "the column height holds 'NA': must"),
    (_file("train.csv", HEAD + "1,yes,1\n2,no,nan\n"), "the column height holds 'nan': must"),
    (_file("train.csv", f",{HEAD}0,1,yes,1\n1,2,no,1\n"), "train.csv: column 1 has no name"),
    (_file("train.csv", HEAD + "1,yes,1\n2,yes,1\n"), "all labels of y_train are yes"),
    (_file("train.csv", HEAD + "1,yes,inf\n2,no,1\n"), "must hold finite numbers"),
    (_file("train.csv", HEAD + "1,3,1\n2,1,1\n"), "y_test is <U2: must be as y_train, int64"),
    (_file("train.csv", HEAD), "train.csv: must have rows, and columns of features beside label"),
    (_file("train.csv", "label\nyes\n"), "must have rows, and columns of features beside label"),
    (_file("train.csv", ""), "train.csv: cannot be read: No columns to parse from file"),
    (_file("train.csv", HEAD + '"1,yes\n'), "train.csv: cannot be read: "),
    (_file("train.csv", "a,b\n1,2\n"), "has no column label: must have one beside a, b"),
    (_file("test.csv", "width,label\n1,yes\n"), "test.csv: must have the columns of"),
    (_file("test.csv", HEAD + "1,maybe,1\n"), "y_test has the label maybe: must be one of no, yes"),
    (lambda folder: (folder / "test.csv").unlink(), "or train.csv and test.csv"),
]


@pytest.mark.parametrize(("spoil", "said"), BAD, ids=[said[:30] for _, said in BAD])
def test_what_is_no_table_is_refused(
    spoil: Callable[[Path], Any], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(folder)
    assert main(["train", "quickstart", "--dataset", str(folder)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_a_file_without_its_splits_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="has no column split of train or test for each row"):
        source_of(str(folder / "train.csv"))
    (folder / "a.csv").write_text("width,label,split\n1,yes,train\n2,no,validate\n")
    with pytest.raises(DataError, match="the column split holds validate: must be train or test"):
        source_of(str(folder / "a.csv"))
    (folder / "a.csv").write_text("width,label,split\n1,yes,train\n2,no,train\nred,no,test\n")
    with pytest.raises(DataError, match="the column width holds 'red': must be numbers"):
        source_of(str(folder / "a.csv"))


def test_without_pandas_it_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(DataError, match=r"pip install 'binep\[tables\]'"):
        source_of(str(folder))


def test_features_from_training_to_predictions(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    words = ["train", "quickstart", "--dataset", ".", "--epochs", "1", "--run-dir", "run"]
    assert main([*words, "--standardize", "--layers.1.size", "8", "--threads", "1"]) == 0
    np.save("new.npy", np.array([[1.0, 2.0], [3.0, 4.0]]))
    Path("NEW.NPY").write_bytes(Path("new.npy").read_bytes())
    assert main(["predict", "run", "NEW.NPY"]) == 0
    capsys.readouterr()
    assert main(["predict", "run", "new.npy"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
