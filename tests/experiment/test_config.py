"""Configurations: the file is the whole of one, and every wrong setting is named."""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from binep.core.speed import SHORTCUTS, Speed
from binep.data.sources import input_shape_of
from binep.experiment.build import build_estimator, build_network, build_optimizers
from binep.experiment.config import (
    Config,
    ConfigError,
    ConvLayer,
    DenseLayer,
    Dynamics,
    Layer,
    Learning,
    differing,
    preset,
    preset_names,
)

Values = st.SearchStrategy[Any]
Table = dict[str, Any]

# ---- what each number may be, written down again: values inside, values outside, the words


def outside(low: float, high: float = math.inf, *, open_low: bool = False) -> Values:
    """Floats out of [low, high], or of (low, high]; infinity never is inside."""
    return st.floats().filter(
        lambda x: not ((low < x if open_low else low <= x) and x <= high and math.isfinite(x))
    )


COUNT = (st.integers(1, 6), st.integers(max_value=0), "a whole number from 1")
SHARE = (st.floats(0, 1, exclude_min=True), outside(0, 1, open_low=True), "above 0 and at most 1")
RATE = (st.floats(0, 1e9), outside(0), "a finite number from 0")
RANGES: dict[str, tuple[Values, Values, str]] = {
    "epochs": COUNT,
    "batch_size": COUNT,
    "test_batch_size": COUNT,
    "max_batches": (st.none() | COUNT[0], *COUNT[1:]),
    "threads": (st.none() | COUNT[0], COUNT[1] | st.integers(1025), "from 1 to 1024"),
    "checkpoint_minutes": RATE,
    "warn_flip_rate": (st.floats(0, 1), outside(0, 1), "from 0 to 1"),
    "validation": (
        st.floats(0, 1, exclude_max=True),
        st.floats(min_value=1) | st.sampled_from((-0.1, math.nan)),
        "from 0 to below 1",
    ),
    "pixel_power": (st.floats(0.01, 9), outside(0, open_low=True), "a finite number above 0"),
    "shift": (
        st.none() | st.integers(0, 27),
        st.integers(max_value=-1),
        "a whole number from 0",
    ),
    "seed": (
        st.integers(0, 2**63 - 1),
        st.integers(max_value=-1) | st.integers(min_value=2**63),
        "a whole number from 0 to 2^63",
    ),
    "dynamics.initial_state": (st.floats(0, 1), outside(0, 1), "from 0 to 1"),
    "dynamics.free_steps": COUNT,
    "dynamics.nudged_steps": COUNT,
    "dynamics.settle_tol": RATE,
    "dynamics.firing_threshold": SHARE,
    "dynamics.neuron_filter": SHARE,
    "learning.output_copies": COUNT,
    "learning.beta": (
        st.floats(-9, 9).filter(lambda beta: abs(beta) >= 1e-6),
        st.sampled_from((0.0, -0.0, 1e-7, math.nan, math.inf, -math.inf)),
        "a finite number, at least 1e-6 away from 0",
    ),
    **{
        f"learning.{name}": (st.floats(1, 9), outside(1), "a finite number from 1")
        for name in ("gamma_decay", "scale_lr_decay")
    },
    "learning.gamma_decay_epochs": COUNT,
    "learning.scale_lr_decay_epochs": COUNT,
    "layers.1.size": COUNT,
    "layers.1.kernel": (st.integers(1, 5), *COUNT[1:]),
    "layers.1.padding": (st.integers(0, 2), st.integers(max_value=-1), "a whole number from 0"),
    "layers.1.pool": (st.integers(1, 2), *COUNT[1:]),
    "layers.1.gamma": SHARE,
    "layers.1.threshold": RATE,
    "layers.1.weight_lr": (st.none() | RATE[0], *RATE[1:]),
    "layers.1.bias_lr": RATE,
    "layers.1.scale_lr": RATE,
    "layers.1.firing_threshold": (st.none() | SHARE[0], *SHARE[1:]),
}
NAMES = {
    "dataset": ("mnist5k", "mnist", "fashion-mnist", "cifar10"),
    "dynamics.activation": ("hard-sigmoid", "heaviside"),
    "dynamics.solver": ("steps", "annealing"),
    "learning.estimator": ("ep", "bptt"),
    "learning.cost": ("squared-error", "cross-entropy"),
    "learning.flip_rule": ("momentum",),
}
DEVICES = ("cpu", "tpu", "gpu", "cuda:9", "cuda", "cpu:1", "CPU", "", "meta", "mkldnn", "cuda:256")


def at_keys(values: dict[str, Values], low: int, high: int) -> Values:
    """From `low` to `high` of the keys, each with a value."""
    keys = st.lists(st.sampled_from(list(values)), min_size=low, max_size=high, unique=True)
    return keys.flatmap(lambda keys: st.fixed_dictionaries({key: values[key] for key in keys}))


def some(of: type, prefix: str, **known: Values) -> Values:
    """Instances of a dataclass; what RANGES does not limit comes from the types."""
    values: dict[str, Any] = {f.name: ... for f in dataclasses.fields(of)}
    values |= {f: RANGES[prefix + f][0] for f in values if prefix + f in RANGES}
    values |= {f: st.sampled_from(NAMES[prefix + f]) for f in values if prefix + f in NAMES}
    return st.builds(of, **(values | known))


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """Valid configurations of any shape: convolutions, then dense layers."""
    dynamics, learning = draw(some(Dynamics, "dynamics.")), draw(some(Learning, "learning."))
    if learning.estimator == "bptt":
        steps = max(dynamics.free_steps, dynamics.nudged_steps)
        dynamics = dataclasses.replace(dynamics, activation="hard-sigmoid", free_steps=steps)
    if learning.cost == "cross-entropy":
        learning = dataclasses.replace(learning, output_copies=1)
    kinds = ["conv"] * draw(st.integers(0, 2)) + ["dense"] * draw(st.integers(0, 2))
    if learning.cost == "cross-entropy" and not kinds:
        kinds = ["dense"]
    is_ising = dynamics.activation == "heaviside" and learning.cost == "squared-error"
    if not is_ising or "conv" in kinds:
        dynamics = dataclasses.replace(dynamics, solver="steps")
    rates = {} if learning.synapses == "real" else {"weight_lr": st.none()}
    layers = [draw(some(TABLES[kind], "layers.1.", kind=st.just(kind), **rates)) for kind in kinds]
    size = st.just(10 * learning.output_copies)
    output = some(DenseLayer, "layers.1.", kind=st.just("dense"), size=size, **rates)
    known: dict[str, Values] = {
        "device": st.just("cpu"),
        "data_dir": st.none() | st.builds(Path, st.text()),
        "dynamics": st.just(dynamics),
        "learning": st.just(learning),
        # Every shape would start a C++ compiler: tests/test_network.py has a test of its own.
        "speed": st.builds(
            Speed,
            off=st.lists(st.sampled_from(SHORTCUTS)).map(tuple),
            precision=st.sampled_from(("exact", "split", "fast")),
        ),
        "options": st.just({}),
        "start": st.none(),  # the last two are of files that lie elsewhere
        "plugins": st.just({}),
        "layers": st.just({str(i): x for i, x in enumerate([*layers, draw(output)], 1)}),
    }
    config: Config = draw(some(Config, "", **known))
    if config.dataset == "cifar10" and config.pixel_power != 1:
        config = config.replace(standardize=True)
    return config.effective()


def changed(thing: Any, changes: Table) -> Any:
    """A copy of a dataclass or a dict with the values at some dotted keys replaced.

    What a layer of another kind lacks is left out.
    """
    for key, value in changes.items():
        head, _, rest = key.partition(".")
        if rest:
            inner = thing.get(head) if isinstance(thing, dict) else getattr(thing, head)
            value = changed(inner, {rest: value})
        if isinstance(thing, dict):
            thing = {**thing, head: value}
        elif head in SHAPE and not hasattr(thing, head):
            continue
        else:
            thing = dataclasses.replace(thing, **{head: value})
    return thing


TABLES = {"dense": DenseLayer, "conv": ConvLayer}
SHAPE = ("kernel", "padding", "pool", "pooling")


BASE = Config(
    title="a title",
    data_dir=Path("data"),
    mirror=True,
    shift=1,
    max_batches=2,
    threads=1,
    learning=Learning(synapses="real"),
    speed=Speed(off=("odd-even",)),
    layers={
        "1": ConvLayer(4, weight_lr=0.1),
        "2": Layer(6),
        "3": Layer(10),
    },
)
"""A valid configuration without `None`, but for layers 2 and 3."""
TABLE = tomllib.loads(BASE.to_toml())


def keys_of(table: Table, prefix: str = "") -> list[str]:
    inner = {prefix + k: v for k, v in table.items()}
    return [
        *inner,
        *(k for p, v in inner.items() if isinstance(v, dict) for k in keys_of(v, f"{p}.")),
    ]


def problems(config: Config) -> list[str]:
    """The lines of the error that a configuration raises, if any."""
    try:
        config.check()
    except ConfigError as error:
        return str(error).split("\n")
    return []


@given(configs(), configs())
def test_what_differs_is_named(one: Config, other: Config) -> None:
    tables = [tomllib.loads(config.to_toml()) for config in (one, other)]
    keys = differing(one, other)
    assert (not keys) == (tables[0] == tables[1])
    for key in keys:
        ours, theirs = (at(table, key) for table in tables)
        assert ours != theirs
        assert not (isinstance(ours, dict) and isinstance(theirs, dict))
    assert set(differing(other, one)) == set(keys)


def at(table: Table, key: str) -> Any:
    """The value at a dotted key, or None."""
    for part in key.split("."):
        table = table.get(part)  # type: ignore[assignment]
    return table


def refusal(text: str) -> str:
    """The error that a file of this text raises, if any."""
    try:
        Config.from_toml(text, "run.toml")
    except ConfigError as error:
        return str(error)
    return ""


# ---- files


@given(configs())
def test_a_file_holds_the_whole_configuration(config: Config) -> None:
    assert Config.from_toml(config.to_toml(), "run.toml") == config


def test_a_file_is_read_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(BASE.to_toml(), encoding="utf-8")
    assert Config.load(path) == BASE


def test_a_folder_may_be_text() -> None:
    assert BASE.replace(data_dir="data") == BASE


@pytest.mark.parametrize("content", [None, b"title = '\xff'", b"title ="])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}: [^\n]+$"):
        Config.load(path)


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_complete_and_valid(name: str) -> None:
    config = preset(name)
    config.check()
    assert config.title
    assert Config.from_toml(config.to_toml(), name) == config


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"^unknown preset 'quickstar' \(did you mean quickstart\?\): binep presets",
    ):
        preset("quickstar")


@given(st.data())
def test_unknown_keys_are_named(data: st.DataObject) -> None:
    place = data.draw(st.sampled_from(("", "dynamics.", "learning.", "layers.2.")))
    key = place + data.draw(st.from_regex(r"[A-Za-z0-9_-]{1,9}", fullmatch=True))
    if key not in (*keys_of(TABLE), "layers.2.weight_lr"):
        text = tomli_w.dumps(changed(TABLE, {key: 1}))
        said = refusal(text)
        assert re.match(rf"run\.toml: unknown key {key}( \(did you mean \w+\?\))?: one of ", said)


TOML_VALUES = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.booleans(),
    st.text(),
    st.dates(),
    st.just([]),
    st.just({}),
)


@settings(max_examples=300)
@given(key=st.sampled_from(keys_of(TABLE)), value=TOML_VALUES)
@example(key="epochs", value=True)
@example(key="learning.beta", value=True)
@example(key="learning.zero_bias", value=1)
@example(key="layers.1.gamma", value="0.1")
def test_values_of_another_type_are_named(key: str, value: Any) -> None:
    there: Any = TABLE
    for part in key.split("."):
        there = there[part]
    allowed = (int, float) if isinstance(there, float) else (type(there),)
    if type(value) not in allowed:
        text = tomli_w.dumps(changed(TABLE, {key: value}))
        assert refusal(text).startswith(f"run.toml: {key} = {value!r}: must be ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[layers.1]\nkind = 'dense'", "layers.1.size is missing"),
        ("dataset = 'imagenet'", "dataset = 'imagenet': must be one of mnist5k, mnist, "),
        ("epochs = 1 2", "not TOML: "),
        ("epochs = 1\nepochs = 2", "not TOML: "),
        (f"epochs = {'1' * 9999}", "not TOML: "),
        (f"title = {'[' * 99999}", "not TOML: "),
        (f"[learning]\nbeta = {'1' * 999}", "learning.beta = 111"),
        (f"epochs = 0x{'f' * 9999}", "epochs = (int too large to show): must be a number of at"),
        (f"epochs = {2**63}", f"epochs = {2**63}: must be a number of at most 64 bits"),
        (f"[options.own.{'a.' * 2000}b]\nc = 1", "options.own.a."),
        (f"[options]\nown = {'[' * 90}{']' * 90}", "options.own…: must not be nested deeper"),
        (r'"\u001b[31m\n" = 3', r"unknown key '\x1b[31m\n'"),
    ],
)
def test_what_a_file_says_wrong_is_named(text: str, message: str) -> None:
    assert refusal(text).startswith(f"run.toml: {message}")


@given(st.data())
def test_a_damaged_file_is_read_or_refused(data: st.DataObject) -> None:
    text = BASE.to_toml()
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    said = refusal(text[:start] + data.draw(st.text(max_size=9)) + text[end:])
    assert not said or said.startswith("run.toml: ")


# ---- checks


def build(config: Config) -> None:
    """Build all that a configuration describes, and let it settle for a step."""
    shape, classes = input_shape_of(config.dataset)
    network = build_network(config, shape, classes)
    build_estimator(config, network)
    build_optimizers(config, network)
    with torch.no_grad():
        output = network.relax(torch.zeros(1, *shape), 1).output
        assert network.cost.scores(output, "averaged").shape == (1, classes)


@given(configs())
def test_valid_configurations_pass_and_build(config: Config) -> None:
    config.check()
    build(config)


WRONG = {key: wrong for key, (_, wrong, _) in RANGES.items()}
UNFIT: dict[str, Values] = {
    "dataset": st.sampled_from(("mnist", "cifar10")),
    "shift": st.integers(0, 40),
    "device": st.sampled_from(DEVICES),
    "dynamics.activation": st.sampled_from(("hard-sigmoid", "heaviside")),
    "dynamics.nudged_steps": st.integers(1, 9),
    "learning.estimator": st.sampled_from(("ep", "bptt")),
    "learning.cost": st.sampled_from(("squared-error", "cross-entropy")),
    "learning.output_copies": st.sampled_from((1, 2)),
    "layers": configs().map(lambda config: config.layers),
    "layers.0": some(Layer, "layers.1."),
    "layers.1.kind": st.sampled_from(("dense", "conv")),
    "layers.1.kernel": st.integers(1, 40),
    "layers.1.pool": st.integers(1, 40),
    "layers.2": some(Layer, "layers.1.", size=st.sampled_from((9, 10))),
}
"""Values that are right by themselves."""


@settings(max_examples=100)
@given(config=configs(), changes=at_keys(UNFIT, 0, 2), wrong=at_keys(WRONG, 0, 1))
def test_any_configuration_is_refused_or_builds(
    config: Config, changes: Table, wrong: Table
) -> None:
    changed_once = changed(config, changes)
    config = changed(changed_once, wrong)
    if problems(config):
        assert changes | wrong
    else:
        assert not wrong or config == changed_once
        build(config)


@given(at_keys(WRONG, 1, 6))
def test_every_value_out_of_range_has_a_line(wrong: Table) -> None:
    found = problems(changed(BASE, wrong))
    assert len(found) == len(wrong)
    for key, value in wrong.items():
        name = key if key.startswith("layers.") else key.split(".")[-1]
        assert any(x.startswith(f"{name} = {value}: must be {RANGES[key][2]}") for x in found)


@pytest.mark.parametrize(("key", "words"), [(key, words) for key, (*_, words) in RANGES.items()])
def test_every_number_is_bounded_by_its_type(key: str, words: str) -> None:
    """Whatever its range: counts in 64 bits, all else in float32."""
    whole = isinstance(at(TABLE, key), int) or "whole" in words or key == "threads"
    for value in (2**63, 10**5000, -(10**5000)) if whole else (1e300, -1e300):
        (line,) = problems(changed(BASE, {key: value}))
        assert line.startswith(f"{key.split('.')[-1] if 'layers' not in key else key} = ")
        assert len(line) < 400
    largest = 2**63 - 1 if whole else 3.4e38
    for line in problems(changed(BASE, {key: largest})):
        assert "at most 2^63" not in line
        assert "float32" not in line


@pytest.mark.parametrize(
    "changes",
    [
        {"layers.1.size": 2**60},
        {"layers.1.padding": 2**62},
        {"layers.2.size": 2**62},
        {"layers.1.size": 2**40, "layers.2.size": 2**40},
    ],
)
def test_layers_beyond_any_memory_are_named(changes: Table) -> None:
    (line,) = problems(changed(BASE, changes))
    assert line.endswith("no memory can hold it")


def test_text_that_no_file_can_hold_is_named() -> None:
    (line,) = problems(BASE.replace(title="a\ud800"))
    assert line.endswith("must be text that UTF-8 can hold")


BITS = {"dynamics.activation": "heaviside"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": {}}, "layers = []: must be numbered 1, 2, "),
        ({"layers": {"2": Layer(10), "1": Layer(10)}}, "layers = ['2', '1']: must be numbered"),
        ({"layers": {"0": Layer(10)}}, "layers = ['0']: must be numbered 1, 2, "),
        ({"layers": {"1": Layer(10), "3": Layer(10)}}, "layers = ['1', '3']: must be numbered"),
        ({"layers.3.size": 11}, "layers.3.size = 11: must be 10, the 10 classes of mnist5k"),
        ({"learning.output_copies": 2}, "layers.3.size = 10: must be 20, the 10 classes of"),
        ({"layers.1.kernel": 33}, "layers.1: kernel = 33 is larger than its map of 32x32"),
        ({"layers.1.pool": 29}, "layers.1: pool = 29 is larger than its map of 28x28"),
        (
            {"layers.2": ConvLayer(4, kernel=19)},
            "layers.2: kernel = 19 is larger than its map of 18",
        ),
        ({"layers.1.kind": "dense", "layers.2.kind": "conv"}, "layers.2: a convolution needs"),
        ({"layers": {"1": ConvLayer(10)}}, "layers.1.kind = conv: must be dense, it is the"),
        ({"learning.synapses": "binary"}, "layers.1.weight_lr = 0.1: must be left out: binary"),
        ({**BITS, "learning.estimator": "bptt"}, "estimator = bptt: must be ep with heaviside"),
        (
            {"learning.estimator": "bptt", "dynamics.free_steps": 3},
            "free_steps = 3: must be at least nudged_steps = 10 with bptt",
        ),
        (
            {"learning.cost": "cross-entropy", "layers": {"1": Layer(10)}},
            "layers = 1: must be at least 2 with cross-entropy",
        ),
        (
            {"learning.cost": "cross-entropy", "learning.output_copies": 2, "layers.3.size": 20},
            "output_copies = 2: must be 1 with cross-entropy",
        ),
    ],
)
def test_settings_that_do_not_fit_each_other_are_named(changes: Table, message: str) -> None:
    (line,) = problems(changed(BASE, changes))
    assert line.startswith(message)


@pytest.mark.parametrize("count", [0, 2])
def test_devices_are_those_that_exist(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    exist = {"cpu", "cuda", "cuda:0", "cuda:1"} if count else {"cpu"}
    for name in {*DEVICES, *exist}:
        found = problems(BASE.replace(device=name))
        assert len(found) == (name not in exist)
        right = f"this machine has {count} CUDA" if name[:4] == "cuda" else "must be cpu, cuda or"
        assert all(line.startswith(f"device = {name}: {right}") for line in found)
