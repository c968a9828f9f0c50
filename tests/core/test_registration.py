"""Which solvers there are, and what switches them off."""

from __future__ import annotations

import pytest
import torch

from binep.core import solvers
from binep.core.network import Network
from binep.core.neurons import Real
from binep.core.phases import Equilibrium, Phase
from binep.core.solvers import Plain, Solver, choose, register, registered
from binep.core.speed import Speed
from binep.core.synapses import Dense


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solvers, "_REGISTERED", list(solvers._REGISTERED))


def solver(solver_name: str, module: str = __name__) -> type[Solver]:
    """A class as a notebook's cell would define it, that fits every network."""

    class Mine(Plain):
        name = solver_name

        def solve(self, phase: Phase, memory: object) -> Equilibrium:
            return super().solve(phase, memory)

    Mine.__module__ = module
    return Mine


def test_a_name_belongs_to_one_solver() -> None:
    first = register(solver("mine"))
    assert registered()[-2:] == (first, Plain)
    again = register(solver("mine"))  # a cell that was run again replaces what it defined
    assert registered()[-2:] == (again, Plain)
    for name in ("mine", "plain", "events"):
        with pytest.raises(ValueError, match=f"'{name}' is registered already"):
            register(solver(name, module="another"))


def test_a_registered_solver_is_chosen_until_it_is_switched_off() -> None:
    mine = register(solver("mine"))
    network = Network([Dense(4, 3), Dense(3, 2)], Real())
    others = tuple(kind.name for kind in registered() if kind not in (mine, Plain))
    phase = Phase.of(network, torch.rand(2, 4), 3)
    for off, expected in ((others, mine), ((*others, "mine"), Plain)):
        network.speed = Speed(off=off)
        assert choose(network, phase) is expected
        assert network.relax(torch.rand(2, 4), 3).by is expected


def test_a_name_that_is_no_solver_is_refused() -> None:
    network = Network([Dense(4, 2)], Real(), speed=Speed(off=("evnts",)))
    with pytest.raises(
        ValueError, match="off = evnts: must be one of bfloat16, bits-on-gpu, captured, certain"
    ):
        network.relax(torch.rand(1, 4), 2)
