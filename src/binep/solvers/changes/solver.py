"""Real weights in convolutions: the solver, without its compiled loops."""

from __future__ import annotations

from binep.core.network import Network
from binep.core.phases import Equilibrium, Phase
from binep.core.solvers import Solver
from binep.core.synapses import Conv
from binep.solvers import fits


class ChangeSolver(Solver):
    """Real activations and convolutions of real weights on a CPU: only what moved is multiplied.

    Most neurons of a max-pooled convolution are at 0 or 1 and stay there, and a convolution sends
    down from its maxima alone. Each drive is kept up with what has moved since, in float32.

    Args:
        network: one that `fits` accepted.
    """

    name = "changes"

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        from binep.solvers.changes.engine import ChangeEngine  # only now, as it loads numba

        self._engine = ChangeEngine(network)

    @classmethod
    def fits(cls, network: Network, phase: Phase) -> bool:
        """Whether max-pooled convolutions of real weights join layers; sums may be kept up."""
        others = network.synapses[1:]
        convolutions = [synapse for synapse in others if isinstance(synapse, Conv)]
        return (
            network.speed.precision != "exact"
            and network.is_real
            and all(map(fits.has_layout, network.synapses))
            and all(synapse.scale is None for synapse in others)
            and bool(convolutions)
            and all(conv.has_route for conv in convolutions)
        )

    def solve(self, phase: Phase, memory: object) -> Equilibrium:
        """Step until all has settled; the states are all that it goes on from."""
        clamped = phase.clamped or self.network.clamp(phase.x)
        states, moved, residual, certain = self._engine.settle(phase, clamped.drive)
        return phase.ended(self, clamped, states, moved, residual, certain=certain)
