"""The solver: what it fits, and how it takes a phase and compares two."""

from __future__ import annotations

import math
from functools import cache
from importlib.util import find_spec
from typing import ClassVar

import torch

from binep.core.costs import SquaredError
from binep.core.network import Network
from binep.core.neurons import Binary
from binep.core.phases import Equilibrium, Phase
from binep.core.solvers import Gradient, Solver
from binep.core.synapses import Dense
from binep.solvers import captured, halves

_LEAST = 2.0**-14
"""The smallest power of two that float16 has in full."""


class BitsOnGpuSolver(Solver):
    """Dense layers of binary neurons and weights on a CUDA device, in float32.

    What a layer's bits send is a sum of signs, to which a step adds what its changes send: few
    bits change in a step, and the rows of weights of all others are not read. The sums are whole
    numbers and so exact; states are those of `Network.step` to the bit. Steps are captured as CUDA
    graphs.
    """

    name = "bits-on-gpu"
    device: ClassVar[str] = "cuda"
    """The type of device that it is for."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        from binep.solvers.bits_on_gpu.engine import Engine  # loads Triton

        self._engine = Engine(network)

    @classmethod
    def fits(cls, network: Network, phase: Phase) -> bool:
        """Dense layers of binary neurons, the first of any weights, and the squared error."""
        learning = network.learning_synapses()
        return (
            phase.x.device.type == cls.device
            and phase.x.dtype == torch.float32
            and not network.speed.compile
            and not network.has_own_steps
            and len(network) > 1
            and all(type(neurons) is Binary for neurons in network.neurons)
            and all(type(synapse) is Dense for synapse in learning)
            and all(s.scale is not None and s.bias.is_contiguous() for s in network.synapses[1:])
            and type(network.cost) is SquaredError
            and has_triton()
            and not (cls.device == "cuda" and torch.cuda.is_current_stream_capturing())
        )

    def solve(self, phase: Phase, memory: object) -> Equilibrium:
        """Step until all has settled, or the steps are used up."""
        clamped = phase.clamped or self.network.clamp(phase.x)
        with captured.one_at_a_time(phase.x.device):
            states, moved, residual, memory = self._engine.settle(phase, clamped, memory)
        return phase.ended(self, clamped, states, moved, residual, memory)

    def compare(
        self, first: Equilibrium, second: Equilibrium, factor: float, row_sparse: bool
    ) -> list[Gradient]:
        """See `Solver.compare`; products of bits in float16, which the GPU adds up exactly."""
        network, dtype = self.network, first.clamped.x.dtype
        before, after = (
            [n.fire(s) for n, s in zip(network.neurons, end.states, strict=True)]
            for end in (first, second)
        )
        # Whole numbers times a power of two need no pass of their own over the gradient.
        folds = abs(math.frexp(factor)[0]) == 0.5 and _LEAST <= abs(factor) <= 1
        gradients = []
        for i, synapse in enumerate(network.synapses):
            above = (after[i] - before[i]).to(dtype) * factor
            if i == 0:
                weight = synapse.correlate(above, first.clamped.x)
            else:
                signed = torch.cat([after[i], -before[i]]).half()
                below = torch.cat([after[i - 1], before[i - 1]]).half()
                weight = halves.multiply((signed * factor if folds else signed).mT, below)
                weight = weight if folds else weight.mul_(factor)
            gradients.append(Gradient(weight, synapse.correlate_bias(above)))
        return gradients


@cache
def has_triton() -> bool:
    """Whether Triton is there, which PyTorch for GPUs brings on Linux, and products in halves."""
    return find_spec("triton") is not None and hasattr(torch.ops.aten.mm, "dtype")
