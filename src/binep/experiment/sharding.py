"""Momenta split among workers: each keeps those of its own rows of weights, and flips these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from binep.core.optim import BinaryFlip
from binep.core.versions import Version, flipped_rows, note_flips
from binep.experiment.workers import Workers


class ShardedFlip(BinaryFlip):
    """`BinaryFlip` of which every worker updates its own rows; rows that changed are then sent.

    Args:
        groups: parameter groups, one tensor of signs each, the same on all workers.
        workers: among whom the rows are split.
        one_pass: see `BinaryFlip`.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], workers: Workers, one_pass: bool = True
    ) -> None:
        self.workers = workers
        self.whole: list[Tensor] = [signs for group in groups for signs in group["params"]]
        self.rows = [workers.share(len(signs)) for signs in self.whole]
        self._flips = [
            torch.zeros((), dtype=torch.int64, device=signs.device) for signs in self.whole
        ]
        own = [
            {**group, "params": [signs.detach()[rows]]}
            for group, signs, rows in zip(groups, self.whole, self.rows, strict=True)
        ]
        super().__init__(own, one_pass=one_pass)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the momenta of the own rows and flip their weights, then take over all others'."""
        own: list[Tensor] = [signs for group in self.param_groups for signs in group["params"]]
        for signs, whole, rows in zip(own, self.whole, self.rows, strict=True):
            signs.grad = None if whole.grad is None else _part(whole.grad, rows)
        before, started = ([Version(t) for t in tensors] for tensors in (self.whole, own))
        counts = [int(flips) for flips in super().flips()]
        loss = super().step(closure)
        flips = [int(f) - n for f, n in zip(super().flips(), counts, strict=True)]
        changed = [_changed(*each) for each in zip(own, started, self.rows, flips, strict=True)]
        table = self.workers.gathered(torch.tensor([flips, [len(rows) for rows in changed]]))
        for i, whole in enumerate(self.whole):
            self._flips[i] += int(table[:, 0, i].sum())
            if most := int(table[:, 1, i].max()):
                self._take_over(whole, changed[i], most, table[:, 1, i].tolist(), before[i])
        return loss

    def _take_over(
        self, whole: Tensor, rows: Tensor, most: int, lengths: Sequence[int], before: Version
    ) -> None:
        """Send the rows that changed, and write those of others."""
        sent = whole.new_zeros(most, whole[0].numel(), dtype=torch.int8)
        sent[: len(rows)] = whole.detach()[rows].flatten(1).to(torch.int8)
        places = rows.new_zeros(most)
        places[: len(rows)] = rows
        everywhere = self.workers.gathered(places)
        changed = torch.cat([p[:n] for p, n in zip(everywhere, lengths, strict=True)])
        signs = [s[:n] for s, n in zip(self.workers.gathered(sent), lengths, strict=True)]
        held = whole.detach()
        held[changed] = torch.cat(signs).to(whole.dtype).view(-1, *whole.shape[1:])
        note_flips(whole, before, changed)

    def flips(self) -> list[Tensor]:
        """Flips of each whole tensor since `take_flips`."""
        return self._flips

    def writes(self) -> list[Tensor]:
        """How often each weight of the whole tensors has flipped; all workers ask together."""
        return [self.gathered(i, writes) for i, writes in enumerate(super().writes())]

    def gathered(self, i: int, own: Tensor) -> Tensor:
        """The whole of a tensor that goes with the i-th signs, from what each worker has of it."""
        return self.workers.joined_rows(own, len(self.whole[i]))

    def own(self, i: int, whole: Tensor) -> Tensor:
        """The part of such a tensor that goes with the own rows."""
        return whole[self.rows[i]]


def _part(gradient: Tensor, rows: slice) -> Tensor:
    """Some rows of a gradient, which may be sparse."""
    if not gradient.is_sparse:
        return gradient[rows]
    places, values = gradient.indices()[0], gradient.values()
    inside = (places >= rows.start) & (places < rows.stop)
    return torch.sparse_coo_tensor(
        (places[inside] - rows.start)[None],
        values[inside],
        (rows.stop - rows.start, *gradient.shape[1:]),
        is_coalesced=True,
        check_invariants=False,
    )


def _changed(own: Tensor, before: Version, rows: slice, flips: int) -> Tensor:
    """The numbers, in the whole, of the own rows that an update of so many flips may have changed.

    An update on a GPU does not know them.
    """
    everything = torch.arange(rows.start, rows.stop, device=own.device)
    if not flips or before.holds(own):
        return everything[:0]
    found = flipped_rows(own, before)
    return everything if found is None else everything[found]
