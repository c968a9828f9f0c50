"""What Python hands to the dynamics: what fits, or one line that says why it does not."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
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
    refused,
    same,
    same_gradients,
    train,
)
from torch import Tensor

from binep.core.costs import CrossEntropy, SquaredError
from binep.core.gradients import BackpropThroughTime, EquilibriumPropagation
from binep.core.network import Network
from binep.core.neurons import Binary, Neurons, Real
from binep.core.optim import BinaryFlip
from binep.core.phases import Phase
from binep.core.speed import Speed
from binep.core.synapses import Conv, Dense
from binep.experiment.training import class_scores, evaluate, train_epoch

few = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


def ways(net: Network, x: Any) -> dict[str, Callable[[], object]]:
    """Through which an input comes in."""
    target = torch.zeros(len(x), CLASSES)
    labels = torch.zeros(len(x), dtype=torch.int64)
    found: dict[str, Callable[[], object]] = {
        "relax": lambda: net.relax(x, 5),
        "relax to a target": lambda: net.relax(x, 5, target=target, beta=0.5),
        "evaluate": lambda: evaluate(net, [(x, labels)], free_steps=5),
        "train": lambda: train_epoch(net, ep(net), [], [(x, labels)]),
    }
    for i, estimator in enumerate(estimators(net)):
        found[f"estimator {i}"] = lambda e=estimator: e(x, target)
    return found


# Shapes


@on_each
@few
@given(shape=st.lists(st.integers(1, 21), max_size=4))
def test_x_of_another_shape_is_refused(name: str, shape: list[int]) -> None:
    net = network(name)
    needed = net.synapses[0].input_shape
    x = torch.rand(3, *shape)
    flat = isinstance(net.synapses[0], Dense)
    if tuple(shape) == needed or (flat and shape and math.prod(shape) == math.prod(needed)):
        same(net.relax(x, 5), net.relax(x.reshape(3, *needed), 5))
        return
    for attempt in ways(net, x).values():
        refused(attempt, ValueError, r"x has shape \(3,.*must have shape \(batch, ")


@pytest.mark.parametrize("neurons", [Real(), Binary()])
@pytest.mark.parametrize(
    "shape",
    [
        *((6, 1, *size) for size in ((20, 28), (20, 20), (29, 20), (28, 21), (28, 20, 1))),
        *((1, 28, 20), (6, 28, 20), (28, 20), (6, 560), (6, 3, 28, 20), (560,), ()),
    ],
)
def test_images_of_another_size_are_refused(neurons: Any, shape: tuple[int, ...]) -> None:
    """Turned ones, too, and one without its batch."""
    net = Network([Conv((1, 28, 20), 4), Dense((4, 14, 10), 3)], neurons)
    refused(lambda: net.relax(torch.rand(shape), 5), ValueError, r"\(batch, 1, 28, 20\)")


@on_each
def test_into_dense_layers_images_of_any_shape_go(name: str) -> None:
    net = network(name)
    if isinstance(net.synapses[0], Conv):
        return
    x, _ = batch(net)
    same(net.relax(x.view(6, 1, 4, 5), 9), net.relax(x, 9))


@on_each
@few
@given(size=st.integers(1, 40))
def test_a_start_of_another_batch_is_refused(name: str, size: int) -> None:
    net = network(name)
    x, _ = batch(net, 6)
    start = net.relax(batch(net, size)[0], 5)
    if size == 6:
        net.relax(x, 5, start=start)
        return
    words = rf"start has states of shapes \[\({size}, .*must be \[\(6, "
    refused(lambda: net.relax(x, 5, start=start), ValueError, words)


def test_a_start_of_another_network_or_kind_is_refused() -> None:
    net, other = network("dense, real"), network("convs, real")
    (x, _), (z, _) = batch(net), batch(other)
    refused(lambda: net.relax(x, 5, start=other.relax(z, 5)), ValueError, "start has states")
    states: Any = net.relax(x, 5).states
    refused(lambda: net.relax(x, 5, start=states), TypeError, "start is a list: must be an Equi")


@on_each
@few
@given(shape=st.lists(st.sampled_from((1, 2, 3, 6, 7)), max_size=3))
def test_a_target_of_another_shape_is_refused(name: str, shape: list[int]) -> None:
    net = network(name)
    x, _ = batch(net, 6)
    target = torch.rand(shape)
    free = net.relax(x, 5)
    doors = [lambda: net.relax(x, 5, start=free, target=target, beta=0.5)]
    doors += [lambda e=e: e(x, target) for e in estimators(net)]
    for attempt in doors:
        if shape == [6, CLASSES]:
            attempt()
        else:
            refused(attempt, ValueError, r"target has shape .*must have shape \(6, 3\)")


@on_each
def test_what_is_refused_is_refused_before_any_work(name: str) -> None:
    net = network(name)
    x, labels = batch(net)
    target = net.cost.target(labels)
    for estimator in estimators(net):
        estimator(x, target)
        before = gradients(net)
        for wrong in (target[:1], target[:, :1], target[:, 0], target * math.nan):
            with pytest.raises(ValueError, match="target has"):
                estimator(x, wrong)
        for unlike in (x[:0], x[..., :1], x * math.inf):
            with pytest.raises(ValueError, match="x has"):
                estimator(unlike, target)
        assert gradients(net).keys() == before.keys()
        assert all(torch.equal(before[key], g) for key, g in gradients(net).items())


@on_each
def test_labels_that_do_not_match_the_batch_are_refused(name: str) -> None:
    net = network(name)
    x, labels = batch(net)
    optimizer = flips(net)
    for wrong in (labels[:1], labels[:5], torch.cat([labels, labels]), labels[:, None], labels[0]):
        for attempt in (
            lambda wrong=wrong: evaluate(net, [(x, wrong)], free_steps=5),
            lambda wrong=wrong: train_epoch(net, ep(net), [optimizer], [(x, wrong)]),
        ):
            refused(attempt, ValueError, "labels have shape .*must have shape")
    assert sum(int(n) for n in optimizer.flips()) == 0


def test_an_optimizers_state_of_other_shapes_is_refused() -> None:
    def of(*sizes: int) -> BinaryFlip:
        layers = [Dense(a, b) for a, b in pairwise(sizes)]
        return BinaryFlip([layer.values for layer in layers])

    new = of(784, 64, 3)
    for old in (of(20, 64, 3), of(64, 784, 3), of(784, 64), of(784, 64, 3, 3), of(1, 50176, 3)):
        with pytest.raises(ValueError, match=r"must be|size|parameter group"):
            new.load_state_dict(old.state_dict())
    new.load_state_dict(of(784, 64, 3).state_dict())


@on_each
def test_layers_may_be_replaced_after_a_relax(name: str) -> None:
    net = network(name)
    x, labels = batch(net)
    ep(net)(x, net.cost.target(labels))
    other = network(name, seed=5)
    for _ in range(4):  # memory that is let go is soon used again
        for i in range(len(net)):
            net.synapses[i] = network(name, seed=5).synapses[i]
    same(net.relax(x, 20), other.relax(x, 20))
    for estimator in (ep(net), ep(other)):
        estimator(x, net.cost.target(labels))
    same_gradients(gradients(net), gradients(other))


@pytest.mark.parametrize("neurons", [Real(), Binary(0.2)])
@pytest.mark.parametrize("off", [(), ("in-cache",), ("in-cache", "digits", "events")])
def test_a_layer_in_between_may_change_its_size(neurons: Neurons, off: tuple[str, ...]) -> None:
    """Some of the layers are others then, and one is not."""
    layers = [Dense(6, 8), Dense(8, 7), Dense(7, 3)]
    net, x = Network(layers, neurons, speed=Speed(off)), torch.rand(4, 6)
    net.relax(x, 9)
    for i, layer in enumerate((Dense(6, 9), Dense(9, 7))):
        net.synapses[i] = layer
    fresh = Network(list(net.synapses), neurons, speed=Speed(off))
    same(net.relax(x, 9), fresh.relax(x, 9))


@on_each
def test_layers_of_another_size_may_replace_others(name: str) -> None:
    net = network(name)
    x, _ = batch(net)
    net.relax(x, 9)
    below = net.synapses[-1].input_shape
    net.synapses[-1] = Dense(below, 7)
    net.synapses.append(Dense(7, CLASSES))
    refused(lambda: net.relax(x, 9), ValueError, "layers of synapses, but .* of neurons")
    net.neurons = [*net.neurons, net.neurons[-1]]
    other = Network(list(net.synapses), net.neurons, speed=net.speed)
    same(net.relax(x, 9), other.relax(x, 9))
    net.synapses[-1] = Dense(8, CLASSES)
    refused(lambda: net.relax(x, 9), ValueError, r"has shape \(7,\), but layer . takes \(8,\)")


def test_a_cost_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"output has shape \(5,\): must have 6 neurons"):
        Network([Dense(4, 5)], Real(), SquaredError(3, 2))
    with pytest.raises(ValueError, match=r"output has shape \(5,\), but the readout takes \(7,\)"):
        Network([Dense(4, 5)], Real(), CrossEntropy(Dense(7, 3)))
    net = Network([Dense(4, 5)], Real(), CrossEntropy(Dense(5, 3)))
    with pytest.raises(TypeError, match="readout is a Linear: must be Dense synapses"):
        CrossEntropy(torch.nn.Linear(3, 4))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"classes = 3\.0: must be a whole number"):
        SquaredError(3.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="readout = 'mean': must be 'averaged' or 'single'"):
        SquaredError(2, 2).scores(torch.rand(1, 4), "mean")  # type: ignore[arg-type]
    net.cost = SquaredError(4)
    refused(lambda: net.relax(torch.rand(2, 4), 3), ValueError, "must have 4 neurons")


# Types and values

INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool]


@on_each
@pytest.mark.parametrize("dtype", [*INTEGERS, torch.uint16, torch.complex64], ids=str)
def test_x_of_whole_numbers_is_refused_with_what_to_do(name: str, dtype: torch.dtype) -> None:
    net = network(name)
    x = batch(net)[0].to(dtype)
    for attempt in ways(net, x).values():
        refused(attempt, TypeError, rf"x is {dtype}: must be floating point, .* / 255")


@on_each
def test_x_that_is_no_tensor_is_refused(name: str) -> None:
    net = network(name)
    x, _ = batch(net)
    for other in (x.numpy(), x.tolist()):
        for attempt in ways(net, other).values():
            refused(attempt, TypeError, "x is a (ndarray|list): must be a tensor")
    refused(lambda: net.relax(x.flatten(1).to_sparse(), 5), TypeError, "x is torch.sparse_coo")
    refused(lambda: net.relax(x.to("meta"), 5), ValueError, "x is on meta: must be on cpu")


@on_each
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_x_of_any_floating_type_is_that_of_the_network(name: str, dtype: torch.dtype) -> None:
    net = network(name)
    x, labels = batch(net)
    x, target = x.to(dtype), net.cost.target(labels)
    free = net.relax(x, 20)
    assert free.output.dtype == torch.float32
    same(free, net.relax(x.float(), 20), 0)
    for estimator in estimators(net):
        found = []
        for z, t in ((x, target.to(dtype)), (x.float(), target.float())):
            estimator(z, t)
            found.append(gradients(net))
        same_gradients(*found, tolerance=0)
    scores = [evaluate(net, [(z, labels)], free_steps=20) for z in (x, x.float())]
    assert scores[0].loss == scores[1].loss
    assert scores[0].errors == scores[1].errors


@on_each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_changes_nothing(name: str, dtype: torch.dtype) -> None:
    net = network(name)
    x, labels = batch(net)
    found: list[Any] = []
    for on in (False, True):
        with torch.autocast("cpu", dtype, enabled=on):
            target = net.cost.target(labels)
            free = net.relax(x, 20)
            all_gradients = []
            for estimator in estimators(net):
                estimator(x, target)
                all_gradients.append(gradients(net))
        found.append((free, all_gradients))
    same(found[0][0], found[1][0], 0)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        same_gradients(one, other, tolerance=0)


def test_autocast_changes_no_held_nudge_and_no_score() -> None:
    torch.manual_seed(0)
    cost = CrossEntropy(Dense(12, 3))
    net = Network([Dense(20, 30), Dense(30, 12)], Binary(hold_nudge=True), cost)
    x, target = torch.rand(4, 20), cost.target([0, 1, 2, 0])
    found: list[Any] = []
    for on in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            free = net.relax(x, 9)
            ep(net)(x, target)
            nudged = net.relax(x, 3, start=free, target=target, beta=0.5)
            free_steps = {"free_steps": 9}
            scores = class_scores(net, [(x, target.argmax(dim=1))], **free_steps)[0]
            loss = evaluate(net, [(x, target.argmax(dim=1))], **free_steps).loss
            found.append((nudged, gradients(net), net(x), scores, torch.tensor(loss)))
    same(found[0][0], found[1][0], 0)
    same_gradients(found[0][1], found[1][1], tolerance=0)
    for one, other in zip(found[0][2:], found[1][2:], strict=True):
        assert torch.equal(one, other)


@on_each
def test_an_x_in_any_layout_is_the_same(name: str) -> None:
    net = network(name)
    x, _ = batch(net)
    right = net.relax(x, 20)
    spread = torch.stack([x, x], dim=-1)
    for z in (
        spread[..., 0],
        x.flip(0).flip(0),
        x.transpose(0, -1).contiguous().transpose(0, -1),
        torch.nn.Parameter(x.clone()),
    ):
        same(net.relax(z, 20), right)
    one = x[:1].expand_as(x)
    same(net.relax(one, 20), net.relax(one.contiguous(), 20))
    if x.dim() == 4:
        same(net.relax(x.to(memory_format=torch.channels_last), 20), right)


@on_each
@few
@given(
    value=st.sampled_from((math.inf, -math.inf, math.nan)),
    sample=st.integers(0, 5),
    place=st.integers(0, 19),
)
def test_a_pixel_that_is_not_finite_is_refused_with_its_sample(
    name: str, value: float, sample: int, place: int
) -> None:
    net = network(name)
    x, _ = batch(net)
    x.flatten(1)[sample, place] = value
    for attempt in ways(net, x).values():
        refused(attempt, ValueError, rf"x has values that are not finite in samples \[{sample}\]")


def test_large_finite_values_are_no_infinity() -> None:
    net = network("dense, real, plain")
    x = torch.full((4, 20), 1e38)  # whose sum is not finite
    assert net.relax(x, 3).output.isfinite().all()


@on_each
def test_a_network_in_double_takes_x_in_float(name: str) -> None:
    net = network(name).double()
    x, labels = batch(net)
    free = net.relax(x, 20)
    assert free.output.dtype == torch.float64
    same(free, net.relax(x.double(), 20), 0)
    for estimator in estimators(net):
        estimator(x, net.cost.target(labels))
        assert all(g.dtype == torch.float64 for g in gradients(net).values())
    assert evaluate(net, [(x, labels)], free_steps=20).samples == 6


@on_each
def test_an_empty_batch_is_refused(name: str) -> None:
    net = network(name)
    x, _ = batch(net)
    for attempt in ways(net, x[:0]).values():
        refused(attempt, ValueError, r"x has shape \(0, .*must hold at least one sample")


@on_each
@pytest.mark.parametrize(
    ("steps", "kind"),
    [
        *((n, ValueError) for n in (0, -1, True, False)),
        *((n, TypeError) for n in (2.5, "5", None, math.inf)),
    ],
)
def test_steps_must_be_whole_and_positive(name: str, steps: Any, kind: type[Exception]) -> None:
    net = network(name)
    x, labels = batch(net)
    words = "steps = .*must be (at least 1|a whole number)"
    refused(lambda: net.relax(x, steps), kind, words)
    refused(lambda: evaluate(net, [(x, labels)], free_steps=steps), kind, words)
    refused(lambda: ep(net, free_steps=steps), kind, "free_steps = ")
    refused(lambda: ep(net, nudged_steps=steps), kind, "nudged_steps = ")
    if net.neurons[0].differentiable:
        attempt = lambda: BackpropThroughTime(net, free_steps=9, nudged_steps=steps)  # noqa: E731
        refused(attempt, kind, "nudged_steps = ")
    if steps is not None:
        words = words.replace("steps", "check_every")
        refused(lambda: net.relax(x, 5, check_every=steps), kind, words)


def test_steps_may_be_a_numpy_integer() -> None:
    net = network("dense, binary")
    x, _ = batch(net)
    steps: Any = np.int64(7)
    same(net.relax(x, steps), net.relax(x, 7), 0)


@on_each
@pytest.mark.parametrize("beta", [math.nan, math.inf, -math.inf])
def test_beta_must_be_finite(name: str, beta: float) -> None:
    net = network(name)
    x, labels = batch(net)
    target = net.cost.target(labels)
    refused(lambda: net.relax(x, 5, target=target, beta=beta), ValueError, "beta = .*finite")
    refused(lambda: ep(net, beta=beta), ValueError, "beta = .*finite")


def test_beta_needs_a_target_and_a_nudging_its_name() -> None:
    net = network("dense, real")
    x, _ = batch(net)
    refused(lambda: net.relax(x, 5, beta=0.5), ValueError, "beta = 0.5 without a target")
    refused(lambda: ep(net, beta=0), ValueError, "beta = 0")
    refused(lambda: ep(net, nudging="sideways"), ValueError, "nudging = 'sideways'")


@on_each
@pytest.mark.parametrize("tolerance", [math.nan, -1e-6, math.inf])
def test_a_tolerance_is_finite_and_not_negative(name: str, tolerance: float) -> None:
    net = network(name)
    x, labels = batch(net)
    for attempt in (
        lambda: net.relax(x, 5, tolerance=tolerance),
        lambda: ep(net, tolerance=tolerance),
        lambda: evaluate(net, [(x, labels)], free_steps=5, tolerance=tolerance),
    ):
        refused(attempt, ValueError, "tolerance = .*must be a finite number from 0")


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (lambda: Speed(precision="spilt"), "precision = 'spilt': must be 'exact', 'split' or"),
        (lambda: Speed(off="events"), "off = 'events': must be a collection"),
        (lambda: SquaredError(0), "classes = 0"),
        (lambda: SquaredError(3, 0), "copies = 0"),
        (lambda: BinaryFlip([torch.ones(2, 2)], gamma=math.nan), "gamma = nan"),
        (lambda: BinaryFlip([torch.ones(2, 2)], gamma=2), "gamma = 2"),
        (lambda: BinaryFlip([torch.ones(2, 2)], threshold=-1), "threshold = -1"),
        (lambda: BinaryFlip([torch.zeros(2, 2)]), "must be the signs"),
    ],
)
def test_other_settings_out_of_range_are_refused(attempt: Any, words: str) -> None:
    refused(attempt, ValueError, words)


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "a list": lambda y: y.tolist(),
    "a tuple": lambda y: tuple(y.tolist()),
    "numpy": lambda y: y.numpy(),
    "numpy's int32": lambda y: y.numpy().astype(np.int32),
    "numpy's uint8": lambda y: y.numpy().astype(np.uint8),
    **{str(d): lambda y, d=d: y.to(d) for d in INTEGERS if d != torch.bool},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cost", [SquaredError(CLASSES), CrossEntropy(Dense(4, CLASSES))])
def test_labels_may_come_in_many_forms(form: str, cost: Any) -> None:
    labels = torch.tensor([0, 2, 1, 1])
    given_ = FORMS[form](labels)
    assert torch.equal(cost.labels(given_, 4), labels)
    assert torch.equal(cost.target(given_), torch.eye(3)[labels])


@pytest.mark.parametrize(
    ("labels", "kind", "words"),
    [
        (torch.tensor([0.0, 1.0]), TypeError, "labels are torch.float32: must be whole numbers"),
        (torch.eye(3), TypeError, "labels are torch.float32"),
        (np.array([0.0, 1.0]), TypeError, "labels are torch.float64"),
        (torch.tensor([True, False]), TypeError, "labels are torch.bool"),
        (torch.eye(3, dtype=torch.int64), ValueError, r"labels have shape \(3, 3\)"),
        (torch.tensor([[0], [1]]), ValueError, r"labels have shape \(2, 1\): must have .*batch,"),
        (torch.tensor(1), ValueError, r"labels have shape \(\)"),
        (torch.tensor([0, 3]), ValueError, "labels hold 3: must be from 0 to 2"),
        ([0, -1], ValueError, "labels hold -1: must be from 0 to 2"),
    ],
)
@pytest.mark.parametrize("cost", [SquaredError(CLASSES), CrossEntropy(Dense(4, CLASSES))])
def test_other_labels_are_refused(labels: Any, kind: Any, words: str, cost: Any) -> None:
    refused(lambda: cost.target(labels), kind, words)


def test_the_number_of_labels_is_compared_with_the_batch() -> None:
    words = r"labels have shape \(2,\): must have shape \(3,\), as x has 3 samples"
    refused(lambda: SquaredError(CLASSES).labels([0, 1], 3), ValueError, words)


@on_each
@pytest.mark.parametrize("form", FORMS)
def test_epochs_take_labels_in_these_forms(name: str, form: str) -> None:
    net = network(name)
    x, labels = batch(net)
    given_ = FORMS[form](labels)
    one, other = (evaluate(net, [(x, y)], free_steps=9) for y in (labels, given_))
    assert (one.errors, one.loss) == (other.errors, other.loss)
    train_epoch(net, ep(net), [], [(x, given_)])


@on_each
def test_inference_mode_is_no_obstacle(name: str) -> None:
    outside = network(name)
    x, labels = batch(outside)
    right = outside.relax(x, 20)
    with torch.inference_mode():
        inside = fresh(name, outside)
        z = x.clone()
        assert evaluate(inside, [(z, labels)], free_steps=20).samples == 6
        same(inside.relax(z, 20), right)
        same(outside.relax(z, 20), right)
        start = inside.relax(z, 3, tolerance=0)
        same(inside.relax(z, 17, start=start, tolerance=0), outside.relax(x, 20, tolerance=0))
        inside.synapses[0].values.neg_()  # in place, which nobody counts here
        same(inside.relax(z, 20), fresh(name, inside).relax(z, 20))
    same(outside.relax(z, 20), right)  # an x that was made inside
    frozen = dataclasses.replace(start)
    same(outside.relax(x, 3, start=frozen), outside.relax(x, 3, start=start))


@on_each
def test_training_inside_inference_mode_is_training(name: str) -> None:
    nets = [network(name), network(name)]
    train(nets[0], 3)
    with torch.inference_mode():
        train(nets[1], 3)
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(a, b)
    x, _ = batch(nets[0])
    same(nets[1].relax(x, 20), fresh(name, nets[1]).relax(x, 20))


@on_each
def test_relax_records_nothing_for_autograd(name: str) -> None:
    net = network(name)
    x, labels = batch(net)
    target = net.cost.target(labels)
    x.requires_grad_()
    free = net.relax(x, 9)
    nudged = net.relax(x, 9, start=free, target=target, beta=0.5)
    for end in (free, nudged):
        assert not any(state.requires_grad for state in end.states)
        assert not end.clamped.drive.requires_grad
    ep(net)(x, target)
    assert x.grad is None


def test_a_phase_says_what_it_was_asked_for() -> None:
    net = network("dense, real")
    x, labels = batch(net)
    phase = Phase.of(net, x.double(), 7, target=net.cost.target(labels), beta=0.5)
    assert (phase.steps, phase.beta, phase.is_free) == (7, 0.5, False)
    assert phase.x.dtype == phase.target.dtype == torch.float32
    assert isinstance(ep(net), EquilibriumPropagation)


def test_a_target_elsewhere_is_refused() -> None:
    net = Network([Dense(4, 3)], Real())
    elsewhere = torch.zeros(2, 3, device="meta")
    refused(
        lambda: net.relax(torch.rand(2, 4), 5, target=elsewhere, beta=0.5),
        ValueError,
        "target is on meta: must be on cpu",
    )


@pytest.mark.parametrize("settings", [Real(), Binary(), Speed()])
def test_settings_cannot_be_changed_behind_a_solver_s_back(settings: object) -> None:
    name = dataclasses.fields(settings)[0].name  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(settings, name, getattr(settings, name))


def test_all_tolerances_are_the_same_unless_given() -> None:
    functions = (Network.relax, Phase.of, EquilibriumPropagation, BackpropThroughTime, Network)
    defaults = {inspect.signature(f).parameters["tolerance"].default for f in functions}
    assert defaults == {1e-6}
