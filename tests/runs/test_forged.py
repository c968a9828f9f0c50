"""Files whose fields were changed, and their digests forged: each is refused by name, or fits."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import os
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzzing
import numpy as np
import pytest
import samples
import tomli_w
import torch
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused
from torch import Tensor

from binep.analysis import report
from binep.analysis.measurements import Measured
from binep.cli import main as cli
from binep.experiment.config import Config, ConfigError, Layer
from binep.experiment.experiment import Experiment, stored
from binep.runs import checkpoints, tensors
from binep.runs import folder as runs
from binep.runs.checkpoints import CHECKPOINT
from binep.runs.environment import read_environment
from binep.runs.files import RunError
from binep.runs.metrics import read_metrics

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


FACTS = (
    *("command", "started", "versions", "python", "git_revision", "platform", "processor"),
    *("threads", "device", "device_name", "resumed"),
)
CHANGES: list[tuple[Callable[[State, About], object], str]] = [
    (lambda s, a: a.pop("rows"), "rows: no list"),
    (lambda s, a: a["data"].update(mean=[0.5], shape=[]), "data has a mean that is no list"),
    (lambda s, a: a["data"].update(mean=[0.5]) or a["data"].pop("shape"), "data has a mean that"),
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
    (put("meter.samples", 1.0), "meter.samples is not 2, as after 1 batches"),
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
            experiment, rows = runs.resume(run)
        except (RunError, ConfigError) as error:
            assert str(error).startswith(f"{path}: ")
            assert "\n" not in str(error)
            return
        assert len(rows) == experiment.epoch <= 3
        config = dataclasses.replace(experiment.config, epochs=3)
        assert config == experiment.config
        result = experiment.train_epoch()
    assert 0 <= result.train.error <= 100


# ---- the other files of a run


def in_one_line(error: Exception, path: Path) -> None:
    assert str(error).startswith(f"{path}: ")
    assert "\n" not in str(error)


@pytest.fixture(scope="module")
def experiment(run: Path) -> Experiment:
    forge(run, lambda state, about: None)
    return runs.load_checkpoint(run)


@fuzzing.cases(60)
@given(draw=st.data())
def test_a_forged_network_is_refused_or_one(
    run: Path, experiment: Experiment, draw: st.DataObject
) -> None:
    path = run / "forged.safetensors"
    checkpoints.save_network(stored(experiment.network), path)
    state, about = tensors.load_tensors(path)
    about |= {"rows": [{"a": 1}]}
    with contextlib.suppress(UnicodeEncodeError, RuntimeError, RecursionError):
        draw.draw(changes(state, about))
        tensors.save_tensors(path, state, about)
    try:
        with fuzzing.time_limit():
            checkpoints.load_network(experiment.network, path)
    except RunError as error:
        in_one_line(error, path)
    for parameter in experiment.network.parameters():
        assert parameter.isfinite().all()
    experiment.network.check()


@fuzzing.cases(100)
@given(name=st.sampled_from(FACTS) | st.text(max_size=9), value=VALUES)
def test_a_forged_environment_is_refused_or_shown(run: Path, name: str, value: Any) -> None:
    path = run / "environment.json"
    whole = json.loads(path.read_text())
    (run / "forged").mkdir(exist_ok=True)
    path = run / "forged" / "environment.json"
    path.write_text(json.dumps(whole | {name: value}))
    try:
        with fuzzing.time_limit():
            about = read_environment(path.parent)
    except RunError as error:
        in_one_line(error, path)
        return
    config = Config.load(run / "config.toml")
    rows = tensors.load_tensors(run / "whole")[1]["rows"]
    found = Measured(run, config, rows, about)
    assert "".join(fact for pair in report._facts(found) for fact in pair).encode()


CELLS = st.text(max_size=9) | st.sampled_from(("", "nan", "inf", "-1", "1e400", "0x1", "1_0", "٣"))


@fuzzing.cases(100)
@given(row=st.integers(0, 2), column=st.integers(0, 40), cell=CELLS)
def test_a_forged_cell_is_refused_or_drawn(run: Path, row: int, column: int, cell: str) -> None:
    path = run / "forged.csv"
    lines = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    line = lines[row % len(lines)]
    line[column % len(line)] = cell
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(lines)
    path.write_bytes(text.getvalue().encode("utf-8", "replace"))
    try:
        with fuzzing.time_limit():
            rows = read_metrics(path)
    except RunError as error:
        in_one_line(error, path)
        return
    assert [r["epoch"] for r in rows] == list(range(1, len(rows) + 1))
    assert all(0 <= (r["test_error"] or 0) <= 100 for r in rows)


TOML: Any = st.recursive(
    st.integers(-(10**30), 10**30) | st.floats() | st.booleans() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=5,
)


@fuzzing.cases(100)
@given(draw=st.data(), value=TOML)
def test_a_forged_setting_is_refused_or_one(run: Path, draw: st.DataObject, value: Any) -> None:
    """What is accepted is written as it is read."""
    table = tomllib.loads((run / "config.toml").read_text())
    places = [table, *(table[name] for name in ("dynamics", "learning", "speed"))]
    places += [table["layers"], *table["layers"].values()]
    place = draw.draw(st.sampled_from(places))
    place[draw.draw(st.sampled_from(list(place)) | st.text(max_size=9))] = value
    try:
        text = tomli_w.dumps(table)
    except (ValueError, UnicodeEncodeError):
        return
    try:
        with fuzzing.time_limit():
            config = Config.from_toml(text, "run.toml")
            config.check()
    except ConfigError as error:
        assert str(error)
        return
    assert Config.from_toml(config.to_toml(), "run.toml") == config


SETTINGS = """dynamics.free_steps=0 dynamics.settle_tol=-1.0 pixel_power=0.0 seed=-1 layers.2=
    learning.output_copies=0 layers.1.size=0 layers.2.kind="conv" layers.2.threshold=-1.0"""


@pytest.mark.parametrize("setting", SETTINGS.split())
@pytest.mark.parametrize("command", ["evaluate", "predict", "summary", "report", "export", "page"])
def test_a_run_of_settings_that_cannot_be_is_refused_by_every_command(
    run: Path, setting: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    shutil.copy(folder / "model.safetensors", tmp_path)
    table = tomllib.loads((folder / "config.toml").read_text())
    path, value = setting.split("=")
    *above, name = path.split(".")
    place = table
    for key in above:
        place = place[key]
    del place[name]
    place.update(tomllib.loads(f"{name} = {value}") if value else {})
    (folder / "config.toml").write_text(tomli_w.dumps(table))
    words = [command, str(folder)] + (["x.npy"] if command == "predict" else [])
    np.save(tmp_path / "x.npy", np.zeros((1, 28, 28), np.uint8))
    assert cli.main(words) == 2
    assert capsys.readouterr().err.startswith("binep: ")


# ---- the command line

ODD = """-1 0 1 3 1e20 1e300 nan inf -inf true None 99999999999999999999 x.toml [] {} -- - ="""
WORDS = """train plot report inspect evaluate check gradients presets reproduce --help --version
    --seed --threads --epochs --batch-size --max-batches --layers.1.size --layers.2.gamma --beta
    --off --precision --device --data-dir --config --run-dir --resume --index --neurons --output
    --from --keep-momentum --seeds --plugin summary predict export compare help
    --format --betas --steps --samples --free-steps --layers.9.size --initial-state"""
SPOKEN = st.sampled_from(WORDS.split()) | st.sampled_from(ODD.split()) | st.text(max_size=9)


@fuzzing.cases(40)
@given(words=st.lists(SPOKEN, max_size=5))
def test_any_words_are_a_command_or_refused(
    run: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is trained: no preset is among them."""
    before = os.getcwd()
    os.chdir(run)
    try:
        with fuzzing.time_limit():
            code: Any = cli.main(words)
    except SystemExit as exit:
        code = exit.code or 0
    finally:
        os.chdir(before)
    said = capsys.readouterr()
    assert code in (0, 2)
    assert (code == 0) or said.err.startswith("binep: ") or not words
    assert "Traceback" not in said.out + said.err
