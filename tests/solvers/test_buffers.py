"""Large arrays are written to again, once nobody has them any more."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from binep.core.gradients import EquilibriumPropagation
from binep.core.network import Network
from binep.core.neurons import Real
from binep.core.speed import Speed
from binep.core.synapses import Dense
from binep.solvers.digits.solver import DigitSolver
from binep.solvers.leaving import LeavingSolver


@pytest.mark.parametrize(("weights", "solver"), [("binary", DigitSolver), ("real", LeavingSolver)])
def test_gradients_that_someone_has_are_not_written_over(
    weights: Literal["binary", "real"], solver: type
) -> None:
    torch.manual_seed(0)
    net = Network([Dense(9, 20, weights=weights), Dense(20, 5, weights=weights)], Real(0.5))
    net.speed = Speed(off=("in-cache",))
    estimator = EquilibriumPropagation(net, beta=0.5, free_steps=30, nudged_steps=10)
    places, held = [], []
    for hold in (True, False, False, False):
        net.zero_grad()
        assert estimator(torch.rand(6, 9), torch.eye(5)[[0, 1, 2, 3, 4, 0]]).by is solver
        gradient = net.synapses[1].values.grad
        assert gradient is not None
        places.append(gradient.data_ptr())
        if hold:
            held = [gradient, gradient.clone()]
        del gradient
    assert torch.equal(*held)
    assert len(set(places)) == 2
    assert places[0] not in places[1:]
