"""Memory that serves again, once nobody has it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from binep.core import memory


@pytest.fixture(autouse=True)
def _with_none_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LARGE", 2**12)
    memory._kept.clear()


def test_memory_serves_again_once_nobody_has_it() -> None:
    first = memory.empty(64, 32)
    place, view, array = first.data_ptr(), first[3:5], first.numpy()
    del first
    second = memory.empty(64, 32)
    assert second.data_ptr() != place
    del array
    third = memory.empty(64, 32)
    assert third.data_ptr() != place
    view.fill_(3)
    del view
    bytes_ = memory.empty(64 * 32, 4, dtype=torch.uint8)
    assert bytes_.data_ptr() == place
    assert bytes_.view(torch.float32)[3 * 32 : 5 * 32].eq(3).all()


@given(st.lists(st.tuples(st.sampled_from([1, 33, 1024, 1025, 4000]), st.integers(0, 5))))
def test_what_somebody_has_stays_as_it_is(wanted: list[tuple[int, int]]) -> None:
    """Each request is written to its end; then one of those that are held may be let go."""
    held: list[tuple[Tensor, float]] = []
    for value, (numbers, gone) in enumerate(wanted):
        found = memory.empty(numbers, 1).fill_(value)
        assert found.shape == (numbers, 1)
        assert found.is_contiguous()
        held.append((found, value))
        del held[gone : gone + 1]
        assert all(tensor.eq(known).all() for tensor, known in held)


def test_no_more_than_some_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MOST", 6 * 4096 + 99)
    held = [memory.empty(1024 + n) for n in range(9)]
    while held:
        del held[0]  # the first are let go first, and are forgotten
    assert [len(pages) // 4 - 1024 for pages in memory._kept] == [4, 5, 6, 7, 8]
    larger = memory.empty(7 * 1024)
    del larger
    assert not memory._kept


def test_threads_do_not_share_it() -> None:
    def work(value: int) -> bool:
        return all(bool(memory.empty(2048).fill_(value).eq(value).all()) for _ in range(200))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_where_memory_is_used_up_none_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: object, **named: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    assert memory.empty(2048).fill_(3).sum() == 3 * 2048
    assert memory._kept
    monkeypatch.setattr(memory.mmap, "mmap", refused)
    assert memory.empty(3, 4096, dtype=torch.int16).fill_(7).sum() == 3 * 4096 * 7
    assert not memory._kept


@pytest.mark.parametrize("missing", ["MAP_PRIVATE", "MADV_HUGEPAGE"])
def test_other_systems_have_memory_too(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has no private mappings; none but Linux has huge pages, and serves again as well."""
    monkeypatch.delattr(memory.mmap, missing)
    assert memory.empty(3, 4096).fill_(7).sum() == 3 * 4096 * 7
    assert len(memory._kept) == (missing == "MADV_HUGEPAGE")
