"""Dense products in bfloat16, for a CPU that multiplies it several times faster than float32.

W·s is kept up with s as it moves: each step adds bfloat16(W)·bfloat16(Δs), a product of bfloat16,
in float32. So it is wrong by about 2⁻⁸ of how far s is from s₀, of which it was last taken in
float32. That shrinks as states settle; once a sample moves by less than it, it is taken in float32
again (iterative refinement).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from binep.core.network import Network
from binep.core.phases import Clamped, Phase
from binep.core.solvers import Loop
from binep.core.synapses import Dense, Route, Synapse
from binep.core.versions import Version
from binep.solvers.leaving import LeavingSolver

LEAST = 2**18
"""The fewest weights of a layer for which bfloat16 is quicker, …"""
SAMPLES = 32
"""… and the smallest batch."""

ERROR = 2**-8
"""By what share of how far states are from s₀ they are taken to be wrong."""

LAST = 3
"""So many steps at the end of a phase are in float32: a nudged phase ends before it settles."""


class Bfloat16Solver(LeavingSolver):
    """Real activations on a CPU: steps as of `LeavingSolver`, most dense products in bfloat16."""

    name = "bfloat16"

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self._rounded: dict[Synapse, tuple[Version, Tensor]] = {}
        self._lock = threading.Lock()

    @classmethod
    def fits(cls, network: Network, phase: Phase) -> bool:
        """Whether precision may be less than exact, and where bfloat16 is quicker."""
        if not (
            super().fits(network, phase)
            and network.speed.precision != "exact"
            and phase.x.dtype == torch.float32
            and phase.tolerance > 0
            and len(phase.x) >= SAMPLES
            and not network.has_own_steps
            and any(map(_is_wide, network.synapses[1:]))
        ):
            return False
        from binep.solvers import machine  # loads numba: only where all else fits

        return machine.has_bfloat16_products()

    def loop(self, phase: Phase, clamped: Clamped) -> Loop:
        """With products that follow states, where that fits: nobody asked if it was named."""
        loop = super().loop(phase, clamped)
        if not self.fits(self.network, phase):
            return loop
        first, *others = self.network.synapses
        synapses = [self._following(s) if _is_wide(s) else s for s in others]
        products = [p for s in synapses if isinstance(s, _Following) for p in s.products]
        step = Network([first, *synapses], self.network.neurons).step
        own = {"products": products, "last": phase.steps, "far": loop.change[0]}
        return _Loop(**{**vars(loop), "step": step, **own})

    def _following(self, layer: Synapse) -> _Following:
        """A layer whose products follow states, for one phase."""
        with self._lock:
            kept = self._rounded.get(layer)
            if kept is None or not kept[0].holds(layer.values):
                version = Version(layer.values)
                kept = self._rounded[layer] = version, layer.values.detach().bfloat16()
        return _Following(layer, kept[1])


class _Product:
    """W·s, kept up with s.

    Args:
        multiply: states with weights.
        weights: W in float32, and in bfloat16.
    """

    def __init__(self, multiply: Callable[[Tensor, Tensor], Tensor], *weights: Tensor) -> None:
        self._multiply = multiply
        self._weights, self._rounded = weights
        self._of = self._sums = weights[0].new_zeros(())
        self.exact = True

    def __call__(self, states: Tensor) -> Tensor:
        """W·s; in float32 if it is to be exact."""
        if self.exact:
            self._of, self._sums = states, self._multiply(states, self._weights)
        else:
            change = (states - self._of).bfloat16()
            self._of, self._sums = states, self._sums + self._multiply(change, self._rounded)
        return self._sums

    def keep(self, stays: Tensor) -> None:
        """Go on with some samples alone."""
        self._of, self._sums = self._of[stays], self._sums[stays]


class _Following(Dense):
    """A dense layer whose products follow states; it shares the parameters of the one given."""

    def __init__(self, layer: Synapse, rounded: Tensor) -> None:
        vars(self).update(vars(layer))
        weights = layer.values.detach(), rounded
        self.products = _Product(F.linear, *weights), _Product(torch.matmul, *weights)

    def up(self, below: Tensor) -> tuple[Tensor, Route]:
        """W·s."""
        return self._scaled(self.products[0](below.flatten(1))), None

    def down(self, above: Tensor, route: Route) -> Tensor:
        """Wᵀ·s."""
        return self._scaled(self.products[1](above)).view(-1, *self.input_shape)


@dataclass
class _Loop(Loop):
    """Steps with products that follow, in float32 whenever a sample needs that.

    Attributes:
        products: of all layers.
        last: the number of the phase's last step.
        far: how far from s₀ each sample's states were before the last step, (batch,).
    """

    products: list[_Product]
    last: int
    far: Tensor

    def advance(self) -> None:
        """Take a step; the first in float32, as no change is known yet: it is infinite."""
        change = self.change.amax(dim=0)
        far = self.far + change
        needed = ~self.finished & ~(change > ERROR * far)
        exact = bool(needed.any()) or self.last - int(self.taken) <= LAST
        for product in self.products:
            product.exact = exact
        self.far = torch.zeros_like(far) if exact else far
        super().advance()

    def keep(self, stays: Tensor) -> None:
        """Go on with some samples alone."""
        super().keep(stays)
        for product in self.products:
            product.keep(stays)
        self.far = self.far[stays]

    @property
    def settled(self) -> Tensor:
        """Which samples have settled, and are not wrong by more than that."""
        return super().settled & (ERROR * self.far <= self.allowed.amin())


def _is_wide(synapse: Synapse) -> bool:
    return type(synapse) is Dense and synapse.values.numel() >= LEAST
