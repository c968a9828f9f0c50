"""A share of the training set, by class and seeded, that is not trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from binep.cli.main import main
from binep.data.batches import Dataset, Split
from binep.data.errors import DataError
from binep.experiment.config import Config, Layer
from binep.experiment.experiment import Experiment
from binep.runs import folder as runs
from binep.runs.checkpoints import CHECKPOINT, read_checkpoint
from binep.runs.curves import panels
from binep.runs.metrics import read_metrics, row_of


def dataset(counts: list[int], seed: int = 0) -> Dataset:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    split = Split(torch.arange(len(labels)).float()[:, None], labels)
    names = tuple(map(str, range(len(counts))))
    return Dataset("own", split, split, names, None, None)


@given(
    st.lists(st.integers(2, 30), min_size=1, max_size=4),
    st.floats(0.01, 0.6),
    st.integers(0, 2**63 - 1),
)
def test_each_class_gives_its_share_and_nothing_is_lost(
    counts: list[int], share: float, seed: int
) -> None:
    whole = dataset(counts)
    if any(round(share * count) >= count for count in counts):
        with pytest.raises(DataError, match="leaves no sample of the class"):
            whole.held_out(share, seed)
        return
    found = whole.held_out(share, seed)
    assert found.valid is not None
    assert found.valid.labels.bincount().tolist() == [max(1, round(share * n)) for n in counts]
    assert found.test is whole.test
    samples = [split.images[:, 0].long() for split in (found.train, found.valid)]
    assert sorted(torch.cat(samples).tolist()) == list(range(sum(counts)))
    for split, which in zip((found.train, found.valid), samples, strict=True):
        assert which.tolist() == sorted(which.tolist())
        assert torch.equal(split.labels, whole.train.labels[which])
    assert torch.equal(whole.held_out(share, seed).valid.images, found.valid.images)  # type: ignore[union-attr]


def test_another_seed_holds_out_others_and_is_other_data() -> None:
    whole = dataset([50, 50])
    one, other = whole.held_out(0.1, 0), whole.held_out(0.1, 1)
    assert one.valid is not None
    assert other.valid is not None
    assert not torch.equal(one.valid.images, other.valid.images)
    identities = [found.identity for found in (whole, one, other)]
    assert len({identity["sha256"] for identity in identities}) == 3
    assert [(i["train"], i["valid"]) for i in identities] == [(100, 0), (90, 10), (90, 10)]


def test_a_class_of_one_sample_cannot_be_shared() -> None:
    with pytest.raises(DataError, match=r"validation = 0.1: leaves no sample of the class 1 to"):
        dataset([5, 1]).held_out(0.1, 0)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(tmp_path)
    layers = {"1": Layer(8, bias_lr=0.05), "2": Layer(10, bias_lr=0.05)}
    return Config(layers=layers, validation=0.02, epochs=2, max_batches=2, threads=1)


def test_its_error_is_of_those_samples_and_in_the_metrics(config: Config, tmp_path: Path) -> None:
    experiment = Experiment(config)
    (tmp_path / "run").mkdir()
    rows = runs.train(experiment, tmp_path / "run")
    assert len(experiment.data.train) == 3920
    experiment.data = experiment.data.to("cpu")
    valid = experiment.validate()
    assert valid is not None
    assert valid.samples == 80
    assert valid.error == rows[-1]["valid_error"]
    found = read_metrics(tmp_path / "run" / "metrics.csv")
    assert list(found[0])[5:9] == ["train_seconds", "test_seconds", "valid_error", "valid_loss"]
    held = read_checkpoint(tmp_path / "run", config)
    assert [list(row) for row in held.rows] == [list(rows[0])] * 2
    assert held.data is not None
    assert held.data["valid"] == 80
    assert panels(found[0])[0].columns["valid"] == "valid_error"
    assert (tmp_path / "run" / CHECKPOINT).exists()


def test_the_best_network_is_chosen_by_it(config: Config, tmp_path: Path) -> None:
    """The test error falls, the validation error rises: the first network stays the best."""
    experiment = Experiment(config)
    whole, errors = experiment.train_epoch, iter([10.0, 20.0])

    def forged(*arguments: object, **options: object) -> object:
        result = whole(*arguments, **options)  # type: ignore[arg-type]
        error = next(errors)
        assert result.valid is not None
        result.valid.errors["error"] = error
        result.test.errors["error"] = 90 - error
        return result

    experiment.train_epoch = forged  # type: ignore[method-assign, assignment]
    (tmp_path / "run").mkdir()
    runs.train(experiment, tmp_path / "run")
    files = [(tmp_path / "run" / f"{name}.safetensors").read_bytes() for name in ("best", "model")]
    assert files[0] != files[1]


def test_without_it_there_is_no_such_column(config: Config) -> None:
    result = Experiment(config.replace(validation=0.0, max_batches=1)).train_epoch()
    assert result.valid is None
    assert not [name for name in row_of(result) if name.startswith("valid")]
    assert "valid" not in panels(row_of(result))[0].columns


def test_from_the_command_line(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = np.random.default_rng(0).random((20, 6)), np.arange(20) % 2
    np.savez("own.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    words = ["train", "quickstart", "--dataset", "own.npz", "--epochs", "1", "--run-dir", "run"]
    assert main([*words, "--layers.1.size", "8", "--validation", "0.2"]) == 0
    assert "train  valid   test" in capsys.readouterr().out
    assert main([*words, "--validation", "1"]) == 2
    assert "validation = 1.0: must be from 0 to below 1" in capsys.readouterr().err
