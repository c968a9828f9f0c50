"""Dynamical binary neural networks trained by equilibrium propagation."""

import binep.openmp  # noqa: F401
from binep.config import Config, Dynamics, Layer, Learning, preset
from binep.costs import Cost, CrossEntropy, SquaredError
from binep.experiment import Experiment
from binep.gradients import BackpropThroughTime, EquilibriumPropagation, GradientEstimator
from binep.network import Equilibrium, Network, Speed
from binep.neurons import Binary, Neurons, Real
from binep.optim import BinaryFlip, GradientDescent
from binep.synapses import Conv, Dense, Synapse
from binep.training import evaluate, train_epoch

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
