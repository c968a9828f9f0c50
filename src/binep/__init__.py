"""Dynamical binary neural networks trained by equilibrium propagation."""

from binep.config import Config, Layer, preset
from binep.costs import CrossEntropy, SquaredError
from binep.experiment import Experiment
from binep.gradients import BackpropThroughTime, EquilibriumPropagation
from binep.network import Equilibrium, Network
from binep.neurons import Binary, Real
from binep.optim import BinaryFlip, PositiveSGD
from binep.synapses import Conv, Dense
from binep.training import evaluate, train_epoch

__all__ = [
    "BackpropThroughTime",
    "Binary",
    "BinaryFlip",
    "Config",
    "Conv",
    "CrossEntropy",
    "Dense",
    "Equilibrium",
    "EquilibriumPropagation",
    "Experiment",
    "Layer",
    "Network",
    "PositiveSGD",
    "Real",
    "SquaredError",
    "evaluate",
    "preset",
    "train_epoch",
]
