"""A network with scikit-learn's interface."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from binep.core.costs import SquaredError
from binep.core.gradients import EquilibriumPropagation
from binep.core.network import Network
from binep.core.neurons import Real
from binep.core.optim import BinaryFlip, GradientDescent
from binep.core.synapses import Dense, Synapse
from binep.experiment.training import train_epoch

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError:
    raise ImportError("binep.Classifier needs scikit-learn: pip install 'binep[sklearn]'") from None

BATCH = 512
"""Samples that settle at a time when classes are predicted."""


class Classifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A scikit-learn estimator: dense layers of real neurons, trained by equilibrium propagation.

    Features are standardised, with the mean and deviation of those that it is fitted to.

    Args:
        hidden: neurons of each hidden layer.
        weights: "binary" ones flip where their momentum passes the threshold, "real" ones follow
            the gradient.
        epochs: passes over the data.
        batch_size: samples per update.
        beta: β, strength of the nudge.
        free_steps: T, the most time steps of the free phase.
        nudged_steps: the most time steps of the nudged phase.
        gamma: γ, rate of the momentum of binary weights.
        threshold: τ, the momentum at which a binary weight flips.
        lr: learning rate of biases and real weights.
        random_state: fixes initial weights, order of the data and signs of the nudge.

    Attributes:
        classes_: the labels, sorted.
        network_: the trained network, in float64.
        mean_, std_: of each feature.
        n_features_in_: number of features.
    """

    def __init__(
        self,
        hidden: tuple[int, ...] = (256,),
        *,
        weights: Literal["binary", "real"] = "binary",
        epochs: int = 30,
        batch_size: int = 32,
        beta: float = 0.3,
        free_steps: int = 50,
        nudged_steps: int = 10,
        gamma: float = 1e-3,
        threshold: float = 1e-5,
        lr: float = 0.05,
        random_state: Any = None,
    ) -> None:
        self.hidden = hidden
        self.weights = weights
        self.epochs = epochs
        self.batch_size = batch_size
        self.beta = beta
        self.free_steps = free_steps
        self.nudged_steps = nudged_steps
        self.gamma = gamma
        self.threshold = threshold
        self.lr = lr
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Classifier:  # noqa: N803 – scikit-learn's name
        """Train a new network.

        Args:
            X: (samples, features), finite numbers.
            y: (samples,) labels of at least two classes.

        Raises:
            ValueError: data or a setting that cannot be.
        """
        X, y = validate_data(self, X, y, dtype=np.float64)  # noqa: N806
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y holds one class, {self.classes_[0]}: must hold two or more")
        self._check_counts()
        self.mean_ = X.mean(axis=0)
        # Of equal numbers rounding leaves a deviation that is not quite 0.
        self.std_ = np.where(np.ptp(X, axis=0) > 0, X.std(axis=0), 1.0)
        seed = int(check_random_state(self.random_state).randint(2**31))
        generator = torch.Generator().manual_seed(seed)
        network = self._network(X.shape[1], generator)
        self._train(network, self._scaled(X).float(), torch.as_tensor(labels), generator)
        self.network_ = network.double()
        return self

    def _check_counts(self) -> None:
        for name in ("epochs", "batch_size", "free_steps", "nudged_steps"):
            if not _is_count(value := getattr(self, name)):
                raise ValueError(f"{name} = {value!r}: must be a whole number from 1")
        sizes = self.hidden
        if not isinstance(sizes, Sequence) or not all(map(_is_count, sizes)):
            raise ValueError(f"hidden = {sizes!r}: must be a tuple of whole numbers from 1")

    def _network(self, features: int, generator: torch.Generator) -> Network:
        sizes = [features, *self.hidden, len(self.classes_)]
        synapses: list[Synapse] = [
            Dense(below, above, weights=self.weights, generator=generator)
            for below, above in pairwise(sizes)
        ]
        cost = SquaredError(len(self.classes_))
        # The end of a phase depends on the slowest of a batch: by less than is seen of a score.
        return Network(synapses, Real(), cost, free_steps=self.free_steps, tolerance=1e-9)

    def _train(
        self, network: Network, x: Tensor, labels: Tensor, generator: torch.Generator
    ) -> None:
        estimator = EquilibriumPropagation(
            network,
            beta=self.beta,
            free_steps=self.free_steps,
            nudged_steps=self.nudged_steps,
            nudging="random-sign",
            generator=generator,
        )
        signs = [s.values for s in network.synapses if s.scale is not None]
        real = [s.values for s in network.synapses if s.scale is None]
        descent = GradientDescent([s.bias for s in network.synapses] + real, lr=self.lr)
        optimizers: list[Any] = [descent]
        if signs:
            optimizers.insert(0, BinaryFlip(signs, gamma=self.gamma, threshold=self.threshold))

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            order = torch.randperm(len(x), generator=generator)
            for some in torch.split(order, self.batch_size):
                yield x[some], labels[some]

        for _ in range(self.epochs):
            train_epoch(network, estimator, optimizers, batches())

    def _scaled(self, X: Any) -> Tensor:  # noqa: N803
        return torch.as_tensor((X - self.mean_) / self.std_)

    def predict_proba(self, X: Any) -> Any:  # noqa: N803
        """The output neurons' states at the free equilibrium, as shares: (samples, classes)."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)  # noqa: N806
        scores = torch.cat([self.network_(some) for some in torch.split(self._scaled(X), BATCH)])
        shares = scores.clamp(min=0) + 1e-9  # also of a sample that excites no output
        return (shares / shares.sum(dim=1, keepdim=True)).numpy()

    def predict(self, X: Any) -> Any:  # noqa: N803
        """The class of each sample: (samples,)."""
        shares = self.predict_proba(X)
        return self.classes_[shares.argmax(axis=1)]


def _is_count(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1
