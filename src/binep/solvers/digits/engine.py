"""Phases in which neighbours send what has changed: batches in parts, what has settled left out."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor

from binep.core.certain import CertainOutputs
from binep.core.network import Network
from binep.core.neurons import Real
from binep.core.overrelaxation import OverRelaxation
from binep.core.phases import Phase
from binep.core.solvers import turns
from binep.core.synapses import Synapse
from binep.core.versions import Version, flipped_rows
from binep.solvers import layouts, machine, primitives
from binep.solvers.digits.products import Products
from binep.solvers.digits.steps import Layer, Parameters, Steps, Update, map_size
from binep.solvers.leaving import PARTS, rounded

_AT_ONCE = 2**22
"""Numbers that layers hold while they settle, to stay in cache: a larger batch settles in parts."""


Packed = TypeVar("Packed")


@dataclass
class _Active:
    """Samples that have not settled.

    Attributes:
        rows: where they lie in the batch.
        layers: their states.
        relaxation: their ω, with odd/even updates.
        outputs: finds those with a certain output; None where all are to settle.
    """

    rows: Tensor
    layers: list[Layer]
    relaxation: OverRelaxation | None
    outputs: CertainOutputs | None

    def output_drive(self) -> Tensor:
        """The drive p of the output, in its layer's shape; of a dense layer."""
        assert self.outputs is not None
        return self.layers[-1].sums.clone().view_as(self.outputs.drive)

    def write(self, ends: Sequence[Tensor], which: Tensor | None = None) -> None:
        """Write the states, of all or of some samples, to where they belong in the batch."""
        for end, layer in zip(ends, self.layers, strict=True):
            if which is None:
                end[self.rows] = layer.states
            else:
                end[self.rows[which]] = layer.states[which]

    def keep(self, stays: Tensor) -> None:
        """Keep some samples: those behind fill the places of those that leave."""
        left = int(stays.sum())
        to, of = (~stays[:left]).nonzero()[:, 0], left + stays[left:].nonzero()[:, 0]
        order = torch.arange(left, device="cpu")
        order[to] = of
        self.rows = self.rows[order]
        self.layers = [layer.keep(left, to, of) for layer in self.layers]
        self.relaxation = self.relaxation and self.relaxation.part(order)
        self.outputs = self.outputs and self.outputs.part(order)


class Engine(ABC, Generic[Packed]):
    """What takes a network's phases by a solver's `Steps`. Several threads may call it at once.

    It keeps what the solver multiplies by, packed from the values of each synapse between layers.

    Args:
        network: of real activations.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._table = layouts.table(network.synapses)
        self._table[:, [primitives.START, primitives.MAP]] = 0  # layers have arrays of their own
        numbers = sum(
            (5 if row[primitives.CONV] else 3) * row[primitives.SIZE] + 2 * map_size(row)
            for row in self._table
        )
        self._at_once = max(1, _AT_ONCE // int(numbers))
        self._kept: list[tuple[Version, Packed] | None] = [None] * len(network)
        self._lock = threading.Lock()

    @abstractmethod
    def _steps(self) -> Steps:
        """Steps with the parameters as they are now."""

    @abstractmethod
    def _pack(self, synapse: Synapse, order: Tensor) -> Packed:
        """What a synapse's values, with columns in an order of `layouts`, are multiplied as."""

    def _repack(self, packed: Packed, signs: Tensor, rows: Tensor) -> Packed | None:
        """What was packed, after flips in some rows alone; None where all is to be packed."""
        return None

    def _packed(self) -> list[Packed | None]:
        """Of each synapse, brought up to date; None for the first, whose input does not change."""
        with self._lock:
            return [self._up_to_date(k) if k else None for k in range(len(self._network))]

    def _up_to_date(self, k: int) -> Packed:
        synapse, kept = self._network.synapses[k], self._kept[k]
        if kept is not None and kept[0].holds(synapse.values):
            return kept[1]
        version, packed = Version(synapse.values), None
        if kept is not None:
            rows = flipped_rows(synapse.values, kept[0])
            packed = None if rows is None else self._repack(kept[1], synapse.values, rows)
        if packed is None:
            order = layouts.column_order(synapse, self._network.synapses[k - 1])
            packed = self._pack(synapse, order)
        self._kept[k] = version, packed
        return packed

    def settle(
        self, phase: Phase, drive: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor, Tensor | None]:
        """Take a phase's steps.

        Args:
            phase: the phase to take.
            drive: the input's, (batch, *shape of layer 1).

        Returns:
            States, last steps that moved, residuals, and which samples have a certain output: see
            `Equilibrium`.
        """
        machine.use_threads()
        count, batch, steps = len(self._table), len(drive), self._steps()
        ends = [drive.new_empty(batch, size) for size in self._table[:, primitives.SIZE]]
        residual = drive.new_zeros(count)
        moved = residual.long()
        outputs = None if steps.is_conv(count - 1) else CertainOutputs.of(phase)
        certain = drive.new_zeros(batch).bool()
        for start in range(0, batch, self._at_once):
            some = slice(start, start + self._at_once)
            layers = steps.begin([state[some] for state in phase.states], drive[some])
            states = [end[some] for end in ends]
            part = outputs and outputs.part(some)
            last, change = _settle(phase, some, steps, layers, states, part, certain[some])
            moved, residual = moved.maximum(last), residual.maximum(change)
        shapes = [synapse.output_shape for synapse in self._network.synapses]
        states = [layouts.unflatten(end, shape) for end, shape in zip(ends, shapes, strict=True)]
        return states, moved, residual, None if outputs is None else certain


class DigitEngine(Engine[Products]):
    """Of a network of which `DigitSolver.fits` holds: in quantised updates."""

    def _pack(self, synapse: Synapse, order: Tensor) -> Products:
        return Products.of(synapse, order)

    def _repack(self, packed: Products, signs: Tensor, rows: Tensor) -> Products | None:
        return packed.flipped(signs, rows)

    def _parameters(self) -> list[Parameters]:
        return list(map(Parameters.of, self._network.synapses, self._packed()))

    def _steps(self) -> Steps:
        neurons = cast(list[Real], self._network.neurons)
        return Steps(self._table, neurons, self._parameters())

    def go_back(self, adjoints: Sequence[Tensor | None]) -> list[Tensor | None]:
        """See `Solver.go_back`; of layers that dense synapses join."""
        machine.use_threads()
        parameters, last = self._parameters(), len(adjoints) - 1
        sums: dict[int, Tensor] = {}
        for k, adjoint in enumerate(adjoints):
            if adjoint is None:
                continue
            update = Update.of(layouts.flatten(adjoint))
            if k < last:
                _add(sums, k + 1, parameters[k + 1].up(update))
            if k > 0:
                _add(sums, k - 1, parameters[k].down(update))
        shapes = [synapse.output_shape for synapse in self._network.synapses]
        return [
            layouts.unflatten(sums[k], shape) if k in sums else None
            for k, shape in enumerate(shapes)
        ]


def _add(sums: dict[int, Tensor], k: int, value: Tensor) -> None:
    sums[k] = sums[k] + value if k in sums else value


def _settle(
    phase: Phase,
    some: slice,
    steps: Steps,
    layers: list[Layer],
    ends: Sequence[Tensor],
    outputs: CertainOutputs | None,
    certain: Tensor,
) -> tuple[Tensor, Tensor]:
    """Take a phase's steps with some samples of the batch.

    Args:
        phase: the phase to take.
        some: the samples.
        steps: how.
        layers: the samples at the start.
        ends: per layer where their states are to go, (samples, neurons).
        outputs: finds those with a certain output; None where all are to settle.
        certain: where it is to be said which these are, (samples,) bool.

    Returns:
        Per layer the last step that moved it, and max|Δs| in each sample's last step.
    """
    count, batch, free = len(layers), len(ends[0]), phase.is_free
    digits = steps.digits(phase)
    # Where the states to start from take more digits, the first step's feedback does as well.
    at_first = max(digits, *(len(layer.update.digits) for layer in layers))
    halves, synapses = turns(phase), phase.network.synapses
    relaxation = OverRelaxation.of(layers[0].states, synapses) if len(halves) > 1 else None
    shape = phase.states[-1].shape[1:]
    active = _Active(torch.arange(batch, device="cpu"), layers, relaxation, outputs)
    settled = phase.x.new_zeros(count)
    moved = settled.long()
    for step in range(phase.steps):
        residual = phase.x.new_zeros(count, len(active.rows))
        for half in halves:
            nudge = phase.nudge(layouts.unflatten(active.layers[-1].states, shape), some)
            omega = active.relaxation.omega if active.relaxation else None
            residual += steps.take(active.layers, half, digits if step else at_first, nudge, omega)
        if active.relaxation is not None:
            active.relaxation.update(residual.amax(dim=0))
        if active.outputs is not None:
            output = layouts.unflatten(active.layers[-1].states, shape)
            found = active.outputs.find(output, active.output_drive, residual.amax(dim=0))
            residual, certain[active.rows] = residual.masked_fill(found, 0), found
        moving = ~(residual <= phase.tolerance)  # a NaN has not settled
        moved[moving.any(dim=1)] = step + 1
        if not phase.tolerance > 0:
            continue
        if not moving.any():
            break
        stays = rounded(moving.any(dim=0), -(-batch // PARTS))
        if free and not stays.all():
            active.write(ends, ~stays)
            settled = settled.maximum(residual[:, ~stays].amax(dim=1))
            residual = residual[:, stays]
            active.keep(stays)
    active.write(ends)
    return moved, settled.maximum(residual.amax(dim=1))
