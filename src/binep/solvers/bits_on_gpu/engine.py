"""The memory that the kernels work on, and the steps."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from binep.core.network import Network
from binep.core.neurons import Binary
from binep.core.phases import Clamped, Phase
from binep.core.synapses import Synapse
from binep.core.versions import Version
from binep.solvers import captured
from binep.solvers.bits_on_gpu import kernels
from binep.solvers.bits_on_gpu.kernels import COLUMNS, GROUP, NEURONS, SHARES, SIDE
from binep.solvers.captured import AT_ONCE, Work

_LOOK = 32
"""The fewest steps between two looks: where nothing changes, so many take the device no longer than
the host takes to look, and to catch up."""

_KEPT = 4
"""Sizes of batches whose memory is kept: whole and last ones, of training and tests."""


class Engine:
    """Takes the steps of a network's phases.

    Args:
        network: that the solver fits.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._weights: list[Weights] = []
        self._frames: captured.Frames[Frame] = captured.Frames(network, _KEPT)

    def settle(
        self, phase: Phase, clamped: Clamped, memory: object
    ) -> tuple[list[Tensor], Tensor, Tensor, Memory]:
        """Step until all has settled, or the steps are used up.

        Returns:
            The states, `Equilibrium.moved`, `Equilibrium.residual`, and what to go on from.
        """
        frame = self._frame(phase)
        if not (isinstance(memory, Memory) and memory.is_of(frame)):
            frame.load(phase, clamped)
        frame.begin(phase)
        left, every = phase.steps, max(phase.check_every, _LOOK)
        while left:
            steps = min(left, every) if phase.tolerance > 0 else left
            frame.take(steps)
            left -= steps
            if left and not frame.unsettled:
                break
        return *frame.end(), Memory(frame, frame.turn)

    def _frame(self, phase: Phase) -> Frame:
        """The memory of batches of this size, with the weights as they are."""
        network = self._network
        if not self._frames.are_current(phase.x.device):
            self._weights = [Weights(synapse) for synapse in network.synapses[1:]]
        for weights in self._weights:
            weights.follow()
        kind = len(phase.x), *network.neurons
        return self._frames.of(kind, partial(Frame, network, self._weights, phase))


class Weights:
    """The signs of a layer as int8, a row for each neuron that sends: above, and below."""

    def __init__(self, synapse: Synapse) -> None:
        self.synapse = synapse
        self.down = torch.empty_like(synapse.values, dtype=torch.int8)
        self.up = torch.empty_like(self.down.mT, memory_format=torch.contiguous_format)
        self._seen: Version | None = None

    def follow(self) -> None:
        """Take the signs as they are now, into the memory where they were."""
        values = self.synapse.values.detach()
        if self._seen is None or not self._seen.holds(values):
            seen, self._seen = Version(values), None
            height, width = values.shape
            grid = _parts(height, SIDE.value), _parts(width, SIDE.value)
            kernels.pack[grid](values.contiguous(), self.down, self.up, height, width)
            self._seen = seen


class _Layer:
    """What a layer of neurons keeps of a batch, in groups of samples.

    Attributes:
        states: s, (batch, width).
        below: Σ sign·bit of what it has received from below, (groups·GROUP, width); in the first
            layer it stays 0.
        above: likewise from above; in the last layer it stays 0.
        rows, changes: of its own bits that are still to be sent; see the kernels.
    """

    def __init__(self, state: Tensor, groups: int) -> None:
        width = self.width = state.shape[1]
        self.states = torch.empty_like(state, memory_format=torch.contiguous_format)
        self.below, self.above = state.new_empty((2, groups * GROUP.value, width))
        self.rows = state.new_empty((groups, width), dtype=torch.int32)
        self.changes = state.new_empty((groups, width, GROUP.value), dtype=torch.int8)


class Frame:
    """The memory in which the steps of batches of one size read and write, and their graphs.

    Args:
        network: whose steps.
        weights: of its layers but the first.
        phase: of such a batch.
        graphs: that capture.
    """

    def __init__(
        self,
        network: Network,
        weights: Sequence[Weights],
        phase: Phase,
        graphs: captured.Graphs,
    ) -> None:
        self._neurons, self._synapses = list(network.neurons), list(network.synapses)
        self._weights, self._batch, x = weights, len(phase.x), phase.x
        self._groups = _parts(self._batch, GROUP.value)
        self._layers = [_Layer(s, self._groups) for s in phase.states]
        output = self._layers[-1].states
        self._drive = torch.empty_like(self._layers[0].states)
        self._nudge, self._beta = torch.empty_like(output), x.new_empty(())
        self._counts = x.new_empty((AT_ONCE + 1, len(network), self._groups), dtype=torch.int32)
        """By step and layer: rows that are to be sent; of the step before in the first place."""
        self._largest = x.new_empty((AT_ONCE, len(network)))
        self._places = torch.arange(1, AT_ONCE + 1, device=x.device)[:, None]
        self._taken = x.new_zeros((), dtype=torch.int64)
        self._moved = x.new_empty(len(network), dtype=torch.int64)
        self._residual = x.new_empty(len(network))
        self.unsettled = torch.ones((), dtype=torch.bool, device=x.device)
        self._capture, self._graphs = graphs.capture, dict[Hashable, Work]()
        self._way = ""
        self.turn = 0
        """Phases taken here: what a phase leaves, the next one overwrites."""

    def load(self, phase: Phase, clamped: Clamped) -> None:
        """Copy the states that a phase begins with, of which nothing has been sent yet."""
        self.turn += 1  # whatever stops this halfway
        self._drive.copy_(clamped.drive)
        self._counts[0].zero_()
        for i, (layer, state) in enumerate(zip(self._layers, phase.states, strict=True)):
            layer.states.copy_(state)
            layer.below.zero_()
            layer.above.zero_()
            self._update(i, 0, moves=False)

    def begin(self, phase: Phase) -> None:
        """Set the nudge of a phase, and count its steps from 0."""
        self._way = ""
        if phase.held is not None:
            self._way = "held"
            self._nudge.copy_(phase.held)
        elif phase.target is not None and phase.beta != 0:
            self._way = "target"
            self._nudge.copy_(phase.target)
        self._beta.fill_(phase.beta)
        self._taken.zero_()
        self._moved.zero_()
        self.turn += 1

    def take(self, steps: int) -> None:
        """Take steps, and look whether all has settled: `unsettled`, () bool on the device."""
        whole, rest = divmod(steps, AT_ONCE)
        for some in (*[AT_ONCE] * whole, *[rest] * bool(rest)):
            kind = some, self._way
            if kind in self._graphs:
                self._graphs[kind]()
            else:
                self._graphs[kind] = self._capture(partial(self._advance, some))

    def end(self) -> tuple[list[Tensor], Tensor, Tensor]:
        """Copies of the states, `Equilibrium.moved` and `Equilibrium.residual`."""
        states = [layer.states.clone() for layer in self._layers]
        return states, self._moved.clone(), self._residual.clone()

    def _advance(self, steps: int) -> None:
        counts, largest = self._counts, self._largest
        counts[1:].zero_()
        largest.zero_()
        for step in range(steps):
            for i in range(len(self._layers)):
                self._send(i, counts[step, i])
            for i in range(len(self._layers)):
                self._update(i, step + 1, moves=True)
        changed = (counts[1 : steps + 1] > 0).any(dim=2)
        when = changed * (self._places[:steps] + self._taken)
        torch.maximum(self._moved, when.amax(dim=0), out=self._moved)
        self._taken += steps
        self._residual.copy_(largest[steps - 1])
        self.unsettled.copy_((self._residual > 0).any())
        counts[0].copy_(counts[steps])

    def _send(self, i: int, counts: Tensor) -> None:
        """Add what a layer's changes send to the sums of its neighbours."""
        layer = self._layers[i]
        ways = []
        if i > 0:
            ways.append((self._weights[i - 1].down, self._layers[i - 1].above))
        if i + 1 < len(self._layers):
            ways.append((self._weights[i].up, self._layers[i + 1].below))
        for weights, sums in ways:
            height, width = weights.shape
            grid = _parts(width, COLUMNS.value), self._groups, SHARES.value
            kernels.send[grid](weights, layer.changes, layer.rows, counts, sums, height, width)

    def _update(self, i: int, place: int, *, moves: bool) -> None:
        """Move a layer by a step, and note its changes in a place of the counts."""
        layer, neurons = self._layers[i], self._neurons[i]
        last = i + 1 == len(self._layers)
        mine, next_one = self._synapses[i], self._synapses[i if last else i + 1]
        assert isinstance(neurons, Binary)
        kernels.update[_parts(layer.width, NEURONS.value), self._groups](
            layer.states, self._drive, layer.below, mine.scale, mine.bias,
            layer.above, next_one.scale, self._nudge, self._beta,
            layer.changes, layer.rows, self._counts[place, i], self._largest[place - 1, i:],
            self._batch, layer.width, float(neurons.threshold), 1.0 - neurons.filter,
            float(neurons.filter), moves=moves, first=i == 0, last=last,
            nudged=self._way if last else "", enable_fp_fusion=False,
        )  # fmt: skip


@dataclass(frozen=True)
class Memory:
    """What a phase left in a frame, until another one is taken there."""

    frame: Frame
    turn: int

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles of an equilibrium have none: graphs can be neither."""
        return type(None), ()

    def is_of(self, frame: Frame) -> bool:
        """Whether it is still there."""
        return self.frame is frame and self.turn == frame.turn


def _parts(count: int, size: int) -> int:
    return -(-count // size)
