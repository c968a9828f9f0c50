"""Networks of bits as Ising models, and phases taken by whatever solves those.

Neurons that fire bits a, with the input x held fixed, have the energy

    E(a) = − Σ_{l ≥ 2} a_l · W_l a_{l−1} − a_1 · (W_1 ⋆ x) − Σ_l (b_l − θ_l) · a_l

where θ is the firing threshold. Turning neuron i from 0 to 1 changes it by θ_i − p_i, with p its
drive: a state in which every neuron fires just if p ≥ θ, as at the end of a phase, is one in which
no single flip lowers E, and the reverse, but where p = θ. docs/ising.md has the signs and factors
in bits and in spins.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar, Self, cast
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from binep.core.costs import SquaredError
from binep.core.network import Network
from binep.core.neurons import Binary
from binep.core.phases import Clamped, Equilibrium, Phase
from binep.core.solvers import Solver
from binep.core.synapses import Synapse

Variable = tuple[int, int]
"""A neuron: its layer, from 1, and its place in the flattened layer, from 0."""


class Energy:
    """E of a network as a `dimod.BinaryQuadraticModel`, built once for all inputs.

    Args:
        network: binary neurons, with the parameters as they are now; the input may go through any
            synapses, the layers above through all but max-pooled ones.

    Attributes:
        variables: the names of the model's variables, layer by layer: (1, 0), (1, 1), …
        bqm: the model, in bits. `clamp` changes its linear terms alone.

    Raises:
        ValueError: neurons that are not binary, or max-pooling above the first layer.
        ImportError: dimod is not installed.
    """

    def __init__(self, network: Network) -> None:
        _check(network)
        self.network, dimod = network, _dimod()
        sizes = [torch.Size(synapse.output_shape).numel() for synapse in network.synapses]
        self.variables = [
            (layer, i) for layer, size in enumerate(sizes, start=1) for i in range(size)
        ]
        starts = np.cumsum([0, *sizes])
        self._layers = [slice(*ends) for ends in pairwise(starts)]
        self._linear = self._rest = np.concatenate([*map(_bias, network.synapses, network.neurons)])
        pairs: list[tuple[Any, Any, Any]] = []
        for synapse, low, high in zip(network.synapses[1:], starts, starts[1:], strict=False):
            weights = _matrix(synapse)
            above, below = weights.nonzero()
            pairs.append((above + high, below + low, -weights[above, below]))
        none: Any = np.zeros(0)
        rows = [np.concatenate(part) for part in zip((none,) * 3, *pairs, strict=True)]
        self._couplings = np.abs(rows[2])
        ends = np.concatenate(rows[:2]).astype(int)
        self._pull = np.bincount(ends, np.tile(self._couplings, 2), len(self.variables))
        couplings = rows[0].astype(int), rows[1].astype(int), rows[2]
        self.bqm = dimod.BinaryQuadraticModel.from_numpy_vectors(
            self._rest, couplings, 0.0, "BINARY", variable_order=self.variables
        )

    def clamp(self, x: Tensor) -> Any:
        """The model of an input, (1, *input_shape), without a nudge: `bqm`, for `bqm.spin` too."""
        x = self.network.as_input(x)
        if len(x) != 1:
            raise ValueError(f"x holds {len(x)} samples: a model is that of one")
        return self._set(self.network.clamp(x).drive)

    def _set(self, drive: Tensor, nudge: Tensor | None = None) -> Any:
        """The model of a drive W_1 ⋆ x + b_1 of one sample, with −nudge for the output's bits."""
        linear = self._rest.copy()
        first = self.network.neurons[0]
        assert isinstance(first, Binary)
        linear[self._layers[0]] = first.threshold - _numbers(drive)
        if nudge is not None:
            linear[self._layers[-1]] -= _numbers(nudge)
        for variable, value in zip(self.variables, linear.tolist(), strict=True):
            self.bqm.set_linear(variable, value)
        self._linear = linear
        return self.bqm

    def digest(self, free: bool) -> int:
        """31 bits that tell apart `bqm` of different inputs, nudges and biases, and the phases."""
        return crc32(self._linear.tobytes(), int(free)) >> 1

    def beta_range(self) -> tuple[float, float]:
        """1/temperature where annealing of `bqm` may begin and end.

        At first the dearest of all flips is taken in half of all cases; at last one that costs a
        tenth of the mean coupling (or linear term, where there is none) is in one of a hundred.
        """
        dearest = (np.abs(self._linear) + self._pull).max()
        mean = np.mean(self._couplings if self._couplings.any() else np.abs(self._linear))
        least = np.finfo(np.float32).tiny
        return float(np.log(2) / max(dearest, least)), float(np.log(100) / max(mean / 10, least))

    def bits(self, states: list[Tensor]) -> dict[Variable, int]:
        """A value of each variable, from what the neurons fire at the states of one sample."""
        fired = zip(self.network.neurons, states, strict=True)
        values = torch.cat([neurons.fire(state).flatten() for neurons, state in fired])
        return dict(zip(self.variables, values.tolist(), strict=True))

    def states(self, sample: Any) -> list[Tensor]:
        """States (1, *shape) whose bits are those of a sample: 0 and 1."""
        values = torch.tensor([float(sample[variable]) for variable in self.variables])
        values = values.to(self.network.synapses[0].values)
        layers = zip(self._layers, self.network.synapses, strict=True)
        return [values[part].reshape(1, *synapse.output_shape) for part, synapse in layers]


class AnnealingSolver(Solver):
    """Takes a phase by minimising the energy with a sampler of dimod's, sample by sample.

    It is no shortcut: a sampler ends in other states than `Network.step`, so that networks use it
    only where they name it: ``network.solver = AnnealingSolver``. The free phase minimises E and
    the nudged one E + β·C, from the bits of the phase before it where the sampler takes
    `initial_states`; with C = ½‖a_L − y‖², β·C is linear in bits. A held nudge is −nudge·a_L. The
    end of a phase has states of 0 and 1, the bits. A call of the sampler counts as one step. Its
    seed is a digest of the energy's linear terms, so that the same energy has the same end.

    Args:
        network: one that `check` accepted.
    """

    name = "annealing"
    ignores = ("settle_tol", "neuron_filter")
    sampler: ClassVar[Any] = None
    """Any sampler of dimod's; `dwave.samplers.SimulatedAnnealingSampler` if None."""
    options: ClassVar[dict[str, Any]] = {}
    """Of its `sample`, beside those that it gets: initial_states, num_sweeps, seed."""
    nudged: ClassVar[dict[str, Any] | None] = None
    """In the nudged phase. If None simulated annealing is at zero temperature there, so that it
    goes down from the free phase's states."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self._sampler = self.sampler or _annealer()

    @classmethod
    def using(
        cls, sampler: Any, nudged: dict[str, Any] | None = None, **options: Any
    ) -> type[Self]:
        """This solver with another sampler, or other options; its networks cannot be pickled.

        Args:
            sampler: None for simulated annealing, or any of dimod's.
            nudged: options of the nudged phase alone.
            options: of both phases.
        """
        own = {"sampler": sampler, "nudged": nudged, "options": options}
        names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
        return cast("type[Self]", type(cls.__name__, (cls,), {**names, **own}))

    @classmethod
    def check(cls, network: Network) -> None:
        """Refuse a network whose energy is not quadratic, or is not with what nudges it.

        Raises:
            ValueError: which layer, or the cost.
            ImportError: dimod or its simulated annealing is not installed.
        """
        _check(network)
        if not (type(network.cost) is SquaredError or network.neurons[-1].hold_nudge):
            kind = type(network.cost).__name__
            raise ValueError(
                f"{kind} is not linear in the output's bits: must be SquaredError, or the nudge "
                "held (hold_nudge)"
            )
        _dimod()
        if cls.sampler is None:
            _annealer()

    @classmethod
    def fits(cls, network: Network, phase: Phase) -> bool:
        """Whether `check` accepts the network."""
        try:
            cls.check(network)
        except (ValueError, ImportError):
            return False
        return True

    def solve(self, phase: Phase, memory: object) -> Equilibrium:
        """The states of the lowest energy that the sampler finds for each sample."""
        energy = Energy(self.network)
        clamped = phase.clamped or self._clamped(phase.x)
        ends: list[list[Tensor]] = []
        for i, drive in enumerate(clamped.drive):
            start = [state[i : i + 1] for state in phase.states]
            bqm = energy._set(drive, _nudge(phase, i))
            found = self._sampler.sample(bqm, **self._options(phase, energy, start))
            ends.append(energy.states(found.first.sample))
        states = [torch.cat(layer) for layer in zip(*ends, strict=True)]
        pairs = zip(self.network.neurons, phase.states, states, strict=True)
        moved = torch.stack([(n.fire(a) != n.fire(b)).any() for n, a, b in pairs]).long()
        residual = phase.x.new_zeros(len(states))
        return phase.ended(self, clamped, states, moved, residual)

    def _clamped(self, x: Tensor) -> Clamped:
        """The input, each sample's drive on its own: a product of many rounds in another way.

        The sampler's seed depends on the last bit of it, and may not on who shares the batch.
        """
        parts = [self.network.clamp(sample) for sample in torch.split(x, 1)]
        routes = [part.route for part in parts if part.route is not None]
        drive = torch.cat([part.drive for part in parts])
        return Clamped(x, drive, torch.cat(routes) if routes else None)

    def _options(self, phase: Phase, energy: Energy, start: list[Tensor]) -> dict[str, Any]:
        """What the sampler is called with: of what is offered, that which it knows."""
        offered: dict[str, Any] = {
            "initial_states": energy.bits(start),
            "num_sweeps": phase.steps,
            "seed": energy.digest(phase.is_free),
        }
        if self.sampler is None:
            cold = not phase.is_free and self.nudged is None
            offered["beta_range"] = (_COLD, _COLD) if cold else energy.beta_range()
        options = {k: v for k, v in offered.items() if k in self._sampler.parameters}
        return options | self.options | ({} if phase.is_free else self.nudged or {})


_COLD = 1e9
"""1/temperature, of an energy in units of the drive: nothing climbs."""


def _nudge(phase: Phase, i: int) -> Tensor | None:
    """What nudges the bits of one sample's output, −β·∂C/∂a: β·(y − ½) of the squared error."""
    if phase.held is not None:
        return phase.held[i]
    if phase.target is None or phase.beta == 0:
        return None
    return phase.beta * (phase.target[i] - 0.5)


def _check(network: Network) -> None:
    for number, neurons in enumerate(network.neurons, start=1):
        if type(neurons) is not Binary:
            kind = type(neurons).__name__
            raise ValueError(f"layer {number} has {kind} neurons: Ising models are of Binary ones")
    for number, synapse in enumerate(network.synapses[1:], start=2):
        if synapse.has_route:
            raise ValueError(
                f"layer {number} is max-pooled: its energy is not quadratic; pool = 1 or "
                "pooling = 'average' have one"
            )


def _numbers(tensor: Tensor) -> Any:
    return tensor.detach().flatten().double().cpu().numpy()


def _bias(synapse: Synapse, neurons: Any) -> Any:
    """θ − b of each neuron of a layer."""
    shape = (1, *synapse.output_shape)
    return neurons.threshold - _numbers(synapse.biased(synapse.bias.new_zeros(shape)))


def _matrix(synapse: Synapse) -> Any:
    """W as a matrix, (neurons above, neurons below), of synapses that are linear."""
    size = torch.Size(synapse.input_shape).numel()
    values = synapse.values
    each = torch.eye(size, dtype=values.dtype, device=values.device)
    with torch.no_grad():
        columns = synapse.up(each.view(size, *synapse.input_shape))[0]
    return columns.flatten(1).T.double().cpu().numpy()


def _dimod() -> Any:
    try:
        import dimod
    except ImportError:
        raise ImportError("dimod is not installed: pip install 'binep[ising]'") from None
    return dimod


def _annealer() -> Any:
    try:
        from dwave.samplers import SimulatedAnnealingSampler
    except ImportError:
        raise ImportError("dwave-samplers is not installed: pip install 'binep[ising]'") from None
    sampler: Any = SimulatedAnnealingSampler
    return sampler()
