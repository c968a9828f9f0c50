"""BinaryFlip against the oracle, and GradientDescent against SGD."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import array

from binep.core.optim import _PART, MOST_WRITES, SCALE_FLOOR, BinaryFlip, GradientDescent


@given(
    seed=st.integers(0, 2**32),
    shapes=st.lists(st.sampled_from([(1, 3), (4, 5), (2, 3, 2, 2)]), min_size=1, max_size=3),
    gamma=st.floats(1e-6, 1.0),
    threshold=st.floats(0.0, 0.3),
    noise=st.booleans(),
    steps=st.integers(1, 5),
)
def test_momentum_and_flips_equal_the_oracle(
    seed: int,
    shapes: list[tuple[int, ...]],
    gamma: float,
    threshold: float,
    noise: bool,
    steps: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def normal(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    signs = [torch.where(normal(s) >= 0, 1.0, -1.0).double() for s in shapes]
    groups = [
        {"params": [w], "gamma": gamma / (i + 1), "threshold": threshold * i}
        for i, w in enumerate(signs)
    ]
    optimizer = BinaryFlip(groups, noise=noise, generator=generator)
    expected = [array(w) for w in signs]
    momenta = [-array(m) for m in optimizer.momenta()]
    assert noise or all((m == 0).all() for m in momenta)
    total = [0] * len(signs)
    written = [np.zeros(shape, np.int16) for shape in shapes]
    for _ in range(steps):
        for i, w in enumerate(signs):
            w.grad = normal(tuple(w.shape))
            before = expected[i].copy()
            expected[i], momenta[i], flips = oracle.flip(
                expected[i], momenta[i], -array(w.grad), gamma / (i + 1), threshold * i
            )
            total[i] += flips
            written[i] += expected[i] != before
        optimizer.step()
        for w, ours, sign, m in zip(signs, optimizer.momenta(), expected, momenta, strict=True):
            np.testing.assert_array_equal(array(w), sign)
            np.testing.assert_allclose(-array(ours), m, atol=1e-12)
    assert [int(n) for n in optimizer.take_flips()] == total
    assert [int(n) for n in optimizer.take_flips()] == [0] * len(signs)
    for ours, wanted in zip(optimizer.writes(), written, strict=True):  # which goes on
        np.testing.assert_array_equal(ours, wanted)


@pytest.mark.parametrize("one_pass", [True, False])
def test_tensors_larger_than_a_part_are_visited_whole(one_pass: bool) -> None:
    signs = torch.ones(1, 2 * _PART + 3)
    optimizer = BinaryFlip([signs], gamma=1.0, threshold=0.0, one_pass=one_pass)
    signs.grad = torch.ones_like(signs)
    optimizer.step()
    assert (signs == -1).all()
    assert [int(n) for n in optimizer.flips()] == [signs.numel()]


@pytest.mark.parametrize("one_pass", [True, False])
def test_writes_are_counted_up_to_the_most_of_16_bits(one_pass: bool) -> None:
    signs = torch.ones(1, 3)
    optimizer = BinaryFlip([signs], gamma=1.0, threshold=0.5, one_pass=one_pass)
    optimizer.writes()[0].copy_(torch.tensor([[MOST_WRITES - 1, MOST_WRITES, 7]]))
    for _ in range(3):
        signs.grad = signs.clone()
        optimizer.step()
    assert optimizer.writes()[0].tolist() == [[MOST_WRITES, MOST_WRITES, 10]]


@given(
    seed=st.integers(0, 2**32),
    gamma=st.floats(1e-5, 1.0),
    threshold=st.floats(0.0, 0.3),
    noise=st.booleans(),
    steps=st.integers(1, 8),
    rows_of=st.sampled_from([6, 0]),  # none, as a worker's share of a small layer may have
)
def test_one_pass_and_sparse_gradients_change_no_bit(
    seed: int, gamma: float, threshold: float, noise: bool, steps: int, rows_of: int
) -> None:
    drawn = torch.randn(rows_of, 5, generator=torch.Generator().manual_seed(seed))
    start = torch.where(drawn >= 0, 1.0, -1.0)
    copies = [start.clone() for _ in range(3)]
    optimizers = [
        BinaryFlip([signs], gamma, threshold, noise, one_pass, torch.Generator().manual_seed(seed))
        for signs, one_pass in zip(copies, (False, True, True), strict=True)
    ]
    generator = torch.Generator().manual_seed(seed + 1)
    for _ in range(steps):
        grad = torch.randn(rows_of, 5, generator=generator)
        grad[torch.rand(rows_of, generator=generator) < 0.5] = 0
        rows = grad.any(dim=1).nonzero().flatten()
        sparse = torch.sparse_coo_tensor(
            rows[None], grad[rows], grad.shape, is_coalesced=True, check_invariants=True
        )
        for signs, given_, optimizer in zip(copies, (grad, grad, sparse), optimizers, strict=True):
            signs.grad = given_
            optimizer.step()
        for signs, optimizer in zip(copies[1:], optimizers[1:], strict=True):
            assert torch.equal(signs, copies[0])
            assert torch.equal(optimizer.momenta()[0], optimizers[0].momenta()[0])
            assert optimizer.flips() == optimizers[0].flips()
            assert torch.equal(optimizer.writes()[0], optimizers[0].writes()[0])


@pytest.mark.parametrize("one_pass", [True, False])
@pytest.mark.parametrize("loaded", [True, False])
def test_a_lower_threshold_is_for_rows_without_a_gradient_too(one_pass: bool, loaded: bool) -> None:
    signs = torch.ones(3, 4)
    optimizer = BinaryFlip([signs], gamma=0.5, threshold=2.0, one_pass=one_pass)
    grad = torch.ones(3, 4)
    for threshold in (2.0, 0.01):
        signs.grad = grad.to_sparse(1)
        if loaded:
            other = BinaryFlip([signs], gamma=0.5, threshold=7.0, one_pass=one_pass)
            state = optimizer.state_dict()
            state["param_groups"][0]["threshold"] = threshold
            other.load_state_dict(state)
            optimizer = other
        optimizer.param_groups[0]["threshold"] = threshold
        optimizer.step()
        grad[1:] = 0
    assert (signs == -1).all()


def test_a_copy_takes_another_group_with_noise() -> None:
    optimizer = pickle.loads(pickle.dumps(BinaryFlip([torch.ones(2, 3)])))
    optimizer.add_param_group({"params": [torch.ones(4, 5)], "noise": True})
    assert optimizer.momenta()[1].abs().max() > 0


def test_initial_noise_has_the_papers_size() -> None:
    gamma = 0.1
    signs = torch.ones(100, 1000)
    optimizer = BinaryFlip([signs], gamma=gamma, threshold=1.0, noise=True)
    (momentum,) = optimizer.momenta()
    assert float(momentum.std()) == pytest.approx(2 * gamma * (1 - gamma), rel=0.05)


def test_the_momentum_survives_in_the_state_dict() -> None:
    def fresh() -> tuple[torch.Tensor, BinaryFlip]:
        signs = torch.ones(1, 5)
        return signs, BinaryFlip([signs], gamma=0.5, threshold=1.0)

    signs, optimizer = fresh()
    signs.grad = torch.arange(5.0)[None]
    optimizer.step()
    _, restored = fresh()
    restored.load_state_dict(optimizer.state_dict())
    assert torch.equal(restored.momenta()[0], optimizer.momenta()[0])
    assert int(restored.flips()[0]) == int(optimizer.flips()[0]) == 2
    assert restored.flips()[0].dtype == torch.int64
    assert restored.writes()[0].tolist() == [[0, 0, 0, 1, 1]]
    old = optimizer.state_dict()
    del old["param_groups"][0]["writes"]  # as version 0.1 left it
    restored.load_state_dict(old)
    assert restored.writes()[0].tolist() == [[0] * 5]
    restored.step()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_momenta_of_another_type_than_the_signs(dtype: torch.dtype) -> None:
    found = []
    for one_pass in (True, False):
        signs = torch.ones(3, 4, requires_grad=True)
        optimizer = BinaryFlip([signs], gamma=0.5, threshold=0.1, one_pass=one_pass)
        momentum = optimizer.state[signs]["momentum"]
        optimizer.state[signs]["momentum"] = momentum.to(dtype)
        signs.grad = torch.arange(12.0).view(3, 4) - 6
        optimizer.step()
        found.append(signs.detach())
    assert torch.equal(*found)
    assert 0 < int((found[0] < 0).sum()) < 12


def test_tensors_without_a_gradient_are_left_alone() -> None:
    signs = torch.ones(1, 3)
    BinaryFlip([signs]).step()
    assert (signs == 1).all()


@pytest.mark.parametrize("gamma", [0.0, -1.0, 1.5, float("nan")])
def test_gamma_out_of_range_is_refused(gamma: float) -> None:
    with pytest.raises(ValueError, match=r"gamma = .*must be in"):
        BinaryFlip([torch.ones(1, 3)], gamma=gamma)


@pytest.mark.parametrize("threshold", [-1e-9, float("nan"), float("inf")])
def test_a_negative_threshold_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"threshold = .*must be a finite number from 0"):
        BinaryFlip([torch.ones(1, 3)], threshold=threshold)


@given(st.floats(-10, 10), st.floats(0, 10))
def test_scaling_factors_stay_positive(gradient: float, rate: float) -> None:
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    scale.grad = torch.tensor(gradient, dtype=torch.float64)
    GradientDescent([scale], lr=rate, floor=SCALE_FLOOR).step()
    assert float(scale.detach()) == pytest.approx(max(0.5 - rate * gradient, SCALE_FLOOR))


@given(st.floats(-10, 10), st.floats(0, 10), st.floats(0.01, 2))
def test_relative_steps_are_in_proportion(gradient: float, rate: float, start: float) -> None:
    """The paper's rates of the scaling factors: α ← α − lr·α·g."""
    scale = torch.tensor([start, -start], dtype=torch.float64)
    scale.grad = torch.full((2,), gradient, dtype=torch.float64)
    GradientDescent([scale], lr=rate, relative=True).step()
    expected = start * (1 - rate * gradient)
    assert scale.tolist() == pytest.approx([expected, -expected], abs=1e-12)


@given(st.floats(-10, 10), st.floats(0, 10))
def test_descent_takes_the_steps_of_sgd(gradient: float, rate: float) -> None:
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 5)) for _ in range(2))
    for parameter, optimizer in (
        (ours, GradientDescent([ours], lr=rate)),
        (theirs, torch.optim.SGD([theirs], lr=rate)),
    ):
        for _ in range(2):
            parameter.grad = gradient * parameter.detach()
            optimizer.step()
    assert torch.equal(ours, theirs)


def test_training_does_not_load_the_compiler() -> None:
    """It would take 70 MB."""
    code = (
        "import sys, torch\n"
        "from binep.core.optim import BinaryFlip, GradientDescent\n"
        "p = torch.nn.Parameter(torch.ones(1, 3))\n"
        "p.grad = p.detach()\n"
        "for kind in BinaryFlip, GradientDescent: kind([p]).step()\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_momenta_of_any_strides_are_loaded() -> None:
    """They are kept contiguous, as what takes one pass over them needs it."""
    values = torch.nn.Parameter(torch.where(torch.rand(5, 7) < 0.5, -1.0, 1.0))
    ours, theirs = (BinaryFlip([torch.nn.Parameter(values.data.clone())]) for _ in range(2))
    state = ours.state_dict()
    momentum = torch.randn(5, 7)
    theirs.load_state_dict({**state, "state": {0: {**state["state"][0], "momentum": momentum}}})
    strided = momentum.T.contiguous().T
    ours.load_state_dict({**state, "state": {0: {**state["state"][0], "momentum": strided}}})
    for one in (ours, theirs):
        (signs,) = one.param_groups[0]["params"]
        signs.grad = torch.full((5, 7), 0.1)
        assert one.state[signs]["momentum"].is_contiguous()
        one.step()
    pairs = zip(ours.momenta(), theirs.momenta(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
