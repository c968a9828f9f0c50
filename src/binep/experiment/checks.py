"""What is wrong with a configuration: what is out of range, does not fit, or does nothing."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from binep.core.provided import provided
from binep.experiment.kinds import COSTS, ESTIMATORS, FLIP_RULES, NEURONS, SOLVERS
from binep.experiment.settings import WHOLE, ConfigError, problems, shown

if TYPE_CHECKING:
    from binep.data.sources import Source
    from binep.experiment.config import Config


def all_problems(config: Config, source: Source | None = None) -> list[str]:
    """A line for each; what fits and what does something only where every value is in its range."""
    return (
        [*_values(config)]
        or [*_misfits(config, source)]
        or [*_solver_misfits(config, source)]
        or [setting.line(config) for setting in idle(config)]
    )


def _values(config: Config) -> Iterator[str]:
    yield from problems(config)
    yield from device_problem(config.device)
    yield from problems(config.dynamics)
    yield from problems(config.learning)
    for number, layer in config.layers.items():
        yield from problems(layer, f"layers.{number}.")
    for name, table in config.options.items():
        if dataclasses.is_dataclass(table):
            yield from problems(table, f"options.{name}.")
        else:
            yield f"options.{name} = {shown(table)}: must be the settings of a kind of that name"


def device_problem(name: str) -> Iterator[str]:
    """What is wrong with a device on this machine, if anything."""
    found = re.fullmatch(r"cpu|cuda(?::([0-9]{1,3}))?", name)
    if found is None:
        yield f"device = {name}: must be cpu, cuda or cuda:N"
    elif name != "cpu":
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(found[1] or 0) >= count:
            yield f"device = {name}: this machine has {count} CUDA devices; cpu always works"


# What does not fit -------------------------------------------------------------------------------


def _misfits(config: Config, source: Source | None) -> Iterator[str]:
    yield from _estimator_misfits(config)
    numbers = list(config.layers)
    if not numbers or numbers != [str(i + 1) for i in range(len(numbers))]:
        yield f"layers = {numbers}: must be numbered 1, 2, ... from the input to the output"
        return
    source = config.source() if source is None else source
    yield from _image_misfits(config, source)
    classes = len(source.classes)
    current = below = source.shape
    for number, layer in config.layers.items():
        try:
            current = layer.output_shape(current)
        except ValueError as error:
            yield f"layers.{number}: {error}"
            return
        if max(layer.weights(below), layer.states(below)) > WHOLE // 8:  # bytes of a number
            yield f"layers.{number} has {layer.size} neurons or channels: no memory can hold it"
            return
        below = current
        if config.learning.synapses == "real" and "weights" not in layer.takes:
            yield f"synapses = real: must be binary with layers.{number}.kind = {layer.kind}"
    last, copies, cost = numbers[-1], config.learning.output_copies, config.learning.cost
    if len(current) != 1:
        yield f"layers.{last}.kind = {config.layers[last].kind}: must be dense, it is the output"
    elif current[0] != classes * copies:
        yield (
            f"layers.{last}.size = {current[0]}: must be {classes * copies}, "
            f"the {classes} classes of {config.dataset} times output_copies = {copies}"
        )
    if not COSTS[cost].fact("classifies", True):
        yield f"cost = {cost}: must be of classes, as a configuration's data sets have"
    if copies != 1 and "copies" not in COSTS[cost].takes:
        yield f"output_copies = {copies}: must be 1 with {cost}"
    if len(numbers) < 2 and config.has_readout:
        yield f"layers = 1: must be at least 2 with {cost}, the last reads out"


def _image_misfits(config: Config, source: Source) -> Iterator[str]:
    is_image = len(source.shape) == 3
    power = None if config.pixel_power == 1 else config.pixel_power
    for name, value in (
        ("mirror", config.mirror),
        ("shift", config.shift),
        ("pixel_power", power),
    ):
        if value and not is_image:
            yield f"{name} = {value}: must be left out: the samples are no images"
    if power and source.mean is not None and not config.standardize:
        yield (
            f"pixel_power = {power}: must go with standardize: {config.dataset} is otherwise "
            "normalised by the mean and deviation that its pixels have without it"
        )
    if is_image and config.shift and config.shift >= min(source.shape[1:]):
        size = "×".join(map(str, source.shape[1:]))
        yield f"shift = {config.shift}: must be below the height and width of images of {size}"


def _estimator_misfits(config: Config) -> Iterator[str]:
    dynamics, estimator = config.dynamics, config.learning.estimator
    if not ESTIMATORS[estimator].fact("differentiates"):
        return
    if not NEURONS[dynamics.activation].fact("differentiable"):
        yield (
            f"estimator = {estimator}: must be ep with {dynamics.activation} activations, which "
            "have no derivative"
        )
    if dynamics.free_steps < dynamics.nudged_steps:
        yield (
            f"free_steps = {dynamics.free_steps}: must be at least nudged_steps = "
            f"{dynamics.nudged_steps} with {estimator}"
        )


def _solver_misfits(config: Config, source: Source | None) -> Iterator[str]:
    """What a named solver says of the network."""
    if config.dynamics.solver == "steps":
        return
    try:
        provided("check of a solver")(config, source or config.source())
    except ConfigError as error:
        yield str(error)


# What does nothing -------------------------------------------------------------------------------


class Idle(NamedTuple):
    """A setting that does nothing.

    Attributes:
        place: its table: "", "dynamics", "learning", "layers.N" or "options".
        name: its key there.
        why: a clause for the error.
    """

    place: str
    name: str
    why: str

    def line(self, config: Config) -> str:
        """The error."""
        at = f"{self.place}." if "layers" in self.place or self.place == "options" else ""
        return f"{at}{self.name} = {self.value(config)}: must be left out: {self.why}"

    def value(self, config: Config) -> Any:
        """Its value."""
        table = _table(config, self.place)
        return table[self.name] if isinstance(table, Mapping) else getattr(table, self.name)

    def is_of(self, start: Config, config: Config) -> bool:
        """Whether its value is that which it has in another configuration."""
        try:
            return bool(self.value(start) == self.value(config))
        except (KeyError, AttributeError):  # it has no such layer, or one of another kind
            return False

    def default(self, config: Config) -> Any:
        """Its value if it is left out."""
        table = _table(config, self.place)
        if isinstance(table, Mapping):
            return None
        return next(f.default for f in dataclasses.fields(table) if f.name == self.name)


def _table(config: Config, place: str) -> Any:
    if place.startswith("layers."):
        return config.layers[place.removeprefix("layers.")]
    return getattr(config, place) if place else config


def idle(config: Config) -> list[Idle]:
    """Settings that differ from their defaults, and do nothing in a configuration that fits.

    Not those of the machine (device, threads, deterministic, data_dir, speed, checkpoint_minutes),
    so that a run of one machine can be tested on another; nor gamma and threshold of real synapses,
    so that ``synapses = "real"`` turns a configuration into its full-precision reference.
    """
    found = {(i.place, i.name): i for i in _without_effect(config)}
    return [i for i in found.values() if i.value(config) != i.default(config)]


def effective(config: Config, start: Config | None = None) -> Config:
    """A configuration that fits with every setting that does nothing left out.

    Args:
        config: the configuration.
        start: if given, only those are left out that are as they are there and do something there.
    """
    known = {(i.place, i.name) for i in idle(start)} if start else set()

    def goes(found: Idle) -> bool:
        same = start is None or found.is_of(start, config)
        return same and (found.place, found.name) not in known

    while found := [i for i in idle(config) if goes(i)]:
        place, name, _ = found[0]
        table = _table(config, place)
        if isinstance(table, Mapping):
            changed: Any = {k: v for k, v in table.items() if k != name}
        else:
            changed = dataclasses.replace(table, **{name: found[0].default(config)})
        if place.startswith("layers."):
            place, changed = "layers", {**config.layers, place.removeprefix("layers."): changed}
        config = config.replace(**{place: changed}) if place else changed
    return config


def _without_effect(config: Config) -> Iterator[Idle]:
    """What does nothing whatever its value."""
    yield from _idle_neurons(config)
    yield from _idle_nudge(config)
    yield from _idle_rates(config)
    layers = list(config.layers.items())
    if not any("zero_bias" in layer.takes for _, layer in layers):
        yield Idle("learning", "zero_bias", "it does nothing with layers of these kinds")
    for number, layer in layers:
        for name, cause in layer.idle():
            yield Idle(f"layers.{number}", name, f"it does nothing with {cause}")
    used = {config.dataset, *config.kinds()}
    for name in config.options:
        if name not in used:
            yield Idle("options", name, "nothing here is of that kind")


def _idle_neurons(config: Config) -> Iterator[Idle]:
    neurons = NEURONS[config.dynamics.activation]
    why = f"it does nothing with activation = {neurons.name}"
    names = {
        "initial_state": "initial",
        "firing_threshold": "threshold",
        "neuron_filter": "filter",
    }
    for name, offered in names.items():
        if offered not in neurons.takes:
            yield Idle("dynamics", name, why)
    solver = SOLVERS[config.dynamics.solver]
    for name in solver.fact("ignores", ()):
        yield Idle("dynamics", name, f"it does nothing with solver = {solver.name}")
    if neurons.fact("settle_exactly") and config.dynamics.settle_tol > 0:  # 0 takes every step
        yield Idle("dynamics", "settle_tol", why)
    numbers = list(config.layers)
    if numbers and config.has_readout:
        reads = f"it does nothing with cost = {config.learning.cost}: the last layer only reads out"
        yield Idle(f"layers.{numbers.pop()}", "firing_threshold", reads)
    if "threshold" not in neurons.takes:
        for number in numbers:
            yield Idle(f"layers.{number}", "firing_threshold", why)
    elif all(config.layers[number].firing_threshold is not None for number in numbers):
        yield Idle("dynamics", "firing_threshold", "every layer has a firing_threshold of its own")


def _idle_nudge(config: Config) -> Iterator[Idle]:
    neurons = NEURONS[config.dynamics.activation]
    estimator = ESTIMATORS[config.learning.estimator]
    names = ("nudge", "clip_nudged", "hold_nudge")
    for name in ("beta", "nudging"):
        if name not in estimator.takes:
            yield Idle("learning", name, f"it does nothing with estimator = {estimator.name}")
    for name in names:
        if name not in neurons.takes:
            yield Idle("learning", name, f"it does nothing with activation = {neurons.name}")
        elif "beta" not in estimator.takes:
            why = f"it does nothing with estimator = {estimator.name}, which does not nudge"
            yield Idle("learning", name, why)
    if config.learning.nudge == "inside" and "nudge" in neurons.takes:
        yield Idle("learning", "clip_nudged", "it does nothing with nudge = inside")


def _idle_rates(config: Config) -> Iterator[Idle]:
    learning, rule = config.learning, FLIP_RULES[config.learning.flip_rule]
    decay = ("scale_lr_decay", "scale_lr_decay_epochs")
    slower = ("gamma_decay", "gamma_decay_epochs")
    if learning.synapses == "real":
        why = "it does nothing with synapses = real"
        yield Idle("", "warn_flip_rate", why)
        for name in ("flip_rule", "momentum_noise", *slower, *decay):
            yield Idle("learning", name, why)
        for number in config.layers:
            yield Idle(f"layers.{number}", "scale_lr", why)
        return
    if "noise" not in rule.takes:
        yield Idle("learning", "momentum_noise", f"it does nothing with flip_rule = {rule.name}")
    if "gamma" not in rule.takes:
        for name in slower:
            yield Idle("learning", name, f"it does nothing with flip_rule = {rule.name}")
    elif learning.gamma_decay == 1:
        yield Idle("learning", slower[1], "it does nothing with gamma_decay = 1")
    if all(layer.scale_lr == 0 for layer in config.layers.values()):
        for name in decay:
            yield Idle("learning", name, "it does nothing without a scale_lr in some layer")
    elif learning.scale_lr_decay == 1:
        yield Idle("learning", decay[1], "it does nothing with scale_lr_decay = 1")
    why = "binary weights have no learning rate (real ones: synapses = real)"
    for number in config.layers:
        yield Idle(f"layers.{number}", "weight_lr", why)
        for name in ("gamma", "threshold"):
            if name not in rule.takes:
                yield Idle(
                    f"layers.{number}", name, f"it does nothing with flip_rule = {rule.name}"
                )
