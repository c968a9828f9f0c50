"""Costs of the output, C(s_L, target), and the force −∂C/∂s_L that nudges it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from binep.core.checks import bare, whole
from binep.core.synapses import Dense
from binep.core.versions import Version

Readout = Literal["averaged", "single"]
Labels = Tensor | Sequence[int] | Any
"""Class labels: a tensor, a NumPy array or a list of whole numbers."""


class Cost(nn.Module, ABC):
    """The cost C(s_L, target) of an output, per sample.

    Attributes:
        classes: number of classes.
        copies: output neurons per class that can be read apart.
        classifies: whether it is of classes. Of another, as of a regression, the loss is reported
            and no error in percent; its `labels` are what its `target` takes.
    """

    classes: int
    copies: int = 1
    classifies: bool = True
    _known: tuple[int, Version] | None = None  # of how many classes, the labels checked last

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles check again."""
        return {name: value for name, value in self.__dict__.items() if name != "_known"}

    def labels(self, labels: Labels, batch: int | None = None) -> Tensor:
        """Class labels, checked, as int64.

        Args:
            labels: (batch,) whole numbers from 0 to classes − 1: a tensor, an array or a list.
            batch: how many there must be; any number if None.

        Raises:
            TypeError: not whole numbers.
            ValueError: another shape or number, or a label out of range.
        """
        try:
            # Not as_tensor of a tensor, which would move it to the default device.
            given = labels if isinstance(labels, Tensor) else torch.as_tensor(labels)
        except (TypeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise TypeError(f"labels are no tensor, array or list of numbers: {reason}") from None
        if given.layout != torch.strided:
            raise TypeError(f"labels are {given.layout}: must be dense")
        if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
            raise TypeError(f"labels are {given.dtype}: must be whole numbers, one per sample")
        if given.dim() != 1 or (batch is not None and len(given) != batch):
            needed = "(batch,)" if batch is None else f"({batch},), as x has {batch} samples"
            raise ValueError(f"labels have shape {tuple(given.shape)}: must have shape {needed}")
        known = self._knows(given)
        given = given.to(torch.int64)
        if not known:  # else the host need not wait for the device
            low, high = torch.stack(given.aminmax()).tolist() if len(given) else (0, 0)
            if not 0 <= low <= high < self.classes:
                wrong = given[(given < 0) | (given >= self.classes)][0]
                raise ValueError(f"labels hold {int(wrong)}: must be from 0 to {self.classes - 1}")
        self.vouch(given)
        return given

    def _knows(self, labels: Tensor) -> bool:
        classes, version = self._known or (0, None)
        return (
            version is not None
            and classes == self.classes
            and version.holds(labels)
            and labels.untyped_storage().resizable()  # NumPy may refill other memory
        )

    def vouch(self, labels: Tensor) -> None:
        """See `Network.vouch`."""
        if self.classifies:
            self._known = self.classes, Version(labels)

    def as_target(self, target: Tensor, output: Tensor) -> Tensor:
        """A target, checked, of the output's type.

        Args:
            target: from `target`, or like it: (batch, *target_shape).
            output: states of the output layer, (batch, *shape).

        Raises:
            TypeError: no tensor.
            ValueError: another shape or device, or values that are not finite.
        """
        if not isinstance(target, Tensor) or target.layout != torch.strided or target.is_complex():
            kind = (
                f"{target.dtype}, {target.layout}" if isinstance(target, Tensor) else type(target)
            )
            raise TypeError(f"target is {kind}: must be a dense tensor of real numbers")
        needed = (len(output), *self.target_shape(tuple(output.shape[1:])))
        if tuple(target.shape) != needed:
            raise ValueError(f"target has shape {tuple(target.shape)}: must have shape {needed}")
        if target.device != output.device:
            raise ValueError(f"target is on {target.device}: must be on {output.device}")
        given, target = target.dtype, bare(target).to(output.dtype)
        # Whole numbers are finite in all types but float16: no need to wait for the device.
        certain = not given.is_floating_point and torch.finfo(output.dtype).max > 2**64
        if not certain and not target.isfinite().all():
            raise ValueError("target has values that are not finite")
        return target

    def check_output(self, shape: tuple[int, ...]) -> None:
        """Refuse an output, of one sample, that it cannot read.

        Raises:
            ValueError: it does not fit.
        """

    def target_shape(self, output_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one sample's target, for an output of this shape."""
        return output_shape

    @abstractmethod
    def target(self, labels: Labels) -> Tensor:
        """What `force` and `loss` compare with, from class labels (batch,): see `labels`."""

    @abstractmethod
    def force(self, output: Tensor, target: Tensor) -> Tensor:
        """−∂C/∂s_L, in the shape of the output."""

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """C of each sample: (batch,)."""

    @abstractmethod
    def scores(self, output: Tensor, readout: Readout) -> Tensor:
        """A score per class, (batch, classes): the prediction is its argmax.

        Args:
            output: states or fired bits of the output layer.
            readout: of a class's copies take the mean ("averaged") or the first ("single").
        """


class SquaredError(Cost):
    """C = ½‖s_L − y‖², with y one-hot, each class repeated over its output neurons.

    Args:
        classes: number of classes.
        copies: output neurons per class (`--expand_output` of the paper's program): all of class 0,
            then all of class 1, ….
    """

    def __init__(self, classes: int, copies: int = 1) -> None:
        super().__init__()
        self.classes, self.copies = whole("classes", classes), whole("copies", copies)

    def check_output(self, shape: tuple[int, ...]) -> None:
        """It must have classes·copies neurons."""
        if torch.Size(shape).numel() != self.classes * self.copies:
            raise ValueError(
                f"the output has shape {shape}: must have {self.classes * self.copies} neurons, "
                f"classes = {self.classes} times copies = {self.copies}"
            )

    def as_target(self, target: Tensor, output: Tensor) -> Tensor:
        """A target in the output's shape; for maps it may come flat, as from `target`."""
        if isinstance(target, Tensor) and target.dim() == 2:
            return super().as_target(target, output.flatten(1)).reshape(output.shape)
        return super().as_target(target, output)

    def target(self, labels: Labels) -> Tensor:
        """One-hot, repeated: (batch, classes·copies)."""
        one_hot = F.one_hot(self.labels(labels), self.classes)
        return one_hot.repeat_interleave(self.copies, dim=1)

    def force(self, output: Tensor, target: Tensor) -> Tensor:
        """−∂C/∂s_L = y − s_L."""
        return target.reshape(-1, *output.shape[1:]) - output

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """½‖s_L − y‖²."""
        return self.force(output, target).square().flatten(1).sum(dim=1) / 2

    def scores(self, output: Tensor, readout: Readout) -> Tensor:
        """Mean, or first neuron, of each class's neurons: (batch, classes)."""
        if readout not in ("averaged", "single"):
            raise ValueError(f"readout = {readout!r}: must be 'averaged' or 'single'")
        groups = output.reshape(len(output), self.classes, self.copies)
        return groups.mean(dim=2) if readout == "averaged" else groups[:, :, 0]


class CrossEntropy(Cost):
    """Cross-entropy of a softmax layer on the last layer; Laborieux et al. 2021, section 2.3.

    The softmax layer y^ = softmax(W·s_L + b) is no part of the dynamics: nothing but the nudge acts
    back on s_L. It learns by the gradient of the cost at the free equilibrium.

    Args:
        readout: dense synapses from the last layer of neurons to one output per class.
    """

    def __init__(self, readout: Dense) -> None:
        super().__init__()
        if not isinstance(readout, Dense):
            raise TypeError(f"readout is a {type(readout).__name__}: must be Dense synapses")
        self.readout = readout
        (self.classes,) = readout.output_shape

    def _logits(self, output: Tensor) -> Tensor:
        return self.readout.biased(self.readout.up(output)[0])

    def check_output(self, shape: tuple[int, ...]) -> None:
        """It must be what the readout takes."""
        needed = tuple(self.readout.input_shape)
        if torch.Size(shape).numel() != torch.Size(needed).numel():
            raise ValueError(f"the output has shape {shape}, but the readout takes {needed}")

    def target(self, labels: Labels) -> Tensor:
        """One-hot: (batch, classes)."""
        return F.one_hot(self.labels(labels), self.classes)

    def target_shape(self, output_shape: tuple[int, ...]) -> tuple[int, ...]:
        """One number per class."""
        return (self.classes,)

    def force(self, output: Tensor, target: Tensor) -> Tensor:
        """Wᵀ(y − y^), in the shape of the output."""
        residual = target - torch.softmax(self._logits(output), dim=1)
        return self.readout.down(residual, None).view_as(output)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """−Σ y·log y^."""
        return -(target * torch.log_softmax(self._logits(output), dim=1)).sum(dim=1)

    def scores(self, output: Tensor, readout: Readout) -> Tensor:
        """The logits, (batch, classes), whatever the readout: each class has one."""
        return self._logits(output)
