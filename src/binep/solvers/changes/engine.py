"""Phases in which neurons that have moved send by how much."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from binep.core.neurons import Real
from binep.core.synapses import Synapse
from binep.solvers.changes.steps import ChangeSteps, Weights
from binep.solvers.digits.engine import Engine
from binep.solvers.digits.steps import Parameters


class ChangeEngine(Engine[Weights]):
    """Of a network of which `ChangeSolver.fits` holds."""

    def _pack(self, synapse: Synapse, order: Tensor) -> Weights:
        return Weights(synapse, order)

    def _steps(self) -> ChangeSteps:
        neurons = cast(list[Real], self._network.neurons)
        parameters = [Parameters.of(synapse, None) for synapse in self._network.synapses]
        return ChangeSteps(self._table, neurons, parameters, self._packed())
