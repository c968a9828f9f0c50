"""Tables of layers, [layers.N]: each checks itself and builds its synapses. Without PyTorch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from binep.core.shapes import map_shape_of
from binep.experiment.settings import (
    Choices,
    ConfigError,
    Count,
    Margin,
    Rate,
    Share,
    hints_of,
    shown,
    wrong_type,
)
from binep.registry import Registry, table

if TYPE_CHECKING:
    from binep.core.synapses import Synapse

T = TypeVar("T", bound=type[Any])

OFFERED = ("weights", "zero_bias", "generator")
"""What a configuration gives to the synapses of any kind that take it."""

LAYERS: dict[str, type[Layer]] = {}
"""The table of each kind."""


@dataclass(frozen=True)
class Layer:
    """One layer: the synapses that lead to it, and how they learn.

    In a `Config`, ``Layer(10)`` becomes the table of its kind, a `DenseLayer`.
    """

    size: Count
    """Neurons of a dense layer, or output channels of a convolution."""
    kind: Annotated[str, Choices(LAYERS)] = "dense"
    """All-to-all, or a convolution followed by pooling."""
    gamma: Share = 1e-4
    """γ: rate of the momentum that decides when a binary weight flips."""
    threshold: Rate = 5e-7
    """τ: a binary weight flips when its momentum passes this."""
    weight_lr: Rate | None = None
    """Learning rate of real weights; that of the biases if None."""
    bias_lr: Rate = 0.0
    """Learning rate of the biases."""
    scale_lr: Rate = 0.0
    """Learning rate of the scaling factor α of binary weights; 0 leaves it fixed."""
    firing_threshold: Share | None = None
    """Binary activations: the state from which the layer's neurons fire; that of all if None."""

    takes: ClassVar[frozenset[str]] = frozenset(OFFERED)
    """What of `OFFERED` has an effect."""

    @staticmethod
    def load() -> Any:
        """The class of its synapses, imported when first needed."""
        raise NotImplementedError

    def own(self) -> dict[str, Any]:
        """The settings of its kind alone."""
        return {name: getattr(self, name) for name in own_names(type(self))}

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of a sample above, from that below.

        Raises:
            ValueError: such a layer does not fit there.
        """
        return (self.size,)

    def weights(self, shape: tuple[int, ...]) -> int:
        """How many weights it has at least, above a sample of that shape."""
        return self.size

    def states(self, shape: tuple[int, ...]) -> int:
        """How many numbers a sample takes in it at least, before any pooling."""
        return math.prod(self.output_shape(shape))

    def build(self, shape: tuple[int, ...], **offered: Any) -> Synapse:
        """The synapses.

        Args:
            shape: of a sample below.
            offered: values for `OFFERED`.
        """
        wanted = {name: value for name, value in offered.items() if name in self.takes}
        synapse: Synapse = self.load()(shape, self.size, **self.own(), **wanted)
        return synapse

    def idle(self) -> Iterator[tuple[str, str]]:
        """Settings that do nothing beside the others of this table, each with what makes it so."""
        return iter(())

    def as_kind(self) -> Layer:
        """These settings in the table of the kind, without those that it lacks."""
        kind = LAYERS.get(self.kind)
        if kind is None or kind is type(self):
            return self
        names = {f.name for f in dataclasses.fields(kind)}
        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return kind(**{name: value for name, value in settings.items() if name in names})

    @classmethod
    def of_table(cls, value: Mapping[str, Any], key: str) -> tuple[type[Layer], dict[str, Any]]:
        """The class that reads a TOML table, and what it is to read.

        Version 0.1 wrote kernel, padding, pool and pooling for dense layers, too: there they may
        stand at their defaults.

        Raises:
            ConfigError: they stand there with other values, or there is no such kind.
        """
        name = value.get("kind", "dense")
        right = wrong_type(hints_of(cls)["kind"], name)
        if right:
            raise ConfigError(f"{key}.kind = {shown(repr(name))}: must be {right}")
        kind, kept = LAYERS[name], dict(value)
        former = (
            {f.name: f.default for f in dataclasses.fields(ConvLayer)} if name == "dense" else {}
        )
        for setting in own_names(ConvLayer):
            if setting in former and kept.pop(setting, former[setting]) != former[setting]:
                raise ConfigError(
                    f"{key}.{setting} = {shown(repr(value[setting]))}: must be left out: it does "
                    f"nothing with kind = {name}"
                )
        return kind, kept


@dataclass(frozen=True)
class DenseLayer(Layer):
    """All-to-all synapses."""

    @staticmethod
    def load() -> Any:
        """`binep.Dense`."""
        from binep.core.synapses import Dense

        return Dense

    def weights(self, shape: tuple[int, ...]) -> int:
        """One for each pair of a neuron below and one of its own."""
        return self.size * math.prod(shape)


@dataclass(frozen=True)
class ConvLayer(Layer):
    """A convolution followed by pooling."""

    kind: Annotated[str, Choices(LAYERS)] = "conv"
    """All-to-all, or a convolution followed by pooling."""
    kernel: Count = 5
    """Side of a convolution's kernel."""
    padding: Margin = 2
    """Zeros around a convolution's input."""
    pool: Count = 2
    """Side and stride of a convolution's pooling window; 1 for none."""
    pooling: Literal["max", "average"] = "max"
    """How a convolution pools."""

    @staticmethod
    def load() -> Any:
        """`binep.Conv`."""
        from binep.core.synapses import Conv

        return Conv

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(channels, height, width) after pooling."""
        rows, columns = map_shape_of(shape, self.kernel, self.padding, self.pool)
        return self.size, rows // self.pool, columns // self.pool

    def weights(self, shape: tuple[int, ...]) -> int:
        """Those of a kernel for each channel below and each of its own."""
        return self.size * shape[0] * self.kernel**2

    def states(self, shape: tuple[int, ...]) -> int:
        """The places of its map before pooling."""
        rows, columns = map_shape_of(shape, self.kernel, self.padding, self.pool)
        return self.size * rows * columns

    def idle(self) -> Iterator[tuple[str, str]]:
        """How it pools, if it does not."""
        if self.pool == 1:
            yield "pooling", "pool = 1"


LAYERS |= {"dense": DenseLayer, "conv": ConvLayer}
_PARAMETERS = Registry("kind", OFFERED, positional=2)


def own_names(kind: type[Layer]) -> list[str]:
    """Settings of a kind of layer alone."""
    common = {f.name for f in dataclasses.fields(Layer)}
    return [f.name for f in dataclasses.fields(kind) if f.name not in common]


def layer(name: str) -> Callable[[T], T]:
    """Let a configuration name these `Synapse`: ``kind = "NAME"`` in [layers.N].

    The constructor gets the shape of a sample below and the layer's size. It may take weights
    (synapses), zero_bias and generator; its other parameters are further settings of [layers.N],
    with other names than those that every layer has (`Layer`).
    The shape above is (size,), unless the class has a static method ``output_shape_of(shape, size,
    **settings)``.
    """

    def decorate(cls: T) -> T:
        known = LAYERS.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (
            cls.__module__,
            f"{cls.__qualname__}.Settings",
        ):
            raise ValueError(f"kind = {name!r}: the name is taken")
        taken, own = _PARAMETERS.parameters(cls)
        common = {f.name for f in dataclasses.fields(Layer)}
        if clash := next((setting for setting, *_ in own if setting in common), None):
            raise TypeError(
                f"{cls.__name__} takes {clash}: every layer has a setting of that name, which its "
                "synapses do not get: rename it"
            )
        settings: Any = table(
            f"{cls.__name__}Settings",
            [("kind", Annotated[str, Choices(LAYERS)], name), *own],
            cls,
            (Layer,),
        )
        settings.takes = frozenset(taken)
        settings.load = staticmethod(lambda: cls)
        if hasattr(cls, "output_shape_of"):
            settings.output_shape = lambda self, shape: cls.output_shape_of(
                shape, self.size, **self.own()
            )
        LAYERS[name] = settings
        return cls

    return decorate
