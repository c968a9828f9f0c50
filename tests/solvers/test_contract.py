"""What every registered solver must hold to: one contract, over random networks that each fits.

A solver of one's own is added to `KINDS` with the networks that it fits.
"""

from __future__ import annotations

import copy
import dataclasses
import pickle
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import graphs
import numpy as np
import oracle
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from networks import array, byte_dot_products, twin_of
from torch import Tensor

import binep.solvers  # noqa: F401
from binep.core.gradients import EquilibriumPropagation
from binep.core.network import Network
from binep.core.neurons import Binary, Neurons, Real
from binep.core.phases import Equilibrium, Phase
from binep.core.solvers import Plain, Solver, choose, registered
from binep.core.speed import Speed
from binep.core.synapses import Conv, Dense, Synapse, _round
from binep.solvers import following, machine

STEPS = 60
"""With the weak synapses of real networks here, twice what they need to settle to 1e-6."""


@dataclass(frozen=True)
class Kind:
    """What a solver fits, and how near the oracle its states are to be.

    Attributes:
        solver: the kind.
        activation: of the neurons.
        convolutions: up to how many.
        weights: which fit.
        steps: of the free phase, the most.
        states: tolerance of states.
        device: of the networks.
        hidden: the fewest dense hidden layers, without convolutions.
        fewest: the fewest convolutions.
        pools: whether all of them pool.
        narrowest: the fewest neurons that a dense layer above the first connects, on either side.
    """

    solver: type[Solver]
    activation: str
    convolutions: int
    weights: Literal["binary", "real", "any"]
    steps: int
    states: float
    device: str = "cpu"
    hidden: int = 0
    fewest: int = 0
    pools: bool = False
    narrowest: int = 1

    @property
    def id(self) -> str:
        return "-".join([self.solver.name, self.activation, *["cuda"] * (self.device == "cuda")])


BY_NAME = {solver.name: solver for solver in registered()}
KINDS = [
    Kind(BY_NAME["events"], "binary", 2, "binary", 20, 1e-5),
    Kind(BY_NAME["in-cache"], "real", 0, "any", STEPS, 2e-5),
    Kind(BY_NAME["digits"], "real", 2, "binary", STEPS, 2e-5),
    Kind(BY_NAME["changes"], "real", 3, "real", STEPS, 2e-5, fewest=2, pools=True),
    Kind(BY_NAME["captured"], "real", 2, "any", STEPS, 2e-5),
    Kind(BY_NAME["captured"], "binary", 2, "any", 20, 1e-5),
    Kind(BY_NAME["bfloat16"], "real", 2, "any", STEPS, 2e-5, hidden=1, narrowest=2),
    Kind(BY_NAME["int8"], "real", 2, "any", STEPS, 2e-5, hidden=1, narrowest=2),
    Kind(BY_NAME["leaving"], "real", 2, "any", STEPS, 2e-5),
    Kind(Plain, "real", 2, "any", STEPS, 2e-5),
    Kind(Plain, "binary", 2, "any", 20, 1e-5),
]
ON_GPU = [
    Kind(BY_NAME["bits-on-gpu"], "binary", 0, "binary", 20, 1e-5, "cuda", hidden=1),
    *(
        dataclasses.replace(kind, device="cuda")
        for kind in KINDS
        if kind.solver in (Plain, BY_NAME["captured"])
    ),
]
every_kind = pytest.mark.parametrize(
    "kind",
    [
        *(
            pytest.param(
                kind, id=kind.id, marks=byte_dot_products if kind.solver.name == "int8" else ()
            )
            for kind in KINDS
        ),
        *(pytest.param(kind, id=kind.id, marks=graphs.on_gpu) for kind in ON_GPU),
    ],
)


@pytest.fixture(autouse=True)
def _where_it_fits(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """On any machine, in narrow layers; on the CPU what would be captured is called again."""
    kind = request.node.callspec.params["kind"]
    for name in "bfloat16", "int8":
        monkeypatch.setattr(BY_NAME[name], "least", 1)
        monkeypatch.setattr(BY_NAME[name], "samples", 1)
    monkeypatch.setattr(following, "NARROWEST", 2)
    monkeypatch.setattr(machine, "has_bfloat16_products", lambda: True)
    with graphs.called() if kind.device == "cpu" else graphs.exact():
        yield


@dataclass
class Case:
    """A network in float32 that a solver fits, the oracle's, and a batch."""

    network: Network
    dynamics: oracle.Dynamics
    x: Tensor
    labels: Tensor
    beta: float

    @property
    def target(self) -> Tensor:
        return self.network.cost.target(self.labels)

    def free(self, steps: int) -> Equilibrium:
        return self.network.relax(self.x, steps)

    def nudged(self, free: Equilibrium, steps: int) -> Equilibrium:
        return self.network.relax(self.x, steps, start=free, target=self.target, beta=self.beta)


@st.composite
def shapes(draw: st.DrawFn, kind: Kind) -> list[Synapse]:
    """Layers of 1 to 19 neurons, maps of any sides, kernels from 1, pools up to the whole map."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def options() -> dict[str, object]:
        weights = kind.weights
        if weights == "any":
            weights = "real" if draw(st.integers(0, 3)) == 0 else "binary"
        return {"weights": weights, "generator": generator}

    synapses: list[Synapse] = []
    convolutions = draw(st.integers(kind.fewest, kind.convolutions))
    shape: tuple[int, ...] = (draw(st.integers(1, 19)),)
    if convolutions:
        shape = tuple(draw(st.integers(low, 7)) for low in (1, 2, 2))
    for _ in range(convolutions):
        kernel = draw(st.integers(1, min(3, *shape[1:])))
        padding = draw(st.integers(0, kernel - 1))
        if kind.pools and min(shape[1:]) + 2 * padding == kernel:
            padding, kernel = 1, min(shape[1:]) + 1  # which leaves two places
        side = min(shape[1:]) + 2 * padding - kernel + 1
        pool = draw(st.sampled_from(sorted({1, min(2, side), side})[kind.pools and side > 1 :]))
        channels = draw(st.integers(1, 9))
        conv = Conv(shape, channels, kernel=kernel, padding=padding, pool=pool, **options())  # type: ignore[arg-type]
        synapses.append(conv)
        shape = conv.output_shape
    for _ in range(draw(st.integers(0 if convolutions else kind.hidden, 2))):
        synapses.append(Dense(shape, draw(st.sampled_from((1, 2, 7, 8, 9, 16, 19))), **options()))  # type: ignore[arg-type]
        shape = synapses[-1].output_shape
    return [*synapses, Dense(shape, draw(st.integers(1, 4)), **options())]  # type: ignore[arg-type]


@st.composite
def cases(draw: st.DrawFn, kind: Kind) -> Case:
    synapses = draw(shapes(kind))
    dense = [synapse for synapse in synapses[1:] if isinstance(synapse, Dense)]
    assume(all(min(synapse.values.shape) >= kind.narrowest for synapse in dense))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    neurons: Neurons
    if kind.activation == "binary":
        for synapse in synapses:
            if isinstance(synapse, Conv) and synapse.scale is not None:
                synapse.scale.data = _round(synapse.scale.data)  # as it is when training starts
        threshold, held = draw(st.sampled_from((0.25, 0.5))), draw(st.booleans())
        neurons = Binary(threshold, 0.5, 1.0, held)
        reference = "free" if held else "current"
        dynamics = oracle.Dynamics(
            "binary",
            1.0,
            threshold=threshold,
            nudge_reference=reference,  # type: ignore[arg-type]
        )
    else:
        for synapse in synapses:  # so weak that there is one equilibrium, soon reached
            fan = max(synapse.values[0].numel(), synapse.values.numel() // synapse.values.shape[1])
            with torch.no_grad():
                if synapse.scale is None:
                    synapse.values.mul_(0.4 / max(1e-9, float(synapse.values.abs().max()) * fan))
                else:
                    synapse.scale.fill_(0.4 / fan)
        side, clip = draw(st.sampled_from(("outside", "inside"))), draw(st.booleans())
        initial = draw(st.sampled_from((0.0, 0.5)))
        neurons = Real(initial, side, clip)  # type: ignore[arg-type]
        dynamics = oracle.Dynamics("real", initial, side, clip)  # type: ignore[arg-type]
    network = Network(synapses, neurons)
    batch = draw(st.sampled_from((1, 2, 3, 9, 17)))
    x = torch.rand(batch, *synapses[0].input_shape, generator=generator)
    if len(x.shape) == 2:  # grey levels; in maps their sums tie, and rounding picks the maximum
        x = (x * 255).round() / 255
    labels = torch.randint(network.cost.classes, (batch,), generator=generator)
    network, x, labels = network.to(kind.device), x.to(kind.device), labels.to(kind.device)
    case = Case(network, dynamics, x, labels, draw(st.sampled_from((-0.5, 0.25, 0.5))))
    _take_only(network, kind.solver)
    assert choose(network, Phase.of(network, x, 1)) is kind.solver
    return case


def _take_only(network: Network, solver: type[Solver]) -> None:
    others = BY_NAME.keys() - {solver.name, Plain.name}
    network.speed = Speed(off=("odd-even", *others) if solver is Plain else tuple(others))


def same(one: Equilibrium, other: Equilibrium, tolerance: float = 0.0) -> None:
    for a, b in zip(one.states, other.states, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance, equal_nan=True)


@every_kind
@given(data=st.data())
def test_both_phases_equal_the_oracle(kind: Kind, data: st.DataObject) -> None:
    """Step by step; of real neurons, whose path is free, the end: the oracle's step leaves it."""
    case = data.draw(cases(kind))
    synapses, x, target = [twin_of(s) for s in case.network.synapses], array(case.x), case.target
    nudged = 3 if kind.activation == "binary" else STEPS
    free_end = case.free(kind.steps)
    nudged_end = case.nudged(free_end, nudged)
    assert free_end.by is nudged_end.by is kind.solver
    low, high = ([array(state) for state in end.states] for end in (free_end, nudged_end))
    if kind.activation == "binary":
        start = oracle.initial_states(synapses, case.dynamics, x)
        low_wanted = oracle.relax(synapses, case.dynamics, x, start, kind.steps)
        high_wanted = oracle.relax(
            synapses, case.dynamics, x, low_wanted, nudged, array(target), case.beta
        )
    else:
        low_wanted = oracle.step(synapses, case.dynamics, low, x)
        high_wanted = oracle.step(synapses, case.dynamics, high, x, array(target), case.beta)
    for ours, theirs in zip([*low, *high], [*low_wanted, *high_wanted], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=kind.states)


@every_kind
@given(data=st.data(), row_sparse=st.booleans())
def test_gradients_are_the_oracles_of_the_two_ends(
    kind: Kind, data: st.DataObject, row_sparse: bool
) -> None:
    case = data.draw(cases(kind))
    network, beta, steps = case.network, case.beta, kind.steps
    free_end = case.free(steps)
    nudged_end = case.nudged(free_end, 3)
    estimator = EquilibriumPropagation(
        network, beta=beta, free_steps=1, nudged_steps=1, row_sparse=row_sparse
    )
    network.zero_grad()
    estimator.compare(free_end, nudged_end, beta)
    low, high = ([array(state) for state in end.states] for end in (free_end, nudged_end))
    synapses = [twin_of(s) for s in network.synapses]
    expected = oracle.ep_gradient(synapses, case.dynamics, array(case.x), low, high, beta)
    for synapse, g in zip(network.synapses, expected, strict=True):
        gradient = synapse.values.grad
        assert gradient is not None
        assert row_sparse or not gradient.is_sparse
        np.testing.assert_allclose(-array(gradient.to_dense()), g["weight"], rtol=0, atol=1e-4)
        np.testing.assert_allclose(-array(synapse.bias.grad), g["bias"], rtol=0, atol=1e-4)  # type: ignore[arg-type]
        if synapse.scale is not None:  # the oracle's is alpha times it
            alpha = array(synapse.scale)
            ours = -alpha * array(synapse.scale.grad)  # type: ignore[arg-type]
            np.testing.assert_allclose(ours, g["scale"], rtol=1e-3, atol=1e-4)


@every_kind
@given(data=st.data())
def test_moved_is_the_last_step_that_moved_a_layer(kind: Kind, data: st.DataObject) -> None:
    """So the states are the same after as many steps, and were others one step before."""
    case = data.draw(cases(kind))
    end = case.free(kind.steps)
    assert end.steps == int(end.moved.max()) <= kind.steps
    assert end.moved.shape == end.residual.shape == (len(case.network),)
    if kind.activation == "binary":
        fire = case.network.neurons[0].fire
        synapses = [twin_of(s) for s in case.network.synapses]
        states = oracle.initial_states(synapses, case.dynamics, array(case.x))
        last = [0] * len(states)
        for step in range(1, kind.steps + 1):
            new = oracle.step(synapses, case.dynamics, states, array(case.x))
            for k, (a, b) in enumerate(zip(new, states, strict=True)):
                if (fire(torch.tensor(a)) != fire(torch.tensor(b))).any():
                    last[k] = step
            states = new
        assert end.moved.tolist() == last
    else:
        assert (end.residual <= 1e-6).all()
        assert (case.free(end.steps + 1).residual <= 1e-6).all()
        if kind.solver.name in (
            "bfloat16",
            "int8",
        ):  # the path depends on how many steps there may be
            return
        for k, last_step in enumerate(end.moved.tolist()):
            assert last_step == 0 or case.free(last_step).residual[k] > 1e-6


@every_kind
@given(data=st.data())
def test_samples_do_not_depend_on_each_other(kind: Kind, data: st.DataObject) -> None:
    """Nor do a sample's states when another one's are NaN, and the batch may be of one."""
    case = data.draw(cases(kind))
    batch = case.free(kind.steps)
    for i in range(len(case.x)):
        alone = case.network.relax(case.x[i : i + 1], kind.steps)
        for a, b in zip(alone.states, batch.states, strict=True):
            torch.testing.assert_close(a[0], b[i], rtol=0, atol=kind.states)
    states = [state.clone() for state in batch.states]
    states[-1][0] = torch.nan
    spoilt = case.network.relax(case.x, 5, start=dataclasses.replace(batch, states=states))
    start = dataclasses.replace(batch, states=[state.clone() for state in batch.states])
    whole = case.network.relax(case.x, 5, start=start)
    for a, b in zip(spoilt.states, whole.states, strict=True):
        torch.testing.assert_close(a[1:], b[1:], rtol=0, atol=kind.states)


@every_kind
@given(data=st.data(), change=st.sampled_from(("weights", "bias", "x", "states", "replaced")))
def test_a_start_that_is_out_of_date_counts_by_its_states_alone(
    kind: Kind, data: st.DataObject, change: str
) -> None:
    case = data.draw(cases(kind))
    network, x = case.network, case.x
    start = case.free(4)
    with torch.no_grad():
        if change == "weights":
            network.synapses[-1].values.neg_()
        elif change == "bias":
            network.synapses[0].bias.add_(0.25)
        elif change == "x":
            x.copy_(x.flip(0) / 2)
        elif change == "states":
            start.states[0].mul_(0.5)
        else:
            start = dataclasses.replace(start, states=[s / 2 for s in start.states])
    states = [state.clone() for state in start.states]
    fresh = copy.deepcopy(network)
    beginning = Equilibrium(fresh.clamp(x), states, start.moved, start.residual)
    steps = 4 if kind.activation == "binary" else STEPS
    ours = network.relax(x, steps, start=start)
    same(ours, fresh.relax(x, steps, start=beginning), kind.states)
    if kind.activation == "real" and any(synapse.has_route for synapse in network.synapses):
        return  # a maximum is fed back to itself: where it lies can depend on the steps' order
    plain = copy.deepcopy(network)
    _take_only(plain, Plain)
    same(ours, plain.relax(x, steps, start=beginning), kind.states)


@every_kind
@given(data=st.data(), dtype=st.sampled_from((torch.float64, torch.bfloat16, torch.float16)))
def test_every_floating_type_is_that_of_the_network(
    kind: Kind, data: st.DataObject, dtype: torch.dtype
) -> None:
    case = data.draw(cases(kind))
    x = case.x.to(dtype)
    same(case.network.relax(x, 5), case.network.relax(x.float(), 5))


@every_kind
@given(data=st.data())
def test_what_does_not_fit_is_refused_before_any_work(kind: Kind, data: st.DataObject) -> None:
    case = data.draw(cases(kind))
    network, x, target = case.network, case.x, case.target
    start = case.free(2)
    before = [state.clone() for state in start.states]
    batch = len(x)
    attempts: list[tuple[str, Callable[[], object]]] = [
        ("at least one sample", lambda: network.relax(x[:0], 2)),
        ("start has states", lambda: network.relax(torch.cat([x, x]), 2, start=start)),
        ("target has shape", lambda: nudge(target.repeat(2, 1))),
        ("target has shape", lambda: nudge(target[:, None])),
        ("target has shape", lambda: nudge(target[0])),
        ("must be at least 1", lambda: network.relax(x, 0)),
        ("must be finite", lambda: nudge(target, torch.nan)),
        ("x has shape", lambda: network.relax(torch.cat([x, x], dim=1), 2)),
    ]

    def nudge(wanted: Tensor, beta: float = 0.5) -> Equilibrium:
        return network.relax(x, 2, start=start, target=wanted, beta=beta)

    for words, attempt in attempts:
        with pytest.raises(ValueError, match=words):
            attempt()
    for state, held in zip(start.states, before, strict=True):
        assert len(state) == batch
        assert torch.equal(state, held)


@every_kind
@given(data=st.data())
def test_copies_and_two_networks_at_once_do_not_meddle(kind: Kind, data: st.DataObject) -> None:
    case, other = data.draw(cases(kind)), data.draw(cases(kind))
    first = case.free(5)
    copies = [copy.deepcopy(case.network), pickle.loads(pickle.dumps(case.network))]
    copies.append(copy.copy(case.network))
    theirs = other.free(5)
    same(case.free(5), first)
    for network in copies:
        same(network.relax(case.x, 5), first)
    with torch.no_grad():
        copies[0].synapses[0].values.neg_()
    same(case.free(5), first)
    same(other.free(5), theirs)
    same(case.nudged(first, 3), case.nudged(case.free(5), 3), kind.states)


@every_kind
def test_a_network_in_several_threads_is_right(kind: Kind) -> None:
    torch.manual_seed(0)
    neurons: Neurons = Binary() if kind.activation == "binary" else Real()
    network = Network([Dense(20, 64), Dense(64, 10)], neurons).to(kind.device)
    _take_only(network, kind.solver)
    inputs = [torch.rand(8, 20, device=kind.device) for _ in range(4)]
    right = [copy.deepcopy(network).relax(x, 20) for x in inputs]
    wrong: list[str] = []

    def work(x: Tensor, expected: Equilibrium) -> None:
        try:
            for _ in range(50):
                same(network.relax(x, 20), expected)
        except AssertionError as error:
            wrong.append(str(error))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(inputs, right, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
