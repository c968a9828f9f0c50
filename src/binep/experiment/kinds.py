"""What a configuration can name: layers, neurons, solvers, costs, estimators, rules, data sets.

Without PyTorch: a class is imported when one is built. A class of one's own is added by the
decorator of its sort, anywhere, before the configuration is read:

    @kinds.neurons("leaky")
    class Leaky(binep.Neurons): ...

Parameters of its constructor that are listed below come from the configuration, if it takes them;
those with other names are settings of its own: of a layer beside its others in [layers.N],
otherwise in the table [options.NAME]. What it does not take does nothing, and is refused. The
types Count (a whole number from 1), Rate (a finite number from 0), Portion (from 0 to 1) and Share
(above 0 and at most 1) bound a setting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from binep.data.sources import SOURCES, data_set
from binep.experiment.layers import layer
from binep.experiment.settings import Count, Portion, Rate, Share
from binep.registry import Kind, Registry

__all__ = [
    "Count",
    "Portion",
    "Rate",
    "Share",
    "cost",
    "data_set",
    "estimator",
    "flip_rule",
    "layer",
    "neurons",
    "solver",
]

T = TypeVar("T", bound=type[Any])

NEURONS = Registry(
    "activation",
    ("initial", "threshold", "filter", "hold_nudge", "nudge", "clip_nudged"),
    facts=("differentiable", "settle_exactly"),
)
SOLVERS = Registry("solver", positional=1, facts=("ignores",))  # the network
COSTS = Registry("cost", ("classes", "copies", "readout"), facts=("classifies",))
ESTIMATORS = Registry(
    "estimator",
    ("beta", "free_steps", "nudged_steps", "nudging", "tolerance", "row_sparse", "generator"),
    positional=1,  # the network
    facts=("differentiates",),
)
FLIP_RULES = Registry(
    "flip_rule",
    ("gamma", "threshold", "noise", "one_pass", "generator"),
    positional=1,  # parameter groups, with gamma and threshold
    facts=("takes_rows",),
)

NEURONS.add_path(
    "hard-sigmoid",
    "binep.core.neurons:Real",
    ("initial", "nudge", "clip_nudged"),
    differentiable=True,
)
NEURONS.add_path(
    "heaviside",
    "binep.core.neurons:Binary",
    ("initial", "threshold", "filter", "hold_nudge"),
    settle_exactly=True,
)
SOLVERS.add(Kind("steps", lambda: None))  # `Network.step`, or a shortcut that fits
SOLVERS.add_path(
    "annealing",
    "binep.ising:AnnealingSolver",
    (),
    ignores=("settle_tol", "neuron_filter"),
)
COSTS.add_path(
    "squared-error", "binep.core.costs:SquaredError", ("classes", "copies"), classifies=True
)
COSTS.add_path("cross-entropy", "binep.core.costs:CrossEntropy", ("readout",), classifies=True)
ESTIMATORS.add_path(
    "ep",
    "binep.core.gradients:EquilibriumPropagation",
    ("beta", "free_steps", "nudged_steps", "nudging", "tolerance", "row_sparse", "generator"),
)
ESTIMATORS.add_path(
    "bptt",
    "binep.core.gradients:BackpropThroughTime",
    ("free_steps", "nudged_steps", "tolerance"),
    differentiates=True,
)
FLIP_RULES.add_path(
    "momentum",
    "binep.core.optim:BinaryFlip",
    ("gamma", "threshold", "noise", "one_pass", "generator"),
    takes_rows=True,
)


WITH_OPTIONS = (SOURCES, NEURONS, COSTS, ESTIMATORS, FLIP_RULES)
"""Kinds whose settings of their own are a table [options.NAME]; those of layers are in theirs."""


def neurons(name: str) -> Callable[[T], T]:
    """Let a configuration name these `Neurons`: ``activation = "NAME"``.

    The constructor may take initial (initial_state), threshold (firing_threshold), filter
    (neuron_filter), hold_nudge, nudge and clip_nudged.
    """
    return NEURONS.register(name)


def solver(name: str) -> Callable[[T], T]:
    """Let a configuration name this `Solver`: ``solver = "NAME"``; it then takes all phases.

    The constructor takes the network alone. ``ignores`` in the class: names of settings of
    [dynamics] that do nothing with it.

    Raises:
        TypeError: the constructor takes more.
    """

    def decorate(cls: T) -> T:
        _, own = SOLVERS.parameters(cls)
        if own:
            raise TypeError(f"{cls.__name__} takes {own[0][0]}: must take the network alone")
        return SOLVERS.register(name)(cls)

    return decorate


def cost(name: str) -> Callable[[T], T]:
    """Let a configuration name this `Cost`: ``cost = "NAME"``.

    The constructor may take classes, copies (output_copies) and readout: the last layer's synapses,
    which then are no part of the dynamics.
    """
    return COSTS.register(name)


def estimator(name: str) -> Callable[[T], T]:
    """Let a configuration name this `GradientEstimator`: ``estimator = "NAME"``.

    The constructor gets the network first. It may take beta, free_steps, nudged_steps, nudging,
    tolerance (settle_tol) and generator, which draws signs. ``differentiates = True`` in the class:
    it needs neurons that have a derivative.
    """
    return ESTIMATORS.register(name)


def flip_rule(name: str) -> Callable[[T], T]:
    """Let a configuration name this optimizer of binary weights: ``flip_rule = "NAME"``.

    The constructor gets parameter groups first, a layer's each, with its gamma and threshold under
    "gamma" and "threshold". It may take gamma and threshold as defaults of these, noise
    (momentum_noise) and generator. With gamma_decay each epoch sets a group's "gamma" to a share of
    its "initial_gamma". ``takes_rows = True`` in the class: gradients may be sparse.
    """
    return FLIP_RULES.register(name)
