"""A network's parts as what JSON can hold, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from binep.core.costs import Cost, CrossEntropy, SquaredError
from binep.core.network import Network
from binep.core.neurons import Binary, Neurons, Real
from binep.core.solvers import Solver
from binep.core.synapses import Conv, Dense, Synapse
from binep.experiment.kinds import SOLVERS

NEURONS: dict[str, type[Real | Binary]] = {"real": Real, "binary": Binary}
DTYPES = {"float32": torch.float32, "float64": torch.float64}
_UNKNOWN = "no description of a network that this version of binep knows"


def described(network: Network) -> dict[str, Any]:
    """All of a network but the values of its parameters.

    Raises:
        ValueError: a part of another class than those of binep, which no description rebuilds, a
            solver that no configuration can name, or synapses that are used in two places.
    """
    names = {name for name, _ in network.named_parameters()}
    if names != {name for name, _ in network.named_parameters(remove_duplicate=False)}:
        raise ValueError("synapses that are used in two places cannot be described")
    solver = {} if network.solver is None else {"solver": _solver(network.solver)}
    return {
        "dtype": str(network.synapses[0].values.dtype).removeprefix("torch."),
        "synapses": [_synapse(synapse) for synapse in network.synapses],
        "neurons": [_neurons(neurons) for neurons in network.neurons],
        "cost": _cost(network.cost),
        "free_steps": network.free_steps,
        "tolerance": network.tolerance,
        "frozen": [name for name, p in network.named_parameters() if not p.requires_grad],
        **solver,
    }


def require_steps(network: Network, what: str) -> None:
    """Refuse a network whose phases are not those of `Network.step`, which `what` computes.

    Raises:
        ValueError: it names its solver.
    """
    if network.solver is not None:
        raise ValueError(f"solver = {network.solver.name}: must be steps, as {what} computes them")


def rebuilt(description: Mapping[str, Any]) -> Network:
    """A network of these parts, whose parameters have arbitrary values.

    Raises:
        ValueError: no such description, or one of parts that are not known here.
    """
    try:
        network = Network(
            [_made_synapse(part) for part in description["synapses"]],
            [_made_neurons(part) for part in description["neurons"]],
            _made_cost(description["cost"]),
            free_steps=description["free_steps"],
            tolerance=description["tolerance"],
            solver=_made_solver(description.get("solver")),
        )
        frozen = set(description["frozen"])
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name not in frozen)
        network = network.to(DTYPES[description["dtype"]])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{_UNKNOWN}: {error!r}") from None
    # What a newer version says beside all this may change what the network computes.
    if more := _keys(description) - _keys(described(network)) - {"solver"}:
        raise ValueError(f"{_UNKNOWN}: {', '.join(sorted(map(ascii, more)))}")
    return network


def _keys(part: Any) -> set[str]:
    """Of a description and all parts of it."""
    inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return set(part if isinstance(part, dict) else ()).union(*map(_keys, inner))


def _solver(solver: type[Solver]) -> str:
    for name, kind in SOLVERS.items():
        if kind.load() is solver:
            return name
    raise ValueError(f"solver = {solver.name}: no configuration can name it as it is")


def _made_solver(name: str | None) -> type[Solver] | None:
    if name is None:
        return None
    if name not in SOLVERS:
        raise ValueError(f"solver = {name!a}: there is none of that name (of your own: --plugin)")
    solver: type[Solver] | None = SOLVERS[name].load()
    return solver


def _synapse(synapse: Synapse) -> dict[str, Any]:
    weights = "real" if synapse.scale is None else "binary"
    about: dict[str, Any] = {"input_shape": list(synapse.input_shape), "weights": weights}
    if type(synapse) is Dense:
        return {"kind": "dense", **about, "outputs": synapse.output_shape[0]}
    if type(synapse) is Conv:
        channels, _, kernel, _ = synapse.values.shape
        names = ("padding", "pool", "pooling")
        about |= {"channels": channels, "kernel": kernel}
        return {"kind": "conv", **about, **{name: getattr(synapse, name) for name in names}}
    raise ValueError(f"{type(synapse).__name__} is no class of binep: it cannot be described")


def _made_synapse(part: Mapping[str, Any]) -> Synapse:
    options = {name: value for name, value in part.items() if name not in ("kind", "input_shape")}
    made: type[Any] = {"dense": Dense, "conv": Conv}[part["kind"]]
    # Of a generator of its own, so that the global one is left as it is.
    synapse: Synapse = made(part["input_shape"], **options, generator=torch.Generator())
    return synapse


def _neurons(neurons: Neurons) -> dict[str, Any]:
    for kind, made in NEURONS.items():
        if type(neurons) is made:
            return {"kind": kind, **dataclasses.asdict(neurons)}
    raise ValueError(f"{type(neurons).__name__} is no class of binep: it cannot be described")


def _made_neurons(part: Mapping[str, Any]) -> Neurons:
    return NEURONS[part["kind"]](**{name: v for name, v in part.items() if name != "kind"})


def _cost(cost: Cost) -> dict[str, Any]:
    if type(cost) is SquaredError:
        return {"kind": "squared-error", "classes": cost.classes, "copies": cost.copies}
    if type(cost) is CrossEntropy:
        return {"kind": "cross-entropy", "readout": _synapse(cost.readout)}
    raise ValueError(f"{type(cost).__name__} is no class of binep: it cannot be described")


def _made_cost(part: Mapping[str, Any]) -> Cost:
    if part["kind"] == "squared-error":
        return SquaredError(part["classes"], part["copies"])
    readout = _made_synapse(part["readout"])
    if part["kind"] != "cross-entropy" or not isinstance(readout, Dense):
        raise ValueError(f"no cost: {part}")
    return CrossEntropy(readout)
