"""Kinds of one's own: named in a file, built with their settings, trained, kept and refused."""

from __future__ import annotations

import inspect
import pickle
import sys
import types
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import own_kinds
import pytest
import torch
import tyro

import binep
from binep.cli import train
from binep.cli.options import parse
from binep.core.solvers import Plain
from binep.data.batches import Split
from binep.data.sources import SOURCES, DataError, load
from binep.experiment import kinds
from binep.experiment.config import Config, ConfigError, Dynamics, Layer, Learning, preset
from binep.experiment.experiment import Experiment
from binep.experiment.kinds import COSTS, ESTIMATORS, FLIP_RULES, NEURONS, SOLVERS
from binep.experiment.layers import LAYERS, ConvLayer, DenseLayer
from binep.experiment.settings import Must
from binep.registry import Kind, Registry
from binep.runs import folder as runs

LEAKY = """
from __future__ import annotations
from dataclasses import dataclass
import binep
from binep.experiment import kinds

@kinds.neurons("my_leaky")
@dataclass(frozen=True)
class Leaky(binep.Real):
    rate_up: kinds.Share = 0.5
"""
TEXT = """
dataset = "own-stripes"
epochs = 3
batch_size = 8
threads = 1

[dynamics]
activation = "own-leaky"
initial_state = 0.25
free_steps = 30
nudged_steps = 10

[learning]
estimator = "own-ep"
cost = "own-error"
flip_rule = "own-sign"
beta = 0.4

[options.own-stripes]
count = 48

[options.own-leaky]
leak = 0.4

[options.own-error]
weight = 2.0

[options.own-sign]
times = 2

[layers.1]
size = 30
kind = "own-dense"
gain = 1.5
bias_lr = 0.02

[layers.2]
size = 2
bias_lr = 0.02
"""


def read(text: str = TEXT) -> Config:
    return Config.from_toml(text, "own.toml")


def test_each_gets_its_settings() -> None:
    experiment = Experiment(read())
    assert (len(experiment.data.train), experiment.data.train.images.shape[1:]) == (48, (1, 4, 4))
    network, flip = experiment.network, experiment.flip
    assert network.neurons == [own_kinds.Leaky(0.4, 0.25)] * 2
    assert isinstance(network.cost, own_kinds.OwnError)
    assert (network.cost.weight, network.cost.classes) == (2.0, 2)
    assert isinstance(experiment.estimator, own_kinds.OwnEstimator)
    assert experiment.estimator.inner.beta == 0.4
    assert (experiment.estimator.free_steps, experiment.estimator.nudged_steps) == (30, 10)
    assert isinstance(flip, own_kinds.OwnRule)
    assert [group["times"] for group in flip.param_groups] == [2, 2]
    first = network.synapses[0]
    assert isinstance(first, own_kinds.OwnDense)
    usual = Experiment(read(TEXT.replace("gain = 1.5", "gain = 1.0"))).network.synapses[0]
    assert first.scale is not None
    assert usual.scale is not None
    torch.testing.assert_close(first.scale, 1.5 * usual.scale)
    assert torch.equal(first.values, usual.values)


def test_they_learn_and_flips_are_counted() -> None:
    experiment = Experiment(read())
    start = experiment.evaluate().error
    signs = [s.values.detach().clone() for s in experiment.network.synapses]
    result = experiment.train_epoch()
    changed = [
        int((s.values != before).sum())
        for s, before in zip(experiment.network.synapses, signs, strict=True)
    ]
    counted = [change.flips for change in result.layers if change is not None]
    assert all(0 < fewer <= count for fewer, count in zip(changed, counted, strict=True))
    assert all(count % 2 == fewer % 2 for fewer, count in zip(changed, counted, strict=True))
    for _ in range(2):
        result = experiment.train_epoch()
    assert result.test.error < 20 < start
    assert result.test.error == experiment.evaluate().error


@pytest.mark.parametrize("epochs", [0, 1])
def test_their_state_is_kept_too(epochs: int) -> None:
    first, second = Experiment(read()), Experiment(read())
    for _ in range(epochs):
        first.train_epoch()
    kept = first.state()
    first.train_epoch()
    for experiment in (second, first):
        experiment.restore(kept)
        experiment.train_epoch()
    states = [experiment.state() for experiment in (first, second)]
    assert states[0].keys() == states[1].keys()
    assert any(name.startswith("rule.0.") for name in states[0])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert all(type(s["steps"]) is int for s in second.flip.state.values())


class Drawn(binep.BinaryFlip):
    """Keeps more than `BinaryFlip`, and draws."""

    def __init__(
        self,
        params: Any,
        gamma: float = 1e-5,
        threshold: float = 5e-7,
        generator: torch.Generator | None = None,
        kept: kinds.Rate = 0.7,
    ) -> None:
        super().__init__(params, gamma, threshold)
        self.generator, self.kept = generator, kept

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for signs in group["params"]:
                state = self.state[signs]
                state["share"] = 0.9 * state.get("share", self.kept)
                state["count"] = state.get("count", 0) + 1
                state["mean"] = torch.tensor(0.5)
                state["drawn"] = torch.rand(3, generator=self.generator)
        return super().step(closure)


class Listing(torch.optim.Optimizer):
    """Keeps what no checkpoint holds."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for signs in self.param_groups[0]["params"]:
            self.state[signs]["seen"] = [1, 2]


def test_what_a_rule_keeps_and_draws_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FLIP_RULES, "_kinds", dict(FLIP_RULES._kinds))
    kinds.flip_rule("drawn")(Drawn)
    kinds.flip_rule("listing")(Listing)
    layers = {"1": DenseLayer(8), "2": DenseLayer(10)}
    config = Config(layers=layers, epochs=9, max_batches=2, threads=1)
    config = config.replace(learning=Learning(flip_rule="drawn"))
    whole, resumed = Experiment(config), Experiment(config)
    whole.train_epoch()
    resumed.restore(whole.state())
    for experiment in (whole, resumed):
        experiment.train_epoch()
    states = [experiment.state() for experiment in (whole, resumed)]
    assert states[0].keys() == states[1].keys() >= {"rule.0.number.share", "rule.1.drawn"}
    for experiment in (whole, resumed):
        for state in experiment.flip.state.values():
            assert (type(state["share"]), type(state["count"])) == (float, int)
            assert type(state["mean"]) is torch.Tensor
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    state = {**whole.state(), "rule.0.number.share": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"rule\.0\.number\.share is no number"):
        resumed.restore(state)
    older = {name.replace(".number.", "."): value for name, value in whole.state().items()}
    whole.restore(older)  # as checkpoints were before; this rule keeps numbers already
    assert all(type(state["count"]) is int for state in whole.flip.state.values())
    next(iter(whole.flip.state.values()))["number.vector"] = torch.zeros(3)
    with pytest.raises(ConfigError, match=r"keeps number\.vector: must not begin with number\."):
        whole.state()
    listing = config.replace(learning=Learning(flip_rule="listing"), options={})
    experiment = Experiment(listing)
    experiment.train_epoch()
    with pytest.raises(ConfigError, match="the flip rule keeps seen, a list"):
        experiment.state()


def test_a_file_holds_them_whole() -> None:
    config = read()
    assert Config.from_toml(config.to_toml(), "again.toml") == config
    assert pickle.loads(pickle.dumps(config)) == config
    config.check()
    assert config.effective() == config
    assert "own-leaky activations" in config.summary()
    fewer = read(TEXT.replace("[options.own-leaky]\nleak = 0.4\n", ""))
    assert fewer.options["own-leaky"].leak == 0.2
    assert "leak = 0.2" in fewer.to_toml()


def test_they_are_flags_too() -> None:
    flags = [
        "--options.own-leaky.leak",
        "0.9",
        "--layers.1.gain",
        "3",
        "--free-steps",
        "7",
    ]
    config = tyro.cli(Config, args=flags, default=read())
    assert config.options["own-leaky"].leak == 0.9
    assert config.layers["1"].gain == 3  # type: ignore[attr-defined]
    assert config.dynamics.free_steps == 7
    named = tyro.cli(Config, args=["--cost", "own-error"], default=preset("quickstart"))
    assert named.learning.cost == "own-error"
    assert named.options["own-error"].weight == 1.0


def test_maps_of_one_s_own_have_shapes() -> None:
    layers = {"1": own_kinds.OwnHalves.Settings(3), "2": Layer(2)}  # type: ignore[attr-defined]
    config = Config(dataset="own-stripes", layers=layers, threads=1)
    assert Experiment(config).network.synapses[0].output_shape == (3, 2, 2)
    with pytest.raises(ConfigError, match=r"layers.2.kind = own-halves: must be dense"):
        config.replace(layers={**layers, "2": layers["1"]}).check()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("leak = 0.4", "leak = 7.0", "options.own-leaky.leak = 7.0: must be above 0 and at most 1"),
        ("times = 2", "times = 0", "options.own-sign.times = 0: must be a whole number from 1"),
        ("gain = 1.5", "gain = -1", "layers.1.gain = -1.0: must be a finite number from 0"),
        ("leak = 0.4", "lek = 0.4", "own.toml: unknown key options.own-leaky.lek (did you mean"),
        (
            "leak = 0.4",
            "leak = 'much'",
            "own.toml: options.own-leaky.leak = 'much': must be of ",
        ),
        ("gain = 1.5", "gain = true", "own.toml: layers.1.gain = True: must be of type float"),
        ("gain = 1.5", "gane = 1.5", "own.toml: unknown key layers.1.gane (did you mean gain?)"),
        ("gain = 1.5", "kernel = 5", "own.toml: unknown key layers.1.kernel: "),
        ("own-dense", "own-dens", "own.toml: layers.1.kind = 'own-dens': must be one of dense, "),
        ('"own-error"', '"own"', "own.toml: learning.cost = 'own': must be one of squared-error, "),
        ("weight = 2.0", "weight = inf", "cost = own-error: weight = inf: must be finite"),
        ('"own-error"', '"squared-error"', "options.own-error = "),
        ("free_steps = 30", "neuron_filter = 0.9", "neuron_filter = 0.9: must be left out: "),
        (
            "beta = 0.4",
            "nudging = 'centred'",
            "nudging = centred: must be left out: it ",
        ),
        ("beta = 0.4", "zero_bias = true", ""),  # layer 2 takes it
        ("beta = 0.4", "output_copies = 2", "layers.2.size = 2: must be 4"),
        (
            "bias_lr = 0.02",
            "gamma = 0.5",
            "layers.1.gamma = 0.5: must be left out: it ",
        ),
        ("[options.own-leaky]", "[options.own-lazy]", "options.own-lazy = {'leak': 0.4}: must be"),
    ],
)
def test_what_is_wrong_with_them_is_named(before: str, after: str, message: str) -> None:
    text = TEXT.replace(before, after, 1)
    assert text != TEXT
    try:
        Experiment(read(text))
    except ConfigError as error:
        assert message
        assert str(error).startswith(message)
    else:
        assert not message


def test_a_layers_own_setting_has_a_name_of_its_own() -> None:
    class DeadZone(own_kinds.OwnDense):
        def __init__(self, shape: Any, outputs: int, threshold: kinds.Rate = 0.2) -> None: ...

    with pytest.raises(TypeError, match="DeadZone takes threshold: every layer has a setting"):
        kinds.layer("dead-zone")(DeadZone)
    assert "dead-zone" not in LAYERS


class Masked(own_kinds.OwnReal):
    """With a buffer of whole numbers that are no signs."""

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__(shape, outputs)
        self.register_buffer("mask", torch.arange(outputs, dtype=torch.int8))


class Scaled(binep.SquaredError):
    """With an attribute that binary synapses have, too."""

    def __init__(self, classes: int, scale: kinds.Share = 0.5) -> None:
        super().__init__(classes)
        self.scale = scale


def test_what_they_hold_comes_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(COSTS, "_kinds", dict(COSTS._kinds))
    kinds.cost("scaled")(Scaled)
    kinds.layer("masked")(Masked)
    try:
        layers = {"1": Masked.Settings(8), "2": Layer(10)}  # type: ignore[attr-defined]
        learning = Learning(cost="scaled")
        config = Config(layers=layers, learning=learning, epochs=1, max_batches=2, threads=1)
        runs.train(Experiment(config), tmp_path)
        again, *_ = runs.resume(tmp_path, epochs=2)
        assert again.network.synapses[0].mask.tolist() == list(range(8))
        assert runs.load(tmp_path).evaluate().samples > 0
    finally:
        del LAYERS["masked"]


def test_neurons_may_be_a_dataclass_over_binep_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NEURONS, "_kinds", dict(NEURONS._kinds))
    module = types.ModuleType("written_elsewhere")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(LEAKY, vars(module))
    config = Config(dynamics=Dynamics(activation="my_leaky"))
    assert vars(config.options["my_leaky"]) == {"rate_up": 0.5}


def test_settings_may_be_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    for kinds_of in (NEURONS, COSTS):
        monkeypatch.setattr(kinds_of, "_kinds", dict(kinds_of._kinds))

    @kinds.neurons("listed")
    @dataclass(frozen=True)
    class Listed(binep.Real):
        rates: list[kinds.Share] = field(default_factory=lambda: [0.25, 0.5])

    @kinds.neurons("listed-too")
    class ListedToo(binep.Real):
        def __init__(self, rates: list[kinds.Share] = [0.25, 0.5]) -> None:  # noqa: B006
            super().__init__()

    @kinds.cost("of-files")
    class OfFiles(binep.SquaredError):
        def __init__(self, classes: int, copies: int, files: tuple[Path, ...] = ()) -> None:
            super().__init__(classes, copies)

    paths = Config(learning=Learning(cost="of-files"), options={"of-files": {"files": ["a", "b"]}})
    assert paths.options["of-files"].files == (Path("a"), Path("b"))
    assert Config.from_toml(paths.to_toml(), "again") == paths
    for name in ("listed", "listed-too"):
        made = Config(layers={"1": Layer(10)}, dynamics=Dynamics(activation=name))
        assert made.options[name].rates == [0.25, 0.5]
        made.options[name].rates.append(1.0)  # which are this one's alone
        assert Config.from_toml(made.to_toml(), "again").options[name].rates == [0.25, 0.5, 1.0]
        assert made.replace(options={}).options[name].rates == [0.25, 0.5]
        line = ["--options." + name + ".rates", "0.5", "0.75"]
        assert parse(Config, line, prog="", default=made).options[name].rates == [0.5, 0.75]
        for wrong, right in (
            ("0.5", "a list"),
            (["a"], "a list, value 1 of type float"),
            ([0.5, 2.0], "a list, value 2 above 0 and at most 1"),
        ):
            settings = type(made.options[name])(rates=wrong)
            with pytest.raises(ConfigError, match=f"{name}.rates = .*: must be {right}$"):
                made.replace(options={name: settings}).check()


TWO = Must("two numbers", lambda values: len(values) == 2)


def test_settings_may_be_of_several_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NEURONS, "_kinds", dict(NEURONS._kinds))

    @kinds.neurons("several")
    @dataclass(frozen=True)
    class Several(binep.Real):
        pair: tuple[int, float] = (3, 0.5)
        window: Annotated[tuple[float, ...], TWO] = (0.0, 1.0)
        rate: InitVar[float] = 0.5

    made = Config(layers={"1": Layer(10)}, dynamics=Dynamics(activation="several"))
    given = {"pair": [4, 0.25], "window": [1.0, 2.0], "rate": 0.75}
    other = made.replace(options={"several": given})
    assert vars(other.options["several"]) == {"pair": (4, 0.25), "window": (1.0, 2.0), "rate": 0.75}
    assert Config.from_toml(other.to_toml(), "again") == other
    other.check()
    with pytest.raises(ConfigError, match=r"several\.pair = .*: must be a list of 2 values"):
        made.replace(options={"several": {"pair": [4]}})
    for wrong, right in (
        ({"pair": (0.5, 0.5)}, "a list, value 1 of type int"),
        ({"pair": (3, 0.5, 1)}, "a list of 2 values"),
        ({"window": (1.0, 2.0, 3.0)}, "two numbers"),
        ({"rate": "high"}, "of type float"),
    ):
        settings = type(made.options["several"])(**wrong)
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))} = .*: must be {right}$"):
            made.replace(options={"several": settings}).check()


def test_a_dataclass_may_have_a_constructor_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NEURONS, "_kinds", dict(NEURONS._kinds))

    @kinds.neurons("constructed")
    @dataclass(frozen=True)
    class Constructed(binep.Real):
        rate: float = 0.5

        def __init__(self, speed: float = 0.25) -> None:
            super().__init__()

    config = Config(dynamics=Dynamics(activation="constructed"))
    assert vars(config.options["constructed"]) == {"speed": 0.25}


def test_a_data_set_s_refusal_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def __init__(self, noise: kinds.Rate = 3.0) -> None:
            raise ValueError("noise = 3.0: must be at most 2")

    monkeypatch.setattr(SOURCES, "_kinds", dict(SOURCES._kinds))
    kinds.data_set("refusing")(Refusing)
    with pytest.raises(DataError, match=r"dataset = refusing: noise = 3\.0: must be at most 2"):
        Config(dataset="refusing", layers={"1": Layer(2)}).check()


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("--layers.1.kernel 3 --layers.1.padding=1", {"kernel": 3, "padding": 1}),
        ("--layers.1.gamma 1e-3 --layers.1.pooling average", {"pooling": "average"}),
    ],
)
def test_settings_of_a_kind_of_layer_are_flags(line: str, wanted: dict[str, Any]) -> None:
    config, _ = train._start(["mnist-conv-ep", *line.split()])
    options = parse(
        train.Options,
        ["mnist-conv-ep", *line.split()],
        prog="binep train",
        default=train.Options(experiment=config),
    )
    found = vars(options.experiment.layers["1"])
    assert {name: found[name] for name in wanted} == wanted


def test_gamma_decays_beside_layers_of_real_weights() -> None:
    first = own_kinds.OwnReal.Settings(20)  # type: ignore[attr-defined]
    layers = {"1": first, "2": Layer(10, gamma=1e-3)}
    learning = Learning(gamma_decay=2.0)
    experiment = Experiment(Config(layers=layers, learning=learning, max_batches=1, threads=1))
    for gamma in (1e-3, 5e-4):
        experiment.train_epoch()
        assert [group["gamma"] for group in experiment.flip.param_groups] == [gamma]


def test_real_synapses_are_refused_where_there_are_none() -> None:
    layers = {"1": own_kinds.OwnHalves.Settings(3), "2": Layer(2)}  # type: ignore[attr-defined]
    config = Config(dataset="own-stripes", layers=layers, learning=Learning(synapses="real"))
    with pytest.raises(ConfigError, match=r"^synapses = real: must be binary with "):
        config.check()


def test_a_solver_takes_all_phases() -> None:
    text = TEXT.replace("initial_state = 0.25", "solver = 'own-cold'")
    experiment = Experiment(read(text))
    assert experiment.network.solver is own_kinds.Cold
    assert experiment.train_epoch().train.loss > 0
    x = experiment.data.prepare(experiment.data.test.images)
    assert experiment.network.relax(x, 5).by is own_kinds.Cold
    assert Config.from_toml(experiment.config.to_toml(), "again.toml") == experiment.config
    assert Experiment(read()).network.solver is None
    why = "initial_state = 0.25: must be left out: it does nothing with solver = own-cold"
    with pytest.raises(ConfigError, match=f"^{why}$"):
        read(
            TEXT.replace("initial_state = 0.25", "initial_state = 0.25\nsolver = 'own-cold'")
        ).check()
    one = read(text).replace(layers={"1": Layer(2)})
    with pytest.raises(ConfigError, match=r"^solver = own-cold: must have two layers$"):
        one.check()


def test_a_solver_has_no_settings() -> None:
    with pytest.raises(TypeError, match="Other takes sweeps: must take the network alone"):

        @kinds.solver("other")
        class Other(Plain):
            def __init__(self, network: Any, sweeps: int = 3) -> None:
                super().__init__(network)

    assert "other" not in SOLVERS


def test_backpropagation_asks_for_a_derivative() -> None:
    learning = Learning(estimator="bptt")
    config = read().replace(learning=learning, options={})
    config.check()
    assert Experiment(config).train_epoch().train.loss > 0


@pytest.mark.parametrize("registry", [NEURONS, SOLVERS, COSTS, ESTIMATORS, FLIP_RULES, SOURCES])
def test_a_taken_name_is_refused_and_a_cell_may_run_twice(registry: Registry) -> None:
    names = tuple(registry)
    for name in names:
        with pytest.raises(ValueError, match="the name is taken"):
            registry.register(name)(type("Other", (), {"__init__": lambda self: None}))
    own = next(name for name in names if name.startswith("own-"))
    cls = registry[own].load()
    assert registry.register(own)(cls) is cls
    assert tuple(registry) == names


def test_kinds_of_one_name_have_their_own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        def __init__(self, rate: kinds.Rate = 0.1) -> None: ...

    class Wide:
        def __init__(self, classes: int, margin: kinds.Rate = 0.2) -> None: ...

    for registry, cls in ((NEURONS, Slow), (COSTS, Wide)):
        monkeypatch.setattr(registry, "_kinds", dict(registry._kinds))
        registry.register("one-name")(cls)
    dynamics, learning = Dynamics(activation="one-name"), Learning(cost="one-name")
    assert vars(Config(learning=learning).options["one-name"]) == {"margin": 0.2}
    table = {"one-name": {"margin": 0.3}}
    assert vars(Config(learning=learning, options=table).options["one-name"]) == {"margin": 0.3}
    assert vars(Config(dynamics=dynamics).options["one-name"]) == {"rate": 0.1}
    with pytest.raises(ConfigError, match="cost = 'one-name': another kind of this name"):
        Config(dynamics=dynamics, learning=learning)


def test_a_layer_s_taken_name_is_refused() -> None:
    for name in ("dense", "conv", "own-dense"):
        with pytest.raises(ValueError, match=f"kind = '{name}': the name is taken"):
            kinds.layer(name)(own_kinds.OwnHalves)
    table = LAYERS["own-dense"]
    kinds.layer("own-dense")(own_kinds.OwnDense)
    assert LAYERS["own-dense"].__qualname__ == table.__qualname__ == "OwnDense.Settings"
    LAYERS["own-dense"] = table
    own_kinds.OwnDense.Settings = table  # type: ignore[attr-defined]


@pytest.mark.parametrize("registry", [NEURONS, COSTS, ESTIMATORS, FLIP_RULES])
def test_what_is_known_of_binep_s_own_classes_is_so(registry: Registry) -> None:
    """They are described before they are imported."""
    for name, kind in registry.items():
        cls = kind.load()
        if not cls.__module__.startswith("binep."):
            continue
        taken, _ = registry.parameters(cls)
        assert kind.takes == taken, name
        for fact in registry.facts:
            assert kind.fact(fact) == getattr(cls, fact, kind.fact(fact)), (name, fact)


@pytest.mark.parametrize("table", [DenseLayer, ConvLayer])
def test_a_table_s_settings_are_parameters_of_its_class(table: Any) -> None:
    parameters = inspect.signature(table.load()).parameters
    own = table(1).own()
    assert {*own, *table(1).takes} == set(parameters) - set(list(parameters)[:2])
    assert all(parameters[name].default == value for name, value in own.items())


def test_a_data_set_is_held_to_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    good = own_kinds.Stripes().drawn(0)
    for images, labels, problem in (
        (good.images.double(), good.labels, "has images torch.float64"),
        (
            good.images[:, :, :3],
            good.labels,
            r"has images .* must be uint8 or float32 of ",
        ),
        (good.images, good.labels.int(), "has labels torch.int32"),
        (good.images, good.labels[:-1], "has labels .* one for each of 64 images"),
        (good.images[:0], good.labels[:0], "has labels"),
        (good.images, good.labels + 1, "has labels from 1 to 2: must be from 0 to 1"),
        (good.images, good.labels - 1, "has labels from -1 to 0"),
    ):
        bad = Split(images, labels)
        monkeypatch.setattr(own_kinds.Stripes, "read", lambda *_, bad=bad: (good, bad))
        with pytest.raises(DataError, match=f"^own-stripes: the test split {problem}"):
            load("own-stripes")


def test_float_images_stay_as_they_are_and_bytes_become_shares() -> None:
    data = load("own-stripes")
    images = data.test.images
    before = images.clone()
    assert torch.equal(data.prepare(images), images)
    assert data.prepare(images) is not images
    whole = (images * 255).to(torch.uint8)
    torch.testing.assert_close(data.prepare(whole), whole.float() / 255)
    assert torch.equal(images, before)


def test_a_kind_gets_nothing_that_it_does_not_take() -> None:
    kind = Kind("k", lambda: lambda *a, **k: (a, k), frozenset({"a"}))
    assert kind.build(1, a=2, b=3) == ((1,), {"a": 2})


@pytest.mark.parametrize("registry", [NEURONS, SOLVERS, COSTS, ESTIMATORS, FLIP_RULES])
def test_what_is_said_of_a_class_before_it_is_imported_is_true(registry: Registry) -> None:
    for kind in registry.values():
        for fact, value in kind.facts.items():
            assert getattr(kind.load(), fact, False) == value, (kind.name, fact)
