from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import Twins, twins

from binep.core import memory
from binep.core.costs import SquaredError
from binep.core.gradients import EquilibriumPropagation
from binep.core.network import Network
from binep.core.neurons import Binary
from binep.core.phases import Equilibrium, Phase
from binep.core.solvers import choose
from binep.core.speed import SHORTCUTS, Speed
from binep.core.synapses import Conv, Dense, _round
from binep.experiment.config import Config, ConvLayer, Dynamics, Layer, Learning
from binep.experiment.experiment import Experiment

OFF = Speed(off=SHORTCUTS)


def both(network: Network, speed: Speed, run: Any) -> tuple[Any, Any]:
    results = []
    for chosen in (OFF, speed):
        network.speed = chosen
        results.append(run())
    return results[0], results[1]


def gradients(network: Network) -> list[torch.Tensor]:
    filled = [p.grad for s in network.synapses for p in (s.values, s.bias)]
    return [g.to_dense() for g in filled if g is not None]


@given(
    t=twins(activation="binary", weights="binary", cost="squared-error")
    | twins(activation="binary", weights="binary"),
    free_steps=st.integers(1, 40),
    nudged_steps=st.integers(1, 40),
    beta=st.sampled_from((-2.0, -0.3, 0.5, 2.0)),
    tolerance=st.sampled_from((0.0, 1e-6)),
    thresholds=st.lists(st.sampled_from((0.2, 0.5)), min_size=9, max_size=9) | st.none(),
)
def test_no_bit_differs_from_the_plain_steps(
    t: Twins,
    free_steps: int,
    nudged_steps: int,
    beta: float,
    tolerance: float,
    thresholds: list[float] | None,
) -> None:
    network, x = t.network.float(), t.x.float()
    if thresholds is not None:
        own = zip(network.neurons, thresholds, strict=False)
        network.neurons = [replace(n, threshold=v) for n, v in own if isinstance(n, Binary)]
    for synapse in network.synapses:
        if isinstance(synapse, Conv) and synapse.scale is not None:
            synapse.scale.data = _round(synapse.scale.data)  # as it is at the start of training
    estimator = EquilibriumPropagation(
        network, beta=beta, free_steps=free_steps, nudged_steps=nudged_steps
    )

    @torch.no_grad()
    def run() -> tuple[Equilibrium, Equilibrium, list[torch.Tensor]]:
        free = network.relax(x, free_steps, tolerance=tolerance)
        nudged = network.relax(
            x,
            nudged_steps,
            start=free,
            target=network.cost.target(t.labels),
            beta=beta,
            tolerance=tolerance,
        )
        network.zero_grad()
        estimator.compare(free, nudged, beta)
        return free, nudged, gradients(network)

    plain, followed = both(network, Speed(), run)
    averages = any(isinstance(s, Conv) and s.averages for s in network.synapses)
    pulled = network.neurons[0].hold_nudge or type(network.cost) is SquaredError
    assert plain[0].by.name == "plain"
    assert followed[0].by.name == ("events" if pulled and not averages else "plain")
    for expected, phase in zip(plain[:2], followed[:2], strict=True):
        for a, b in zip(expected.states, phase.states, strict=True):
            assert torch.equal(a, b)
        assert torch.equal(expected.moved, phase.moved)
        assert torch.equal(expected.residual, phase.residual)
    for a, b in zip(plain[2], followed[2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)  # differences of sums over β


def test_more_samples_than_16_bits_count_are_counted() -> None:
    generator = torch.Generator().manual_seed(2)  # enough pairs change alike
    synapses = [Dense(2, 6, generator=generator), Dense(6, 2, generator=generator)]
    network = Network(synapses, Binary())
    x = torch.rand(1, 2, generator=generator).expand(2**15 + 9, 2)
    estimator = EquilibriumPropagation(
        network, beta=2.0, free_steps=9, nudged_steps=9, nudging="one-sided"
    )

    def run() -> list[torch.Tensor]:
        estimator(x, network.cost.target(torch.ones(len(x), dtype=torch.int64)))
        return gradients(network)

    plain, followed = both(network, Speed(), run)
    assert any(g.any() for g in plain)
    for a, b in zip(plain, followed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def config(kind: str, **learning: Any) -> Config:
    dense = [Layer(size, gamma=2e-4, threshold=1e-7, bias_lr=1e-6) for size in (96, 64, 40)]
    conv = ConvLayer(10, padding=1, pool=3, gamma=2e-4, threshold=1e-7, bias_lr=1e-6)
    layers = dense if kind == "dense" else [conv, replace(conv, size=40), dense[2]]
    return Config(
        dataset="mnist5k",
        dynamics=Dynamics("heaviside", 1.0, free_steps=40, nudged_steps=20),
        learning=Learning(output_copies=4, beta=1.0, **learning),
        layers={str(i + 1): layer for i, layer in enumerate(layers)},
    )


@pytest.mark.parametrize(
    "setting",
    [
        config("dense"),
        config("dense", nudging="centred"),
        config("conv", hold_nudge=True, momentum_noise=True, zero_bias=True),
    ],
    ids=["dense", "dense, centred", "conv"],
)
def test_fifty_batches_flip_the_same_weights(setting: Config) -> None:
    plain, followed = (Experiment(setting.replace(speed=speed)) for speed in (OFF, Speed()))
    x = torch.zeros(1, *followed.network.synapses[0].input_shape)
    assert choose(followed.network, Phase.of(followed.network, x, 1)).name == "events"
    flips = 0
    for _, a, b in zip(range(50), batches(plain), batches(followed), strict=False):
        for experiment, (x, labels) in ((plain, a), (followed, b)):
            experiment.estimator(x, experiment.network.cost.target(labels))
            for optimizer in experiment.optimizers:
                optimizer.step()
        for p, q in zip(plain.network.synapses, followed.network.synapses, strict=True):
            assert torch.equal(p.values, q.values)
    assert plain.flip is not None
    flips = sum(int(count) for count in plain.flip.flips())
    assert flips > 50  # else there was nothing to differ in


def batches(experiment: Experiment) -> Any:
    return experiment._batches(experiment.data.train, 64, experiment.order)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("kernel", "padding"), [(3, 0), (3, 1), (3, 2), (5, 2), (5, 4), (6, 3)])
def test_what_a_convolution_sends_down_ends_at_the_borders(
    kernel: int, padding: int, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    low = Conv((1, 6, 6), 3, kernel=3, padding=1, pool=1, generator=g)
    high = Conv((3, 6, 6), 8, kernel=kernel, padding=padding, pool=2, generator=g)
    network = Network([low, high, Dense(high.output_shape, 10, generator=g)], Binary(0.3))
    x = torch.rand(5, 1, 6, 6, generator=g)
    plain, followed = both(network, Speed(), lambda: network.relax(x, 30))
    assert plain.states[1].count_nonzero()
    for expected, states in zip(plain.states, followed.states, strict=True):
        assert torch.equal(expected, states)


def test_gradients_with_and_without_rows_left_out_add_up() -> None:
    torch.manual_seed(0)
    network = Network([Dense(20, 64), Dense(64, 30), Dense(30, 10)], Binary(0.1))
    x, target = torch.rand(8, 20), network.cost.target(torch.arange(8))
    values = network.synapses[2].values
    found: list[torch.Tensor] = []
    for order in ("events", "plain"), ("plain", "events"):
        network.zero_grad()
        for solver in order:
            network.speed = Speed(off=("events",) if solver == "plain" else ())
            estimator = EquilibriumPropagation(
                network, beta=2.0, free_steps=9, nudged_steps=5, row_sparse=True
            )
            free = network.relax(x, 9)
            nudged = network.relax(x, 5, start=free, target=target, beta=2.0)
            estimator.compare(free, nudged, 2.0)
        assert values.grad is not None
        found.append(values.grad.to_dense())
    torch.testing.assert_close(found[0], found[1])
    assert found[0].any()


def test_a_gradient_that_someone_has_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LARGE", 1)
    network = Network([Dense(20, 64), Dense(64, 30), Dense(30, 10)], Binary(0.1))
    estimator = EquilibriumPropagation(
        network, beta=2.0, free_steps=9, nudged_steps=5, nudging="one-sided", row_sparse=True
    )
    values = network.synapses[2].values

    def learn(seed: int) -> torch.Tensor:
        x = torch.rand(8, 20, generator=torch.Generator().manual_seed(seed))
        estimator(x, network.cost.target(torch.arange(8)))
        assert values.grad is not None
        assert values.grad._nnz() > 0
        return values.grad

    held = learn(0)
    before = held.to_dense().clone()
    part = held._values()[:1]
    row = part.clone()
    assert not torch.equal(learn(1).to_dense(), before)
    assert torch.equal(held.to_dense(), before)
    del held
    learn(2)
    assert torch.equal(part, row)
