"""Synapses: what joins one layer of neurons to the next.

A synapse multiplies upward (W ⋆ s), downward (Wᵀ ⋆ s), and correlates the states at its two ends,
which is the gradient of its part of the primitive function Φ = Σ s·(W ⋆ s_below) + b·s (paper,
section 2).
"⋆" is a dense product, or a convolution followed by pooling.

A binary weight is a sign times a scaling factor, W = α·sign(w); both are stored apart, so that at
every moment a weight is exactly ±α (paper, section 3.1).
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import starmap
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from binep.core.checks import whole
from binep.core.grey_levels import GREY_LEVEL, grey_levels
from binep.core.products import linear
from binep.core.shapes import map_shape_of
from binep.core.versions import Version, only_flipped

_AT_ONCE = 2**19
"""Elements of a convolution's maps before pooling."""

_IN_CACHE = 2**19
"""Weights whose products with their gradients stay in cache until they are added up."""

Weights = Literal["binary", "real"]
Route = Tensor | None
"""Indices of the maxima that `Conv.up` pooled; None where nothing was max-pooled."""


class Synapse(nn.Module, ABC):
    """What joins a layer below to a layer above.

    Attributes:
        values: the signs ±1 of binary weights, or real weights themselves; ``values.grad`` is the
            gradient with respect to the weight W, for binary weights too. To be changed in place or
            replaced, not through ``.data`` or NumPy: solvers keep copies of them in other forms,
            and convert them again when PyTorch's count of changes has grown.
        scale: the scaling factor α > 0: shape () for a dense layer, (channels,) for a
            convolution; None with real weights.
        bias: one value per neuron (dense) or per channel (convolution).
        input_shape: shape of one sample below.
        output_shape: shape of one sample above.
        has_route: whether `down` needs the route that `up` returned in this time step.
        flattens: whether a sample below may come in any shape of as many values.
    """

    values: nn.Parameter
    scale: nn.Parameter | None
    bias: nn.Parameter
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    has_route = False
    flattens = False
    _shapes: tuple[tuple[str, torch.Size], ...] = ()
    _checked: Version | None = None
    _checked_scale: Version | None = None

    def _initialise(
        self,
        shape: tuple[int, ...],
        per_channel: bool,
        weights: Weights,
        zero_bias: bool,
        generator: torch.Generator | None,
    ) -> None:
        """PyTorch's default, U(−1/√fan_in, 1/√fan_in), then W = α·sign(w) with α = mean|w|.

        A channel's α is rounded to 12 bits (the paper's program rounds to four decimals), so that
        what the channels of binary neurons send down adds up exactly in float32.
        """
        if weights not in ("binary", "real"):
            raise ValueError(f"weights = {weights!r}: must be 'binary' or 'real'")
        bound = 1 / math.sqrt(math.prod(shape[1:]))

        def uniform(*size: int) -> Tensor:
            device = None if generator is None else generator.device
            return torch.empty(*size, device=device).uniform_(-bound, bound, generator=generator)

        w = uniform(*shape)
        if weights == "binary":
            alpha = _round(w.abs().flatten(1).mean(dim=1)) if per_channel else w.abs().mean()
            self.values = nn.Parameter(torch.where(w >= 0, 1.0, -1.0))
            self.scale = nn.Parameter(alpha)
        else:
            self.values = nn.Parameter(w)
            self.register_parameter("scale", None)
        bias = uniform(shape[0])
        self.bias = nn.Parameter(torch.zeros_like(bias) if zero_bias else bias)
        self._shapes = tuple((name, p.shape) for name, p in self.named_parameters())

    def __setattr__(self, name: str, value: Any) -> None:
        """PyTorch's parametrizations lie in a dictionary that admits no module called "values"."""
        if name == "parametrizations" and type(value) is nn.ModuleDict:
            value = _Parametrizations()
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles are checked again."""
        looks = "_checked", "_checked_scale"
        return {name: value for name, value in self.__dict__.items() if name not in looks}

    def check(self, like: Tensor) -> None:
        """Refuse parameters that were replaced or moved to what they cannot be.

        Args:
            like: of the type, and on the device, that they must have.

        Raises:
            ValueError: another shape, type or device, signs other than ±1, or scaling
                factors that are negative or not finite.
        """
        for name, shape in self._shapes:
            parameter = self._parameters.get(name)
            if parameter is not None and parameter.shape != shape:
                raise ValueError(
                    f"{name} has shape {tuple(parameter.shape)}: must be {tuple(shape)}"
                )
            if parameter is not None and not (
                parameter.dtype == like.dtype and parameter.device == like.device
            ):
                raise ValueError(
                    f"{name} is {parameter.dtype} on {parameter.device}: must be {like.dtype} on "
                    f"{like.device}, as the first layer"
                )
            if name in self.__dict__:  # so prune leaves it, for a hook to compute
                raise ValueError(
                    f"{name} is a {type(self.__dict__[name]).__name__}: must be a parameter, or "
                    "computed by torch.nn.utils.parametrize; hooks before forward() never run here"
                )
        self.check_signs()
        self._check_scale()

    def _check_scale(self) -> None:
        scale, checked = self.scale, self._checked_scale
        if scale is None or (checked is not None and checked.holds(scale)):
            return
        low, high = torch.stack(scale.detach().aminmax()).tolist()
        if not 0 < low <= high < math.inf:
            wrong = high if 0 < low < math.inf else low
            raise ValueError(
                f"a scaling factor is {wrong:.3g}: must be finite and above 0; "
                "GradientDescent(…, floor=SCALE_FLOOR) keeps them so"
            )
        self._checked_scale = Version(scale)

    def check_signs(self) -> None:
        """Refuse binary weights that are not ±1.

        After flips alone they need not be checked again.

        Raises:
            ValueError: a value other than ±1.
        """
        values = self.values.detach()
        checked = self._checked
        if self.scale is None or (checked is not None and checked.holds(values)):
            return
        if checked is None or not only_flipped(self.values, checked):
            wrong = values[values.abs() != 1]
            if wrong.numel():
                raise ValueError(
                    f"a sign of its binary weights is {float(wrong[0]):.3g}: must be 1 or -1; only "
                    "BinaryFlip keeps them so, other optimizers are for the other parameters"
                )
        self._checked = Version(values)

    @property
    def weight(self) -> Tensor:
        """W, in the shape of ``values``: exactly ±α for binary weights."""
        if self.scale is None:
            return self.values
        return self.values * self.per_weight(self.scale)

    def per_weight(self, scale: Tensor) -> Tensor:
        """A scaling factor viewed so that it broadcasts over the weights that share it."""
        return scale.view(-1, *[1] * (self.values.dim() - 1))

    def train_scale(self, learn: bool) -> None:
        """Whether estimators are to fill ``scale.grad``; real weights have no scale."""
        if self.scale is not None:
            self.scale.requires_grad_(learn)

    @abstractmethod
    def up(self, below: Tensor) -> tuple[Tensor, Route]:
        """W ⋆ below, without the bias.

        Args:
            below: (batch, *input_shape).

        Returns:
            The drive, (batch, *output_shape), and the route: the indices of the maxima, which
            `down` sends back to.
        """

    def up_input(self, x: Tensor) -> tuple[Tensor, Route]:
        """`up` of the network's input, computed once for many steps."""
        return self.up(x)

    @abstractmethod
    def down(self, above: Tensor, route: Route) -> Tensor:
        """Wᵀ ⋆ above: (batch, *output_shape) to (batch, *input_shape).

        Args:
            above: what the layer above sends.
            route: that `up` returned in this time step.
        """

    @abstractmethod
    def correlate(self, above: Tensor, below: Tensor) -> Tensor:
        """Σ over the batch of above ⊗ below: ∂/∂W of Σ above·(W ⋆ below); shape of ``values``."""

    @abstractmethod
    def correlate_bias(self, above: Tensor) -> Tensor:
        """∂/∂b of Σ b·above: summed over the batch, and over positions of a convolution."""

    @abstractmethod
    def biased(self, drive: Tensor) -> Tensor:
        """The drive with the bias added."""

    def per_scale(self, weight_gradient: Tensor) -> Tensor:
        """∂/∂α from ∂/∂W: Σ sign·∂/∂W over the weights that share α; shape of ``scale``."""
        assert self.scale is not None
        values, rows = self.values.detach(), None
        if weight_gradient.is_sparse:
            rows, weight_gradient = weight_gradient.indices()[0], weight_gradient.values()
        count, sums = len(weight_gradient), weight_gradient.new_empty(len(weight_gradient))
        at_once = max(1, _IN_CACHE * count // max(1, weight_gradient.numel()))
        for start in range(0, count, at_once):
            some = slice(start, start + at_once)
            signs = values[some] if rows is None else values[rows[some]]
            sums[some] = (signs * weight_gradient[some]).flatten(1).sum(dim=1)
        return sums.sum() if self.scale.dim() == 0 else sums


class _Parametrizations(nn.ModuleDict):
    """PyTorch's parametrizations of a module's parameters, also of one called "values"."""

    def __setitem__(self, key: str, module: nn.Module) -> None:
        self._modules[key] = module


def _round(positive: Tensor) -> Tensor:
    """Positive numbers rounded to 12 significant bits."""
    mantissa, exponent = torch.frexp(positive)
    return torch.ldexp((mantissa * 2**12).round() / 2**12, exponent)


class Dense(Synapse):
    """All-to-all synapses; one scaling factor for all weights.

    Args:
        inputs: neurons below, or the shape of one sample below, which is flattened.
        outputs: neurons above.
        weights: "binary" (±α) or "real" (the full-precision reference).
        zero_bias: start from zero biases instead of PyTorch's default.
        generator: of the initial values (on the CPU); the global one if None.

    Raises:
        ValueError: a size below one.
    """

    flattens = True

    def __init__(
        self,
        inputs: int | Sequence[int],
        outputs: int,
        *,
        weights: Weights = "binary",
        zero_bias: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = inputs if isinstance(inputs, Sequence) else (inputs,)
        self.input_shape = tuple(map(operator.index, sizes))
        outputs = operator.index(outputs)
        self.output_shape = (outputs,)
        if min(*self.input_shape, outputs) < 1:
            raise ValueError(f"Dense({inputs}, {outputs}): sizes must be at least 1")
        shape = (outputs, math.prod(self.input_shape))
        self._initialise(shape, False, weights, zero_bias, generator)

    def up(self, below: Tensor) -> tuple[Tensor, Route]:
        """W·s."""
        return self._scaled(linear(below.flatten(1).to(self.values.dtype), self.values)), None

    def down(self, above: Tensor, route: Route) -> Tensor:
        """Wᵀ·s."""
        # Scaled last: sums of bits and signs are exact.
        product = self._scaled(linear(above.to(self.values.dtype), self.values.T))
        return product.view(-1, *self.input_shape)

    def correlate(self, above: Tensor, below: Tensor) -> Tensor:
        """Σ s_above ⊗ s_below."""
        return linear(above.T, below.flatten(1).to(above.dtype).T)

    def _scaled(self, product: Tensor) -> Tensor:
        return product if self.scale is None else product * self.scale

    def correlate_bias(self, above: Tensor) -> Tensor:
        """Σ s_above."""
        return above.sum(dim=0)

    def biased(self, drive: Tensor) -> Tensor:
        """One bias per neuron."""
        return drive + self.bias


class Conv(Synapse):
    """A convolution followed by pooling; feedback is its transpose through the pooled indices.

    Args:
        input_shape: (channels, height, width) of one sample below.
        channels: output channels.
        kernel: side of the square kernel; the stride is 1.
        padding: zeros around the input.
        pool: side and stride of the pooling window; 1 for none. Rows and columns that do not
            fill a window are dropped.
        pooling: "max" or "average".
        weights: "binary" (one α per output channel) or "real".
        zero_bias: start from zero biases instead of PyTorch's default.
        generator: of the initial values (on the CPU); the global one if None.

    Raises:
        ValueError: the kernel or the pool is larger than its map, or a setting is out of range.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        channels: int,
        *,
        kernel: int = 5,
        padding: int = 2,
        pool: int = 2,
        pooling: Literal["max", "average"] = "max",
        weights: Weights = "binary",
        zero_bias: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        channels, kernel = whole("channels", channels), whole("kernel", kernel)
        padding, pool = whole("padding", padding, least=0), whole("pool", pool)
        if pooling not in ("max", "average"):
            raise ValueError(f"pooling = {pooling!r}: must be 'max' or 'average'")
        self.map_shape = map_shape_of(input_shape, kernel, padding, pool)
        self.input_shape = tuple(input_shape)
        self.output_shape = (channels, self.map_shape[0] // pool, self.map_shape[1] // pool)
        self.padding, self.pool, self.pooling = padding, pool, pooling
        self.has_route = pool > 1 and pooling == "max"
        self._initialise(
            (channels, input_shape[0], kernel, kernel), True, weights, zero_bias, generator
        )

    @property
    def averages(self) -> bool:
        """Whether a place above sends to all places of its window, not to one."""
        return self.pool > 1 and self.pooling == "average"

    def _per_channel(self, parameter: Tensor) -> Tensor:
        return parameter.view(-1, 1, 1)

    def up(self, below: Tensor) -> tuple[Tensor, Route]:
        """Pool(W ⋆ s). Pooling commutes with α > 0, which scales the pooled map."""
        below = below.to(self.values.dtype)
        if self.has_route and below.device.type == "cpu":  # where PyTorch pools channels at once
            below = below.contiguous(memory_format=torch.channels_last)
        convolved = F.conv2d(below, self.values, padding=self.padding)
        indices: Tensor | None = None
        pooled = convolved
        if self.pool > 1 and self.pooling == "max":
            pooled, indices = F.max_pool2d(convolved, self.pool, return_indices=True)
        elif self.pool > 1:
            pooled = F.avg_pool2d(convolved, self.pool)
        drive = pooled if self.scale is None else pooled * self._per_channel(self.scale)
        return drive, indices

    def _in_parts(self, *batches: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """On a CPU some samples at a time, so that their maps before pooling stay in cache."""
        size = len(batches[0])
        if batches[0].device.type == "cpu":
            size = max(1, _AT_ONCE // (len(self.values) * math.prod(self.map_shape)))
        return zip(*(torch.split(batch, size) for batch in batches), strict=True)

    def up_input(self, x: Tensor) -> tuple[Tensor, Route]:
        """`up`, a part of the batch at a time.

        On a CPU sums of signs times 256 grey levels are exact, so that equal maxima are equal, and
        the first one's place sends.
        """
        exact = self.scale is not None and x.device.type == "cpu" and not x.requires_grad
        whole = grey_levels(x) if exact and x.dtype in (torch.float32, torch.float64) else None
        levels = x if whole is None else whole.to(x.dtype)
        drives, routes = zip(*(self.up(some) for (some,) in self._in_parts(levels)), strict=True)
        drive = torch.cat(drives)
        if whole is not None:
            drive = drive * GREY_LEVEL
        return drive, torch.cat(routes) if self.has_route else None

    def _unpool(self, above: Tensor, route: Route) -> Tensor:
        """The transpose of pooling: (batch, channels, *map_shape), zero but at the maxima."""
        if self.pool == 1:
            return above
        if self.pooling == "max":
            assert route is not None
            maps = above.new_zeros(*above.shape[:2], self.map_shape[0] * self.map_shape[1])
            maps.scatter_(2, route.flatten(2), above.flatten(2))
            return maps.view(*above.shape[:2], *self.map_shape)
        spread = above / self.pool**2
        spread = spread.repeat_interleave(self.pool, -2).repeat_interleave(self.pool, -1)
        rows = self.map_shape[0] - spread.shape[-2]
        columns = self.map_shape[1] - spread.shape[-1]
        return F.pad(spread, (0, columns, 0, rows))

    def down(self, above: Tensor, route: Route) -> Tensor:
        """Wᵀ ⋆ Unpool(s), at the indices of the maxima that `up` chose in this time step."""
        above = above.to(self.values.dtype)
        scaled = above if self.scale is None else above * self._per_channel(self.scale)
        return F.conv_transpose2d(self._unpool(scaled, route), self.values, padding=self.padding)

    def correlate(self, above: Tensor, below: Tensor) -> Tensor:
        """Unpool(s_above) correlated with s_below, at the indices of the maxima at s_below."""
        if not self.has_route:
            return reduce(Tensor.add_, starmap(self._correlate, self._in_parts(above, below)))
        _, route = self.up_input(below)  # of the input, too, the places that have sent
        assert route is not None
        return reduce(Tensor.add_, starmap(self._correlate, self._in_parts(above, below, route)))

    def _correlate(self, above: Tensor, below: Tensor, route: Route = None) -> Tensor:
        product: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
            below.to(above.dtype),
            list(self.values.shape),
            self._unpool(above, route),
            padding=self.padding,
        )
        return product

    def correlate_bias(self, above: Tensor) -> Tensor:
        """Σ s_above over the batch and over positions."""
        return above.sum(dim=(0, 2, 3))

    def biased(self, drive: Tensor) -> Tensor:
        """One bias per channel."""
        return drive + self._per_channel(self.bias)
