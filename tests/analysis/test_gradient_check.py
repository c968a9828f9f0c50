"""Both gradients step by step against the oracle and the estimators; how they agree."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import oracle
import pytest
import test_gradients
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from networks import Twins, array, twins
from torch import Tensor

from binep.analysis import gradient_check
from binep.analysis import gradient_figure as gradient_plots
from binep.analysis.gradient_check import Agreement, Check, backpropagated, check, propagated
from binep.cli import main as cli
from binep.core.gradients import BackpropThroughTime, EquilibriumPropagation
from binep.core.network import Network
from binep.core.neurons import Binary, Real
from binep.core.phases import Equilibrium
from binep.core.synapses import Dense
from binep.data import batches as data
from binep.experiment.config import Config, Layer, Learning
from binep.experiment.experiment import Experiment
from binep.runs import curves as plots
from binep.runs import folder as runs

# ---- both gradients


def trail_of(network: Network, x: Tensor, free: int, steps: int) -> list[Equilibrium]:
    """The end of so many free steps, and of each of some more."""
    with torch.no_grad():
        trail = [network.relax(x, free, tolerance=0)]
        for _ in range(steps):
            trail.append(network.relax(x, 1, start=trail[-1], tolerance=0))
    return trail


def sums(steps: Iterable[gradient_check.Gradients]) -> gradient_check.Gradients:
    total: gradient_check.Gradients = {}
    for update in steps:
        total = {key: total.get(key, 0) + value for key, value in update.items()}
    return total


def assert_equal(found: gradient_check.Gradients, expected: Any, tolerance: float) -> None:
    """The oracle's g is the direction to go, not the gradient."""
    for (layer, name), gradient in found.items():
        g = -expected[layer - 1][name]
        np.testing.assert_allclose(array(gradient), g, atol=tolerance)


@given(twins(activation="real"), st.sampled_from((-0.3, 0.5)), st.integers(1, 4))
def test_each_update_of_ep_equals_the_oracle(t: Twins, beta: float, steps: int) -> None:
    (free,) = trail_of(t.network, t.x, 3, 0)
    x, target = array(t.x), array(t.target)
    states = [array(state) for state in free.states]
    for update in propagated(t.network, free, t.target, beta, steps):
        following = oracle.step(t.synapses, t.dynamics, states, x, target, beta, None, t.force)
        g = oracle.ep_gradient(t.synapses, t.dynamics, x, states, following, beta)
        for synapse, of_layer in zip(t.synapses, g, strict=True):
            of_layer["scale"] = of_layer["scale"] / synapse.scale  # ∂/∂α, not α·∂/∂α
        assert_equal(update, g, 1e-9)
        states = following


@settings(max_examples=25)
@given(twins(activation="real", cost="squared-error"), st.integers(1, 3), st.integers(1, 3))
def test_bptt_of_the_last_steps_equals_finite_differences(
    t: Twins, before: int, steps: int
) -> None:
    for neurons in t.network.neurons:
        object.__setattr__(neurons, "initial", 0.37)  # off the kinks, where differences average
    t.dynamics.initial = 0.37
    assume(not test_gradients.kinks(t, range(before + steps)))
    trail = trail_of(t.network, t.x, before, steps)
    total: gradient_check.Gradients = {}
    for taken, update in enumerate(backpropagated(t.network, trail, t.target), start=1):
        total = {key: total.get(key, 0) + value for key, value in update.items()}
        expected = oracle.bptt_gradient(
            t.synapses, t.dynamics, array(t.x), array(t.target), before + steps, taken
        )
        assert_equal(total, expected, 1e-6)


@given(twins(activation="real"), st.integers(1, 4), st.integers(1, 4))
def test_steps_add_up_to_the_estimators(t: Twins, free: int, steps: int) -> None:
    trail = trail_of(t.network, t.x, free, steps)
    ep = sums(propagated(t.network, trail[0], t.target, 0.4, steps))
    bptt = sums(backpropagated(t.network, trail, t.target))
    exact: Any = {"nudged_steps": steps, "tolerance": 0}
    for found, estimator in (
        (
            ep,
            EquilibriumPropagation(
                t.network, beta=0.4, nudging="one-sided", free_steps=free, **exact
            ),
        ),
        (bptt, BackpropThroughTime(t.network, free_steps=free + steps, **exact)),
    ):
        t.network.zero_grad()
        estimator(t.x, t.target)
        for layer, synapse in enumerate(t.network.synapses, start=1):
            parameters = {"weight": synapse.values, "bias": synapse.bias, "scale": synapse.scale}
            for name, parameter in parameters.items():
                if parameter is None:
                    continue
                grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                np.testing.assert_allclose(array(found[layer, name]), array(grad), atol=1e-10)


@given(twins(activation="real", cost="squared-error"), st.integers(1, 3))
def test_straight_through_is_bptt_with_an_output_that_is_not_clipped(t: Twins, steps: int) -> None:
    """Differentiated in one go, with ∂s_L/∂p_L = 1 in the last step."""
    trail = trail_of(t.network, t.x, 2, steps)
    found = sums(backpropagated(t.network, trail, t.target, through=True))
    states = list(trail[0].states)
    clamped = t.network.clamp(t.x)
    for _ in range(steps - 1):
        states = t.network.step(clamped, states)
    *_, below = [t.x, *states[:-1]]
    top = t.network.synapses[-1]
    p = top.biased(top.up(below)[0])
    output = p + (p.clamp(0, 1) - p).detach()
    t.network.zero_grad()
    t.network.cost.loss(output, t.target).mean().backward()
    for layer, synapse in enumerate(t.network.synapses, start=1):
        if synapse.bias.grad is None:  # out of reach in so few steps
            assert not found[layer, "bias"].any()
        else:
            np.testing.assert_allclose(
                array(found[layer, "bias"]), array(synapse.bias.grad), atol=1e-12
            )
    np.testing.assert_allclose(array(output), array(trail[-1].output), atol=1e-12)


# ---- how they agree


def find(rows: Iterable[Agreement], **wanted: Any) -> list[Agreement]:
    return [r for r in rows if all(getattr(r, name) == v for name, v in wanted.items())]


@settings(max_examples=10)
@given(st.integers(0, 2**32), st.sampled_from(("binary", "real")))
def test_errors_fall_with_beta_and_centred_with_its_square(
    seed: int, weights: Literal["binary", "real"]
) -> None:
    """Where no neuron is near a kink of ρ, whatever the nudge."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((5, 6), (6, 4), (4, 3))
    network = Network(
        [Dense(low, high, weights=weights, generator=generator) for low, high in sizes], Real()
    )
    for synapse in network.synapses:
        with torch.no_grad():
            synapse.bias.fill_(0.5)
            (synapse.values if synapse.scale is None else synapse.scale).mul_(0.3)
    x = torch.rand(4, 5, generator=generator)
    y = network.cost.target(torch.randint(3, (4,), generator=generator))
    found = check(network, x, y, betas=(0.01, 0.02), steps=6)
    assert (found.stuck, found.residual < 1e-12) == (0, True)
    for nudging, order, most in (("one-sided", 2, 0.1), ("centred", 4, 1e-3)):
        rows = find(found.agreements, parameter="weight", nudging=nudging)
        for row in rows:
            reached = len(network) + 1 - row.layer
            if row.step < reached:  # no error has come so far down yet
                assert math.isnan(row.error)
            else:  # what comes first is of the output as it was, whatever β
                assert row.error < (1e-9 if row.step == reached else most)
        once, twice = (find(rows, step=6, beta=beta) for beta in (0.01, 0.02))
        for a, b in zip(once, twice, strict=True):
            assert b.error / a.error == pytest.approx(order, rel=0.1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("build", [test_gradients.dense, test_gradients.convolutional])
def test_each_nudge_tends_to_its_own_backpropagation(seed: int, build: Any) -> None:
    """Of random networks, some of whose outputs are wrong where ρ is flat."""
    generator = torch.Generator().manual_seed(seed)
    network = Network(build(generator), Real(0.5, clip_nudged=False))
    x = torch.rand(6, 3, 7, 7, generator=generator)
    y = network.cost.target(torch.randint(10, (6,), generator=generator))
    found = check(network, x, y, betas=(1e-6,), steps=8)
    assert found.residual < 1e-12
    assert found.stuck > 0
    rows = find(found.agreements, parameter="weight", nudging="one-sided")
    for nudge, own in (("inside", "exact"), ("outside", "straight-through")):
        for row in find(rows, nudge=nudge):
            if math.isnan(row.cosine):
                assert row.step < len(network) + 1 - row.layer
            elif row.reference == own:
                assert row.error < 1e-4
                assert row.cosine > 1 - 1e-8
            else:
                assert row.error > 0.01
    for weight in found.traced:
        own_value = weight.exact if weight.nudge == "inside" else weight.through
        assert weight.ep == pytest.approx(own_value, abs=1e-6)


def checked(**options: Any) -> tuple[Network, Check]:
    torch.manual_seed(0)
    network = Network([Dense(7, 6), Dense(6, 3)], Real())
    y = network.cost.target(torch.tensor([0, 1, 2, 0]))
    return network, check(network, torch.rand(4, 7), y, **{"betas": (0.1,), "steps": 2, **options})


def test_agreement_is_of_one_step_and_of_all_so_far() -> None:
    network, found = checked(steps=3)
    network.double()
    torch.manual_seed(0)
    Network([Dense(7, 6), Dense(6, 3)], Real())
    x, y = torch.rand(4, 7).double(), network.cost.target(torch.tensor([0, 1, 2, 0]))
    with torch.no_grad():
        free = network.relax(x, 5000, tolerance=1e-12)
    key, sides = (1, "weight"), []
    for sign in (1, -1):
        sides.append([u[key] for u in propagated(network, free, y, sign * 0.1, 3)])
    ep = torch.stack([(a + b) / 2 for a, b in zip(*sides, strict=True)])
    trail = trail_of(network, x, free.steps, 3)
    bptt = torch.stack([u[key].detach() for u in backpropagated(network, trail, y)])
    rows = find(found.agreements, nudging="centred", layer=1, parameter="weight")
    rows = find(rows, nudge="outside", reference="exact")
    assert [bool(update.any()) for update in bptt] == [False, True, False]
    for a, b, row in zip(ep, bptt, rows, strict=True):
        if not b.any():  # errors come from the output in every second step
            assert math.isnan(row.step_cosine)
            assert math.isnan(row.step_error)
            continue
        assert row.step_cosine == pytest.approx(test_gradients.cosine(a, b))
        assert row.step_error == pytest.approx(float((a - b).norm() / b.norm()))
    for a, b, row in zip(ep.cumsum(0)[1:], bptt.cumsum(0)[1:], rows[1:], strict=True):
        assert row.cosine == pytest.approx(test_gradients.cosine(a, b))
        assert row.error == pytest.approx(float((a - b).norm() / b.norm()))
        assert (row.ep_norm, row.bptt_norm) == pytest.approx((float(a.norm()), float(b.norm())))


def test_what_was_checked_stays_as_it_was() -> None:
    network, _ = checked()
    torch.manual_seed(0)
    same = Network([Dense(7, 6), Dense(6, 3)], Real())
    for mine, theirs in zip(network.parameters(), same.parameters(), strict=True):
        assert mine.dtype == torch.float32
        assert torch.equal(mine, theirs)
        assert mine.grad is None
    assert (network.speed, network.neurons) == (same.speed, same.neurons)


def test_what_is_frozen_is_checked_all_the_same() -> None:
    torch.manual_seed(0)
    network = Network([Dense(7, 6), Dense(6, 3)], Real()).requires_grad_(False)
    y = network.cost.target(torch.tensor([0, 1, 2, 0]))
    found = check(network, torch.rand(4, 7), y, betas=(0.1,), steps=2)
    assert gradient_check.table(found.agreements) == gradient_check.table(checked()[1].agreements)
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_a_free_phase_cut_short_is_told_by_its_residual() -> None:
    assert checked(free_steps=1)[1].residual > 1e-6
    assert checked()[1].residual < 1e-12


def test_weights_to_follow_have_gradients() -> None:
    _, found = checked(trace=5, steps=3)
    last = [w for w in found.traced if w.step == 3 and w.nudge == "inside"]
    assert all(w.exact != 0 for w in last)
    for layer in (1, 2):
        followed = {w.index for w in last if w.layer == layer}
        assert len(followed) == 5


def test_bad_settings_are_refused() -> None:
    for options in ({"betas": ()}, {"betas": (0.1, -0.1)}, {"steps": 0}):
        with pytest.raises(ValueError, match="must be above 0"):
            checked(**options)
    bits = Network([Dense(4, 2)], Binary())
    with pytest.raises(ValueError, match="no derivative"):
        check(bits, torch.rand(1, 4), torch.eye(2)[:1], betas=(0.1,), steps=1)


def test_the_table_holds_every_number() -> None:
    _, found = checked()
    rows = list(csv.DictReader(gradient_check.table(found.agreements).splitlines()))
    for row, text in zip(found.agreements, rows, strict=True):
        for name, value in vars(row).items():
            if isinstance(value, float):
                read = float(text[name] or "nan")
                assert read == pytest.approx(value, rel=1e-8, nan_ok=True)
            else:
                assert text[name] == str(value)


def test_the_figure_shows_the_numbers() -> None:
    _, found = checked(betas=(0.01, 0.1), steps=3)
    setting = gradient_plots.Setting("binary", 0.1)
    figure = gradient_plots.drawn(found.agreements, found.traced, setting)
    upper, middle, lower = figure.subfigs
    assert [len(part.axes) for part in figure.subfigs] == [2, 2, 2]
    rows = find(found.agreements, parameter="weight", layer=2)
    pair: Any = {"nudge": "inside", "reference": "exact"}
    errors = [r.error for r in find(rows, **pair, nudging="centred", step=3)]
    drawn = [list(line.get_ydata()) for line in lower.axes[1].lines]
    assert errors in drawn
    assert len(drawn) == 6
    cosines = [r.cosine for r in find(rows, **pair, nudging="one-sided", beta=0.1)]
    assert cosines in [list(line.get_ydata()) for line in middle.axes[1].lines]
    index = found.traced[0].index
    ep = [
        w.ep
        for w in found.traced
        if (w.layer, w.index, w.nudge, w.nudging, w.beta)
        == (1, index, "outside", "one-sided", 0.01)
    ]
    assert ep in [list(line.get_ydata()) for line in upper.axes[0].lines]


# ---- the command

RENDERED = plots.rendered
SMALL = Config(
    layers={"1": Layer(8, bias_lr=0.05), "2": Layer(10, bias_lr=0.05)}, max_batches=2, threads=1
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plots, "rendered", lambda figure, kind="png": b"")  # slow
    (tmp_path / "small.toml").write_text(SMALL.to_toml())
    return tmp_path


def run(line: str) -> int:
    return cli.main(["check", *line.split()])


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_the_command_leaves_tables_and_a_figure(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "rendered", RENDERED)
    line = "gradients small.toml --betas 0.01 --samples 4 --steps 3 --formats svg --output out"
    assert run(line) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.startswith("binary weights: free phase of ")
    assert said.out.endswith("\nout\n")
    assert sorted(p.name for p in (folder / "out").iterdir()) == [
        "gradients.csv",
        "gradients.svg",
        "weights.csv",
    ]
    rows = read(folder / "out" / "gradients.csv")
    # β of the command and of the configuration; α of binary weights only
    parameters = 3 * 2 + 2 * 2
    assert len(rows) == parameters * 2 * 2 * 2 * 2 * 3
    assert {row["beta"] for row in rows} == {"0.01", "0.3"}
    assert {row["weights"] for row in rows} == {"binary", "real"}
    assert (folder / "out" / "gradients.svg").read_bytes().startswith(b"<?xml")


def test_a_trained_network_is_checked_as_it_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = Experiment(SMALL.replace(epochs=1, learning=Learning(synapses="real")))
    runs.train(experiment, runs.claim_folder(folder / "run"))
    assert run("gradients run --betas 1e-5 --samples 4 --steps 3 --formats svg") == 0
    capsys.readouterr()
    rows = read(folder / "gradients" / "gradients.csv")
    assert {row["weights"] for row in rows} == {"real"}

    again = Experiment(SMALL)
    images, labels = next(data.batches(again.data.train, 4, generator=again.order))
    found = check(
        experiment.network,
        again.data.prepare(images),
        again.network.cost.target(labels),
        betas=(1e-5, 0.3),
        steps=3,
    )
    assert [row["ep_norm"] for row in rows] == [f"{r.ep_norm:.9g}" for r in found.agreements]


def test_another_seed_draws_other_samples_of_what_a_run_has_learnt(folder: Path) -> None:
    experiment = Experiment(SMALL.replace(epochs=1, validation=0.1))
    runs.train(experiment, runs.claim_folder(folder / "run"))
    line = "gradients run --betas 1e-5 --samples 4 --steps 1 --formats svg"
    found = []
    for seed in ("", "--seed 0", "--seed 1"):
        assert run(f"{line} {seed}") == 0
        found.append(read(folder / "gradients" / "gradients.csv"))
    assert found[0] == found[1] != found[2]


def test_an_unsettled_free_phase_is_warned_of(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "gradients small.toml --betas 0.01 --samples 2 --steps 1 --free-steps 2 --formats svg"
    assert run(line) == 0
    assert "has not settled" in capsys.readouterr().err


def test_the_data_may_be_your_own(folder: Path) -> None:
    """With other classes, to which a last layer that fitted its own is fitted."""
    x, y = np.arange(20 * 28 * 28).reshape(20, 28, 28).astype(np.uint8), np.arange(20) % 4
    np.savez(folder / "own.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    line = "gradients small.toml --dataset own.npz --betas 0.01 --samples 4 --steps 3"
    assert run(f"{line} --formats svg --output out") == 0
    assert (folder / "out/gradients.csv").exists()


BAD = {
    "": "check what? ",
    "gradient quickstart": "check what? ",
    "gradients": "SOURCE is missing: ",
    "gradients quickstar": "unknown preset 'quickstar' (did you mean quickstart?)",
    "gradients missing.toml": "missing.toml: cannot be read: ",
    "gradients empty": "empty: not a run folder: ",
    "gradients mnist-bits-fc1-ep": "mnist-bits-fc1-ep: activation = heaviside has no ",
    "gradients small.toml --betas 0": "--betas 0.0: must be finite and at least 1e-6",
    "gradients small.toml --betas nan": "--betas nan: must be finite and at least 1e-6",
    "gradients small.toml --dataset mnits": "data set 'mnits' is unknown; give one of ",
    "gradients small.toml --samples 0": "--samples 0: must be a whole number from 1",
    "gradients small.toml --samples 4001": "--samples 4001: must be at most 4000, the ",
    "gradients small.toml --steps 0": "--steps 0: must be a whole number from 1",
    f"gradients small.toml --steps {10**20}": f"--steps {10**20}: must be at most 2^63",
    f"gradients small.toml --steps {10**12}": f"not enough memory: --samples 32 and {10**12} steps",
    "gradients small.toml --betas 1e300": "--betas 1e+300: must be finite and at least 1e-6",
    "gradients small.toml --free-steps 0": "--free-steps 0: must be a whole number from 1",
    "gradients small.toml --formats bmp": "--formats bmp: must be one of ",
    "gradients small.toml --output small.toml": "small.toml: cannot be made: ",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_ends_with_one_line_before_any_work(
    folder: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    (folder / "empty").mkdir()
    before = sorted(folder.rglob("*"))
    assert run(line) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err.startswith(f"binep: {BAD[line]}")
    assert sorted(folder.rglob("*")) == before
