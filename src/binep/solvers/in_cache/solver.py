"""Small dense networks of real activations, each sample settling in cache."""

from __future__ import annotations

from torch import Tensor

from binep.core.costs import SquaredError
from binep.core.network import Network
from binep.core.phases import Equilibrium, Phase
from binep.core.solvers import Solver, Unrolled
from binep.core.synapses import Conv, Dense
from binep.solvers import fits

_CACHED = 2**17
"""Synapses between neurons, at 4 bytes each, that a core's cache holds."""


class InCacheSolver(Solver):
    """Real activations on a CPU: one compiled loop takes a sample through all of its steps.

    Where the synapses between the neurons fit in cache, multiplying is quick; what takes time is
    to move the states through memory, once for each operation of `Network.step`. Here a sample
    stays in cache and stops when it has settled. Computed is what `Network.step` computes, in
    float32; only the order of sums differs.

    Args:
        network: one that `fits` accepted.
    """

    name = "in-cache"

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        from binep.solvers.in_cache.engine import Engine  # only now, as it loads numba
        from binep.solvers.inputs import InputDrive

        self._inputs, self._engine = InputDrive(network), Engine(network)

    @classmethod
    def fits(cls, network: Network, phase: Phase) -> bool:
        """Whether few synapses, all dense, join the neurons, and the cost is the squared error."""
        between = network.synapses[1:]
        return (  # a subclass may do something else
            network.is_real
            and type(network.cost) is SquaredError
            and all(type(synapse) is Dense for synapse in between)
            and sum(synapse.values.numel() for synapse in between) <= _CACHED
            and all(fits.is_float32_on_cpu(synapse) for synapse in network.synapses)
        )

    def solve(self, phase: Phase, memory: object) -> Equilibrium:
        """Step until all has settled; the states are all that it goes on from."""
        clamped = phase.clamped or self._inputs.clamp(phase.x)
        return phase.ended(self, clamped, *self._engine.settle(phase, clamped.drive))

    def unroll(self, start: Equilibrium, steps: int, target: Tensor) -> Unrolled | None:
        """Free steps, all layers at once, and the gradient of the cost's mean through them.

        None where the first layer is of a subclass, which may have parameters of its own.
        """
        if type(self.network.synapses[0]) not in (Dense, Conv):
            return None
        return self._engine.unroll(start, steps, target)
