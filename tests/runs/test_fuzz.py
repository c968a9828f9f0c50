"""Random configurations and damaged files: what is valid trains, all else is refused by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import fuzzing
import pytest
import samples
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_config import UNFIT, WRONG, at_keys, changed, configs

from binep.data import sources as data
from binep.data.sources import DataError
from binep.experiment.config import Config, ConfigError, Layer
from binep.experiment.experiment import Experiment
from binep.runs import folder as runs
from binep.runs.checkpoints import CHECKPOINT
from binep.runs.files import RunError
from binep.runs.metrics import read_metrics
from binep.runs.tensors import load_tensors


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz")
    return samples.write_cifar10(samples.write_mnist(path, 4, 2), 2)


@fuzzing.cases(60)
@given(config=configs(), changes=at_keys(UNFIT, 0, 2), wrong=at_keys(WRONG, 0, 1))
def test_a_configuration_trains_or_is_refused(
    folder: Path, config: Config, changes: dict[str, Any], wrong: dict[str, Any]
) -> None:
    """Two batches; a state may leave the finite numbers only where a setting is that large."""
    config = changed(config, changes | wrong)
    config = dataclasses.replace(
        config,
        dataset="cifar10" if config.dataset == "cifar10" else "mnist",
        data_dir=folder,
        batch_size=min(config.batch_size, 2),
        max_batches=2,
        threads=1 if config.threads is not None and config.threads > 0 else config.threads,
        deterministic=False,
    )
    with fuzzing.time_limit(300):  # the first of a kind also compiles its loops
        try:
            experiment = Experiment(config)
        except ConfigError:
            assert changes | wrong
            return
        except DataError:  # a class of which no sample would be left to train on
            assert config.validation
            return
        result = experiment.train_epoch()
    replaced = {"batch_size", "max_batches", "threads", "layers.1.kernel", "layers.1.padding"}
    assert not wrong.keys() - {*replaced, "layers.1.pool"}  # dense layers lack the last three
    assert 0 <= result.train.error <= 100
    for synapse in experiment.network.learning_synapses():
        if synapse.scale is not None:
            assert (synapse.values.abs() == 1).all()
            assert (synapse.scale > 0).all()


def damage(draw: st.DrawFn, content: bytes) -> bytes:
    """Cut off, overwritten somewhere, lengthened, or something else altogether."""
    kind = draw(st.sampled_from(("cut", "changed", "longer", "other")))
    if kind == "cut":
        return content[: draw(st.integers(0, len(content) - 1))]
    if kind == "longer":
        return content + draw(st.binary(min_size=1, max_size=9))
    if kind == "other":
        return draw(st.binary(max_size=200))
    at = draw(st.integers(0, len(content) - 1))
    return content[:at] + draw(st.binary(min_size=1, max_size=9)) + content[at + 9 :]


damaged = st.composite(damage)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    path = tmp_path_factory.mktemp("run")
    layers = {"1": Layer(4, scale_lr=0.1), "2": Layer(10)}
    config = Config(dataset="mnist", data_dir=folder, layers=layers, epochs=2, threads=1)
    runs.train(Experiment(config), path)
    return path


@fuzzing.cases(100)
@given(draw=st.data())
def test_damaged_metrics_are_a_table_or_refused(run: Path, draw: st.DataObject) -> None:
    path = run / "damaged.csv"
    path.write_bytes(draw.draw(damaged((run / "metrics.csv").read_bytes())))
    try:
        with fuzzing.time_limit():
            rows = read_metrics(path)
    except RunError as error:
        assert str(error).startswith(f"{path}: ")
        return
    assert all(value is None or isinstance(value, float) for row in rows for value in row.values())


@fuzzing.cases(100)
@given(draw=st.data())
def test_a_damaged_checkpoint_is_refused_or_whole(run: Path, draw: st.DataObject) -> None:
    whole, path = run / CHECKPOINT, run / "damaged.safetensors"
    path.write_bytes(draw.draw(damaged(whole.read_bytes())))
    try:
        with fuzzing.time_limit():
            state, about = load_tensors(path)
    except RunError as error:
        assert str(error).startswith(f"{path}: ")
        return
    expected, same = load_tensors(whole)  # only a blank of its header was changed
    assert about == same
    assert all(torch.equal(state[name], expected[name]) for name in expected | state)


@fuzzing.cases(60)
@given(name=st.sampled_from(("mnist", "cifar10")), draw=st.data())
def test_damaged_data_are_refused_or_images(
    tmp_path_factory: pytest.TempPathFactory, folder: Path, name: str, draw: st.DataObject
) -> None:
    broken = tmp_path_factory.getbasetemp() / f"broken-{name}"
    sources = sorted(p for p in folder.rglob("*") if p.is_file())
    inside = "MNIST" if name == "mnist" else "cifar-10-batches-bin"
    sources = [p for p in sources if inside in p.parts]
    victim = draw.draw(st.sampled_from(sources))
    for source in sources:
        target = broken / source.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        content = source.read_bytes()
        target.write_bytes(draw.draw(damaged(content)) if source == victim else content)
    try:
        with fuzzing.time_limit():
            loaded = data.load(name, broken, download=False)
    except DataError as error:
        assert "\n" not in str(error)
        return
    for split in (loaded.train, loaded.test):  # a pixel or a label was changed for another
        assert split.images.shape == (len(split), *data.input_shape_of(loaded.name)[0])
        assert 0 <= int(split.labels.min()) <= int(split.labels.max()) < len(loaded.classes)
