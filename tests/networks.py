"""Random networks for the tests, each beside the oracle's version of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from binep.core.costs import CrossEntropy, SquaredError
from binep.core.network import Network
from binep.core.neurons import Binary, Neurons, Real
from binep.core.phases import Equilibrium
from binep.core.speed import Speed
from binep.core.synapses import Conv, Dense, Synapse
from binep.solvers import machine

byte_dot_products = pytest.mark.skipif(
    not machine.has_byte_dot_products(), reason="this CPU has no AVX-512 VNNI"
)


def settled(net: Network, x: Tensor, off: set[str], steps: int = 1500, **more: Any) -> Equilibrium:
    """Where a network settles with some shortcuts off."""
    net.speed = Speed(off=off)
    return net.relax(x, steps, **more)


def assert_still_in_float64(net: Network, x: Tensor, end: Equilibrium, tolerance: float) -> None:
    """Steps of float64 leave states where they are; the network is of float64 from then on."""
    double = net.double()
    states = [state.double() for state in end.states]
    for _ in range(2):  # odd/even updates leave a half step between layers
        after = double.step(double.clamp(x.double()), states)
        for a, b in zip(after, states, strict=True):
            assert float((a - b).detach().abs().max()) <= tolerance
        states = after


@dataclass
class Twins:
    """A network in float64, the oracle's synapses and dynamics, and a batch for both."""

    network: Network
    synapses: list[oracle.Synapse]
    dynamics: oracle.Dynamics
    x: Tensor
    labels: Tensor

    @property
    def target(self) -> Tensor:
        return self.network.cost.target(self.labels).double()

    @property
    def force(self) -> Any:
        """The oracle's nudge of a softmax readout; None for the squared error."""
        cost = self.network.cost
        if not isinstance(cost, CrossEntropy):
            return None
        weight, bias = array(cost.readout.weight), array(cost.readout.bias)
        target = array(self.target)
        return lambda state: oracle.readout_force(weight, bias, state, target)


def array(tensor: Tensor) -> np.ndarray[Any, Any]:
    return tensor.detach().cpu().double().numpy().copy()


def twin_of(synapse: Synapse) -> oracle.Synapse:
    """The oracle's copy of a synapse."""
    scale = np.ones(()) if synapse.scale is None else array(synapse.scale)
    values, bias = array(synapse.values), array(synapse.bias)
    if isinstance(synapse, Conv):
        scale = np.broadcast_to(scale, (len(values),)).copy()
        return oracle.Synapse(
            "conv", values, scale, bias, synapse.padding, synapse.pool, synapse.pooling
        )
    return oracle.Synapse("dense", values, scale, bias)


@st.composite
def convolutions(draw: st.DrawFn, below: tuple[int, ...], **options: Any) -> Conv:
    kernel, padding = draw(st.integers(1, 3)), draw(st.integers(0, 2))
    side = min(below[1:]) + 2 * padding - kernel + 1
    return Conv(
        below,
        draw(st.integers(1, 3)),
        kernel=min(kernel, min(below[1:]) + 2 * padding),
        padding=padding,
        pool=draw(st.integers(1, max(1, min(3, side)))),
        pooling=draw(st.sampled_from(("max", "average"))),
        **options,
    )


@st.composite
def twins(
    draw: st.DrawFn,
    activation: str | None = None,
    cost: str | None = None,
    convolutional: bool = True,
    weights: str | None = None,
    nudge: str | None = None,
) -> Twins:
    """A network of random shape and setting: convolutions, then dense layers."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    activation = activation or draw(st.sampled_from(("real", "binary")))
    cost = cost or draw(st.sampled_from(("squared-error", "cross-entropy")))
    classes, copies = draw(st.integers(2, 4)), 1
    synapses: list[Synapse] = []

    def options() -> Any:
        kind = weights or draw(st.sampled_from(("binary", "binary", "real")))
        return {"weights": kind, "generator": generator}

    if convolutional and draw(st.booleans()):
        shape: tuple[int, ...] = tuple(draw(st.integers(low, 7)) for low in (1, 3, 3))
        for _ in range(draw(st.integers(1, 2))):
            synapses.append(draw(convolutions(shape, **options())))
            shape = synapses[-1].output_shape
        first = synapses[0].input_shape
    else:
        first = shape = (draw(st.integers(1, 6)),)
    for _ in range(draw(st.integers(0, 2))):
        synapses.append(Dense(shape, draw(st.integers(1, 6)), **options()))
        shape = synapses[-1].output_shape
    if cost == "cross-entropy" and not synapses:
        synapses.append(Dense(shape, draw(st.integers(1, 6)), **options()))
        shape = synapses[-1].output_shape
    if cost == "squared-error":
        copies = draw(st.integers(1, 2))
        synapses.append(Dense(shape, classes * copies, **options()))
        output: SquaredError | CrossEntropy = SquaredError(classes, copies)
    else:
        output = CrossEntropy(Dense(shape, classes, **options()))
    neurons: Neurons
    if activation == "real":
        side = nudge or draw(st.sampled_from(("outside", "inside")))
        initial, clip = draw(st.sampled_from((0.0, 0.5))), draw(st.booleans())
        neurons = Real(initial, side, clip)
        dynamics = oracle.Dynamics("real", initial, side, clip)
    else:
        threshold, held = draw(st.sampled_from((0.3, 0.5))), draw(st.booleans())
        step = draw(st.sampled_from((0.5, 0.8, 1.0)))
        neurons = Binary(threshold, step, 1.0, held)
        dynamics = oracle.Dynamics(
            "binary",
            1.0,
            threshold=threshold,
            filter=step,
            nudge_reference="free" if held else "current",
        )
    network = Network(synapses, neurons, output).double()
    batch = draw(st.integers(1, 4))
    x = torch.rand(batch, *first, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (batch,), generator=generator)
    return Twins(network, [twin_of(s) for s in synapses], dynamics, x, labels)
