"""The settings that a command starts from, and that flags replace."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from binep.cli.options import parse
from binep.data.sources import Source
from binep.experiment import checks
from binep.experiment.config import Config, Layer
from binep.experiment.kinds import WITH_OPTIONS
from binep.experiment.layers import LAYERS

T = TypeVar("T")


def started(
    options: Any,
    arguments: Sequence[str],
    prog: str,
    named: Callable[[T, bool], tuple[Config, str]],
) -> tuple[Config, str]:
    """The settings that flags replace, and what a run of them is called.

    A preset may stand behind flags, whose values only the parser tells from it: so all is parsed
    once with whatever layers are spoken of, to find the preset or the file.

    Args:
        options: the dataclass of the command's flags, with settings called ``experiment``.
        arguments: of the command.
        prog: what it is called.
        named: gives settings and name for what was parsed, and whether something must be named, as
            it must without --help.
    """
    flags = [word for word in arguments if word not in ("-h", "--help")]
    found = parse(options, flags, prog=prog, default=options(experiment=_spoken(flags)))
    start, name = named(found, flags == list(arguments))
    return _with_own_options(start, flags), name


def _spoken(flags: Sequence[str]) -> Config:
    """Settings with whatever layers and kinds of one's own are spoken of, so that all can parse."""
    settings: dict[str, set[str]] = {}
    for number, name in re.findall(r"^--layers\.(\d+)\.([\w-]+)", "\n".join(flags), re.MULTILINE):
        settings.setdefault(number, set()).add(name.removeprefix("no-").replace("-", "_"))
    layers = {number: _layer_with(names) for number, names in settings.items()}
    return _with_own_options(Config(layers=layers), flags)


def _layer_with(names: set[str]) -> Layer:
    """A layer of the kind that has most of such settings."""

    def known(kind: type[Layer]) -> int:
        return len(names & {f.name for f in dataclasses.fields(kind)})

    kind = max(LAYERS.values(), key=known)  # of equals the first: a dense one
    # Any value will do where there is no default.
    needed = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory]
    given: dict[str, Any] = dict.fromkeys(needed, 1)
    return kind(**given)


def _with_own_options(config: Config, flags: Sequence[str]) -> Config:
    """Settings with a table for each kind of one's own whose are spoken of: --options.NAME.rate."""
    spoken = re.findall(r"^--options\.([^.=\n]+)\.", "\n".join(flags), re.MULTILINE)
    words = {word.replace("-", "_") for word in spoken}  # as in help, with either
    known = [name for kinds in WITH_OPTIONS for name in kinds]
    own: dict[str, Any] = {name: {} for name in known if name.replace("-", "_") in words}
    return config.replace(options={**own, **config.options})


def from_file(file: Path) -> tuple[Config, str]:
    """The settings of a TOML file or a run folder, and what a run of it is called."""
    path = file / "config.toml" if file.is_dir() else file
    name = path.resolve().parent.name if path.name == "config.toml" else path.stem
    return Config.load(path), name or "run"


def completed(config: Config, start: Config) -> tuple[Config, Source | None]:
    """Settings in which what flags have left unchanged goes with what they have changed.

    Settings that do nothing any more, and those of kinds of one's own that are no longer named,
    are left out, and a last layer fits the classes of another data set. What flags have changed,
    too, is left for the check of all settings.

    Returns:
        The settings, and their data set, if it was read for this.
    """
    former = start.kinds().keys() - config.kinds().keys()
    same = (name for name, table in start.options.items() if config.options.get(name) == table)
    config = checks.effective(config.without_options(former.intersection(same)), start)
    last = list(config.layers)[-1:]
    resized = any(config.layers[n].size != start.layers[n].size for n in last if n in start.layers)
    if config.dataset == start.dataset or resized or [*start.layers][-1:] != last:
        return config, None
    source = config.source()
    return config.fitted(source), source
