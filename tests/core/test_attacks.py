"""Inputs that once crashed, read foreign memory or were wrong in silence; found by attack."""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from shelf import (
    CLASSES,
    SHELF,
    batch,
    ep,
    estimators,
    flips,
    fresh,
    gradients,
    network,
    on_each,
    refused,
    same,
    same_gradients,
)
from torch import Tensor, nn
from torch.nn.utils import parametrize

from binep.core.costs import CrossEntropy, SquaredError
from binep.core.gradients import (
    BackpropThroughTime,
    EquilibriumPropagation,
    GradientEstimator,
)
from binep.core.network import Network
from binep.core.neurons import Binary, Neurons, Real
from binep.core.optim import BinaryFlip, GradientDescent
from binep.core.speed import SHORTCUTS, Speed
from binep.core.synapses import Conv, Dense
from binep.experiment.config import Config, Layer
from binep.experiment.experiment import Experiment
from binep.experiment.training import evaluate, train_epoch

PLAIN = Speed(off=SHORTCUTS)


# Shapes


@on_each
@pytest.mark.parametrize(
    ("parameter", "shape"),
    [("bias", (1,)), ("bias", (70,)), ("values", (5, 5)), ("values", (200, 500)), ("scale", (9,))],
)
def test_a_parameter_of_another_shape_is_refused(
    name: str, parameter: str, shape: tuple[int, ...]
) -> None:
    net = network(name)
    x, labels = batch(net)
    needed = tuple(getattr(net.synapses[-1], parameter).shape)
    setattr(net.synapses[-1], parameter, nn.Parameter(torch.ones(shape)))
    words = rf"layer {len(net)}: {parameter} has shape .*: must be {needed}".replace("(", r"\(")
    words = words.replace(")", r"\)")
    refused(lambda: net.relax(x, 5), ValueError, words)
    refused(lambda: ep(net)(x, net.cost.target(labels)), ValueError, words)


@pytest.mark.parametrize("neurons", [Real(), Binary(0.2)])
@pytest.mark.parametrize("speed", [Speed(), PLAIN])
def test_maps_may_be_the_output(neurons: Neurons, speed: Speed) -> None:
    torch.manual_seed(0)
    maps = Conv((4, 4, 4), CLASSES, kernel=4, padding=0, pool=1)
    net = Network([Conv((1, 8, 8), 4), maps], neurons, speed=speed)
    x, labels = batch(net)
    output = net.relax(x, 20).output.flatten(1)
    target = net.cost.target(labels)
    scores = evaluate(net, [(x, labels)], free_steps=20)
    loss = (output - target).square().sum(dim=1).mean() / 2
    assert scores.loss == pytest.approx(float(loss))
    assert scores.error == pytest.approx(100 * float((output.argmax(1) != labels).float().mean()))
    ep(net, beta=2.0)(x, target)
    flat = gradients(net)
    ep(net, beta=2.0)(x, target.view(-1, CLASSES, 1, 1))
    same_gradients(flat, gradients(net), 0)


# Stale copies


def test_neurons_of_another_threshold_go_on_from_the_states_alone() -> None:
    net = network("dense, binary")
    x, _ = batch(net)
    free = net.relax(x, 30)
    other = Network(list(net.synapses), Binary(0.4))  # of the same synapses
    right = Network(list(net.synapses), Binary(0.4), speed=PLAIN).relax(x, 1, start=free)
    same(other.relax(x, 1, start=free), right, 1e-6)  # the input's drive is rounded otherwise
    net.neurons = [Binary(0.4)] * 2
    same(net.relax(x, 1, start=free), right, 1e-6)


@on_each
def test_an_input_that_numpy_refills_is_a_new_one(name: str) -> None:
    net = network(name)
    (first, _), (second, _) = batch(net), batch(net, seed=2)
    buffer = first.numpy().copy()
    x = torch.from_numpy(buffer)
    start = net.relax(x, 20)
    buffer[:] = second.numpy()
    states = [state.clone() for state in start.states]
    beginning = dataclasses.replace(fresh(name, net).relax(first, 20), states=states)
    same(net.relax(x, 9, start=start), fresh(name, net).relax(second, 9, start=beginning))


@on_each
def test_a_start_with_another_input_of_its_own_takes_x_all_the_same(name: str) -> None:
    net = network(name)
    (x, _), (other, _) = batch(net), batch(net, seed=2)
    start = net.relax(x, 20)
    mixed = dataclasses.replace(start, clamped=net.relax(other, 20).clamped)
    same(net.relax(x, 5, start=mixed), net.relax(x, 5, start=start))


# Types and values


@pytest.fixture(params=[torch.float64, torch.bfloat16, "meta"], ids=str)
def other_defaults(request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """Gives PyTorch another default type or device, until the test ends."""

    def change() -> None:
        if isinstance(request.param, str):
            torch.set_default_device(request.param)
        else:
            torch.set_default_dtype(request.param)

    yield change
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


@on_each
def test_pytorchs_defaults_change_nothing(name: str, other_defaults: Callable[[], None]) -> None:
    net = network(name)
    x, labels = batch(net)
    target = net.cost.target(labels)

    def results() -> list[Any]:
        ours = fresh(name, net) if not found else net
        found.append(evaluate(ours, [(x, labels)], free_steps=20).loss)
        for estimator in [*estimators(ours), ep(ours, nudging="random-sign", generator=seeded())]:
            estimator(x, target)
            found.append(gradients(ours))
            flip = flips(ours, threshold=1e9)
            flip.step()
        return found[-1 - len(estimators(ours)) - 1 :]

    found: list[Any] = []
    before = results()
    other_defaults()
    after = results()
    assert before[0] == after[0]
    for one, other in zip(before[1:], after[1:], strict=True):
        same_gradients(one, other, 0)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_initial_values_are_where_their_generator_is(other_defaults: Callable[[], None]) -> None:
    other_defaults()
    assert Dense(3, 4, generator=seeded()).values.device.type == "cpu"


@on_each
@pytest.mark.parametrize("wrong", [-0.1, 0.0, math.nan, math.inf])
def test_scaling_factors_are_finite_and_above_0(name: str, wrong: float) -> None:
    net = network(name)
    x, labels = batch(net)
    net.relax(x, 5)
    scale: Any = net.synapses[1].scale
    with torch.no_grad():
        scale.view(-1)[-1] = wrong
    words = f"layer 2: a scaling factor is {wrong:.3g}: must be finite and above 0"
    refused(lambda: net.relax(x, 5), ValueError, words)
    refused(lambda: ep(net)(x, net.cost.target(labels)), ValueError, words)


@on_each
def test_layers_of_several_types_are_refused(name: str) -> None:
    net = network(name)
    net.synapses[-1].double()
    x, _ = batch(net)
    words = f"layer {len(net)}: values is torch.float64 on cpu: must be torch.float32 on cpu"
    refused(lambda: net.relax(x, 5), ValueError, words)


@on_each
def test_beta_is_a_number_in_the_networks_type(name: str) -> None:
    net = network(name)
    x, labels = batch(net)
    target = net.cost.target(labels)
    refused(lambda: net.relax(x, 5, target=target, beta=1e39), ValueError, "beta = 1e.39: must be")
    for beta in (1e-300, -1e-42):
        refused(lambda beta=beta: ep(net, beta=beta), ValueError, "beta = -?1e-.*at least 1e-30")
    ep(net, beta=1e-29)(x, target)
    assert all(g.isfinite().all() for g in gradients(net).values())


def test_an_estimators_settings_are_looked_at_when_it_is_called() -> None:
    net = network("dense, real")
    x, labels = batch(net)
    for name, value in (("beta", 0), ("nudging", "sideways")):
        estimator = ep(net)
        setattr(estimator, name, value)
        refused(lambda e=estimator: e(x, net.cost.target(labels)), ValueError, f"{name} = ")


@on_each
def test_as_many_steps_as_there_are_numbers_may_be_allowed(name: str) -> None:
    net = network(name)
    x, _ = batch(net, 1)
    right = net.relax(x, 3000, tolerance=1e-3)
    if right.residual.max() > (1e-3 if net.neurons[0].differentiable else 0):
        return  # it would never end
    for steps in (sys.maxsize, 2**70):
        same(net.relax(x, steps, tolerance=1e-3), right, 0)


@on_each
def test_numbers_whose_sign_is_yet_to_be_applied_are_the_same(name: str) -> None:
    net = network(name)
    x, labels = batch(net)
    target = net.cost.target(labels).float()
    lazy = [torch.complex(t * 0, -t).conj().imag for t in (x, target)]
    assert all(t.is_neg() for t in lazy)
    for estimator in estimators(net):
        estimator(x, target)
        right = gradients(net)
        estimator(*lazy)
        same_gradients(gradients(net), right, 0)


class Own(Tensor):
    """A subclass without anything of its own."""


@on_each
def test_subclasses_of_tensors_do_not_spread(name: str) -> None:
    net = network(name)
    x, labels = batch(net)
    target = net.cost.target(labels).float()
    free = net.relax(x.as_subclass(Own), 9)  # type: ignore[arg-type]
    assert {type(state) for state in free.states} == {Tensor}
    for estimator in estimators(net):
        estimator(x.as_subclass(Own), target.as_subclass(Own))  # type: ignore[arg-type]
        assert {type(p.grad) for p in net.parameters()} == {Tensor}


def test_what_is_no_plain_tensor_is_refused_by_name() -> None:
    net = network("dense, real")
    x, labels = batch(net)
    target = net.cost.target(labels).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns of them, once
        nested = torch.nested.nested_tensor([torch.rand(20)] * 6)
    refused(lambda: net.relax(nested, 5), TypeError, "x is nested: must be dense")
    for wrong in (target.to_sparse(), target.to(torch.complex64)):
        refused(lambda t=wrong: ep(net)(x, t), TypeError, "target is .*: must be a dense tensor")
    for inputs in (torch.tensor(1.0), nested, None):
        attempt = lambda z=inputs: evaluate(net, [(z, labels)], free_steps=5)  # noqa: E731
        refused(attempt, (TypeError, ValueError), "x (is|has)")  # type: ignore[arg-type]
    free = net.relax(x, 5)
    for states in ([s.numpy() for s in free.states], [s.to_sparse() for s in free.states]):
        start = dataclasses.replace(free, states=states)
        refused(lambda s=start: net.relax(x, 5, start=s), TypeError, "start has states of .*dense")


@pytest.mark.parametrize(
    "labels",
    [None, "label", [[1], [1, 2]], [2**70], ["1"], np.arange(3)[::-1], torch.ones(3).to_sparse()],
    ids=lambda labels: str(type(labels)),
)
def test_labels_that_are_no_numbers_are_refused_by_name(labels: Any) -> None:
    refused(lambda: SquaredError(CLASSES).labels(labels), TypeError, "labels are ")


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Network([Dense(2, 3)], Real), r"neurons\[0\] = the class Real: must be of type"),
        (lambda: Network([Dense(2, 3)], [Real]), r"neurons\[0\] = the class Real"),
        (lambda: Network(Dense(2, 3), Real()), "synapses is a Dense: must be a list"),
        (lambda: Network([nn.Linear(2, 3)], Real()), r"synapses\[0\] = Linear.*of type Synapse"),
        (lambda: Network([Dense(2, 3)], Real(), SquaredError), "cost = the class SquaredError"),
        (lambda: Network([Dense(2, 3)], Real(), speed="fast"), "speed = 'fast': must be of type"),
    ],
)
def test_parts_of_another_kind_are_refused_by_name(build: Any, words: str) -> None:
    refused(build, TypeError, words)


def test_sizes_may_be_numpys() -> None:
    sizes: Any = np.int64(20), np.int64(50)
    assert Dense(*sizes).input_shape == (20,)
    assert Dense(np.array([4, 5]).tolist(), sizes[1]).values.shape == (50, 20)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_loss_of_many_batches_is_their_mean_in_half_precision(dtype: torch.dtype) -> None:
    net = network("dense, real").to(dtype)
    pair = batch(net, 500)
    one, many = (evaluate(net, [pair] * n, free_steps=3).loss for n in (1, 300))
    assert many == pytest.approx(one, rel=1e-4)


# PyTorch's habits


def test_parameters_that_a_hook_would_compute_are_refused() -> None:
    torch.manual_seed(0)
    net = Network([Dense(20, 3, weights="real")], Real())
    torch.nn.utils.prune.l1_unstructured(net.synapses[0], "values", 0.5)
    words = "layer 1: values is a Tensor: must be a parameter, or .*parametrize"
    refused(lambda: net.relax(torch.rand(6, 20), 5), ValueError, words)


class Twice(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return 2 * w

    def right_inverse(self, w: Tensor) -> Tensor:
        return w / 2


@on_each
@pytest.mark.parametrize("parameter", ["bias", "scale"])
def test_biases_and_scales_may_be_computed_from_other_parameters(name: str, parameter: str) -> None:
    net, plain = network(name), network(name)
    net.speed = plain.speed = PLAIN
    for synapse in net.synapses:
        parametrize.register_parametrization(synapse, parameter, Twice())
    x, labels = batch(net)
    for one, other in zip(estimators(net), estimators(plain), strict=True):
        one(x, net.cost.target(labels))
        other(x, plain.cost.target(labels))
        for ours, theirs in zip(net.synapses, plain.synapses, strict=True):
            latent: Any = ours.parametrizations[parameter].original
            torch.testing.assert_close(latent.grad, 2 * getattr(theirs, parameter).grad)


@pytest.mark.parametrize("speed", [Speed(), PLAIN])
def test_layers_may_share_their_parameters(speed: Speed) -> None:
    torch.manual_seed(0)
    first, tied, twin, last = Dense(20, 50), Dense(50, 50), Dense(50, 50), Dense(50, CLASSES)
    twin.values, twin.scale, twin.bias = tied.values, tied.scale, tied.bias
    nets = [Network([first, tied, t, last], Real(), speed=speed) for t in (tied, twin)]
    x, labels = batch(nets[0])
    found = []
    for net in nets:
        for estimator in estimators(net):
            estimator(x, net.cost.target(labels))
            found.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    for one, other in zip(found[: len(found) // 2], found[len(found) // 2 :], strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b)


def test_signs_shared_under_two_scaling_factors_cannot_be_backpropagated() -> None:
    tied, twin = Dense(50, 50), Dense(50, 50)
    twin.values = tied.values
    net = Network([Dense(20, 50), tied, twin, Dense(50, CLASSES)], Real(), speed=PLAIN)
    x, labels = batch(net)
    for steps in (9, 500):  # at most and at least as many as settle
        estimator = BackpropThroughTime(net, free_steps=steps, nudged_steps=5)
        target = net.cost.target(labels)
        refused(partial(estimator, x, target), ValueError, "layers share their signs")


def test_what_autograd_would_have_to_record_is_refused_in_inference_mode() -> None:
    x = torch.rand(4, 20)
    readout = CrossEntropy(Dense(50, CLASSES, weights="real"))
    layers = [Dense(20, 50), Dense(50, 50)]
    steps = {"free_steps": 9, "nudged_steps": 5}
    estimators: list[GradientEstimator] = [
        BackpropThroughTime(Network(layers, Real(), speed=PLAIN), **steps),
        EquilibriumPropagation(Network(layers, Real(), readout), beta=0.5, **steps),
    ]
    for estimator, classes in zip(estimators, (50, CLASSES), strict=True):
        target = torch.eye(classes)[[0, 1, 2, 0]]
        with torch.inference_mode():
            refused(partial(estimator, x, target), RuntimeError, "inference_mode")


def test_a_parameter_given_twice_is_updated_once() -> None:
    tied = Dense(50, 50)
    net = Network([Dense(20, 50), tied, tied, Dense(50, CLASSES)], Real())
    flip = flips(net, threshold=1e9)
    x, labels = batch(net)
    ep(net)(x, net.cost.target(labels))
    flip.step()
    assert len(flip.momenta()) == 3
    grad: Any = tied.values.grad
    torch.testing.assert_close(flip.momenta()[1], 0.5 * grad)
    p = torch.zeros(3)
    descent = GradientDescent([p, p], lr=1.0)
    p.grad = torch.ones(3)
    descent.step()
    assert p.tolist() == [-1] * 3


def test_the_rate_of_a_momentum_is_at_most_one() -> None:
    signs = torch.ones(3, 3)
    words = "gamma = 0.5 times lr = .*: must be at most 1"
    refused(lambda: BinaryFlip([signs], gamma=0.5, lr=10), ValueError, words)
    flip = BinaryFlip([signs], gamma=0.5, threshold=0.1)
    signs.grad = torch.ones(3, 3)
    for lr in (2.5, -1.0, math.nan):
        flip.param_groups[0]["lr"] = lr
        refused(flip.step, ValueError, words)
    assert signs.eq(1).all()
    for lr in (0.0, 2.0):  # the ends of the range
        flip.param_groups[0]["lr"] = lr
        flip.step()
    assert torch.equal(flip.momenta()[0], torch.ones(3, 3))


@pytest.mark.parametrize("lr", [math.nan, math.inf, -1.0])
def test_a_learning_rate_is_finite_and_not_negative(lr: float) -> None:
    refused(lambda: GradientDescent([torch.ones(2)], lr=lr), ValueError, f"lr = {lr}: must be")
    group = {"params": [torch.ones(2)], "lr": lr}
    refused(lambda: GradientDescent([group]), ValueError, f"lr = {lr}: must be")


# One meaning each


class Quarter(Network):
    """With a step of its own."""

    def step(self, *arguments: Any, **options: Any) -> list[Tensor]:
        return [torch.full_like(state, 0.25) for state in super().step(*arguments, **options)]


@on_each
def test_a_network_with_a_step_of_its_own_takes_it(name: str) -> None:
    like = SHELF[name]()
    net = Quarter(list(like.synapses), like.neurons)
    x, _ = batch(net)
    assert net.relax(x, 5).output.unique().tolist() == [0.25]


def test_a_network_is_not_trained_by_anothers_estimator() -> None:
    net = network("dense, real")
    estimator, twin = ep(net), copy.deepcopy(net)
    words = "the estimator is of another network"
    refused(lambda: train_epoch(twin, estimator, [], [batch(twin)]), ValueError, words)


# Experiments


def experiment() -> Experiment:
    layers = {"1": Layer(30, gamma=1e-3, threshold=1e-5), "2": Layer(10, gamma=1e-3)}
    return Experiment(Config(layers=layers, threads=1, max_batches=4))


class BrokenOffError(Exception):
    """As a KeyboardInterrupt would."""


def test_an_epoch_that_was_broken_off_goes_on_with_the_same_samples() -> None:
    whole, broken = experiment(), experiment()
    right = whole.train_epoch()

    def stop(meter: object) -> None:
        if broken.batch == 2:
            raise BrokenOffError

    with pytest.raises(BrokenOffError):
        broken.train_epoch(stop)
    result = broken.train_epoch()
    assert (result.train.loss, result.test.loss) == (right.train.loss, right.test.loss)
    assert torch.equal(whole.order.get_state(), broken.order.get_state())


def test_an_experiment_is_in_float32_whatever_the_default_type() -> None:
    right = experiment().train_epoch()
    torch.set_default_dtype(torch.float64)
    try:
        result = experiment().train_epoch()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert (result.train.loss, result.test.loss) == (right.train.loss, right.test.loss)
