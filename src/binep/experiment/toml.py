"""Tables of settings as TOML, and back."""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from binep.experiment.settings import ConfigError, hints_of, parts, wrong_type
from binep.registry import did_you_mean


def plain(value: Any) -> Any:
    """A dataclass as what TOML can hold."""
    if dataclasses.is_dataclass(value):
        pairs = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {name: plain(v) for name, v in pairs if v is not None}
    if isinstance(value, Mapping):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, tuple):
        return list(value)
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
        return {k: read(inner, v, f"{key}.{k}") for k, v in _table(value, key).items()}
    if origin is tuple:
        inner = typing.get_args(kind)[0]
        if not isinstance(value, list):
            raise ConfigError(f"{key} = {value!r}: must be a list")
        return tuple(read(inner, v, key) for v in value)
    if kind is Any:
        return value
    right = wrong_type(hint, value)
    if right or (kind is float and abs(value) > sys.float_info.max and isinstance(value, int)):
        raise ConfigError(f"{key} = {value!r}: must be {right or 'of type float'}")
    return kind(value) if kind in (float, Path) else value


def _table(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{key} = {value!r}: must be a table")
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
            raise ConfigError(f"unknown key {prefix}{name}{hint}: one of {', '.join(fields)}")
    for name, f in fields.items():
        if f.default is f.default_factory is dataclasses.MISSING and name not in value:
            raise ConfigError(f"{prefix}{name} is missing")
    try:
        return kind(**{name: read(hints[name], v, prefix + name) for name, v in value.items()})
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from None
