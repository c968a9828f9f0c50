"""Event-driven updates of binary neurons on a CPU: work only where bits change.

While no bit changes around a layer, its drive stays the same number. So the sums of what arrives
are kept as integers, and every bit that changes adds or takes away its row of signs. A sample in
which many bits change at once has its sums formed anew by a dense product. What is computed is
what `Network.step` computes, to the last bit, step by step.
"""

from __future__ import annotations

from dataclasses import replace

from binep.core.costs import SquaredError
from binep.core.network import Network
from binep.core.neurons import Binary
from binep.core.phases import Equilibrium, Phase
from binep.core.solvers import Gradient, Solver
from binep.solvers.fits import is_compiled


class EventSolver(Solver):
    """Takes the steps of networks of binary neurons and binary weights on a CPU.

    Args:
        network: one that `fits` accepted.
    """

    name = "events"

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        from binep.solvers.events.engine import Engine  # loads numba

        self._engine = Engine(network)

    @classmethod
    def fits(cls, network: Network, phase: Phase) -> bool:
        """Whether neurons and weights are binary, on a CPU, with max-pooling and one filter."""
        binary = [neurons for neurons in network.neurons if type(neurons) is Binary]  # no subclass
        return (
            len(binary) == len(network)
            and all(replace(n, threshold=binary[0].threshold) == binary[0] for n in binary)
            and (binary[0].hold_nudge or type(network.cost) is SquaredError)
            and all(is_compiled(synapse) for synapse in network.synapses)
        )

    def solve(self, phase: Phase, memory: object) -> Equilibrium:
        """Take all steps; where no bit will change any more, at once."""
        clamped, states, moved, residual, memory = self._engine.settle(phase, memory)
        return phase.ended(self, clamped, states, moved, residual, memory)

    def compare(
        self, first: Equilibrium, second: Equilibrium, factor: float, row_sparse: bool
    ) -> list[Gradient]:
        """Correlations of bits, of which only those that differ are visited."""
        x = first.clamped.x
        if all(end.is_current(self.network, x) for end in (first, second)):
            gradients = self._engine.compare(first, second, factor, row_sparse)
            if gradients is not None:
                return gradients
        return super().compare(first, second, factor, row_sparse)
