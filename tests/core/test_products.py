"""Dense products of float32, by whichever library is quicker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from binep.core import memory, products
from binep.core.network import Network
from binep.core.neurons import Real
from binep.core.products import linear
from binep.core.synapses import Dense

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
    reason="this PyTorch has no oneDNN",
)
LAYOUTS: dict[str, Callable[[int, int], Tensor]] = {
    "rows": torch.randn,
    "columns": lambda a, b: torch.randn(b, a).T,
    "every second": lambda a, b: torch.randn(2 * a, 2 * b)[::2, ::2],
    "expanded": lambda a, b: torch.randn(1, b).expand(a, b),
}


@pytest.fixture(autouse=True)
def _where_it_is_quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "onednn_is_quicker", lambda: True)
    monkeypatch.setattr(products, "LEAST", 1)
    monkeypatch.setattr(products, "FEWEST", 1)
    monkeypatch.setattr(products, "LARGE", 2**10)
    monkeypatch.setattr(products, "AT_ONCE", 2**9)
    monkeypatch.setattr(memory, "LARGE", 2**10)


@contextmanager
def asked_of_onednn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """What it was asked to multiply."""
    asked: list[Tensor] = []
    multiply = torch.ops.mkldnn._linear_pointwise

    def noted(x: Tensor, *given: object) -> Tensor:
        asked.append(x)
        product: Tensor = multiply(x, *given)
        return product

    with monkeypatch.context() as patch:
        patch.setattr(torch.ops.mkldnn, "_linear_pointwise", noted)
        yield asked


@pytest.mark.parametrize("by_onednn", [pytest.param(True, marks=needs_onednn), False])
@given(
    st.integers(0, 2**31),
    st.tuples(*[st.integers(1, 70)] * 3),
    st.sampled_from([*LAYOUTS]),
    st.sampled_from([*LAYOUTS]),
)
def test_products_are_right_in_any_layout(
    by_onednn: bool, seed: int, sizes: tuple[int, int, int], one: str, other: str
) -> None:
    """Large ones, too, of which some rows are computed at a time."""
    torch.manual_seed(seed)
    rows, inputs, outputs = sizes
    x, weights = LAYOUTS[one](rows, inputs), LAYOUTS[other](outputs, inputs)
    right = x.double() @ weights.double().T
    largest = x.double().abs() @ weights.double().abs().T
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(products, "onednn_is_quicker", lambda: by_onednn)
        product, other_product = linear(x, weights), linear(x, weights)
    assert product.shape == (rows, outputs)
    assert product.data_ptr() != other_product.data_ptr()
    assert bool(((product - right).abs() <= 1e-6 * largest).all())


@needs_onednn
def test_a_dense_layer_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Network([Dense(7, 6), Dense(6, 3)], Real())
    with asked_of_onednn(monkeypatch) as asked, torch.no_grad():
        net.synapses[1].up(torch.rand(4, 6))
        net.synapses[1].down(torch.rand(4, 3), None)
        net.synapses[1].correlate(torch.rand(4, 3), torch.rand(4, 6))
    assert len(asked) == 3


@needs_onednn
@pytest.mark.filterwarnings("ignore:TF32")
def test_pytorch_takes_what_onednn_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weights = torch.rand(9, 5), torch.rand(4, 5)
    right = x @ weights.T
    with asked_of_onednn(monkeypatch) as asked, torch.no_grad():
        for way in (torch.float64, torch.bfloat16):
            assert linear(x.to(way), weights.to(way)).dtype == way
        with torch.backends.mkldnn.flags(enabled=False):  # type: ignore[no-untyped-call]
            torch.testing.assert_close(linear(x, weights), right)
        for name, least in (("LEAST", 181), ("FEWEST", 10)):
            with monkeypatch.context() as patch:
                patch.setattr(products, name, least)
                torch.testing.assert_close(linear(x, weights), right)
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(x, weights).dtype == torch.bfloat16
        assert linear(x[0], weights).shape == (4,)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            linear(x, weights.T)
        assert not asked
        torch.testing.assert_close(linear(x, weights), right)
        assert len(asked) == 1


DERIVATIVES: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]] = {
    "autograd": lambda f, x: torch.autograd.functional.jacobian(f, x),
    "forward": lambda f, x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1],
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "vmap": lambda f, x: torch.func.vmap(f)(x[:, None]),
    "traced": lambda f, x: torch.jit.trace(f, x)(x),
}


@needs_onednn
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize("way", [*DERIVATIVES])
def test_what_is_differentiated_is_pytorch_s(
    way: str, large: bool, recorded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(products, "LARGE", 1)
    x, weights = torch.rand(9, 5), torch.rand(4, 5)
    with torch.set_grad_enabled(recorded or way in ("autograd", "jacrev")):
        found, known = (
            DERIVATIVES[way](f, x) for f in (lambda x: linear(x, weights), lambda x: x @ weights.T)
        )
    torch.testing.assert_close(found, known)
    assert bool(known.any())
