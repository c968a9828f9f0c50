"""What PyTorch's users are used to, sums beyond 32 bits, and workers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
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
from torch.nn.utils import parametrize

from binep.core.costs import CrossEntropy
from binep.core.gradients import BackpropThroughTime
from binep.core.network import Network
from binep.core.neurons import Binary, Real
from binep.core.optim import BinaryFlip, GradientDescent
from binep.core.solvers import Plain, registered
from binep.core.speed import SHORTCUTS, Speed
from binep.core.synapses import Conv, Dense

# Frozen parameters


@on_each
@pytest.mark.parametrize("kind", ["values", "scale", "bias", "all"])
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(name: str, kind: str) -> None:
    net = network(name)
    x, labels = batch(net)
    target = net.cost.target(labels)
    for layer in range(len(net)):
        net.requires_grad_(True)
        synapse = net.synapses[layer]
        kinds = ("values", "scale", "bias") if kind == "all" else (kind,)
        frozen = {f"synapses.{layer}.{k}" for k in kinds}
        for estimator in estimators(net):
            net.requires_grad_(True)
            estimator(x, target)
            wanted = gradients(net)
            assert len(wanted) == 3 * len(net)
            for k in kinds:
                getattr(synapse, k).requires_grad_(False)
            estimator(x, target)
            found = gradients(net)
            assert wanted.keys() - found.keys() == frozen
            same_gradients({k: g for k, g in wanted.items() if k not in frozen}, found)


@pytest.mark.parametrize("learning", range(-1, 4))
def test_any_layers_may_be_frozen_however_few_steps_are_differentiated(learning: int) -> None:
    torch.manual_seed(0)
    layers = [Dense(20, 30), Dense(30, 30), Dense(30, 30), Dense(30, 3)]
    net = Network(layers, Real(0.5), speed=Speed(off=SHORTCUTS))
    net.requires_grad_(False)
    if learning >= 0:
        layers[learning].requires_grad_(True)
    x, target = torch.rand(6, 20), net.cost.target(torch.arange(6) % 3)
    for off in (SHORTCUTS, ("in-cache",), ()):
        net.speed = Speed(off=off)
        for steps in range(1, 6):
            for free in (steps, 50):
                net.zero_grad()
                BackpropThroughTime(net, free_steps=free, nudged_steps=steps)(x, target)
                for number, layer in enumerate(layers):
                    reached = number == learning and 3 - number < steps
                    filled = layer.values.grad is not None
                    assert filled >= reached
                    assert filled <= (number == learning)


class Gain(Dense):
    """With a parameter of its own."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.tensor(1.5))

    def up(self, below: Tensor) -> Any:
        product, route = super().up(below)
        return product * self.gain, route


def test_a_first_layer_of_ones_own_learns_by_bptt() -> None:
    torch.manual_seed(0)
    net = Network([Gain(20, 30), Dense(30, 3)], Real())
    x, target = torch.rand(6, 20), net.cost.target(torch.arange(6) % 3)
    found = []
    for off in ((), ("in-cache",)):
        net.speed = Speed(off=off)
        net.zero_grad()
        BackpropThroughTime(net, free_steps=20, nudged_steps=4)(x, target)
        found.append(gradients(net))
    assert found[0].keys() >= {"synapses.0.gain"}
    same_gradients(*found)


@on_each
def test_frozen_layers_do_not_flip(name: str) -> None:
    net = network(name)
    net.synapses[0].requires_grad_(False)
    before = [p.detach().clone() for p in net.parameters()]
    train(net, 3)
    signs = net.synapses[0].values
    assert torch.equal(signs, before[0])


def test_a_frozen_readout_stays() -> None:
    readout = Dense(5, CLASSES)
    net = Network([Dense(4, 5)], Real(0.5), CrossEntropy(readout))
    x, target = torch.rand(6, 4), net.cost.target(torch.arange(6) % CLASSES)
    for frozen in (False, True):
        readout.requires_grad_(not frozen)
        for estimator in (ep(net), BackpropThroughTime(net, free_steps=9, nudged_steps=5)):
            estimator(x, target)
            assert all((p.grad is None) == frozen for p in readout.parameters())
            assert net.synapses[0].values.grad is not None


# Optimizers


def test_groups_may_be_added() -> None:
    net = network("dense, real")
    x, labels = batch(net)
    at_once = flips(net)
    one_by_one = BinaryFlip([net.synapses[0].values], gamma=0.5, threshold=0)
    ep(net)(x, net.cost.target(labels))
    signs = [s.values.detach().clone() for s in net.synapses]
    at_once.step()
    wanted = [s.values.detach().clone() for s in net.synapses]
    for synapse, before in zip(net.synapses, signs, strict=True):
        with torch.no_grad():
            synapse.values.copy_(before)
    one_by_one.add_param_group({"params": [net.synapses[1].values], "gamma": 0.5})
    one_by_one.step()
    for synapse, after in zip(net.synapses, wanted, strict=True):
        assert torch.equal(synapse.values, after)
    assert [int(n) for n in one_by_one.flips()] == [int(n) for n in at_once.flips()]
    assert len(one_by_one.momenta()) == 2


def test_a_group_that_is_refused_leaves_no_trace() -> None:
    net = network("dense, real")
    optimizer = BinaryFlip([net.synapses[0].values])
    for group, words in (
        ({"params": [net.synapses[1].bias]}, "params.0., of shape .3,.: must be the signs"),
        ({"params": [net.synapses[1].values], "gamma": 0}, "gamma = 0"),
    ):
        with pytest.raises(ValueError, match=words):
            optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [net.synapses[1].values]})
    assert len(optimizer.momenta()) == 2


def test_schedulers_change_the_rate_of_the_momentum() -> None:
    signs = [torch.ones(2, 3), torch.ones(2, 3)]
    scheduled = BinaryFlip([signs[0]], gamma=0.5, threshold=10)
    scheduler = torch.optim.lr_scheduler.StepLR(scheduled, 1, gamma=0.5)
    by_hand = BinaryFlip([signs[1]], gamma=0.5, threshold=10)
    for n in range(4):
        by_hand.param_groups[0]["gamma"] = 0.5 * 0.5**n
        for tensor in signs:
            tensor.grad = torch.full((2, 3), 1.0 + n)
        scheduled.step()
        scheduler.step()
        by_hand.step()
        assert torch.equal(scheduled.momenta()[0], by_hand.momenta()[0])
    assert scheduler.get_last_lr() == [1 / 16]
    state = scheduled.state_dict()
    again = BinaryFlip([torch.ones(2, 3)], gamma=0.5, threshold=10)
    again.load_state_dict(state)
    assert again.param_groups[0]["lr"] == 1 / 16


@on_each
def test_gradients_can_be_clipped(name: str) -> None:
    net = network(name)
    x, labels = batch(net)
    for estimator in (ep(net, beta=2.0), ep(net, beta=2.0, nudging="centred")):
        estimator(x, net.cost.target(labels))
        assert not any(p.grad.is_sparse for p in net.parameters() if p.grad is not None)
        before = torch.cat([g.flatten() for g in gradients(net).values()]).norm()
        norm = nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
        torch.testing.assert_close(norm, before)
        after = torch.cat([g.flatten() for g in gradients(net).values()]).norm()
        assert float(after) == pytest.approx(1e-3, rel=1e-2)


def test_sparse_rows_come_only_where_they_are_asked_for_and_say_the_same() -> None:
    net = network("dense, binary")
    x, labels = batch(net)
    found = []
    for row_sparse in (False, True):
        ep(net, beta=2.0, row_sparse=row_sparse)(x, net.cost.target(labels))
        sparse = [p.grad.is_sparse for p in net.parameters() if p.grad is not None]
        assert any(sparse) == row_sparse
        found.append(gradients(net))
    same_gradients(*found, tolerance=0)
    net.synapses[0].values.requires_grad_(False)
    ep(net, beta=2.0, row_sparse=True)(x, net.cost.target(labels))
    scale = found[0]["synapses.0.scale"]
    torch.testing.assert_close(net.synapses[0].scale.grad, scale)


@on_each
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD, GradientDescent])
def test_another_optimizer_over_signs_is_noticed(name: str, kind: Any) -> None:
    net = network(name)
    x, labels = batch(net)
    target = net.cost.target(labels)
    ep(net, beta=2.0)(x, target)
    wrong = kind(net.parameters(), lr=0.1)
    wrong.step()
    words = "layer [123]: a sign of its binary weights is .*: must be 1 or -1; only BinaryFlip"
    with pytest.raises(ValueError, match=words):
        net.relax(x, 5)
    for estimator in estimators(net):
        with pytest.raises(ValueError, match=words):
            estimator(x, target)


def test_real_weights_are_for_any_optimizer() -> None:
    layers = [Dense(20, 9, weights="real"), Dense(9, CLASSES, weights="real")]
    net = Network(layers, Real(0.5))
    x, labels = batch(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(3):
        ep(net)(x, net.cost.target(labels))
        optimizer.step()
        same(net.relax(x, 20), Network(layers, Real(0.5)).relax(x, 20))


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_fused_optimizers_are_noticed(kind: Any) -> None:
    """Of which PyTorch counts no change."""
    torch.manual_seed(0)
    layers = [
        Conv((1, 8, 8), 4, weights="real"),
        Conv((4, 4, 4), 4, weights="real"),
        Dense((4, 2, 2), CLASSES, weights="real"),
    ]
    net = Network(layers, Real())
    x, labels = batch(net)
    target, optimizer = net.cost.target(labels), kind(net.parameters(), lr=0.02, fused=True)
    start = net.relax(x, 200)
    for _ in range(3):
        ep(net)(x, target)
        optimizer.step()
        assert not start.is_current(net, x)
        start = net.relax(x, 200)
        same(start, Network(layers, Real()).relax(x, 200), 0)


@on_each
def test_a_fused_optimizer_over_signs_is_noticed(name: str) -> None:
    net = network(name)
    x, labels = batch(net)
    ep(net, beta=2.0)(x, net.cost.target(labels))
    torch.optim.SGD(net.parameters(), lr=0.1, fused=True).step()
    with pytest.raises(ValueError, match=r"a sign of its binary weights is .*: must be 1"):
        net.relax(x, 5)


@on_each
def test_gradients_from_inference_mode_are_usual_ones(name: str) -> None:
    net = network(name)
    x, labels = batch(net)
    target = net.cost.target(labels)
    ep(net)(x, target)
    wanted = gradients(net)
    with torch.inference_mode():
        ep(net)(x, target)
    same_gradients(wanted, gradients(net), tolerance=0)
    nn.utils.clip_grad_norm_(net.parameters(), 1e-3)


def test_signs_of_the_readout_are_looked_at_too() -> None:
    readout = Dense(5, CLASSES)
    net = Network([Dense(4, 5)], Real(), CrossEntropy(readout))
    with torch.no_grad():
        readout.values[1, 2] = 0.25
    with pytest.raises(ValueError, match=r"layer 2: a sign of its binary weights is 0.25"):
        net.relax(torch.rand(2, 4), 3)


def test_binary_flip_says_what_to_give_it() -> None:
    net = network("dense, real")
    real = Network([Dense(4, 3, weights="real")], Real())
    for given in (net.parameters(), real.parameters(), [net.synapses[0].bias]):
        with pytest.raises(ValueError, match=r"must be the signs.*\[s.values for s in network.syn"):
            BinaryFlip(given)
    with pytest.raises(ValueError, match="empty parameter list"):
        BinaryFlip([])


# Parametrizations, layouts, determinism


class StraightThrough(torch.autograd.Function):
    """Sign forward, identity backward."""

    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        return torch.where(w >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Sign(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        found: Tensor = StraightThrough.apply(w)
        return found

    def right_inverse(self, w: Tensor) -> Tensor:
        return 0.3 * w


@on_each
def test_signs_may_be_computed_from_other_parameters(name: str) -> None:
    net, plain = network(name), network(name)
    for each in (net, plain):  # other solvers leave computed signs to the plain one
        each.speed = Speed(off=tuple(k.name for k in registered() if k is not Plain))
    x, labels = batch(net)
    target = net.cost.target(labels)
    net.relax(x, 5)
    for synapse in net.synapses:
        parametrize.register_parametrization(synapse, "values", Sign())
    same(net.relax(x, 20), plain.relax(x, 20))
    for one, other in zip(estimators(net), estimators(plain), strict=True):
        one(x, target)
        other(x, target)
        for ours, theirs in zip(net.synapses, plain.synapses, strict=True):
            latent: Any = ours.parametrizations["values"].original
            torch.testing.assert_close(latent.grad, theirs.values.grad.to_dense())
            torch.testing.assert_close(ours.bias.grad, theirs.bias.grad)
            torch.testing.assert_close(ours.scale.grad, theirs.scale.grad)
    latents = [s.parametrizations["values"].original for s in net.synapses]
    torch.optim.SGD(latents, lr=10.0).step()
    signs = [s.values.detach().clone() for s in net.synapses]
    with torch.no_grad():
        for theirs, ours, values in zip(plain.synapses, net.synapses, signs, strict=True):
            theirs.values.copy_(values)
            theirs.bias.copy_(ours.bias)
            theirs.scale.copy_(ours.scale)
    same(net.relax(x, 20), plain.relax(x, 20))
    net.speed = Speed()
    same(net.relax(x, 20), plain.relax(x, 20))


@pytest.mark.parametrize("name", ["conv, real", "conv, binary", "convs, real", "convs, binary"])
def test_channels_last_is_no_other_network(name: str) -> None:
    nets = [network(name), network(name)]
    nets[1].to(memory_format=torch.channels_last)
    x, labels = batch(nets[0])
    images = [x, x.to(memory_format=torch.channels_last)]
    optimizers = [flips(net, threshold=1e-3) for net in nets]
    for _ in range(3):
        same(nets[0].relax(images[0], 20), nets[1].relax(images[1], 20))
        for net, z, optimizer in zip(nets, images, optimizers, strict=True):
            ep(net, beta=2.0)(z, net.cost.target(labels))
            optimizer.step()
        same_gradients(gradients(nets[0]), gradients(nets[1]))
        for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
            assert torch.equal(a, b)
    same(nets[1].relax(x, 20), fresh(name, nets[1]).relax(x, 20))


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@on_each
@pytest.mark.usefixtures("deterministic")
def test_deterministic_algorithms_are_all_there_is(name: str) -> None:
    net = network(name)
    x, labels = batch(net)
    for estimator in estimators(net):
        found = []
        for _ in range(2):
            estimator(x, net.cost.target(labels))
            found.append(gradients(net))
        same_gradients(*found, tolerance=0)
    train(net, 2)
    torch.use_deterministic_algorithms(False)
    other = network(name)
    train(other, 2)
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


# Numbers


@pytest.mark.parametrize("channels", [256, 512])
@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("share", [1.0, 0.75])
def test_feedback_of_many_channels_does_not_overflow(
    channels: int, pool: int, share: float
) -> None:
    torch.manual_seed(0)
    low = Conv((1, 6, 6), 2, pool=1)
    high = Conv(low.output_shape, channels, pool=pool)
    with torch.no_grad():
        high.values.copy_(torch.where(torch.rand(high.values.shape) < share, 1.0, -1.0))
    layers, x = [low, high, Dense(high.output_shape, 3)], torch.rand(2, 1, 6, 6)
    states = []
    for speed in (Speed(), Speed(off=SHORTCUTS)):
        net = Network(layers, Binary(), speed=speed)
        states.append([net.relax(x, steps).states for steps in (1, 2, 3)])
    for ours, plain in zip(*states, strict=True):
        for a, b in zip(ours, plain, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
            assert torch.equal(a >= 0.5, b >= 0.5)


# Workers

_WORKERS = """
import multiprocessing, torch
import binep
torch.set_num_threads(1)
torch.manual_seed(0)
net = binep.Network([binep.Dense(20, 50), binep.Dense(50, 3)], binep.{neurons}())
x, y = torch.rand(8, 20), torch.arange(8) % 3

def work(_):
    try:
        return binep.evaluate(net, [(x, y)], free_steps=20).loss
    except RuntimeError as error:
        return str(error)

if __name__ == "__main__":
    right = work(0) if {first} else None
    with multiprocessing.get_context("{method}").Pool(2) as pool:
        found = pool.map_async(work, range(2)).get(timeout=60)
    right = work(0) if right is None else right
    print(all(v == right or "spawn" in str(v) and "forked" in str(v) for v in found))
"""


@pytest.mark.parametrize("neurons", ["Real", "Binary"])
@pytest.mark.parametrize(("method", "first"), [("fork", True), ("fork", False)])
def test_workers_answer_or_say_why_not(neurons: str, method: str, first: bool) -> None:
    code = _WORKERS.format(neurons=neurons, method=method, first=first)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=180
    )
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr
