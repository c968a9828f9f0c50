"""Tables of settings as TOML, and back."""

from __future__ import annotations

import dataclasses
import re
import sys
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from binep.experiment.settings import ConfigError, each_of, hints_of, parts, shown, wrong_type
from binep.registry import did_you_mean

DEPTH = 16
"""How deep tables and lists of a configuration may be nested."""


def plain(value: Any) -> Any:
    """A dataclass as what TOML can hold."""
    if dataclasses.is_dataclass(value):
        pairs = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {name: plain(v) for name, v in pairs if v is not None}
    if isinstance(value, Mapping):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def differing(one: Any, other: Any) -> list[str]:
    """Settings that differ between two dataclasses, by their dotted keys."""
    return list(_differing(plain(one), plain(other)))


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys([*one, *other]):
        a, b = one.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from (f"{key}.{inner}" for inner in _differing(a, b))
        elif a != b:
            yield key


def check_plain(table: Mapping[str, Any]) -> None:
    """Refuse what TOML's grammar allows and no configuration holds.

    Raises:
        ConfigError: a whole number beyond 64 bits, or nesting deeper than `DEPTH`.
    """
    left: list[tuple[str, Any, int]] = [("", table, 0)]
    while left:
        key, value, depth = left.pop()
        if depth > DEPTH:
            raise ConfigError(f"{key[:80]}…: must not be nested deeper than {DEPTH} times")
        if isinstance(value, dict):
            left += [(_below(key, name), inner, depth + 1) for name, inner in value.items()]
        elif isinstance(value, list):
            left += [(key, inner, depth + 1) for inner in value]
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ConfigError(f"{key} = {shown(value)}: must be a number of at most 64 bits")


def _below(key: str, name: str) -> str:
    """The dotted key of a name in a table; a name that TOML would quote is quoted."""
    name = name if re.fullmatch("[A-Za-z0-9_-]+", name) else ascii(name)
    return f"{key}.{name}" if key else name


def read(hint: Any, value: Any, key: str) -> Any:
    """A value of the annotated type, from what TOML holds.

    The class method ``of_table`` of a dataclass, if it has one, chooses the class for a table.

    Raises:
        ConfigError: an unknown key or a value of another type, by its dotted key.
    """
    kind, _, _ = parts(hint)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _read_dataclass(kind, value, key)
    origin = typing.get_origin(kind)
    if origin is dict:
        inner = typing.get_args(kind)[1]
        return {k: read(inner, v, _below(key, k)) for k, v in _table(value, key).items()}
    if origin in (tuple, list):
        if not isinstance(value, list):
            raise ConfigError(f"{key} = {_shown(value)}: must be a list")
        try:
            return origin(read(inner, v, key) for inner, v in each_of(kind, value))
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"{key} = {_shown(value)}: must be {error}") from None
    if kind is Any:
        return value
    right = wrong_type(hint, value)
    if right or (kind is float and abs(value) > sys.float_info.max and isinstance(value, int)):
        raise ConfigError(f"{key} = {_shown(value)}: must be {right or 'of type float'}")
    return kind(value) if kind in (float, Path) else value


def _shown(value: Any) -> str:
    """A value for an error, as Python writes it."""
    return shown(value if isinstance(value, int) else repr(value))


def _table(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{key} = {_shown(value)}: must be a table")
    return value


def _read_dataclass(kind: Any, value: Any, key: str) -> Any:
    value = _table(value, key)
    if hasattr(kind, "of_table"):
        kind, value = kind.of_table(value, key)
    prefix = f"{key}." if key else ""
    hints = hints_of(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for name in value:
        if name not in hints:
            hint = did_you_mean(name, fields)
            raise ConfigError(f"unknown key {_below(key, name)}{hint}: one of {', '.join(fields)}")
    for name, f in fields.items():
        if f.default is f.default_factory is dataclasses.MISSING and name not in value:
            raise ConfigError(f"{prefix}{name} is missing")
    try:
        return kind(**{name: read(hints[name], v, prefix + name) for name, v in value.items()})
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from None
