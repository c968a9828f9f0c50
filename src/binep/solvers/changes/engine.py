"""Phases in which neurons that have moved send by how much."""

from __future__ import annotations

from typing import cast

from binep.core.network import Network
from binep.core.neurons import Real
from binep.core.versions import Version
from binep.solvers import layouts
from binep.solvers.changes.steps import ChangeSteps, Weights
from binep.solvers.digits.engine import Engine
from binep.solvers.digits.steps import Parameters


class ChangeEngine(Engine):
    """As `Engine`, of a network of which `ChangeSolver.fits` holds."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self._kept: list[tuple[Version, Weights] | None] = [None] * len(network)

    def _steps(self) -> ChangeSteps:
        """Steps with the parameters as they are now."""
        synapses = self._network.synapses
        neurons = cast(list[Real], self._network.neurons)
        parameters = [Parameters.of(synapse, None) for synapse in synapses]
        with self._lock:
            weights = [None if k == 0 else self._weights(k) for k in range(len(synapses))]
        return ChangeSteps(self._table, neurons, parameters, weights)

    def _weights(self, k: int) -> Weights:
        """Of the synapse that leads to layer k, made anew when its weights have changed."""
        synapse, kept = self._network.synapses[k], self._kept[k]
        if kept is None or not kept[0].holds(synapse.values):
            order = layouts.column_order(synapse, self._network.synapses[k - 1])
            kept = self._kept[k] = Version(synapse.values), Weights(synapse, order)
        return kept[1]
