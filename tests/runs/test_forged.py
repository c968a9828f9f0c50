"""Checkpoints whose digest was forged: every field is checked, and refused in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzzing
import pytest
import samples
import torch
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused
from torch import Tensor

from binep.experiment.config import Config, ConfigError, Layer
from binep.experiment.experiment import Experiment
from binep.runs import folder as runs
from binep.runs import tensors
from binep.runs.checkpoints import CHECKPOINT
from binep.runs.files import RunError

State = dict[str, Tensor]
About = dict[str, Any]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped in its second epoch, after the first of two batches."""
    data = samples.write_mnist(tmp_path_factory.mktemp("forged"), 4, 2)
    folder = tmp_path_factory.mktemp("run")
    layers = {"1": Layer(4, scale_lr=0.1), "2": Layer(10)}
    config = Config(
        dataset="mnist", data_dir=data, layers=layers, epochs=3, batch_size=2, threads=1
    )
    stop = iter([False, False, True]).__next__
    with pytest.raises(runs.Stopped):
        runs.train(Experiment(config), folder, stop=stop)
    (folder / "whole").write_bytes((folder / CHECKPOINT).read_bytes())
    return folder


def forge(run: Path, change: Callable[[State, About], object]) -> Path:
    """The run's checkpoint changed, with a digest that fits."""
    (run / CHECKPOINT).write_bytes((run / "whole").read_bytes())
    state, about = tensors.load_tensors(run / CHECKPOINT)
    change(state, about)
    tensors.save_tensors(run / CHECKPOINT, state, about)
    return run / CHECKPOINT


def rows(change: Callable[[dict[str, Any]], object]) -> Callable[[State, About], object]:
    return lambda state, about: change(about["rows"][0])


def put(name: str, value: Any, dtype: torch.dtype | None = None) -> Any:
    """Another tensor of that name, of the same type unless another is given."""
    return lambda s, _: s.update({name: torch.tensor(value, dtype=dtype or s[name].dtype)})


def fill(name: str, value: float) -> Any:
    return lambda s, _: s.update({name: torch.full_like(s[name], value)})


CHANGES: list[tuple[Callable[[State, About], object], str]] = [
    (lambda s, a: a.pop("rows"), "rows: no list"),
    (lambda s, a: a.pop("config"), "config is no text"),
    (lambda s, a: a.update(config=3), "config is no text"),
    (lambda s, a: a.update(config="["), "not TOML"),
    (lambda s, a: a.update(config="x=" + "[" * 10**5), "not TOML"),
    (lambda s, a: a.update(warned=None), "warned is no list"),
    (lambda s, a: a.update(warned=[[]]), "warned is no list"),
    (lambda s, a: a.update(rows={}), "rows: no list"),
    (lambda s, a: a.update(rows=[3]), "rows: no list"),
    (lambda s, a: a.update(rows=[]), "rows are of 0 epochs"),
    (lambda s, a: a.update(rows=2 * a["rows"]), "row 2 is of epoch 1"),
    (lambda s, a: a.update(kind=[]), "is no checkpoint"),
    (rows(lambda row: row.pop("train_seconds")), "row 1 has no train_seconds"),
    (rows(lambda row: row.update(test_error="3")), "test_error = '3': must be a number"),
    (rows(lambda row: row.update(test_error=True)), "must be a number"),
    (rows(lambda row: row.update(test_error=101)), "from 0 to 100"),
    (rows(lambda row: row.update(test_error=None)), "row 1 has no test_error"),
    (rows(lambda row: row.update(train_loss=10**400)), "must be a number"),
    (rows(lambda row: row.update({"$\\frac$": 1})), "letters, digits"),
    (put("progress", [-3, 0]), "progress is epoch -3"),
    (put("progress", [1, 9]), "progress is epoch 1, batch 9"),
    (put("progress", [9, 0]), "progress is epoch 9"),
    (put("progress", [3, 1]), "progress is epoch 3, batch 1"),
    (put("progress", [2, 1]), "rows are of 1 epochs, its progress of 2"),
    (put("progress", [1, 0]), "meter"),
    (put("progress", [1.0, 1.0], torch.float32), "progress is torch.float32"),
    (lambda s, a: s.pop("meter.loss"), "meter.loss missing"),
    (put("meter.batches", 7.0), "meter.batches"),
    (put("meter.samples", 0.5), "meter.samples"),
    (put("meter.samples", torch.nan), "meter.samples"),
    (put("meter.seconds", -1.0), "meter.seconds"),
    (put("meter.wrong.error", 99), "meter.wrong.error"),
    (put("meter.steps", [-1.0, 1.0]), "meter.steps"),
    (put("meter.steps", [1.0]), "meter.steps"),
    (put("flips.0", -1), "flips.0 = -1"),
    (put("decays", [0.5, 0.0]), "decays"),
    (put("decays", [torch.nan, 1.0]), "decays"),
    (fill("momentum.0", torch.inf), "momentum.0"),
    (fill("network.synapses.1.bias", torch.nan), "network.synapses.1.bias"),
    *((fill("network.synapses.0.scale", x), "scaling factor") for x in (-1.0, 0.0, 1e38)),
    (fill("order", 0), "order is no state"),
    (fill("nudge", 255), "nudge is no state"),
    (lambda s, a: s["order"][24:].zero_(), "order is no state"),
    (put("order", [1, 2]), "order is torch.uint8 of shape (2,)"),
    (put("order", 1.0, torch.float64), "order is torch.float64"),
    (lambda s, a: s.update({"rule.0.m": torch.zeros(1)}), "rule.0.m is of no flip rule"),
    (lambda s, a: s.update({"x\x1b[31m": torch.zeros(1)}), r"called 'x\x1b[31m', which is no name"),
    (lambda s, a: s.update(extra=torch.zeros(1)), "extra missing or unknown"),
]


@pytest.mark.parametrize("number", range(len(CHANGES)))
def test_a_forged_field_is_refused_by_name(run: Path, number: int) -> None:
    change, reason = CHANGES[number]
    path = forge(run, change)
    try:
        runs.load_checkpoint(run)
    except (RunError, ConfigError) as error:
        assert str(error).startswith(f"{path}: ")
        assert reason in str(error)
        assert "\n" not in str(error)
        return
    raise AssertionError("accepted")


@pytest.mark.parametrize(
    "text", ["[]", "3", "{", "[" * 10**5, '{"a":' * 10**5, '{"a": ' + "9" * 5000 + "}"]
)
def test_facts_that_are_no_json_object_are_refused(
    run: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", lambda *_, **__: text)
        path = forge(run, lambda s, a: None)
    with refused(path, "JSON"):
        tensors.load_tensors(path)


VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=5,
)
NUMBERS = (torch.nan, torch.inf, -torch.inf, -1, 0, 0.5, 1, 2, 1e38, -3, 255, 2**62)
TYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
)


@st.composite
def changes(draw: st.DrawFn, state: State, about: About) -> None:
    """Change one field of a checkpoint: a tensor, a fact, or a cell of its rows."""
    kind = draw(st.sampled_from(("fact", "cell", "gone", "type", "shape", "value", "name")))
    if kind == "fact":
        name = draw(st.sampled_from(list(about)) | st.text(max_size=5))
        about[name] = draw(VALUES)
        return
    if kind == "cell":
        row = about["rows"][0]
        row[draw(st.sampled_from(list(row)) | st.text(max_size=5))] = draw(VALUES)
        return
    name = draw(st.sampled_from(list(state)))
    tensor = state[name]
    if kind == "gone":
        del state[name]
    elif kind == "type":
        state[name] = tensor.to(draw(st.sampled_from(TYPES)))
    elif kind == "shape":
        shape = draw(st.lists(st.integers(0, 3), max_size=4))
        state[name] = torch.zeros(shape, dtype=tensor.dtype)
    elif kind == "name":
        state[draw(st.text(max_size=9))] = tensor.clone()
    elif tensor.numel():
        flat = state[name].view(-1)
        at, value = draw(st.integers(0, len(flat) - 1)), draw(st.sampled_from(NUMBERS))
        with contextlib.suppress(RuntimeError, TypeError, OverflowError):  # none of the type
            flat[at] = value


@fuzzing.cases(60)
@given(draw=st.data())
def test_a_forged_checkpoint_is_refused_or_trains(run: Path, draw: st.DataObject) -> None:
    """What is accepted is a state that training could have, and goes on to the end."""

    def change(state: State, about: About) -> None:
        with contextlib.suppress(UnicodeEncodeError):
            draw.draw(changes(state, about))

    try:
        path = forge(run, change)
    except (RuntimeError, UnicodeEncodeError, RecursionError):  # no such file can be written
        return
    with fuzzing.time_limit():
        try:
            experiment, rows, _ = runs.resume(run)
        except (RunError, ConfigError) as error:
            assert str(error).startswith(f"{path}: ")
            assert "\n" not in str(error)
            return
        assert len(rows) == experiment.epoch <= 3
        config = dataclasses.replace(experiment.config, epochs=3)
        assert config == experiment.config
        result = experiment.train_epoch()
    assert 0 <= result.train.error <= 100
