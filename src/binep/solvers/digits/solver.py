"""Quantised updates with error feedback: the solver, without its compiled loops."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from binep.core.network import Network
from binep.core.phases import Equilibrium, Phase
from binep.core.solvers import Solver
from binep.core.synapses import Conv, Synapse
from binep.solvers import fits


class DigitSolver(Solver):
    """Real activations and binary weights on a CPU: updates in 8-bit digits.

    A layer's neighbours have a quantised copy of its states. In each step it sends the difference
    from that copy, rounded to 8 bits of the sample's largest difference (or to 16: two digits); the
    rounding error is part of the next difference (error feedback). Signs ⋆ digits are exact
    products of integers, and the copy's error shrinks with the updates, so that states settle where
    those of `Network.step` do, to the rounding of float32.

    Args:
        network: one that `fits` accepted.
    """

    name = "digits"

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        from binep.solvers.digits.engine import DigitEngine  # only now, as it loads numba
        from binep.solvers.inputs import InputDrive

        self._inputs, self._engine = InputDrive(network), DigitEngine(network)

    @classmethod
    def fits(cls, network: Network, phase: Phase) -> bool:
        """Whether precision may be less than exact, and oneDNN has the products on this CPU."""
        if not (
            network.speed.precision != "exact"
            and network.is_real
            and all(fits.is_compiled(synapse) for synapse in network.synapses)
            and all(has_products(synapse) for synapse in network.synapses[1:])
        ):
            return False
        from binep.solvers import machine  # loads numba: only where all else fits

        return machine.has_packed_int8()

    def solve(self, phase: Phase, memory: object) -> Equilibrium:
        """Step until all has settled; the states are all that it goes on from."""
        clamped = phase.clamped or self._inputs.clamp(phase.x)
        states, moved, residual, certain = self._engine.settle(phase, clamped.drive)
        return phase.ended(self, clamped, states, moved, residual, certain=certain)

    def go_back(self, adjoints: Sequence[Tensor | None]) -> list[Tensor | None] | None:
        """In two digits, where no convolution leads from layer to layer."""
        if any(isinstance(synapse, Conv) for synapse in self.network.synapses[1:]):
            return None
        return self._engine.go_back(adjoints)


def has_products(synapse: Synapse) -> bool:
    """Whether oneDNN can take the transpose for a convolution, too: no padding is negative."""
    return not isinstance(synapse, Conv) or synapse.padding < synapse.values.shape[-1]
