"""The settings that a sweep searches: each its name, and the values that it may take."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from binep.data.sources import Source
from binep.experiment import toml
from binep.experiment.config import Config, ConfigError, did_you_mean
from binep.experiment.settings import hints_of, parts, shown
from binep.runs.settings import GOES_ON

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

RANGES = ("uniform", "loguniform", "randint")
LISTS = ("choice", "grid")
UNNAMED = ("dynamics", "learning")
"""Tables whose settings flags name without the table."""
OF_ALL = (
    *("title", "dataset", "validation", "standardize", "max_batches", "deterministic"),
    *("warn_flip_rate", "start", "plugins", *GOES_ON),
)
"""What all trials of a sweep have in common."""
FLAGS = {"plugins": "plugin", "start": "from"}
"""Of these, the flags that are called otherwise; those of the table speed are called as there."""
MOST = 10_000
"""Trials of a sweep."""


@dataclass(frozen=True)
class Setting:
    """A setting that differs between the trials of a sweep.

    Attributes:
        name: as the flag of `binep train`, without its dashes.
        path: of the tables of a configuration, and the setting's name in the last of them.
        kind: of `RANGES` or `LISTS`.
        values: the two ends of a range, both of which belong to it; or each value.
        whole: whether its values are whole numbers.
    """

    name: str
    path: tuple[str, ...]
    kind: str
    values: tuple[Any, ...]
    whole: bool

    @property
    def log(self) -> bool:
        """Whether its logarithm is drawn."""
        return self.kind == "loguniform"

    def distribution(self) -> BaseDistribution:
        """What Optuna draws it from."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        if self.kind in LISTS:
            return CategoricalDistribution(self.values)
        low, high = self.values
        if self.whole:
            return IntDistribution(low, high)
        return FloatDistribution(low, high, log=self.log)

    def of(self, config: Config) -> Any:
        """Its value in a configuration; None of one that does not have it."""
        value = toml.plain(config)
        for key in self.path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value


def paths(config: Config) -> dict[str, tuple[str, ...]]:
    """Where each setting that can be searched stands in a configuration, by its flag's name."""
    return {
        ".".join(path[1:] if path[0] in UNNAMED else path).replace("_", "-"): path
        for path in _paths(config)
        if path[0] not in OF_ALL
    }


def _paths(table: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if dataclasses.is_dataclass(table):
        for field in dataclasses.fields(table):
            yield from _paths(getattr(table, field.name), (*at, field.name))
    elif isinstance(table, Mapping):
        for name, inner in table.items():
            yield from _paths(inner, (*at, name))
    else:
        yield at


def replaced(config: Config, values: Mapping[tuple[str, ...], Any]) -> Config:
    """A configuration with other values of some settings.

    Settings of a kind of one's own are left out where another is named in its place.

    Args:
        config: where they are replaced.
        values: by their `Setting.path`.

    Raises:
        ConfigError: a value of another type.
    """
    table = toml.plain(config)
    for path, value in values.items():
        *above, name = path
        inner = table
        for key in above:
            inner = inner[key]
        inner[name] = value
    result = toml.read(Config, table, "")
    assert isinstance(result, Config)
    return result.without_options(config.kinds().keys() - result.kinds().keys())


def read(texts: Sequence[str], config: Config) -> list[Setting]:
    """The settings of `--set`, each NAME=DISTRIBUTION(...), of a configuration.

    Raises:
        ConfigError: no such text, setting or distribution, or an empty range.
    """
    found = [_read(text, config) for text in texts]
    for i, setting in enumerate(found):
        if any(other.name == setting.name for other in found[:i]):
            raise ConfigError(f"--set {texts[i]}: {setting.name} is set twice")
    points(found)  # too many are refused before each value is tried
    return found


def check(
    texts: Sequence[str], settings: Sequence[Setting], config: Config, source: Source | None
) -> None:
    """Try the ends of each range, and every value of a list, in a configuration.

    Args:
        texts: of `--set`.
        settings: what `read` gave for them.
        config: what all trials have in common.
        source: its data set; if None, each configuration is asked for it.

    Raises:
        ConfigError: values that a setting cannot have.
    """
    for text, setting in zip(texts, settings, strict=True):
        for value in setting.values:
            try:
                replaced(config, {setting.path: value}).check(source)
            except ConfigError as error:
                first = str(error).splitlines()[0]
                raise ConfigError(f"--set {shown(text)}: {first}") from None


def _read(text: str, config: Config) -> Setting:
    match = re.fullmatch(r"\s*(?:--)?([^=]*?)\s*=\s*(\w*)\s*\((.*)\)\s*", text, re.DOTALL)
    if match is None:
        raise ConfigError(
            f"--set {shown(text)}: must be NAME=DISTRIBUTION(...), as beta=uniform(0.1,1)"
        )
    name, kind, inside = match[1].replace("_", "-"), match[2], match[3]
    known = paths(config)
    if name not in known:
        setting = name.replace("-", "_").removeprefix("speed.")
        if setting in OF_ALL or setting in vars(config.speed):
            flag = FLAGS.get(setting, setting).replace("_", "-")
            raise ConfigError(f"--set {shown(text)}: {name} is one for all trials: give --{flag}")
        hint = did_you_mean(name, known)
        raise ConfigError(
            f"--set {shown(text)}: unknown setting {shown(name)}{hint}; "
            "binep train --help lists them"
        )
    if kind not in (*RANGES, *LISTS):
        hint = did_you_mean(kind, (*RANGES, *LISTS))
        raise ConfigError(
            f"--set {shown(text)}: unknown distribution {kind}{hint}: one of "
            f"{', '.join((*RANGES, *LISTS))}"
        )
    words = [word.strip() for word in inside.split(",")] if inside.strip() else []
    values = _ends(text, kind, words) if kind in RANGES else _list(text, words)
    whole = parts(_hint(config, known[name]))[0] is int
    if whole and kind in ("uniform", "loguniform"):
        raise ConfigError(
            f"--set {shown(text)}: {name} is a whole number: must be randint, choice or grid"
        )
    return Setting(name, known[name], kind, values, all(type(v) is int for v in values))


def _ends(text: str, kind: str, words: Sequence[str]) -> tuple[Any, ...]:
    """The two ends of a range.

    Raises:
        ConfigError: they are none.
    """
    number = int if kind == "randint" else float
    try:
        low, high = (number(word) for word in words)
    except ValueError:
        what = "two whole numbers" if kind == "randint" else "two numbers"
        raise ConfigError(f"--set {shown(text)}: {kind} takes {what}, lowest first") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(
            f"--set {shown(text)}: the range is empty: must go from a number to a higher one"
        )
    if kind == "loguniform" and low <= 0:
        raise ConfigError(f"--set {shown(text)}: loguniform must begin above 0")
    return low, high


def _list(text: str, words: Sequence[str]) -> tuple[Any, ...]:
    """The values of a list: numbers, true, false, or words.

    Raises:
        ConfigError: there is none, or one twice.
    """
    if len(words) > MOST:
        raise ConfigError(f"--set {shown(text, 60)}: has {len(words)} values: at most {MOST}")
    values = tuple(_value(word) for word in words)
    if not values or "" in values:
        raise ConfigError(f"--set {shown(text)}: must name values, with commas between them")
    if len(set(values)) < len(values):
        raise ConfigError(f"--set {shown(text)}: has a value twice")
    return values


_SHORT = re.compile(r"[+-]?(\d+\.|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


def _value(word: str) -> Any:
    if "\n" in word:
        return word
    try:
        value = tomllib.loads(f"value = {word}")["value"]
    except ValueError:  # as is .5 in TOML, where numbers begin and end with a digit
        return float(word) if _SHORT.fullmatch(word) else word
    return value if isinstance(value, bool | int | float | str) else word


def _hint(config: Any, path: tuple[str, ...]) -> Any:
    """The annotated type of a setting."""
    *above, name = path
    for key in above:
        config = config[key] if isinstance(config, Mapping) else getattr(config, key)
    return hints_of(type(config)).get(name, Any)


def points(settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """Every combination of the values of the grids, by the settings' names.

    Raises:
        ConfigError: there are more than `MOST`.
    """
    grids = [setting for setting in settings if setting.kind == "grid"]
    if (count := math.prod(len(grid.values) for grid in grids)) > MOST:
        sizes = " × ".join(str(len(grid.values)) for grid in grids)
        raise ConfigError(f"--set: the grids have {sizes} = {count} points: at most {MOST}")
    names = [grid.name for grid in grids]
    combined = itertools.product(*(grid.values for grid in grids))
    return [dict(zip(names, values, strict=True)) for values in combined]
