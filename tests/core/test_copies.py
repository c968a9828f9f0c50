"""Whatever was changed, copied or shared, a network answers as one that was never used before."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.multiprocessing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shelf import (
    CLASSES,
    batch,
    ep,
    estimators,
    flips,
    fresh,
    gradients,
    network,
    on_each,
    same,
    same_gradients,
    train,
)
from torch import Tensor, nn

from binep.core.gradients import BackpropThroughTime
from binep.core.network import Network
from binep.core.neurons import Binary, Neurons, Real
from binep.core.optim import BinaryFlip
from binep.core.synapses import Conv, Dense, Synapse
from binep.core.versions import Version, flipped_rows, note_flips

few = settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])


def answers_as_fresh(name: str, net: Network) -> None:
    """In both phases, and with the same gradients."""
    other = fresh(name, net)
    x, labels = batch(net)
    target = net.cost.target(labels)
    same(net.relax(x, 20), other.relax(x, 20))
    for one, two in zip(estimators(net), estimators(other), strict=True):
        one(x, target)
        two(x, target)
        same_gradients(gradients(net), gradients(other))


def weights(name: str, seed: int) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network(name, seed).state_dict().items()}


# What changes parameters


@torch.no_grad()
def overwrite(net: Network, name: str, seed: int) -> None:
    for p, value in zip(net.parameters(), weights(name, seed).values(), strict=True):
        p.copy_(value)


@torch.no_grad()
def turn_a_row(net: Network, name: str, seed: int) -> None:
    for synapse in net.synapses:
        synapse.values[seed % len(synapse.values)] *= -1


def assign(net: Network, name: str, seed: int) -> None:
    net.load_state_dict(weights(name, seed + 1), assign=True)
    net.load_state_dict(weights(name, seed), assign=True)


def load(net: Network, name: str, seed: int) -> None:
    net.load_state_dict(weights(name, seed))


def from_vector(net: Network, name: str, seed: int) -> None:
    for n in (seed + 1, seed):
        vector = nn.utils.parameters_to_vector(network(name, n).parameters()).detach()
        nn.utils.vector_to_parameters(vector.clone(), net.parameters())


def replace_parameters(net: Network, name: str, seed: int) -> None:
    for n in (seed + 1, seed):
        for ours, theirs in zip(net.synapses, network(name, n).synapses, strict=True):
            ours.values, ours.scale, ours.bias = theirs.values, theirs.scale, theirs.bias


def by_columns(net: Network, name: str, seed: int) -> None:
    for synapse in net.synapses:
        values = synapse.values.detach().transpose(0, 1).contiguous().transpose(0, 1)
        synapse.values = nn.Parameter(values)


def learn(net: Network, name: str, seed: int) -> None:
    x, labels = batch(net, seed=seed)
    estimator, flip = ep(net, beta=2.0), flips(net, threshold=1e-4)
    rows = ep(net, beta=2.0, row_sparse=True)
    for each in (estimator, rows, estimator, rows):
        each(x, net.cost.target(labels))
        flip.step()


def flip_by_hand(net: Network, name: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    flip = flips(net, threshold=0.5)
    for p in net.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    flip.step()
    flip.step()


Change = Callable[[Network, str, int], None]
_IN_PLACE: list[Change] = [overwrite, turn_a_row, load, learn, flip_by_hand]
_ANEW: list[Change] = [assign, from_vector, replace_parameters, by_columns]
CHANGES = {change.__name__: change for change in (*_IN_PLACE, *_ANEW)}


@on_each
@pytest.mark.parametrize("change", CHANGES)
def test_each_change_of_parameters_is_followed(name: str, change: str) -> None:
    net = network(name)
    answers_as_fresh(name, net)
    for seed in range(3):
        CHANGES[change](net, name, seed)
        answers_as_fresh(name, net)


@on_each
@few
@given(st.lists(st.tuples(st.sampled_from(sorted(CHANGES)), st.booleans(), st.integers(0, 9))))
def test_changes_in_any_order_are_followed(name: str, steps: list[tuple[str, bool, int]]) -> None:
    net = network(name)
    x, _ = batch(net)
    for change, look, seed in steps:
        CHANGES[change](net, name, seed)
        if look:
            same(net.relax(x, 20), fresh(name, net).relax(x, 20))
    same(net.relax(x, 20), fresh(name, net).relax(x, 20))


@on_each
def test_parameters_assigned_again_and_again_are_followed(name: str) -> None:
    """Memory that is let go is used again: no address says what lies there."""
    net = network(name)
    x, _ = batch(net)
    for seed in range(0, 40, 2):
        assign(net, name, seed)
        same(net.relax(x, 9), fresh(name, net).relax(x, 9))


@on_each
def test_columns_learn_as_rows_do(name: str) -> None:
    nets = [network(name), network(name)]
    by_columns(nets[1], name, 0)
    for net in nets:
        assert net is nets[0] or not net.synapses[-1].values.is_contiguous()
        train(net, 3)
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(a, b)


# Copies


def saved(net: Network) -> Network:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def averaged(net: Network) -> Network:
    model = torch.optim.swa_utils.AveragedModel(net)
    model.update_parameters(net)
    return model.module


COPIES: dict[str, Callable[[Network], Network]] = {
    "deepcopy": copy.deepcopy,
    "deepcopy twice": lambda net: copy.deepcopy(copy.deepcopy(net)),
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "torch.save": saved,
    "AveragedModel": averaged,
}


@on_each
@pytest.mark.parametrize("way", COPIES)
def test_copies_answer_alike_and_have_no_tie_to_the_original(name: str, way: str) -> None:
    net = network(name)
    x, _ = batch(net)
    for seed in range(3):
        flip_by_hand(net, name, seed)
        answers_as_fresh(name, net)
        net = COPIES[way](net)
        answers_as_fresh(name, net)
    made = COPIES[way](net)
    kept, before = net.relax(x, 20), weights_of(net)
    overwrite(made, name, 7)
    flip_by_hand(made, name, 7)
    answers_as_fresh(name, made)
    same(net.relax(x, 20), kept)
    assert all(map(torch.equal, before, weights_of(net)))


def weights_of(net: Network) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


@on_each
def test_a_shallow_copy_shares_its_parameters(name: str) -> None:
    net = network(name)
    x, _ = batch(net)
    net.relax(x, 5)
    shallow = copy.copy(net)
    shallow.relax(x, 5)
    for changed in (net, shallow):
        flip_by_hand(changed, name, 7)
        for each in (net, shallow):
            answers_as_fresh(name, each)


@on_each
def test_networks_and_optimizers_are_copied_together(name: str) -> None:
    net = network(name)
    flip = train(net)
    pairs = [copy.deepcopy((net, flip)), pickle.loads(pickle.dumps((net, flip)))]
    x, labels = batch(net)

    def go_on(network: Network, optimizer: BinaryFlip) -> list[Tensor]:
        for _ in range(3):
            ep(network, beta=2.0)(x, network.cost.target(labels))
            optimizer.step()
        return weights_of(network) + optimizer.momenta() + optimizer.flips()

    before = weights_of(net)
    ends = [go_on(*pair) for pair in pairs]
    assert all(map(torch.equal, before, weights_of(net)))
    for end in [*ends, go_on(net, flip)]:
        assert all(map(torch.equal, end, ends[0]))


@on_each
def test_an_optimizers_state_is_a_snapshot(name: str) -> None:
    net = network(name)
    flip = train(net)
    kept, signs = flip.state_dict(), weights_of(net)
    momenta, counts = flip.momenta(), [int(n) for n in flip.flips()]
    x, labels = batch(net, seed=9)
    for _ in range(3):
        ep(net, beta=2.0)(x, net.cost.target(labels))
        flip.step()
    for optimizer in (flip, flips(net)):
        optimizer.load_state_dict(kept)
        assert all(map(torch.equal, optimizer.momenta(), momenta))
        assert [int(n) for n in optimizer.flips()] == counts
    flip.step()  # of one that was loaded: the snapshot stays as it is
    again = flips(net)
    again.load_state_dict(kept)
    assert all(map(torch.equal, again.momenta(), momenta))
    assert len(signs) == 3 * len(net)


# Equilibria to start from


@on_each
def test_an_input_that_is_refilled_is_a_new_one(name: str) -> None:
    net = network(name)
    (first, _), (second, _) = batch(net), batch(net, seed=2)
    buffer = first.clone()
    start = net.relax(buffer, 20)
    states = [state.clone() for state in start.states]
    buffer.copy_(second)
    beginning = dataclasses.replace(fresh(name, net).relax(first, 20), states=states)
    same(net.relax(buffer, 9, start=start), fresh(name, net).relax(second, 9, start=beginning))


def test_an_input_in_shared_memory_may_be_refilled_by_anyone() -> None:
    net = network("dense, real, plain")
    x, _ = batch(net)
    x.share_memory_()
    free = net.relax(x, 20)
    x.zero_()
    assert float(free.clamped.x.sum()) > 0


@on_each
@pytest.mark.parametrize("way", ["replaced", "in place"])
def test_states_that_were_changed_are_where_a_phase_starts(name: str, way: str) -> None:
    net = network(name)
    x, labels = batch(net)
    start = net.relax(x, 20)
    if way == "replaced":
        start = dataclasses.replace(start, states=[torch.zeros_like(s) for s in start.states])
    else:
        for state in start.states:
            state.zero_()
    states = [torch.zeros_like(s) for s in start.states]
    target = net.cost.target(labels)
    for beta in (0.0, 0.5):
        options: dict[str, Any] = {"target": target, "beta": beta, "tolerance": 0}
        for _ in range(2):  # nor does the first phase leave something behind
            found = net.relax(x, 1, start=start, **options)
            push = None if beta == 0 else beta * net.cost.force(states[-1], target)
            step = net.step(net.clamp(x), states, push)
            for a, b in zip(found.states, step, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-3)  # one digit's rounding


@on_each
@pytest.mark.parametrize("way", [copy.deepcopy, lambda end: pickle.loads(pickle.dumps(end))])
def test_equilibria_survive_copying(name: str, way: Any) -> None:
    net = network(name)
    x, _ = batch(net)
    start = net.relax(x, 5, tolerance=0)
    same(net.relax(x, 5, start=way(start), tolerance=0), net.relax(x, 5, start=start, tolerance=0))


@on_each
def test_going_on_is_as_if_there_had_been_no_break(name: str) -> None:
    net = network(name)
    x, _ = batch(net)
    half = net.relax(x, 6, tolerance=0)
    same(net.relax(x, 5, start=half, tolerance=0), net.relax(x, 11, tolerance=0), 2e-3)


# Ties


def tied(neurons: Neurons) -> tuple[list[Synapse], list[Synapse]]:
    """Layers of which two are one synapse, and twins of them apart."""
    torch.manual_seed(0)
    first, middle, output = Dense(20, 30), Dense(30, 30), Dense(30, CLASSES)
    twin = Dense(30, 30)
    twin.load_state_dict(middle.state_dict())
    return [first, middle, middle, output], [first, middle, twin, output]


@pytest.mark.parametrize("neurons", [Real(0.5, "inside"), Binary(0.2)])
def test_a_synapse_used_twice_gets_the_sum_of_both_gradients(neurons: Neurons) -> None:
    together, apart = (Network(layers, neurons) for layers in tied(neurons))
    x, labels = batch(apart)
    target = apart.cost.target(labels)
    same(together.relax(x, 30), apart.relax(x, 30))
    for net in (apart, together):  # such a network learns in the end
        net.relax(x, 30)
    for make in (lambda n: ep(n, beta=2.0), lambda n: ep(n, nudging="centred", row_sparse=True)):
        make(apart)(x, target)
        wanted = gradients(apart)
        make(together)(x, target)
        found = gradients(together)
        for kind in ("values", "scale", "bias"):
            both = wanted[f"synapses.1.{kind}"] + wanted[f"synapses.2.{kind}"]
            torch.testing.assert_close(found[f"synapses.1.{kind}"], both, rtol=1e-4, atol=1e-5)
    if neurons.differentiable:
        for net in (apart, together):
            BackpropThroughTime(net, free_steps=30, nudged_steps=10)(x, target)
        wanted, found = gradients(apart), gradients(together)
        both = wanted["synapses.1.values"] + wanted["synapses.2.values"]
        torch.testing.assert_close(found["synapses.1.values"], both, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("neurons", [Real(), Binary(0.2)])
def test_tied_signs_are_followed(neurons: Neurons) -> None:
    layers, _ = tied(neurons)
    net = Network(layers, neurons)
    x, labels = batch(net)
    flip = BinaryFlip({s.values for s in layers}, gamma=0.5, threshold=1e-4)
    for _ in range(3):
        ep(net, beta=2.0)(x, net.cost.target(labels))
        flip.step()
        same(net.relax(x, 20), copy.deepcopy(net).relax(x, 20))
    assert sum(int(n) for n in flip.flips())


# Processes and threads


def negate(nets: list[Network]) -> None:
    """In another process, in place, as an optimizer would."""
    with torch.no_grad():
        for net in nets:
            for synapse in net.synapses:
                synapse.values.neg_()


@pytest.mark.filterwarnings("default")
def test_another_process_may_change_shared_signs() -> None:
    names = ["dense, real", "dense, binary", "convs, real", "convs, binary"]
    nets = [network(name).share_memory() for name in names]
    for name, net in zip(names, nets, strict=True):
        answers_as_fresh(name, net)
    process = torch.multiprocessing.get_context("spawn").Process(target=negate, args=(nets,))
    process.start()
    process.join()
    assert process.exitcode == 0
    for name, net in zip(names, nets, strict=True):
        turned = network(name).synapses[0].values
        assert torch.equal(net.synapses[0].values, -turned)
        answers_as_fresh(name, net)


@on_each
def test_shared_networks_learn_as_others_do(name: str) -> None:
    nets = [network(name), network(name).share_memory()]
    for net in nets:
        train(net, 3)
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(a, b)


@on_each
def test_one_network_learns_nothing_from_being_asked_in_threads(name: str) -> None:
    net = network(name)
    inputs = [batch(net, seed=n)[0] for n in range(4)]
    right = [copy.deepcopy(net).relax(x, 20) for x in inputs]
    wrong: list[object] = []

    def work(n: int) -> None:
        try:
            for _ in range(20):
                same(net.relax(inputs[n], 20), right[n])
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# Versions


def test_a_version_holds_as_long_as_nothing_changes() -> None:
    tensor = torch.ones(4, 3)
    version = Version(tensor)
    assert version.holds(tensor)
    assert version.holds(tensor.detach())
    assert version.holds(nn.Parameter(tensor))
    for other in (
        tensor.clone(),
        tensor[:2],
        tensor.t(),
        tensor.view(3, 4),
        tensor.view(torch.int32),
    ):
        assert not version.holds(other)
    tensor.add_(0)
    assert not version.holds(tensor)


def test_a_version_keeps_its_memory_to_itself() -> None:
    for _ in range(50):
        version = Version(torch.ones(64, 64))
        assert not version.holds(torch.ones(64, 64))


def test_flips_are_followed_by_rows_only_if_nothing_else_changed() -> None:
    signs, rows = torch.ones(4, 3), torch.tensor([1, 3])
    first = Version(signs)
    assert flipped_rows(signs, first) is None
    signs[rows] *= -1
    note_flips(signs, first, rows)
    second = Version(signs)
    assert torch.equal(flipped_rows(signs, first), rows)
    assert flipped_rows(signs, second) is None
    note_flips(signs, second, None)  # through a view that PyTorch does not count
    assert not second.holds(signs)
    assert flipped_rows(signs, second) is None
    assert flipped_rows(signs, first) is None
    third = Version(signs)
    note_flips(signs, third, rows)
    signs.neg_()
    assert flipped_rows(signs, third) is None


def test_a_convolution_is_copied_with_its_version_left_behind() -> None:
    synapse = Conv((1, 4, 4), 2)
    synapse.check_signs()
    twin = copy.deepcopy(synapse)
    with torch.no_grad():
        twin.values[0, 0, 0, 0] = 0.5
    synapse.check_signs()
    with pytest.raises(ValueError, match=r"a sign of its binary weights is 0\.5"):
        twin.check_signs()
    assert Network([twin], Real()).neurons == [Real()]
