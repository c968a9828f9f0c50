"""The benchmarks compare like with like, count right and say what was measured; no times."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import revisions
from benchmarks.plain import Plain, momentum_of
from benchmarks.report import read, write_report
from benchmarks.roofline import stages
from benchmarks.speed import Options, batches_of, compare, keep, settling
from binep.core.network import Speed
from binep.experiment.config import Config, ConvLayer, Dynamics, Layer, Learning, preset
from binep.experiment.experiment import Experiment
from binep.solvers import machine

FLIP: dict[str, Any] = {"gamma": 1e-2, "threshold": 1e-5, "bias_lr": 0.05}
MAP: dict[str, Any] = {"kernel": 5, "padding": 1, "pool": 3, **FLIP}
LAYERS = {
    "dense": {"1": Layer(30, **FLIP), "2": Layer(20, **FLIP), "3": Layer(20, **FLIP)},
    "conv": {"1": ConvLayer(4, **MAP), "2": ConvLayer(6, **MAP), "3": Layer(20, **FLIP)},
}
DYNAMICS = {
    "real": Dynamics(initial_state=0.5, free_steps=150, nudged_steps=10),
    "binary": Dynamics("heaviside", 1.0, free_steps=20, nudged_steps=30, neuron_filter=0.6),
}


def small(kind: str, activation: str, **learning: Any) -> Config:
    """A tiny network."""
    return Config(
        layers=LAYERS[kind],
        dynamics=DYNAMICS[activation],
        learning=Learning(output_copies=2, **learning),
    )


@pytest.mark.parametrize(
    "config",
    [
        small("dense", "real"),
        small("conv", "real", clip_nudged=False),
        small("dense", "binary", beta=2.0, nudging="one-sided"),
        small("conv", "binary", beta=1.0, hold_nudge=True, momentum_noise=True),
    ],
    ids=["dense-real", "conv-real", "dense-binary", "conv-binary"],
)
def test_a_batch_of_the_plain_program_is_a_batch_of_binep(config: Config) -> None:
    experiment = Experiment(config.replace(speed=Speed(alternate=False)))
    network, flip = experiment.network, experiment.flip
    assert flip is not None
    for synapse in network.synapses:
        # With scales that are powers of two both round alike. Else sums that tie, of which bits
        # have many, are told apart by rounding, and a maximum is pooled from another place.
        assert synapse.scale is not None
        synapse.scale.data.log2_().round_().exp2_()
    random, flipped = torch.Generator().manual_seed(0), 0
    for _ in range(3):  # the first from the initial momenta, the others from what was learnt
        x = torch.rand(8, *network.synapses[0].input_shape, generator=random)
        target = network.cost.target(torch.randint(10, (8,), generator=random))
        plain = Plain(experiment)
        done = plain.train(x, target)
        free = experiment.estimator(x, target)
        assert torch.equal(plain.generator.get_state(), experiment.nudge.get_state())
        steps = config.dynamics.nudged_steps
        nudged = network.relax(x, steps, start=free, target=target, beta=done.beta)
        torch.testing.assert_close(done.free, free.states, rtol=0, atol=1e-5)
        torch.testing.assert_close(done.nudged, nudged.states, rtol=0, atol=1e-5)
        for optimizer in experiment.optimizers:
            optimizer.step()
        for layer, synapse in zip(plain.layers, network.synapses, strict=True):
            assert torch.equal(layer.weight.sign(), synapse.values)
            torch.testing.assert_close(layer.weight, synapse.weight.detach())
            torch.testing.assert_close(layer.bias, synapse.bias.detach(), rtol=1e-5, atol=1e-5)
            momentum = momentum_of(flip, synapse.values)
            torch.testing.assert_close(layer.momentum, momentum, rtol=1e-5, atol=1e-6)
        assert [int(n) for n in done.flips] == [int(n) for n in flip.take_flips()]
        flipped += int(sum(done.flips))
    assert flipped > 100


def test_another_setting_than_the_plain_program_covers_is_refused() -> None:
    with pytest.raises(ValueError, match="does not cover"):
        Plain(Experiment(small("dense", "real", nudging="centred")))


def test_both_programs_are_timed_in_turn() -> None:
    experiment = Experiment(small("dense", "real"))
    stream = batches_of(experiment)
    rows = compare(experiment, stream, Options(repeats=3))
    ours = ["binep", "all at once", "fast"]
    assert [row["program"] for row in rows] == ["plain", *ours] * 3
    assert experiment.network.speed == Speed()
    # A plain program far slower than it has time for runs once, binep as often as asked.
    rows = compare(experiment, stream, Options(repeats=3, plain_seconds=1e-9))
    assert [row["program"] for row in rows] == ["plain", *ours * 3]
    bits = Experiment(small("dense", "binary", beta=2.0, nudging="one-sided"))
    rows = compare(bits, batches_of(bits), Options(repeats=2))
    assert [row["program"] for row in rows] == ["plain", "binep"] * 2
    free_steps, nudged_steps = settling(experiment, *next(stream))
    assert 1 < free_steps < 150
    assert 1 < nudged_steps <= 10


def test_revisions_are_timed_on_a_preset_or_a_file_of_settings(tmp_path: Path) -> None:
    small = preset("quickstart")
    layers = small.layers | {"1": replace(small.layers["1"], size=8)}
    file = tmp_path / "small.toml"
    file.write_text(small.replace(layers=layers).to_toml(), encoding="utf-8")
    options = revisions.Options(Path(revisions.__file__).parents[1] / "src", batches=2)
    for shape, name in ((str(file), "small"), ("quickstart", "quickstart")):
        row = revisions.timed(shape, options)
        assert (row["shape"], row["batches"]) == (name, 2)
        assert float(row["after_seconds"]) > 0


def test_operations_and_bytes_are_those_counted_by_hand() -> None:
    dense = {s.name: s for s in stages(Experiment(small("dense", "real")).network, 8, 5, 3)}
    inner = 30 * 20 + 20 * 20
    assert dense["input"].operations == 2 * 2 * 8 * 784 * 30
    assert dense["settling"].operations == 2 * 2 * 8 * inner * (5 + 3)
    assert dense["settling"].unit == "float32"
    assert dense["correlation"].operations == 2 * 2 * 8 * inner
    assert dense["update"].bytes == (4 + 8) * (784 * 30 + inner)
    # 28x28 padded by 1 gives maps of 26x26, pooled to 8x8; those give maps of 6x6, pooled to 2x2.
    conv = {s.name: s for s in stages(Experiment(small("conv", "binary")).network, 8, 5, 3)}
    assert conv["input"].operations == 2 * 2 * 8 * 26 * 26 * 25 * 4
    assert conv["settling"].operations == 2 * 2 * 8 * (6 * 6 * 25 * 4 * 6 + 24 * 20) * (5 + 3)
    assert conv["settling"].unit == "int8"
    assert conv["update"].bytes == (1 + 8) * (25 * 4 + 25 * 4 * 6 + 24 * 20)


@pytest.mark.parametrize("quick", [True, False])
def test_states_that_travel_as_digits_are_counted_as_such(
    monkeypatch: pytest.MonkeyPatch, quick: bool
) -> None:
    monkeypatch.setattr(machine, "has_packed_int8", lambda: quick)
    network = Experiment(small("conv", "real")).network
    settling = {stage.name: stage for stage in stages(network, 8, 5, 3)}["settling"]
    product = 2 * 8 * (6 * 6 * 25 * 4 * 6 + 24 * 20)
    weights = 25 * 4 * 6 + 24 * 20
    assert settling.unit == ("int8" if quick else "float32")
    assert settling.operations == 2 * product * ((5 + 2 * 3) if quick else (5 + 3))
    assert settling.bytes == 2 * (5 + 3) * weights * (1 if quick else 4)


def batch(program: str, seconds: float, shape: str = "mnist-fc1-ep") -> dict[str, Any]:
    times = {"shape": shape, "trained": 0, "program": program, "turn": 0, "seconds": seconds}
    about = {
        "dataset": "mnist",
        "network": "784-4096-10",
        "threads": 2,
        "revision": "0",
        "date": "",
    }
    return times | about


def test_a_new_measurement_replaces_that_of_its_shape_and_no_other(tmp_path: Path) -> None:
    keep(tmp_path, {"batches": [batch("binep", 1), batch("binep", 2, "mnist-fc2-ep")]})
    keep(tmp_path, {"batches": [batch("binep", 3)]})
    rows = [(row["shape"], row["seconds"]) for row in read(tmp_path, "batches")]
    assert rows == [("mnist-fc2-ep", "2"), ("mnist-fc1-ep", "3")]


def test_the_committed_pages_follow_from_their_tables(tmp_path: Path) -> None:
    results = Path(__file__).parents[1] / "results" / "speed"
    folder = results / "revisions"
    assert (folder / "README.md").read_text() == revisions.page(folder)
    shutil.copytree(results, tmp_path / "speed")
    for name in "README.md", "avx2/README.md":
        write_report((tmp_path / "speed" / name).parent)
        assert (tmp_path / "speed" / name).read_text() == (results / name).read_text()


def test_the_page_follows_from_the_tables(tmp_path: Path) -> None:
    seconds = {"binep": (0.01, 0.02, 0.09), "plain": (0.5,)}
    keep(tmp_path, {"batches": [batch(name, s) for name, of in seconds.items() for s in of]})
    stage = {"stage": "settling", "unit": "float32", "operations": 2e9, "bytes": 1e9}
    steps = {"free_steps": 11, "nudged_steps": 10}
    row = {"shape": "mnist-fc1-ep", "trained": 0, **steps, **stage, "seconds": 0.008}
    keep(tmp_path, {"roofline": [row]})
    machine = {
        "processor": "a processor",
        "threads": 2,
        "versions": {"torch": "2", "binep": "0"},
        "python": "3",
        "note": "A remark.",
        "skipped": {"cifar10-conv-ep": "no data"},
    }
    (tmp_path / "machine.json").write_text(json.dumps(machine))
    write_report(tmp_path)
    page = (tmp_path / "README.md").read_text()
    assert "| 0.5 (1) | 0.02 (3) | 25 |" in page
    assert "| 11 + 10 | 2 | 0 | 1 | 0.008 | 0.02 | 2.5 |" in page
    assert "A remark." in page
    assert "`cifar10-conv-ep` skipped: no data" in page
    assert "## Peak memory" not in page
    assert (tmp_path / "speed.svg").stat().st_size > 1000
