"""What an experiment is made of, so that a folder's configuration still describes what it holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from binep.experiment.experiment import Experiment


def parts_of(experiment: Experiment) -> dict[str, Any]:
    """A description of the configuration, the network and what trains it, by their names.

    Of parts of binep their classes and settings, of others their classes.
    """
    network = experiment.network
    parts: dict[str, Any] = {
        "config": experiment.config.to_toml(),
        "cost": _described(network.cost),
    }
    for i, synapse in enumerate(network.learning_synapses(), start=1):
        parts[f"synapses of layer {i}"] = _described(synapse)
    for i, neurons in enumerate(network.neurons, start=1):
        parts[f"neurons of layer {i}"] = _described(neurons)
    parts["estimator"] = _described(experiment.estimator)
    steady = experiment.config.learning.gamma_decay == 1
    for i, optimizer in enumerate(experiment.optimizers, start=1):
        parts[f"optimizer {i}"] = type(optimizer), _rates(optimizer, steady)
    parts["solver"] = network.solver or type(None), {}
    return parts


def differing(now: Mapping[str, Any], built: Mapping[str, Any]) -> str:
    """What is no longer what it was built as, in a clause; "" if nothing is."""
    for name in dict.fromkeys([*built, *now]):
        was, is_ = built.get(name), now.get(name)
        if was == is_:
            continue
        if name == "config" or was is None or is_ is None:
            return f"its {name} was changed"
        (kind, settings), (other, others) = was, is_
        if kind is not other:
            return f"its {name} is a {other.__qualname__}, that of its config a {kind.__qualname__}"
        changed = next(k for k in [*settings, *others] if settings.get(k) != others.get(k))
        return f"its {name} has {changed} = {others.get(changed)}, that of its config " + str(
            settings.get(changed)
        )
    return ""


def _rates(optimizer: torch.optim.Optimizer, steady: bool) -> dict[str, Any]:
    """What stays as it is in each group of one of binep's; what decays has a start that does.

    Args:
        optimizer: the flip rule or the descent.
        steady: whether γ does not decay.
    """
    if not type(optimizer).__module__.startswith("binep."):
        return {}
    fixed = ("initial_gamma", "threshold", "noise", "floor", "relative", *["gamma"] * steady)
    return {
        f"{name} of group {number}": value
        for number, group in enumerate(optimizer.param_groups, start=1)
        for name, value in group.items()
        if name in (*fixed, "initial_lr" if group.get("relative") else "lr")
    }


def _described(part: Any) -> tuple[type, dict[str, Any]]:
    if not type(part).__module__.startswith("binep."):  # it may count, or learn, what it likes
        return type(part), {}
    plain = (int, float, str, tuple, type(None))
    settings = {
        name: value
        for name, value in vars(part).items()
        if name != "training" and not name.startswith("_") and isinstance(value, plain)
    }
    if isinstance(part, torch.nn.Module):
        shapes = {name: tuple(p.shape) for name, p in part.named_parameters(recurse=False)}
        settings |= {f"the shape of {name}": shape for name, shape in shapes.items()}
    return type(part), settings
