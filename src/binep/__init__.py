"""Dynamical binary neural networks trained by equilibrium propagation.

A name is imported when it is asked for: `import binep` loads neither PyTorch nor a compiler.
"""

from __future__ import annotations

from binep.core.provided import provide

# Nothing of the standard library, not even typing's constant: Ctrl-C is caught that much sooner.
TYPE_CHECKING = False
if TYPE_CHECKING:  # these names again, for type checkers and editors
    from binep.core.costs import Cost, CrossEntropy, SquaredError
    from binep.core.gradients import BackpropThroughTime, EquilibriumPropagation, GradientEstimator
    from binep.core.network import Network
    from binep.core.neurons import Binary, Neurons, Real
    from binep.core.optim import BinaryFlip, GradientDescent
    from binep.core.phases import Equilibrium
    from binep.core.speed import Speed
    from binep.core.synapses import Conv, Dense, Synapse
    from binep.experiment.classifier import Classifier as Classifier
    from binep.experiment.config import Config, Dynamics, Learning, preset
    from binep.experiment.experiment import Experiment
    from binep.experiment.layers import ConvLayer, DenseLayer, Layer
    from binep.experiment.thresholds import auto_threshold
    from binep.experiment.training import evaluate, train_epoch
    from binep.experiment.warnings import TrainingWarning
    from binep.export.packed import load

    __version__: str

__all__ = [
    "BackpropThroughTime",
    "Binary",
    "BinaryFlip",
    "Config",
    "Conv",
    "ConvLayer",
    "Cost",
    "CrossEntropy",
    "Dense",
    "DenseLayer",
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
    "TrainingWarning",
    "auto_threshold",
    "evaluate",
    "load",
    "preset",
    "train_epoch",
]

_MODULES = {
    "core.costs": ("Cost", "CrossEntropy", "SquaredError"),
    "core.gradients": ("BackpropThroughTime", "EquilibriumPropagation", "GradientEstimator"),
    "core.network": ("Network",),
    "core.phases": ("Equilibrium",),
    "core.neurons": ("Binary", "Neurons", "Real"),
    "core.optim": ("BinaryFlip", "GradientDescent"),
    "core.speed": ("Speed",),
    "core.synapses": ("Conv", "Dense", "Synapse"),
    "experiment.classifier": ("Classifier",),  # not in __all__: scikit-learn need not be there
    "experiment.config": ("Config", "Dynamics", "Learning", "preset"),
    "experiment.experiment": ("Experiment",),
    "experiment.layers": ("ConvLayer", "DenseLayer", "Layer"),
    "experiment.thresholds": ("auto_threshold",),
    "experiment.training": ("evaluate", "train_epoch"),
    "experiment.warnings": ("TrainingWarning",),
    "export.packed": ("load",),
}
_HOME = {name: f"binep.{module}" for module, names in _MODULES.items() for name in names}
"""Where each public name is defined."""

provide("solvers", "binep.solvers")
provide("flip in one pass", "binep.solvers:flip")
provide("check of a solver", "binep.experiment.build:check_solver")
provide("save", "binep.export.packed:save")


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("binep")
        except PackageNotFoundError:  # it runs from its sources
            return "unknown"
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, "__version__"})
