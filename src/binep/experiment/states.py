"""What training continues from, checked: every tensor of a state as a configuration's numbers are.

Each check raises a ValueError that names the first tensor that cannot be, in one line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from binep.experiment.training import readouts_of

if TYPE_CHECKING:
    from binep.core.network import Network

SCALE_CEILING = 1e30
"""The most that a scaling factor may be: above it, sums of a few weights overflow float32."""

NUMBER = "number."
"""Before the name of a number, not a tensor, that a flip rule of one's own keeps."""

RULE_GENERATOR = "rule.generator"
"""The state of the generator that a flip rule of one's own draws from."""


class Place(NamedTuple):
    """Where training stands.

    Attributes:
        epoch: epochs that have ended.
        batch: batches of the next one that have.
        epochs: all epochs.
        batches: of an epoch.
    """

    epoch: int
    batch: int
    epochs: int
    batches: int


def check_fit(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse tensors of other names, shapes or types than expected, or impossible signs.

    Raises:
        ValueError: the first difference.
    """
    if tensors.keys() != expected.keys():
        odd = ", ".join(sorted(tensors.keys() ^ expected.keys()))
        raise ValueError(f"not of this network: {odd} missing or unknown")
    for name, tensor in tensors.items():
        like = expected[name]
        if (tensor.shape, tensor.dtype) != (like.shape, like.dtype):
            raise ValueError(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}, "
                f"the network's is {like.dtype} of shape {tuple(like.shape)}"
            )
        signs = tensor.dtype == torch.int8 and name.endswith(".values")
        if signs and not bool((tensor.abs() == 1).all()):
            raise ValueError(f"{name} holds signs other than 1 and -1")


def check_network(tensors: Mapping[str, Tensor]) -> None:
    """Refuse parameters that are not finite, and scaling factors that no training reaches."""
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} holds values that are not finite")
        if name.endswith(".scale") and not bool(((tensor > 0) & (tensor <= SCALE_CEILING)).all()):
            raise ValueError(
                f"{name} holds a scaling factor that is not above 0 and at most {SCALE_CEILING:g}"
            )


def check_training(state: Mapping[str, Tensor], place: Place) -> None:
    """Refuse a network, momenta, generators or a place in the run that cannot be.

    Args:
        state: of a network and what trains it, of the right names, shapes and types.
        place: what its progress says.
    """
    if not _is_in_run(place):
        raise ValueError(
            f"progress is epoch {place.epoch}, batch {place.batch}: must be within the run of "
            f"{place.epochs} epochs of {place.batches} batches"
        )
    check_network({k: v for k, v in state.items() if k.startswith(("network.", "momentum."))})
    for name, tensor in state.items():
        if name.startswith(("flips.", "writes.")) and int(tensor.min()) < 0:
            raise ValueError(f"{name} = {int(tensor.min())}: must be a whole number from 0")
    decays = state.get("decays", torch.ones(1))
    if not bool(((decays > 0) & (decays <= 1)).all()):
        raise ValueError(f"decays = {decays.tolist()}: must be above 0 and at most 1")
    for name in ("order", "nudge"):
        if not _is_of_generator(state[name]):
            raise ValueError(f"{name} is no state of a random generator")


def _is_in_run(place: Place) -> bool:
    ended = place.epoch == place.epochs and place.batch == 0
    return ended or (0 <= place.epoch < place.epochs and 0 <= place.batch <= place.batches)


def _is_of_generator(state: Tensor) -> bool:
    generator = torch.Generator()
    try:
        generator.set_state(state)
    except RuntimeError:
        return False
    # PyTorch accepts one that is zero throughout, which draws one number for ever.
    drawn = torch.randint(2**31, (700,), generator=generator)
    return bool((drawn != drawn[0]).any())


def check_meter(
    sums: Mapping[str, Tensor], place: Place, samples: int, network: Network, free_steps: int
) -> None:
    """Refuse sums of scores that the batches of an epoch so far cannot have; see `Meter.state`.

    Losses and residuals need not be finite.

    Args:
        sums: by name.
        place: where training stands.
        samples: of those batches.
        network: what learns.
        free_steps: T.
    """
    layers = torch.zeros(len(network.neurons))
    whole, real = torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.float64)
    expected = {"loss": torch.zeros(()), "steps": layers, "residual": layers}
    expected |= {f"wrong.{name}": whole for name in readouts_of(network)}
    expected |= dict.fromkeys(("samples", "batches", "seconds"), real)
    expected = {f"meter.{name}": like for name, like in expected.items()}
    check_fit(sums, expected if place.batch else {})
    if not sums:
        return
    most = {"batches": place.batch, "samples": samples, "seconds": math.inf}
    most["steps"] = place.batch * free_steps
    most |= {name.removeprefix("meter."): samples for name in sums if ".wrong." in name}
    for name, limit in most.items():
        values = sums[f"meter.{name}"]
        if not bool(((values >= 0) & (values <= limit) & values.isfinite()).all()):
            raise ValueError(f"meter.{name} = {values.tolist()}: must be from 0 to {limit}")
    for name, count in (("samples", samples), ("batches", place.batch)):
        if float(sums[f"meter.{name}"]) != count:
            raise ValueError(f"meter.{name} is not {count}, as after {place.batch} batches")


def check_rule(kept: Mapping[str, Tensor], layers: int) -> None:
    """Refuse what no flip rule of one's own has kept: binep's keep none of it.

    Args:
        kept: tensors called rule.LAYER.NAME, and the state of its generator, `RULE_GENERATOR`.
        layers: of such a rule; 0 without one.
    """
    known = tuple(f"rule.{i}." for i in range(layers))
    for name, tensor in kept.items():
        if not known or not (name == RULE_GENERATOR or name.startswith(known)):
            raise ValueError(f"{name} is of no flip rule of this configuration")
        if name == RULE_GENERATOR and not _is_of_generator(tensor):
            raise ValueError(f"{name} is no state of a random generator")
        if name.split(".", 2)[-1].startswith(NUMBER) and tensor.ndim:
            raise ValueError(f"{name} is no number")
