"""Ising models have the network's energy, and phases are taken by what minimises it."""

from __future__ import annotations

import copy
import csv
import itertools
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from benchmarks import ising
from binep.core.costs import CrossEntropy, SquaredError
from binep.core.gradients import EquilibriumPropagation
from binep.core.network import Network
from binep.core.neurons import Binary, Real
from binep.core.optim import BinaryFlip
from binep.core.phases import Phase
from binep.core.synapses import Conv, Dense, Synapse
from binep.experiment.training import train_epoch
from binep.ising import AnnealingSolver, Energy

dimod = pytest.importorskip("dimod", reason="pip install 'binep[ising]'")
pytest.importorskip("dwave.samplers", reason="pip install 'binep[ising]'")


@st.composite
def networks(draw: st.DrawFn) -> tuple[Network, Tensor]:
    """Up to 12 neurons that fire bits, and one input."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    kind: Any = st.sampled_from(("binary", "real"))
    options = {"generator": generator, "weights": draw(kind)}
    layers: list[Synapse] = []
    if draw(st.booleans()):  # the input may be max-pooled, what is above averaged
        layers.append(Conv((1, 4, 4), 1, kernel=3, padding=1, pool=2, **options))
        pool = draw(st.sampled_from((1, 2)))
        above = Conv((1, 2, 2), 1, kernel=2 + (pool == 2), padding=1, pool=pool, **options)
        if pool == 2:
            above = Conv((1, 2, 2), 2, kernel=3, padding=1, pool=2, pooling="average", **options)
            layers.append(above)
    else:
        layers.append(Dense(5, draw(st.integers(1, 5)), **options))
        for _ in range(draw(st.integers(0, 1))):
            layers.append(Dense(layers[-1].output_shape, draw(st.integers(1, 4)), **options))
    layers.append(Dense(layers[-1].output_shape, 2, **options))
    thresholds = st.sampled_from((0.1, 0.5, 1.0))
    network = Network(layers, [Binary(draw(thresholds), filter=1.0) for _ in layers]).double()
    x = torch.rand(1, *layers[0].input_shape, generator=generator, dtype=torch.float64)
    return network, x


def every_state(network: Network) -> Iterator[list[Tensor]]:
    shapes = [torch.Size((1, *synapse.output_shape)) for synapse in network.synapses]
    for values in itertools.product((0.0, 1.0), repeat=sum(s.numel() for s in shapes)):
        flat = torch.tensor(values, dtype=torch.float64).split([s.numel() for s in shapes])
        yield [part.view(shape) for part, shape in zip(flat, shapes, strict=True)]


@torch.no_grad()
def energy_of(network: Network, x: Tensor, bits: list[Tensor]) -> float:
    """E by its equation, from the synapses' own products."""
    total, below = 0.0, x
    for synapse, neurons, above in zip(network.synapses, network.neurons, bits, strict=True):
        assert isinstance(neurons, Binary)
        drive = synapse.biased(synapse.up(below)[0])
        total -= float((above * (drive - neurons.threshold)).sum())
        below = above
    return total


@given(networks())
def test_the_energy_is_that_of_the_equation_in_bits_and_spins(pair: tuple[Network, Tensor]) -> None:
    network, x = pair
    energy = Energy(network)
    bqm = energy.clamp(x)
    assert list(bqm.variables) == energy.variables
    for bits in itertools.islice(every_state(network), 0, None, 7):
        expected = energy_of(network, x, bits)
        sample = energy.bits(bits)
        assert bqm.energy(sample) == pytest.approx(expected, abs=1e-9)
        spins = {variable: 2 * bit - 1 for variable, bit in sample.items()}
        assert bqm.spin.energy(spins) == pytest.approx(expected, abs=1e-9)


@given(networks())
def test_the_least_of_the_model_is_the_least_of_all_states(pair: tuple[Network, Tensor]) -> None:
    """And there every neuron fires just if its drive is at the threshold or above."""
    network, x = pair
    energy = Energy(network)
    least = min(energy_of(network, x, bits) for bits in every_state(network))
    found = dimod.ExactSolver().sample(energy.clamp(x)).first
    assert found.energy == pytest.approx(least, abs=1e-9)
    states = energy.states(found.sample)
    after = network.step(network.clamp(x), states)
    for neurons, state, new in zip(network.neurons, states, after, strict=True):
        assert torch.equal(neurons.fire(state), neurons.fire(new))


def test_signs_and_factors_are_those_of_the_page() -> None:
    """And only linear terms are of the input."""
    network = Network([Dense(4, 3), Dense(3, 2)], [Binary(0.4), Binary(0.7)])
    energy = Energy(network)
    x = torch.rand(2, 4)
    w, b = network.synapses[1].weight.detach(), network.synapses[1].bias.detach()
    bqm = energy.clamp(x[:1])
    before = dict(bqm.quadratic)
    assert bqm.quadratic[(1, 2), (2, 1)] == pytest.approx(-float(w[1, 2]))
    assert bqm.linear[2, 1] == pytest.approx(0.7 - float(b[1]))
    drive = network.clamp(x[:1]).drive.detach()
    assert bqm.linear[1, 0] == pytest.approx(0.4 - float(drive[0, 0]))
    assert bqm.spin.quadratic[(1, 2), (2, 1)] == pytest.approx(-float(w[1, 2]) / 4)
    field = (0.7 - float(b[1])) / 2 - float(w[1].sum()) / 4
    assert bqm.spin.linear[2, 1] == pytest.approx(field)
    assert energy.clamp(x[1:]) is bqm
    assert dict(bqm.quadratic) == before
    assert bqm.linear[1, 0] == pytest.approx(0.4 - float(network.clamp(x[1:]).drive.detach()[0, 0]))


def test_what_has_no_such_energy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="layer 2 has Real neurons"):
        Energy(Network([Dense(4, 3), Dense(3, 2)], [Binary(), Real()]))
    conv = [Conv((1, 8, 8), 2), Conv((2, 4, 4), 2, pooling="max"), Dense((2, 2, 2), 2)]
    with pytest.raises(ValueError, match="layer 2 is max-pooled"):
        Energy(Network(conv, Binary()))
    network = Network([Dense(4, 2)], Binary())
    with pytest.raises(ValueError, match="x holds 3 samples"):
        Energy(network).clamp(torch.rand(3, 4))
    for module in ("dimod", "dwave.samplers"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'binep\[ising\]'"):
        Energy(network)
    with pytest.raises(ImportError, match=r"pip install 'binep\[ising\]'"):
        AnnealingSolver(network)


@pytest.mark.parametrize("hold", [False, True])
def test_phases_end_at_the_least_energy(hold: bool) -> None:
    """With a sampler that finds it; of E + β·C, or with a nudge that is held."""
    kind = AnnealingSolver.using(dimod.ExactSolver())
    torch.manual_seed(1)
    network = Network([Dense(4, 5), Dense(5, 3)], Binary(0.2, hold_nudge=hold)).double()
    network.solver = kind
    x, target = torch.rand(3, 4).double(), torch.eye(3).double()
    free = network.relax(x, 5)
    assert free.by is kind
    beta = 0.7
    nudged = network.relax(x, 5, start=free, target=target, beta=beta)

    def cost(i: int, bits: Tensor) -> float:
        if hold:
            return -float((bits * (target[i] - free.output[i])).sum())
        return float((bits - target[i]).square().sum()) / 2

    for i in range(3):
        for end, strength in ((free, 0.0), (nudged, beta)):

            def total(states: list[Tensor], i: int = i, strength: float = strength) -> float:
                return energy_of(network, x[i : i + 1], states) + strength * cost(i, states[-1])

            least = min(map(total, every_state(network)))
            assert total([state[i : i + 1] for state in end.states]) == pytest.approx(least)
    assert not torch.equal(free.output, nudged.output)
    with torch.no_grad():
        network.synapses[1].values.neg_()
    assert not torch.equal(network.relax(x, 5).states[0], free.states[0])


class Recorder:
    """A sampler that answers with what it starts from."""

    parameters = ("initial_states", "num_sweeps", "power")

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def sample(self, bqm: Any, **options: Any) -> Any:
        self.calls.append(options)
        return dimod.SampleSet.from_samples_bqm(options["initial_states"], bqm)


def test_a_nudged_phase_starts_from_the_free_phases_bits() -> None:
    sampler = Recorder()
    kind = AnnealingSolver.using(sampler, nudged={"power": 2}, power=1)
    network = Network([Dense(4, 5), Dense(5, 2)], Binary(0.5), solver=kind)
    x = torch.rand(2, 4)
    free = network.relax(x, 30)
    assert all(state.eq(1).all() for state in free.states)  # where neurons start
    assert free.moved.tolist() == [0, 0]
    free.states[0][1, 3] = 0.2
    network.relax(x, 10, start=free, target=torch.eye(2), beta=1.0)
    assert [call["num_sweeps"] for call in sampler.calls] == [30, 30, 10, 10]
    assert [call["power"] for call in sampler.calls] == [1, 1, 2, 2]
    assert "seed" not in sampler.calls[0]
    last = sampler.calls[-1]["initial_states"]
    assert [name for name, bit in last.items() if bit == 0] == [(1, 3)]


def test_simulated_annealing_finds_low_energies_and_repeats_itself() -> None:
    torch.manual_seed(0)
    network = Network([Dense(6, 8), Dense(8, 3)], Binary(), solver=AnnealingSolver)
    x = torch.rand(4, 6)
    ends = []
    for _ in range(2):
        network._solvers.clear()  # a new solver
        ends.append(network.relax(x, 200))
    for a, b in zip(ends[0].states, ends[1].states, strict=True):
        assert torch.equal(a, b)
    energy = Energy(network)
    for i in range(4):
        bqm = energy.clamp(x[i : i + 1])
        found = bqm.energy(energy.bits([state[i : i + 1] for state in ends[0].states]))
        every = np.sort(dimod.ExactSolver().sample(bqm).record.energy)
        assert found <= every[len(every) // 100]


@pytest.mark.parametrize("beta", [0.7, -0.7])
def test_what_is_learnt_is_the_gradient_of_the_difference_of_least_energies(beta: float) -> None:
    """J = (min F − min E)/β with F = E + β·C, by finite differences; real weights and biases."""
    exact = AnnealingSolver.using(dimod.ExactSolver())
    generator = torch.Generator().manual_seed(4)
    sizes = ((4, 4), (4, 3))
    layers = [Dense(*size, weights="real", generator=generator) for size in sizes]
    network = Network(layers, Binary(0.2), solver=exact).double()
    x, target = torch.rand(3, 4, generator=generator).double(), torch.eye(3).double()

    def difference() -> float:
        total = 0.0
        for i in range(3):
            energies = [(energy_of(network, x[i : i + 1], a), a[-1]) for a in every_state(network)]
            nudged = (e + beta * float((a - target[i]).square().sum()) / 2 for e, a in energies)
            total += (min(nudged) - min(e for e, _ in energies)) / beta
        return total / 3

    estimator = EquilibriumPropagation(
        network, beta=beta, free_steps=1, nudged_steps=1, nudging="one-sided"
    )
    estimator(x, target)
    before, moving = difference(), 0
    for parameter in (p for layer in layers for p in (layer.values, layer.bias)):
        assert parameter.grad is not None
        for place in [(0,) * parameter.dim(), (2,) * parameter.dim()]:
            with torch.no_grad():
                parameter[place] += 1e-6
                slope = (difference() - before) / 1e-6
                parameter[place] -= 1e-6
            assert float(parameter.grad[place]) == pytest.approx(slope, abs=1e-4)
            moving += slope != 0
    assert moving


def test_equilibrium_propagation_learns_with_simulated_annealing() -> None:
    torch.manual_seed(3)  # so few bits do not learn from every start
    cost = SquaredError(3, 3)
    network = Network([Dense(12, 32), Dense(32, 9)], Binary(0.1), cost, solver=AnnealingSolver)
    labels = torch.arange(30) % 3
    x = torch.rand(30, 12) * 0.2
    x[range(30), labels] += 1
    estimator = EquilibriumPropagation(
        network, beta=1.0, free_steps=100, nudged_steps=10, nudging="centred"
    )
    optimizers = [
        BinaryFlip([s.values for s in network.synapses], gamma=0.1, threshold=0.03),
        torch.optim.SGD([s.bias for s in network.synapses], lr=0.02),
    ]
    errors = [train_epoch(network, estimator, optimizers, [(x, labels)]).error for _ in range(20)]
    assert min(errors) < 10 < errors[0]


def test_what_is_named_takes_all_phases_or_says_why_it_cannot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = Network([Dense(4, 10)], Binary(), solver=AnnealingSolver)
    assert copy.deepcopy(network).solver is AnnealingSolver
    again = pickle.loads(pickle.dumps(network))
    x = torch.rand(1, 4)
    assert again.relax(x, 5).by is AnnealingSolver
    network.solver = None
    assert network.relax(x, 5).by is not AnnealingSolver
    readout = CrossEntropy(Dense(10, 2))
    for layers, neurons, cost, why in (
        ([Dense(4, 10)], Real(), None, "layer 1 has Real neurons"),
        ([Dense(4, 10)], Binary(), readout, "CrossEntropy is not linear in the output's bits"),
    ):
        wrong = Network(layers, neurons, cost)
        assert not AnnealingSolver.fits(wrong, Phase.of(wrong, x, 5))
        wrong.solver = AnnealingSolver
        with pytest.raises(ValueError, match=f"^solver = annealing: {why}"):
            wrong.relax(x, 5)
    held = Network([Dense(4, 10)], Binary(hold_nudge=True), readout, solver=AnnealingSolver)
    free = held.relax(x, 5)
    nudged = held.relax(x, 5, start=free, target=torch.eye(2)[:1], beta=1.0)
    assert free.by is nudged.by is AnnealingSolver
    monkeypatch.setitem(sys.modules, "dwave.samplers", None)
    with pytest.raises(ImportError, match=r"pip install 'binep\[ising\]'"):
        held.relax(x, 5)


def test_ends_depend_on_the_energy_alone() -> None:
    """Not on what was asked before, nor on who shares a batch, in whatever order."""
    torch.manual_seed(0)
    layers = [Dense(40, 30), Dense(30, 30), Dense(30, 4)]
    network = Network(layers, Binary(0.1), solver=AnnealingSolver)
    x, target = torch.rand(6, 40), torch.eye(4)[torch.arange(6) % 4]
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    ends = []
    for chosen in (torch.arange(6), order, *torch.arange(6).split(1)):
        free = network.relax(x[chosen], 2)
        nudged = network.relax(x[chosen], 2, start=free, target=target[chosen], beta=0.5)
        ends.append([*free.states, *nudged.states])
    together, reordered, *alone = ends
    for i, whole in enumerate(together):
        assert torch.equal(whole[order], reordered[i])
        assert torch.equal(whole, torch.cat([one[i] for one in alone]))
    energy = Energy(network)
    energy.clamp(x[:1])
    seeds = {energy.digest(free=True), energy.digest(free=False)}
    energy.clamp(x[1:2])
    assert len({*seeds, energy.digest(free=True)}) == 3


def test_matrices_of_convolutions_are_sparse() -> None:
    first = Conv((1, 4, 4), 2, kernel=3, padding=1, pool=1)
    conv = Conv((2, 4, 4), 3, kernel=3, padding=1, pool=1)
    network = Network([first, conv, Dense((3, 4, 4), 2)], Binary())
    counts = np.array([v[0][0] + v[1][0] for v in Energy(network).bqm.quadratic])
    assert (counts == 3).sum() < 32 * 48 / 2
    assert (counts == 5).sum() == 48 * 2


def test_the_benchmark_compares_both_ways(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ising.Options(digits=40, seeds=1, epochs=2, output=tmp_path / "ising")
    ising.main(chosen)
    with (tmp_path / "ising" / "errors.csv").open() as file:
        rows = list(csv.DictReader(file))
    pairs = [(kind, way) for kind in ("binary", "real") for way in ("annealing", "Network.step")]
    assert [(row["couplings"], row["way"]) for row in rows[::2]] == pairs
    assert [row["epoch"] for row in rows] == ["1", "2"] * 4
    assert len(capsys.readouterr().out.splitlines()) == 8
    page = (tmp_path / "ising" / "README.md").read_text()
    for row in rows[1::2]:
        errors = f"{float(row['train_error']):.2f} | {float(row['test_error']):.2f}"
        assert f"| {row['couplings']} | {row['way']} | {errors} |" in page


def test_validation_tests_on_digits_that_are_learnt_from_by_none() -> None:
    (x, _), (unseen, _) = ising.digits(ising.Options(digits=40, validation=True))
    assert (len(x), len(unseen)) == (40, 100)
    assert not (x[:, None] == unseen).all(dim=2).any()
