"""Synapses: products and correlations against the oracle and against autograd."""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal

import networks
import numpy as np
import oracle
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from binep.core.synapses import Conv, Dense, Synapse


@st.composite
def synapses(draw: st.DrawFn) -> tuple[Synapse, torch.Generator]:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    options: Any = {
        "weights": draw(st.sampled_from(("binary", "real"))),
        "generator": generator,
    }
    shape = tuple(draw(st.integers(1, 6)) for _ in range(3))
    if draw(st.booleans()):
        return Dense(shape, draw(st.integers(1, 5)), **options).double(), generator
    return draw(networks.convolutions(shape, **options)).double(), generator


def states(
    synapse: Synapse, generator: torch.Generator, bits: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    shapes = ((3, *synapse.input_shape), (3, *synapse.output_shape))
    below, above = (torch.rand(s, generator=generator, dtype=torch.float64) for s in shapes)
    return ((below > 0.5).double(), (above > 0.5).double()) if bits else (below, above)


@given(synapses(), st.booleans())
def test_products_and_correlations_equal_the_oracle(
    drawn: tuple[Synapse, torch.Generator], bits: bool
) -> None:
    synapse, generator = drawn
    below, above = states(synapse, generator, bits)  # bits make the pooled maxima tie
    twin = networks.twin_of(synapse)
    drive, route = synapse.up(below)
    expected, indices = oracle.up(twin, below.numpy())
    np.testing.assert_allclose(networks.array(drive), expected, atol=1e-12)
    down = oracle.down(twin, above.numpy(), indices, tuple(below.shape))
    np.testing.assert_allclose(networks.array(synapse.down(above, route)), down, atol=1e-12)
    for ours, theirs in (
        (synapse.correlate(above, below), oracle.correlate(twin, above.numpy(), below.numpy())),
        (synapse.correlate_bias(above), oracle.correlate_bias(twin, above.numpy())),
    ):
        np.testing.assert_allclose(networks.array(ours), theirs, atol=1e-12)
    if synapse.scale is not None:
        per_scale = synapse.scale * synapse.per_scale(synapse.correlate(above, below))
        theirs = oracle.correlate_scale(twin, above.numpy(), below.numpy())
        np.testing.assert_allclose(networks.array(per_scale), theirs, atol=1e-12)


@given(synapses())
def test_correlations_are_the_derivative_of_phi(drawn: tuple[Synapse, torch.Generator]) -> None:
    """Φ = Σ s·(W ⋆ s_below) + b·s, by autograd; real values, so that no maxima tie."""
    synapse, generator = drawn
    below, above = states(synapse, generator, bits=False)
    phi = (above * synapse.biased(synapse.up(below)[0])).sum()
    phi.backward()
    assert synapse.values.grad is not None
    weight_gradient = synapse.values.grad
    if synapse.scale is not None:
        weight_gradient = weight_gradient / synapse.per_weight(synapse.scale)
        expected = synapse.per_scale(synapse.correlate(above, below))
        torch.testing.assert_close(synapse.scale.grad, expected)
    torch.testing.assert_close(synapse.correlate(above, below), weight_gradient)
    torch.testing.assert_close(synapse.correlate_bias(above), synapse.bias.grad)


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 7), st.sampled_from((1, 8, 2**19)))
def test_a_scaling_factors_gradient_is_summed_over_any_rows_a_few_at_a_time(
    seed: int, above: int, below: int, at_once: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    synapse = Dense(below, above, generator=generator).double()
    gradient = torch.randn(above, below, generator=generator, dtype=torch.float64)
    (rows,) = (torch.rand(above, generator=generator) < 0.6).nonzero(as_tuple=True)
    some = torch.sparse_coo_tensor(
        rows[None], gradient[rows], gradient.shape, check_invariants=True
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("binep.core.synapses._IN_CACHE", at_once)
        for found in (gradient, some.coalesce()):
            expected = float((synapse.values.detach() * found.to_dense()).sum())
            assert float(synapse.per_scale(found)) == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 2**32), st.integers(2, 6))
def test_of_an_image_of_grey_levels_the_places_that_sent_learn(seed: int, levels: int) -> None:
    """Where maxima tie, too: the input's sums are of whole numbers."""
    g = torch.Generator().manual_seed(seed)
    conv = Conv((1, 7, 7), 3, kernel=3, padding=1, generator=g)
    x = torch.randint(levels, (4, 1, 7, 7), generator=g) / 255
    above = torch.rand(4, *conv.output_shape, generator=g)
    _, route = conv.up_input(x)
    assert route is not None
    expected = torch.zeros_like(conv.values)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    for b, c, i, j in itertools.product(range(4), range(3), range(3), range(3)):
        row, column = divmod(int(route[b, c, i, j]), 7)
        patch = padded[b, :, row : row + 3, column : column + 3]
        expected[c] += above[b, c, i, j] * patch
    torch.testing.assert_close(conv.correlate(above, x), expected.detach())


@given(synapses())
def test_down_is_the_transpose_of_up(drawn: tuple[Synapse, torch.Generator]) -> None:
    synapse, generator = drawn
    below, above = states(synapse, generator, bits=False)
    drive, route = synapse.up(below)
    torch.testing.assert_close((above * drive).sum(), (below * synapse.down(above, route)).sum())


@given(synapses())
def test_binary_weights_are_plus_minus_alpha(drawn: tuple[Synapse, torch.Generator]) -> None:
    synapse, _ = drawn
    assume(synapse.scale is not None)
    assert synapse.scale is not None
    assert set(synapse.values.unique().tolist()) <= {-1.0, 1.0}
    alphas = synapse.per_weight(synapse.scale).expand_as(synapse.weight)
    assert torch.equal(synapse.weight.abs(), alphas)


@pytest.mark.parametrize(
    "build", [lambda g: Dense(50, 40, generator=g), lambda g: Conv((3, 9, 9), 40, generator=g)]
)
def test_initial_values_are_pytorchs_binarised(build: Any) -> None:
    synapse = build(torch.Generator().manual_seed(1))
    fan_in = synapse.values[0].numel()
    # mean|w| of U(−b, b) is b/2, with b = 1/√fan_in; biases are U(−b, b) themselves.
    alpha = torch.tensor(0.5 * fan_in**-0.5)
    torch.testing.assert_close(synapse.scale.mean(), alpha, rtol=0.1, atol=0)
    assert 0 < synapse.bias.abs().max() <= fan_in**-0.5
    real = torch.empty(synapse.values.shape)
    real.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=torch.Generator().manual_seed(1))
    kind, rtol = ("dense", 1e-6) if isinstance(synapse, Dense) else ("conv", 2**-12)
    signs, alphas = oracle.binarise(networks.array(real), kind)
    np.testing.assert_array_equal(networks.array(synapse.values), signs)
    np.testing.assert_allclose(networks.array(synapse.scale), alphas, rtol=rtol, atol=0)
    assert synapse.scale.shape == (() if isinstance(synapse, Dense) else (40,))
    assert torch.equal(build(torch.Generator().manual_seed(1)).values, synapse.values)
    assert not torch.equal(build(torch.Generator().manual_seed(2)).values, synapse.values)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Dense(0, 3), "at least 1"),
        (lambda: Dense(3, 3, weights="ternary"), "'binary' or 'real'"),
        (lambda: Conv((1, 4, 4), 2, kernel=7, padding=1), "kernel = 7 is larger than its map"),
        (lambda: Conv((1, 4, 4), 2, kernel=3, padding=0, pool=3), "pool = 3 is larger"),
        (lambda: Conv((1, 4, 4), 0), "channels = 0"),
        (lambda: Conv((1, 4, 4), 2, pooling="sum"), "'max' or 'average'"),
        (lambda: Conv((16,), 2), r"needs \(channels, height, width\)"),
        (lambda: Conv((1, 4, 4), 2, padding=-1), "padding = -1: must be at least 0"),
    ],
)
def test_impossible_shapes_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("name", ["channels", "kernel", "padding", "pool"])
def test_sizes_are_whole(name: str) -> None:
    sizes: dict[str, Any] = {"channels": 2, name: 2.0}
    with pytest.raises(TypeError, match=rf"{name} = 2\.0: must be a whole number"):
        Conv((1, 8, 8), **sizes)


@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("pooling", ["max", "average"])
def test_parts_of_a_batch_make_the_whole(
    pool: int, pooling: Literal["max", "average"], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    synapse = Conv((2, 6, 6), 3, kernel=3, pool=pool, pooling=pooling, generator=generator)
    x = torch.rand(5, 2, 6, 6, generator=generator)
    above = torch.rand(5, *synapse.output_shape, generator=generator)
    found = []
    for at_once in (2**30, 2 * 3 * math.prod(synapse.map_shape)):  # all; two samples
        monkeypatch.setattr("binep.core.synapses._AT_ONCE", at_once)
        drive, route = synapse.up_input(x)
        found.append((drive, route, synapse.correlate(above, x)))
    (drive, route, gradient), (drive_, route_, gradient_) = found
    torch.testing.assert_close(drive, drive_)
    torch.testing.assert_close(drive, synapse.up(x)[0])
    torch.testing.assert_close(gradient, gradient_)
    if synapse.has_route:
        assert torch.equal(route, route_)
    else:
        assert route is None
        assert route_ is None
