"""Dense products of few bits, for a CPU that multiplies those several times faster than float32.

W·s is kept up with s as it moves: each step adds round(W)·round(Δs), a product of rounded numbers,
in float32; what rounding leaves out of Δs is part of the next one (error feedback). So it is wrong
by a small share ε of how far s is from s₀, of which it was last taken in float32. That shrinks as
states settle; once a sample moves by less than it, its batch takes a finer step (iterative
refinement): to the product what rounding has left out of W is added, rounded as well, times all
that s has moved since that was last done. Where that is not fine enough either, or what was left
out of W is not at hand, a step is in float32.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from binep.core.network import Network
from binep.core.phases import Clamped, Phase
from binep.core.products import linear
from binep.core.solvers import Loop
from binep.core.synapses import Dense, Route, Synapse
from binep.core.versions import Version
from binep.solvers.leaving import LeavingSolver

NARROWEST = 2**8
"""The fewest neurons on either side of a layer whose states are rounded in less time than that
saves."""

LAST = 3
"""So many steps at the end of a phase are finer ones: a nudged phase ends before it settles."""
FINER = 254
"""What rounding leaves out of a sample's Δs, in units of the weights that it is multiplied with, is
less than such a part of the largest."""


class Rounded(Protocol):
    """Weights W of few bits."""

    @property
    def error(self) -> float:
        """ε, the share of how far states have moved by which their drive is then wrong."""

    @property
    def rest(self) -> Rounded | None:
        """What rounding left out of W, rounded; None where that is not at hand."""

    def up(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """W·Δs of rounded Δs, (batch, below), and that, both in float32."""

    def down(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """Wᵀ·Δs of rounded Δs, (batch, above), and that, both in float32."""


class FollowingSolver(LeavingSolver):
    """Real activations on a CPU: steps as of `LeavingSolver`, most dense products of few bits.

    Attributes:
        least: the fewest weights of a layer for which they are quicker, …
        samples: … and the smallest batch.
    """

    least: ClassVar[int] = 2**18
    samples: ClassVar[int] = 32

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self._rounded: dict[Synapse, tuple[Version, Rounded]] = {}
        self._lock = threading.Lock()

    @staticmethod
    @abstractmethod
    def is_quick() -> bool:
        """Whether this CPU multiplies such numbers several times faster than float32."""

    @abstractmethod
    def round(self, layer: Synapse) -> Rounded:
        """A layer's weights, (above, below), in such numbers."""

    @classmethod
    def fits(cls, network: Network, phase: Phase) -> bool:
        """Whether precision may be less than exact, and where products of few bits are quicker."""
        if not (
            super().fits(network, phase)
            and network.speed.precision != "exact"
            and phase.x.dtype == torch.float32
            and phase.tolerance > 0
            and len(phase.x) >= cls.samples
            and not network.has_own_steps
            and any(map(cls.follows, network.synapses[1:]))
        ):
            return False
        return cls.is_quick()

    @classmethod
    def follows(cls, synapse: Synapse) -> bool:
        """Whether products of few bits are quicker for a layer."""
        if type(synapse) is not Dense:
            return False
        return synapse.values.numel() >= cls.least and min(synapse.values.shape) >= NARROWEST

    def loop(self, phase: Phase, clamped: Clamped) -> Loop:
        """With products that follow states, where that fits: nobody asked if it was named."""
        loop = super().loop(phase, clamped)
        if not self.fits(self.network, phase):
            return loop
        first, *others = self.network.synapses
        synapses = [self._following(s) if self.follows(s) else s for s in others]
        following = [s for s in synapses if isinstance(s, _Following)]
        if not all(s.rounded.error < 1 for s in following):  # it may be a NaN
            return loop
        rests = [s.rounded.rest for s in following if s.rounded.rest is not None]
        own = {
            "step": Network([first, *synapses], self.network.neurons).step,
            "products": [p for s in following for p in s.products],
            "last": phase.steps,
            "far": loop.change[0],
            "ahead": loop.change[0],
            "error": max(s.rounded.error for s in following),
            "finer": max(rest.error for rest in rests) if rests else None,
        }
        return _Loop(**{**vars(loop), **own})

    def _following(self, layer: Synapse) -> _Following:
        """A layer whose products follow states, for one phase."""
        with self._lock:
            kept = self._rounded.get(layer)
            if kept is None or not kept[0].holds(layer.values):
                kept = None
                self._rounded.pop(layer, None)  # so that its memory is free
                kept = self._rounded[layer] = Version(layer.values), self.round(layer)
        return _Following(layer, kept[1])


class _Product:
    """W·s, kept up with s.

    Args:
        exactly: the product with states in float32.
        roughly: that with changes of states, and what they were rounded to.
        rest: likewise of what rounding left out of W.

    Attributes:
        exact, finer: whether it is to be taken in float32, or if not, to be finer.
    """

    def __init__(
        self,
        exactly: Callable[[Tensor], Tensor],
        roughly: Callable[[Tensor], tuple[Tensor, Tensor]],
        rest: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self._exactly, self._roughly, self._rest = exactly, roughly, rest
        self._of = self._rest_of = self._sums = torch.zeros((), device="cpu")
        self.exact, self.finer = True, False

    def __call__(self, states: Tensor) -> Tensor:
        """W·s."""
        if self.exact:
            self._of = self._rest_of = states
            self._sums = self._exactly(_distinct(states)).expand(len(states), -1)
            return self._sums
        for _ in range(2 if self.finer else 1):  # then what rounding left out of Δs, too
            product, change = self._roughly(states - self._of)
            self._of, self._sums = self._of + change, self._sums + product
        if self.finer and self._rest is not None:
            product, change = self._rest(self._of - self._rest_of)
            self._rest_of, self._sums = self._rest_of + change, self._sums + product
        return self._sums

    def keep(self, stays: Tensor) -> None:
        """Go on with some samples alone."""
        self._of, self._rest_of = self._of[stays], self._rest_of[stays]
        self._sums = self._sums[stays]


def _distinct(states: Tensor) -> Tensor:
    """States (batch, neurons), or those of one sample where all are equal, as at first."""
    return states[:1] if torch.equal(states[1:], states[:-1]) else states


class _Following(Dense):
    """A dense layer whose products follow states; it shares the parameters of the one given."""

    def __init__(self, layer: Synapse, rounded: Rounded) -> None:
        vars(self).update(vars(layer))
        weights, self.rounded, rest = layer.values.detach(), rounded, rounded.rest
        self.products = (
            _Product(lambda s: linear(s, weights), rounded.up, None if rest is None else rest.up),
            _Product(
                lambda s: linear(s, weights.T), rounded.down, None if rest is None else rest.down
            ),
        )

    def up(self, below: Tensor) -> tuple[Tensor, Route]:
        """W·s."""
        return self._scaled(self.products[0](below.flatten(1))), None

    def down(self, above: Tensor, route: Route) -> Tensor:
        """Wᵀ·s."""
        return self._scaled(self.products[1](above)).view(-1, *self.input_shape)


@dataclass
class _Loop(Loop):
    """Steps with products that follow, finer or in float32 whenever a sample needs that.

    Attributes:
        products: of all layers.
        last: the number of the phase's last step.
        far: how far from s₀ each sample's states were before the last step, (batch,), …
        ahead: … and from those that what was left out of W was last multiplied with.
        error: ε, the largest of all layers, …
        finer: … and that of finer steps; None where there are none.
    """

    products: list[_Product]
    last: int
    far: Tensor
    ahead: Tensor
    error: float
    finer: float | None

    def advance(self) -> None:
        """Take a step; the first in float32, as no change is known yet: it is infinite."""
        change, going = self.change.amax(dim=0), ~self.finished
        self.far, self.ahead = self.far + change, self.ahead + change
        finer = bool((going & ~(change > self._wrong)).any()) or self.last - int(self.taken) <= LAST
        exact = finer and (
            self.finer is None or bool((going & ~(change > self.finer * self.far)).any())
        )
        if finer:
            self.ahead = self.ahead / FINER
        if exact:
            self.far, self.ahead = torch.zeros_like(self.far), torch.zeros_like(self.far)
        for product in self.products:
            product.exact, product.finer = exact, finer
        super().advance()

    @property
    def _wrong(self) -> Tensor:
        """By how much drives are, at most, of each sample, (batch,)."""
        if self.finer is None:
            return self.error * self.far
        return self.finer * self.far + self.error * self.ahead

    def keep(self, stays: Tensor) -> None:
        """Go on with some samples alone."""
        super().keep(stays)
        for product in self.products:
            product.keep(stays)
        self.far, self.ahead = self.far[stays], self.ahead[stays]

    @property
    def settled(self) -> Tensor:
        """Which samples have settled, and are not wrong by more than that."""
        return super().settled & (self._wrong <= self.allowed.amin())
