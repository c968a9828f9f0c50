"""A setting that does nothing is refused: tried by training with and without it, to the bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from binep.cli.base import completed
from binep.experiment.build import build_estimator, build_network, build_optimizers
from binep.experiment.config import (
    Config,
    ConfigError,
    ConvLayer,
    Dynamics,
    Layer,
    Learning,
    preset,
    preset_names,
)
from binep.experiment.training import layer_changes, train_epoch

RATES: dict[str, Any] = {"gamma": 0.3, "threshold": 1e-4, "bias_lr": 0.1}
SHAPE = (1, 5, 5)
BASES = {
    "real": Config(),
    "inside": Config(learning=Learning(nudge="inside")),
    "bits": Config(dynamics=Dynamics("heaviside", 1.0), learning=Learning(beta=1.0)),
    "annealing": Config(
        dynamics=Dynamics("heaviside", 1.0, solver="annealing"), learning=Learning(beta=1.0)
    ),
    "bits, each with a threshold": Config(dynamics=Dynamics("heaviside", 1.0)),
    "bptt": Config(learning=Learning(estimator="bptt")),
    "reference": Config(learning=Learning(synapses="real")),
    "readout": Config(learning=Learning(cost="cross-entropy")),
    "bits, readout": Config(
        dynamics=Dynamics("heaviside", 1.0), learning=Learning(cost="cross-entropy", beta=1.0)
    ),
    "learnt α": Config(),
    "γ that decays": Config(learning=Learning(gamma_decay=2.0)),
    "learnt α that decays": Config(learning=Learning(scale_lr_decay=2.0)),
    "unpooled": Config(),
}
CHANGES: dict[str, Any] = {
    "dynamics.initial_state": 0.3,
    "dynamics.free_steps": 6,
    "dynamics.nudged_steps": 1,
    "dynamics.settle_tol": 0.5,
    "dynamics.firing_threshold": 0.2,
    "dynamics.neuron_filter": 0.9,
    "learning.beta": 2.0,
    "learning.nudging": "centred",
    "learning.nudge": "inside",
    "learning.clip_nudged": False,
    "learning.hold_nudge": True,
    "learning.momentum_noise": True,
    "learning.zero_bias": True,
    "learning.gamma_decay": 3.0,
    "learning.gamma_decay_epochs": 9,
    "learning.scale_lr_decay": 3.0,
    "learning.scale_lr_decay_epochs": 9,
    "layers.1.weight_lr": 0.7,
    "layers.1.bias_lr": 0.7,
    "layers.1.scale_lr": 0.3,
    "layers.1.firing_threshold": 0.15,
    "layers.3.firing_threshold": 0.15,
    "layers.1.kernel": 2,
    "layers.1.padding": 0,
    "layers.1.pool": 1,
    "layers.1.pooling": "average",
}
"""A value for each setting that changes what is learned, if it does anything."""


def base(name: str) -> Config:
    """A configuration of three layers, the first a convolution, that learns fast."""
    conv = ConvLayer(4, kernel=3, padding=1, pool=1 if name == "unpooled" else 2, **RATES)
    layers: dict[str, Layer] = {"1": conv, "2": Layer(6, **RATES), "3": Layer(3, **RATES)}
    if name == "bits, each with a threshold":
        layers = {n: dataclasses.replace(x, firing_threshold=0.4) for n, x in layers.items()}
    if "learnt α" in name:
        layers = {n: dataclasses.replace(x, scale_lr=0.1) for n, x in layers.items()}
    config = BASES[name]
    steps = {"free_steps": 9, "nudged_steps": 6}
    return config.replace(
        layers=layers, dynamics=dataclasses.replace(config.dynamics, **steps), threads=1
    )


def changed(config: Config, key: str, value: Any) -> Config:
    place, _, name = key.rpartition(".")
    if place.startswith("layers."):
        number = place.removeprefix("layers.")
        layer = dataclasses.replace(config.layers[number], **{name: value})
        return config.replace(layers={**config.layers, number: layer})
    return config.replace(**{place: dataclasses.replace(getattr(config, place), **{name: value})})


def learnt(config: Config) -> list[torch.Tensor]:
    """All that two epochs leave behind; nothing is checked before."""
    init, draws = (torch.Generator().manual_seed(seed) for seed in (1, 2))
    random = torch.Generator().manual_seed(3)
    network = build_network(config, SHAPE, 3, init)
    estimator = build_estimator(config, network, draws)
    flip, descent = build_optimizers(config, network, init)
    x = 3 * torch.randn(24, *SHAPE, generator=random)  # drives below 0 and above 1
    labels = torch.arange(24) % 3
    optimizers = [o for o in (flip, descent) if o is not None]
    for epoch in range(2):
        learning = config.learning
        for group in descent.param_groups:
            if "initial_lr" in group:
                power = epoch // learning.scale_lr_decay_epochs
                group["lr"] = group["initial_lr"] / learning.scale_lr_decay**power
        for group, layer in zip(
            flip.param_groups if flip else (), config.layers.values(), strict=False
        ):
            group["gamma"] = layer.gamma / learning.gamma_decay ** (
                epoch // learning.gamma_decay_epochs
            )
        train_epoch(network, estimator, optimizers, zip(x.split(8), labels.split(8), strict=True))
        layer_changes(network, flip, 3)
    return [*network.state_dict().values(), *(flip.momenta() if flip else [])]


OTHERS = {
    *("activation", "estimator", "synapses", "cost", "output_copies", "flip_rule", "kind", "size"),
    *("gamma", "threshold", "solver"),
}
"""Names of kinds, sizes that must fit, and rates that a reference may keep."""


def test_every_setting_of_the_tables_is_tried() -> None:
    names = {f.name for table in (Dynamics, Learning, ConvLayer) for f in dataclasses.fields(table)}
    assert names == OTHERS | {key.rpartition(".")[2] for key in CHANGES}


def cases() -> Iterator[tuple[str, str]]:
    same = {("inside", "learning.nudge"), ("unpooled", "layers.1.pool")}  # as they are
    return ((name, key) for name in BASES for key in CHANGES if (name, key) not in same)


def refused(config: Config) -> list[str]:
    """Lines about settings that are to be left out."""
    try:
        config.check()
    except ConfigError as error:
        return [line for line in str(error).splitlines() if ": must be left out: " in line]
    return []


@pytest.mark.parametrize(("name", "key"), list(cases()))
def test_what_does_nothing_is_refused_and_nothing_else(name: str, key: str) -> None:
    config = base(name)
    # The output must fit a data set's ten classes; what is learned here has three.
    fits = changed(config, "layers.3.size", 10)
    assert not refused(fits)
    fits, config = (changed(c, key, CHANGES[key]) for c in (fits, config))
    same = all(torch.equal(a, b) for a, b in zip(learnt(config), learnt(base(name)), strict=True))
    lines = refused(fits)
    shown = key if key.startswith("layers") else key.split(".")[1]
    assert any(line.startswith(f"{shown} = {CHANGES[key]}: ") for line in lines) == same, lines
    if same:
        effective = fits.effective()
        assert not refused(effective)
        assert effective == changed(base(name), "layers.3.size", 10)


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_without_what_does_nothing_is_a_reference(name: str) -> None:
    config = preset(name)
    learning = dataclasses.replace(config.learning, synapses="real")
    reference = config.replace(learning=learning).effective()
    reference.check()
    assert reference.learning.synapses == "real"
    assert reference.dynamics == config.dynamics
    assert config.effective() == config


@pytest.mark.parametrize("name", preset_names())
def test_a_flag_makes_a_preset_its_reference(name: str) -> None:
    """Without a word about what the preset brings for binary synapses."""
    start = preset(name)
    config = start.replace(learning=dataclasses.replace(start.learning, synapses="real"))
    found, _ = completed(config, start)
    found.check()
    assert found == config.effective()


def test_what_did_nothing_before_a_flag_is_refused_with_it() -> None:
    fits = changed(base("reference"), "layers.3.size", 10)
    start = changed(fits, "learning.momentum_noise", True)
    found, _ = completed(changed(start, "learning.beta", 0.25), start)
    assert found.learning.momentum_noise
    assert refused(found)
    given = changed(fits, "learning.scale_lr_decay", 2.0)
    assert completed(given, fits)[0] == given
    assert refused(given)


def test_rates_of_flips_may_stay_with_real_synapses() -> None:
    config = changed(base("reference"), "layers.3.size", 10)
    assert config.layers["1"].gamma != Layer(1).gamma
    config.check()


def test_a_file_of_version_0_1_may_hold_what_does_nothing() -> None:
    """It named every shortcut, and kernels of dense layers, too."""
    config = changed(base("bits"), "layers.3.size", 10)
    text = changed(config, "learning.clip_nudged", False).to_toml()
    assert refused(Config.from_toml(text, "new.toml"))
    old = text.replace("[speed]", "[speed]\nfused_steps = true")
    assert Config.from_toml(old, "old.toml") == config
    old = text + "kernel = 5\npadding = 2\n"
    assert Config.from_toml(old, "old.toml") == config
    with pytest.raises(ConfigError, match=r"^old.toml: layers.3.kernel = 3: must be left out: "):
        Config.from_toml(text + "kernel = 3\n", "old.toml")
