"""Dynamical binary neural networks trained by equilibrium propagation."""

import binep.solvers  # noqa: F401
from binep.core.costs import Cost, CrossEntropy, SquaredError
from binep.core.gradients import BackpropThroughTime, EquilibriumPropagation, GradientEstimator
from binep.core.network import Network
from binep.core.phases import Equilibrium
from binep.core.speed import Speed
from binep.core.neurons import Binary, Neurons, Real
from binep.core.optim import BinaryFlip, GradientDescent
from binep.core.synapses import Conv, Dense, Synapse
from binep.experiment.config import Config, Dynamics, Layer, Learning, preset
from binep.experiment.experiment import Experiment
from binep.experiment.training import evaluate, train_epoch

__all__ = [
    "BackpropThroughTime",
    "Binary",
    "BinaryFlip",
    "Config",
    "Conv",
    "Cost",
    "CrossEntropy",
    "Dense",
    "Dynamics",
    "Equilibrium",
    "EquilibriumPropagation",
    "Experiment",
    "GradientDescent",
    "GradientEstimator",
    "Layer",
    "Learning",
    "Network",
    "Neurons",
    "Real",
    "Speed",
    "SquaredError",
    "Synapse",
    "evaluate",
    "preset",
    "train_epoch",
]
