"""Checks that the oracle itself is right, mostly against torch."""

from dataclasses import replace

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Array, Dynamics, Synapse

quick = settings(max_examples=40, deadline=None, database=None)
seeds = st.integers(0, 2**32 - 1)


def tensor(array: Array) -> torch.Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float64))


def conv_synapse(rng: np.random.Generator, shape: tuple[int, ...], **options) -> Synapse:
    sign, scale = oracle.binarise(rng.normal(size=shape), "conv")
    return Synapse("conv", sign, scale, 0.1 * rng.normal(size=shape[0]), **options)


def dense_synapse(rng: np.random.Generator, shape: tuple[int, int]) -> Synapse:
    sign, scale = oracle.binarise(rng.normal(size=shape), "dense")
    return Synapse("dense", sign, 0.5 * scale / shape[1] ** 0.5, 0.1 * rng.normal(size=shape[0]))


def torch_up(synapse: Synapse, weight: torch.Tensor, below: torch.Tensor):
    """W * below by torch, with the indices of the maxima and the shape before pooling."""
    if synapse.kind == "dense":
        return below.flatten(1) @ weight.T, None, None
    planes = tf.conv2d(below, weight, padding=synapse.padding)
    if synapse.pooling == "average":
        return tf.avg_pool2d(planes, synapse.pool), None, planes.shape
    drive, indices = tf.max_pool2d(planes, synapse.pool, return_indices=True)
    return drive, indices, planes.shape


def torch_down(synapse: Synapse, weight: torch.Tensor, above, indices, shape, below_shape):
    if synapse.kind == "dense":
        return (above @ weight).reshape(below_shape)
    planes = tf.max_unpool2d(above, indices, synapse.pool, output_size=shape[2:])
    return tf.conv_transpose2d(planes, weight, padding=synapse.padding)


@st.composite
def conv_cases(draw, poolings=("max", "average")):
    """A synapse with a below-state; some states are bits, so that maxima often tie."""
    rng = np.random.default_rng(draw(seeds))
    kernel, padding, pool = (draw(st.integers(a, b)) for a, b in ((1, 3), (0, 2), (1, 3)))
    smallest = max(1, kernel + pool - 1 - 2 * padding)
    height, width = (smallest + draw(st.integers(0, 4)) for _ in range(2))
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 3)), kernel, kernel)
    pooling = draw(st.sampled_from(poolings))
    synapse = conv_synapse(rng, shape, padding=padding, pool=pool, pooling=pooling)
    below = rng.random((2, shape[1], height, width))
    if draw(st.booleans()):
        below = np.round(below)
        synapse = replace(synapse, scale=np.full(shape[0], 0.25))  # exact in any order of sums
    return synapse, below, rng


@quick
@given(conv_cases())
def test_up_is_torchs(case):
    synapse, below, _ = case
    drive, indices = oracle.up(synapse, below)
    expected, places, _ = torch_up(synapse, tensor(synapse.weight), tensor(below))
    np.testing.assert_allclose(drive, expected.numpy(), rtol=1e-12, atol=1e-12)
    if indices is not None:
        np.testing.assert_array_equal(indices, places.numpy())


@quick
@given(conv_cases(poolings=("max",)))
def test_down_is_torchs(case):
    synapse, below, rng = case
    drive, indices = oracle.up(synapse, below)
    above = rng.normal(size=drive.shape)
    weight = tensor(synapse.weight)
    _, places, shape = torch_up(synapse, weight, tensor(below))
    expected = torch_down(synapse, weight, tensor(above), places, shape, below.shape)
    result = oracle.down(synapse, above, indices, below.shape)
    np.testing.assert_allclose(result, expected.numpy(), rtol=1e-12, atol=1e-12)


@quick
@given(conv_cases())
def test_derivatives_of_phi_are_autograds(case):
    synapse, below, rng = case
    drive, indices = oracle.up(synapse, below)
    above = rng.normal(size=drive.shape)
    scale = tensor(synapse.scale).requires_grad_()
    weight = scale.reshape(-1, 1, 1, 1) * tensor(synapse.sign)
    input_ = tensor(below).requires_grad_()
    phi = (torch_up(synapse, weight, input_)[0] * tensor(above)).sum()
    by_weight, by_below, by_scale = torch.autograd.grad(phi, (weight, input_, scale))
    close = {"rtol": 1e-10, "atol": 1e-10}
    np.testing.assert_allclose(oracle.correlate(synapse, above, below), by_weight, **close)
    result = oracle.down(synapse, above, indices, below.shape)
    np.testing.assert_allclose(result, by_below, **close)
    product = oracle.correlate_scale(synapse, above, below)
    np.testing.assert_allclose(product, synapse.scale * by_scale.numpy(), **close)
    assert oracle.correlate_bias(synapse, above) == pytest.approx(above.sum(axis=(0, 2, 3)))


@quick
@given(seeds)
def test_dense_synapse_flattens_and_transposes(seed):
    rng = np.random.default_rng(seed)
    synapse = dense_synapse(rng, (4, 12))
    below, above = rng.random((3, 2, 3, 2)), rng.random((3, 4))
    drive, _ = oracle.up(synapse, below)
    expected = np.einsum("ochw,bchw->bo", synapse.weight.reshape(4, 2, 3, 2), below)
    np.testing.assert_allclose(drive, expected)
    back = oracle.down(synapse, above, None, below.shape)
    phi = np.sum(above * drive)
    assert np.sum(back * below) == pytest.approx(phi)
    assert np.sum(oracle.correlate(synapse, above, below) * synapse.weight) == pytest.approx(phi)
    assert oracle.correlate_scale(synapse, above, below) == pytest.approx(phi)


def small_network(rng: np.random.Generator) -> tuple[list[Synapse], Array, Array]:
    """Two pooled convolutions (9x9 -> 4x4 -> 5x5 -> 2x2) and a classifier of two layers."""
    first = conv_synapse(rng, (2, 1, 3, 3), padding=1, pool=2)
    second = conv_synapse(rng, (2, 2, 2, 2), padding=1, pool=2)
    for synapse in (first, second):  # powers of two: equal states tie exactly, in torch as well
        synapse.scale = np.array([0.125, 0.25])
    synapses = [first, second, dense_synapse(rng, (4, 8)), dense_synapse(rng, (3, 4))]
    return synapses, rng.random((2, 1, 9, 9)), np.eye(3)[[0, 2]]


def torch_step(synapses, weights, biases, states, x):
    sent = [x, *states]
    ups = [torch_up(s, w, sent[k]) for k, (s, w) in enumerate(zip(synapses, weights, strict=True))]
    new = []
    for k, synapse in enumerate(synapses):
        shape = (1, -1) if synapse.kind == "dense" else (1, -1, 1, 1)
        p = ups[k][0] + biases[k].reshape(shape)
        if k + 1 < len(synapses):
            _, places, planes = ups[k + 1]
            p = p + torch_down(
                synapses[k + 1], weights[k + 1], sent[k + 2], places, planes, sent[k + 1].shape
            )
        new.append(p.clamp(0, 1))
    return new


def test_bptt_is_autograds():
    rng = np.random.default_rng(1)
    synapses, x, target = small_network(rng)
    dynamics = Dynamics(initial=0.5)
    free_steps, last_steps = 9, 5
    gradients = oracle.bptt_gradient(synapses, dynamics, x, target, free_steps, last_steps)

    scales = [tensor(s.scale).requires_grad_() for s in synapses]
    biases = [tensor(s.bias).requires_grad_() for s in synapses]
    weights = []
    for synapse, scale in zip(synapses, scales, strict=True):
        shape = () if synapse.kind == "dense" else (-1, 1, 1, 1)
        weights.append(scale.reshape(shape) * tensor(synapse.sign))
    states = [tensor(s) for s in oracle.initial_states(synapses, dynamics, x)]
    for t in range(free_steps):
        with torch.set_grad_enabled(t >= free_steps - last_steps):
            states = torch_step(synapses, weights, biases, states, tensor(x))
    relaxed = oracle.relax(
        synapses, dynamics, x, oracle.initial_states(synapses, dynamics, x), free_steps
    )
    for ours, theirs in zip(relaxed, states, strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-12, atol=1e-12)

    value = 0.5 * ((states[-1] - tensor(target)) ** 2).sum(1).mean()
    assert oracle.loss(relaxed[-1], target) == pytest.approx(value.item())
    found = torch.autograd.grad(value, weights + biases + scales)
    count = len(synapses)
    for name, offset in (("weight", 0), ("bias", count), ("scale", 2 * count)):
        for k in range(count):
            expected = -found[offset + k].numpy()
            assert np.any(expected != 0)
            np.testing.assert_allclose(gradients[k][name], expected, rtol=1e-5, atol=1e-8)


def test_ep_tends_to_bptt_with_the_inside_nudge():
    rng = np.random.default_rng(3)
    synapses, x, target = small_network(rng)
    for synapse in synapses:
        synapse.bias = synapse.bias + 0.3  # keeps the neurons off the corners of the activation
    dynamics = Dynamics(initial=0.5, nudge="inside")
    beta, steps = 1e-4, 40
    free = oracle.relax(
        synapses, dynamics, x, oracle.initial_states(synapses, dynamics, x), 3 * steps
    )
    plus = oracle.relax(synapses, dynamics, x, free, steps, target, beta)
    minus = oracle.relax(synapses, dynamics, x, free, steps, target, -beta)
    one_sided = oracle.ep_gradient(synapses, dynamics, x, free, plus, beta)
    centred = oracle.centred_gradient(synapses, dynamics, x, plus, minus, beta)
    exact = oracle.bptt_gradient(synapses, dynamics, x, target, 3 * steps, steps)
    for k, synapse in enumerate(synapses):
        exact[k]["scale"] = exact[k]["scale"] * synapse.scale
        for name, expected in exact[k].items():
            assert np.abs(expected).max() > 1e-4
            np.testing.assert_allclose(one_sided[k][name], expected, rtol=1e-2, atol=1e-6)
            np.testing.assert_allclose(centred[k][name], expected, rtol=1e-4, atol=1e-6)


def one_neuron(weight: float, bias: float) -> list[Synapse]:
    scale = np.asarray(abs(weight))
    return [Synapse("dense", np.array([[np.sign(weight)]]), scale, np.array([bias]))]


def test_nudges_by_hand():
    synapses, x, y = one_neuron(0.5, 0.4), np.array([[1.0]]), np.array([[1.0]])
    states = [np.array([[0.4]])]  # p = 0.9, y - s = 0.6

    def output(dynamics: Dynamics, beta: float, **options) -> float:
        return float(oracle.step(synapses, dynamics, states, x, y, beta, **options)[0][0, 0])

    assert output(Dynamics(), 0.0) == pytest.approx(0.9)
    assert output(Dynamics(), 0.5) == 1.0
    assert output(Dynamics(clip_output=False), 0.5) == pytest.approx(1.2)
    assert output(Dynamics(clip_output=False), -0.5) == pytest.approx(0.6)
    assert output(Dynamics(nudge="inside", clip_output=False), 0.5) == 1.0
    assert output(Dynamics(), 0.5, force=lambda s: -s) == pytest.approx(0.7)
    bits = Dynamics("binary")
    assert output(bits, 0.0) == pytest.approx(0.5 * 0.4 + 0.5 * 0.9)
    assert output(bits, 0.2) == pytest.approx(0.5 * 0.4 + 0.5 * (0.9 + 0.2 * 0.6))
    held = replace(bits, nudge_reference="free", filter=0.25)
    free = np.array([[0.8]])
    result = output(held, 0.2, free_output=free)
    assert result == pytest.approx(0.75 * 0.4 + 0.25 * (0.9 + 0.2 * 0.2))
    with pytest.raises(ValueError, match="free_output"):
        output(held, 0.2)
    with pytest.raises(ValueError, match="real activations"):
        oracle.bptt_gradient(synapses, bits, x, y, 2, 1)


def test_bits_are_what_is_sent():
    bits = Dynamics("binary", threshold=0.6)
    fired = oracle.fire(bits, np.array([0.0, 0.59, 0.6, 1.0]))
    np.testing.assert_array_equal(fired, [0.0, 0.0, 1.0, 1.0])
    synapses = one_neuron(0.5, 0.0) + one_neuron(-0.25, 0.1)
    states = [np.array([[0.5]]), np.array([[0.7]])]  # fire 0 and 1
    first, second = oracle.step(synapses, bits, states, np.array([[0.3]]))
    assert first[0, 0] == pytest.approx(0.5 * 0.5 + 0.5 * (0.15 - 0.25))
    assert second[0, 0] == pytest.approx(0.5 * 0.7 + 0.5 * 0.1)
    nudged = [np.array([[0.7]]), np.array([[0.9]])]  # fire 1 and 1
    below, above = oracle.ep_gradient(synapses, bits, np.array([[0.3]]), states, nudged, -0.5)
    found = [float(g[name].item()) for g in (below, above) for name in ("weight", "bias", "scale")]
    assert found == pytest.approx([-0.6, -2.0, -0.3, -2.0, 0.0, 0.5])


def test_flip_by_hand():
    sign = np.array([1.0, 1.0, -1.0, -1.0])
    gradient = np.array([-1.0, 1.0, 1.0, 0.5])
    new, momentum, count = oracle.flip(sign, np.zeros(4), gradient, 0.5, 0.25)
    np.testing.assert_array_equal(momentum, 0.5 * gradient)
    np.testing.assert_array_equal(new, [-1.0, 1.0, 1.0, -1.0])  # the last is equal, so it stays
    assert count == 2


@pytest.mark.parametrize("activation", ["real", "binary"])
def test_one_batch_moves_as_its_gradients_say(activation):
    rng = np.random.default_rng(5)
    synapses, x, target = small_network(rng)
    dynamics = Dynamics(activation, initial=0.5 if activation == "real" else 1.0)
    momenta = [0.1 * rng.normal(size=s.sign.shape) for s in synapses]
    gammas = [0.5, 0.4, 0.3, 0.2]
    lists = [gammas, [0.04] * 4, [0.1] * 4]
    result = oracle.one_batch(
        synapses, dynamics, x, target, 0.3, 20, 10, *lists, momenta, [0.2, 0.2, 0.2, -1e9]
    )
    for k, (old, new) in enumerate(zip(synapses, result.synapses, strict=True)):
        g = result.gradients[k]
        assert result.flips[k] == np.sum(old.sign != new.sign)
        momentum = (1 - gammas[k]) * momenta[k] + gammas[k] * g["weight"]
        np.testing.assert_allclose(result.momenta[k], momentum)
        np.testing.assert_allclose(new.bias, old.bias + 0.1 * g["bias"])
        assert np.all(new.scale >= oracle.SCALE_FLOOR)
        assert np.all(np.abs(new.weight) == oracle.per_output(new.scale, new.sign.ndim))
        if k < 3:
            np.testing.assert_allclose(new.scale, old.scale + 0.2 * g["scale"])
    assert sum(result.flips) > 0
    fixed = oracle.one_batch(synapses, dynamics, x, target, 0.3, 20, 10, *lists, momenta)
    for old, new in zip(synapses, fixed.synapses, strict=True):
        np.testing.assert_array_equal(new.scale, old.scale)


def test_binarise_targets_and_predictions():
    sign, scale = oracle.binarise(np.array([[0.0, -2.0], [1.0, 1.0]]), "dense")
    np.testing.assert_array_equal(sign, [[1.0, -1.0], [1.0, 1.0]])
    assert scale.shape == ()
    assert scale == 1.0
    _, scale = oracle.binarise(np.stack([np.ones((2, 3, 3)), -2 * np.ones((2, 3, 3))]), "conv")
    np.testing.assert_array_equal(scale, [1.0, 2.0])
    repeated = oracle.repeat_target(np.array([[0.0, 1.0]]), 3)
    np.testing.assert_array_equal(repeated, [[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]])
    output = np.array([[0.9, 0.0, 0.8, 0.8]])
    assert oracle.predict(output, 2, "averaged")[0] == 1
    assert oracle.predict(output, 2, "single")[0] == 0


@quick
@given(seeds)
def test_readout_is_autograds(seed):
    rng = np.random.default_rng(seed)
    arrays = [rng.normal(size=shape) for shape in ((3, 8), (3,), (4, 2, 2, 2))]
    weight, bias, state = (tensor(a).requires_grad_() for a in arrays)
    classes = rng.integers(0, 3, size=4)
    logits = state.flatten(1) @ weight.T + bias
    value = tf.cross_entropy(logits, torch.from_numpy(classes), reduction="sum")
    by_weight, by_bias, by_state = torch.autograd.grad(value, (weight, bias, state))
    target = np.eye(3)[classes]
    close = {"rtol": 1e-9, "atol": 1e-12}
    np.testing.assert_allclose(oracle.readout_force(*arrays, target), -by_state.numpy(), **close)
    found = oracle.readout_gradient(*arrays, target)
    np.testing.assert_allclose(found["weight"], -by_weight.numpy() / 4, **close)
    np.testing.assert_allclose(found["bias"], -by_bias.numpy() / 4, **close)
