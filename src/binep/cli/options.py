"""Flags become dataclasses, and what does not fit becomes one line."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
import re
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructTypeInfo,
)

from binep.cli.refusals import refusal
from binep.core.speed import Speed
from binep.experiment.settings import ConfigError, hints_of, out_of_range, shown

T = TypeVar("T")
Run = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
Runs = Annotated[
    tuple[Path, ...],
    tyro.conf.Positional,
    tyro.conf.arg(metavar="RUN...", help_behavior_hint=""),
]
RULES = ConstructorRegistry()


@dataclasses.dataclass(frozen=True)
class Pluggable:
    """Flags of a command that reads configurations."""

    plugin: tyro.conf.UseAppendAction[tuple[Path, ...]] = dataclasses.field(
        default=(), kw_only=True
    )
    """A Python file of one's own parts, which is run first; may stand several times. A run that was
    trained with one needs it, unchanged."""


@RULES.primitive_rule
def _or_none(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """A number, text or path that may also be None is shown, and refused, as if it might not."""
    kinds = typing.get_args(info.type)
    if typing.get_origin(info.type) not in (typing.Union, types.UnionType):
        return None
    if len(kinds) != 2 or kinds[1] is not types.NoneType or kinds[0] not in (int, float, str, Path):
        return None
    kind = kinds[0]
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH" if kind is Path else kind.__name__.upper(),
        instance_from_str=lambda words: None if words == ["None"] else kind(words[0]),
        is_instance=lambda value: value is None or isinstance(value, kind),
        str_from_instance=lambda value: [str(value)],
    )


class _Speed(Speed):
    """Another type with the fields of `Speed`, for which tyro's own rule holds."""


@RULES.struct_rule
def _without_former_names(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Flags for what `Speed` has, not for the names of version 0.1 that it also takes."""
    if info.type is not Speed:
        return None
    spec = ConstructorRegistry.get_struct_spec(dataclasses.replace(info, type=_Speed))
    assert isinstance(spec, StructConstructorSpec)
    names = {field.name for field in dataclasses.fields(Speed)}
    fields = tuple(field for field in spec.fields if field.name in names)
    return dataclasses.replace(spec, instantiate=Speed, fields=fields)


_ASKED: set[Any] = set()
"""Types whose fields tyro's own rules are being asked for."""


@RULES.struct_rule
def _in_paragraphs(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Help whose lines are as long as there is room: tyro keeps the ends of indented lines."""
    if not dataclasses.is_dataclass(info.type) or info.type in _ASKED:
        return None
    _ASKED.add(info.type)
    try:
        spec = ConstructorRegistry.get_struct_spec(info)
    finally:
        _ASKED.discard(info.type)
    assert isinstance(spec, StructConstructorSpec)
    fields = (
        dataclasses.replace(field, helptext=functools.partial(_joined, field.helptext))
        for field in spec.fields
    )
    return dataclasses.replace(spec, fields=tuple(fields))


def _joined(help: str | Callable[[], str | None] | None) -> str | None:
    text = help() if callable(help) else help
    return None if text is None else " ".join(text.split())


def parse(kind: type[T], arguments: Sequence[str], *, prog: str, default: T | None = None) -> T:
    """Parse flags into a dataclass; `--help` prints what there is, and ends the process.

    Raises:
        ConfigError: an unknown flag, or a value of the wrong type or out of its range, in one line.
    """

    def parsed(words: Sequence[str] = arguments) -> T:
        result: T = tyro.cli(
            kind,
            args=list(words),
            prog=prog,
            default=cast(T, default),
            config=(tyro.conf.AvoidSubcommands, tyro.conf.HelptextFromCommentsOff),
            registry=RULES,
        )
        return result

    printed = io.StringIO()
    try:
        with wide(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            found = parsed()
        _check_ranges(found)
        return found
    except SystemExit as exit:
        if not exit.code:
            parsed()  # help: once more, to the terminal and as wide as that is
    # tyro prints a title, then paragraphs with rules between them, and where the output is no
    # terminal no colours; before version 1.0.10 in a box there, too.
    lines = printed.getvalue().splitlines()[1:]
    lines = [(line[1:-1] if line.startswith("│") else line).strip() for line in lines]
    text = " ".join(line for line in lines if line.strip("-─╰╯"))
    raise ConfigError(refusal(text, _flags_of(lambda: parsed(["--help"])), prog))


def _check_ranges(options: object) -> None:
    """Refuse a number out of the range of a command's own flag; settings are checked as such."""
    for name, hint in hints_of(type(options)).items():
        value = getattr(options, name)
        if isinstance(value, int | float) and (right := out_of_range(hint, value)):
            raise ConfigError(f"--{name.replace('_', '-')} {shown(value)}: must be {right}")


def _flags_of(help: Callable[[], object]) -> set[str]:
    """The flags that a command's help names."""
    printed = io.StringIO()
    with contextlib.suppress(SystemExit), wide(), contextlib.redirect_stdout(printed):
        help()
    return set(re.findall(r"--[a-z][\w.-]*", printed.getvalue()))


@contextlib.contextmanager
def wide() -> Iterator[None]:
    """A terminal so wide that tyro breaks no line, and no long word in two."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100000"
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before


def figure_kind(path: Path) -> str:
    """What a figure's file is to hold, by its name: png, pdf or svg.

    Raises:
        ConfigError: it ends in something else.
    """
    kind = path.suffix.removeprefix(".")
    if kind not in ("png", "pdf", "svg"):
        raise ConfigError(f"--output {path}: must end in .png, .pdf or .svg")
    return kind


def folder_of(run: Path) -> Path:
    """A run folder; the folder of an exported file; of a name that is no path, the current one."""
    return run if run.is_dir() else run.parent


def given(options: object, *names: str) -> dict[str, Any]:
    """Those of the options that were given, by name; one that was not is None."""
    values = {name: getattr(options, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}
