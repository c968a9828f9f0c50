"""Six values of a setting, trained and compared from the command line."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from binep.cli.main import main

BETAS = ("0.05", "0.1", "0.2", "0.4", "0.8", "1.6")


def test_the_best_of_six_betas_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("binep.runs.curves.rendered", lambda figure, kind="png": b"drawn")  # slow
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = rng.random((60, 12, 20)).astype(np.float32) * 0.3
    for image, label in zip(x, y, strict=True):
        image[:, 7 * label : 7 * label + 5] += 0.6
    np.savez("bars.npz", x_train=x[:42], y_train=y[:42], x_test=x[42:], y_test=y[42:])
    usual = ["--dataset", "bars.npz", "--layers.1.size", "8", "--validation", "0.3"]
    for beta in BETAS:
        words = ["--beta", beta, "--epochs", "1", "--threads", "1", "--run-dir", f"runs/{beta}"]
        assert main(["train", "quickstart", *usual, *words]) == 0
    capsys.readouterr()
    runs = [f"runs/{beta}" for beta in BETAS]
    assert main(["compare", *runs, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["learning.beta"] for row in rows} == {*BETAS}
    assert [row["folder"] for row in rows] == [f"runs/{row['learning.beta']}" for row in rows]
    errors = [float(row["valid_error"]) for row in rows]
    assert errors == sorted(errors)
    assert main(["compare", *runs, "--plot", "beta", "--output", "beta.png"]) == 0
    assert Path("beta.png").read_bytes() == b"drawn"
