"""Types of settings, each with its range, whether a value fits, and what is said if not."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.constructors import PrimitiveConstructorSpec

from binep.data.sources import GIVEN, is_path


class ConfigError(ValueError):
    """A setting that cannot be: the message names it, its value and what would be right."""


class WorkerError(RuntimeError):
    """Workers that cannot train together, or no longer."""


@dataclass(frozen=True)
class Must:
    """The range of a number, in the annotation of its setting.

    Attributes:
        be: the range in words.
        allows: whether a number is inside.
    """

    be: str
    allows: Callable[[Any], bool]


WHOLE = 2**63 - 1
"""The largest whole number of any setting: what PyTorch and compiled loops count with."""

REAL = (2 - 2**-23) * 2.0**127
"""The largest number of any setting: the largest float32, about 3.4e38."""

Count = Annotated[int, Must("a whole number from 1", lambda n: n >= 1)]
Margin = Annotated[int, Must("a whole number from 0", lambda n: n >= 0)]
Threads = Annotated[int, Must("from 1 to 1024", lambda n: 1 <= n <= 1024)]
Seed = Annotated[int, Must("a whole number from 0 to 2^63 − 1", lambda n: 0 <= n < 2**63)]
Portion = Annotated[float, Must("from 0 to 1", lambda x: 0 <= x <= 1)]
Positive = Annotated[float, Must("a finite number above 0", lambda x: 0 < x < math.inf)]
Share = Annotated[float, Must("above 0 and at most 1", lambda x: 0 < x <= 1)]
Part = Annotated[float, Must("from 0 to below 1", lambda x: 0 <= x < 1)]
Rate = Annotated[float, Must("a finite number from 0", lambda x: 0 <= x < math.inf)]
Divisor = Annotated[float, Must("a finite number from 1", lambda x: 1 <= x < math.inf)]
Strength = Annotated[
    float,
    Must(
        "a finite number, at least 1e-6 away from 0: nothing is learnt without a nudge",
        lambda x: 1e-6 <= abs(x) < math.inf,
    ),
]


class Choices(PrimitiveConstructorSpec[str]):
    """A flag that takes one of the names there are when it is read."""

    known: Mapping[str, Any]

    def __init__(self, known: Mapping[str, Any]) -> None:
        object.__setattr__(self, "known", known)  # tyro's class is frozen

    nargs = 1
    _action = None

    @property
    def choices(self) -> tuple[str, ...]:
        """The names."""
        return tuple(self.known)

    @property
    def metavar(self) -> str:
        """The names, for help."""
        return f"{{{','.join(self.known)}}}"

    def fits(self, value: str) -> bool:
        """Whether it is one of the names."""
        return value in self.known

    @property
    def right(self) -> str:
        """What a value must be."""
        return f"one of {', '.join(self.known)}"

    def instance_from_str(self, words: list[str]) -> str:
        """The word."""
        return words[0]

    def is_instance(self, value: Any) -> bool:
        """Whether it is a word."""
        return isinstance(value, str)

    def str_from_instance(self, value: str) -> list[str]:
        """The word."""
        return [value]


class NamesOrPaths(Choices):
    """A flag that takes one of the names of data sets, or a path."""

    choices = None  # type: ignore[assignment]

    @property
    def metavar(self) -> str:
        """The names, for help."""
        return f"{{{','.join(self.known)}}}|PATH"

    def fits(self, value: str) -> bool:
        """Whether it is a name, or a path."""
        return value in self.known or value == GIVEN or is_path(value)

    @property
    def right(self) -> str:
        """What a value must be."""
        return f"{super().right}, or the path of data of your own"


def hints_of(table: Any) -> dict[str, Any]:
    """The annotated type of each setting of a dataclass, and of what its constructor takes."""
    return _hints_of(table)


@functools.cache
def _hints_of(table: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(table, include_extras=True)
    return {k: v for k, v in hints.items() if typing.get_origin(v) is not typing.ClassVar}


def parts(hint: Any) -> tuple[Any, list[Any], bool]:
    """Of an annotated type the plain one, its annotations, and whether None fits, too."""
    extra: list[Any] = []
    optional = False
    while True:
        if isinstance(hint, dataclasses.InitVar):
            hint = hint.type
        elif typing.get_origin(hint) is Annotated:
            hint, *more = typing.get_args(hint)
            extra += more
        elif typing.get_origin(hint) in (typing.Union, types.UnionType):
            inner = typing.get_args(hint)
            optional = types.NoneType in inner
            hint = next(kind for kind in inner if kind is not types.NoneType)
        else:
            return hint, extra, optional


def wrong_type(hint: Any, value: Any) -> str:
    """What a value must be, if it is of another type or no name that there is; otherwise ""."""
    kind, extra, optional = parts(hint)
    if value is None and optional:
        return ""
    if names := next((names for names in extra if isinstance(names, Choices)), None):
        return "" if isinstance(value, str) and names.fits(value) else names.right
    if typing.get_origin(kind) is Literal:
        known = typing.get_args(kind)
        fits = isinstance(value, str) and value in known
        return "" if fits else f"one of {', '.join(known)}"
    if kind is float and type(value) is int:
        return ""
    if kind in (int, float, bool, str) and not (
        isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
    ):
        return f"of type {kind.__name__}"
    if kind is Path and not isinstance(value, str | Path):
        return "of type str"
    if typing.get_origin(kind) in (tuple, list):
        if not isinstance(value, tuple | list):
            return "a list"
        return _inside(wrong_type, kind, value)
    return ""


def each_of(kind: Any, values: Any) -> list[tuple[Any, Any]]:
    """The annotated type and the value of each value of a list.

    Raises:
        ValueError: its type says how many there are, and there are more or fewer.
    """
    hints = typing.get_args(kind)
    if typing.get_origin(kind) is list or hints[-1] is Ellipsis:
        return [(hints[0], value) for value in values]
    if len(hints) != len(values):
        raise ValueError(f"a list of {len(hints)} values")
    return list(zip(hints, values, strict=True))


def _inside(wrong: Callable[[Any, Any], str], kind: Any, values: Any) -> str:
    """What a list must be, if it holds what it may not."""
    try:
        pairs = each_of(kind, values)
    except ValueError as error:
        return str(error)
    for number, (hint, value) in enumerate(pairs, start=1):
        if right := wrong(hint, value):
            return f"a list, value {number} {right}"
    return ""


def out_of_range(hint: Any, value: Any) -> str:
    """What a value must be, if it is out of its range or beyond its type; otherwise ""."""
    kind, extra, _ = parts(hint)
    if value is None:
        return ""
    musts = (must for must in extra if isinstance(must, Must))
    wrong = next((m.be for m in musts if not m.allows(value)), "")
    if not wrong and kind is int and not -WHOLE <= value <= WHOLE:
        return "at most 2^63 − 1"
    if not wrong and kind is float and REAL < abs(value) != math.inf:
        return "at most 3.4e38, the largest float32"
    if kind in (str, Path) and not str(value).isascii() and _holds_surrogates(str(value)):
        return "text that UTF-8 can hold"
    if typing.get_origin(kind) in (tuple, list):
        return wrong or _inside(out_of_range, kind, value)
    return wrong


def _holds_surrogates(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def shown(value: Any, limit: int = 200) -> str:
    """A value for an error: never so long that the error is not read, never an error itself."""
    try:
        text = str(value)
    except (ValueError, RecursionError):  # digits or depth beyond Python's
        return f"({type(value).__name__} too large to show)"
    return text if len(text) <= limit else f"{text[:limit]}…"


def problems(table: Any, at: str = "") -> Iterator[str]:
    """A line for each setting of a dataclass whose value is none of its type."""
    hints = hints_of(type(table))
    for f in dataclasses.fields(table):
        value = getattr(table, f.name)
        right = wrong_type(hints[f.name], value) or out_of_range(hints[f.name], value)
        if right:
            yield f"{at}{f.name} = {shown(value)}: must be {right}"
