"""Kinds by name: the classes that a configuration can name; without PyTorch."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import importlib
import inspect
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T", bound=type)


@dataclass(frozen=True)
class Kind:
    """A class that a configuration can name.

    Attributes:
        name: its name in a configuration.
        load: gives its class, importing it first.
        takes: which of the settings that its registry offers its constructor takes; the others
            do nothing.
        settings: a dataclass of what else the constructor takes: the table [options.NAME].
        facts: attributes of the class that matter before it is imported.
    """

    name: str
    load: Callable[[], Any]
    takes: frozenset[str] = frozenset()
    settings: type | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def fact(self, name: str, default: Any = False) -> Any:
        """An attribute of the class."""
        return self.facts.get(name, default)

    def build(self, *arguments: Any, own: Any = None, **offered: Any) -> Any:
        """An instance.

        Args:
            arguments: positional ones.
            own: the table [options.NAME]; its defaults if None.
            offered: of these the constructor gets those that it takes.
        """
        if own is None and self.settings is not None:
            own = self.settings()
        chosen = {} if own is None else vars(own)
        wanted = {name: value for name, value in offered.items() if name in self.takes}
        return self.load()(*arguments, **wanted, **chosen)


class Registry(Mapping[str, Kind]):
    """Kinds of one sort by name.

    Args:
        what: the setting that names one of them.
        offers: the settings of the configuration that a constructor may take by these names.
        positional: how many arguments come first, without a name.
        facts: attributes of a class to keep, see `Kind.facts`.
    """

    def __init__(
        self,
        what: str,
        offers: Iterable[str] = (),
        positional: int = 0,
        facts: Iterable[str] = (),
    ) -> None:
        self.what, self.offers, self.positional = what, frozenset(offers), positional
        self.facts = tuple(facts)
        self._kinds: dict[str, Kind] = {}

    def __getitem__(self, name: str) -> Kind:
        return self._kinds[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def add(self, kind: Kind) -> None:
        """Add a kind.

        Raises:
            ValueError: its name belongs to another one. Running a cell of a notebook again
                replaces what it defined.
        """
        known = self._kinds.get(kind.name)
        if known is not None and _origin(known) != _origin(kind):
            raise ValueError(f"{self.what} = {kind.name!r}: the name is taken")
        self._kinds[kind.name] = kind

    def add_path(self, name: str, path: str, takes: Iterable[str], **facts: Any) -> None:
        """Add a class by "module:name", to be imported when one is built."""
        module, _, attribute = path.partition(":")
        self.add(
            Kind(
                name,
                lambda: getattr(importlib.import_module(module), attribute),
                frozenset(takes),
                facts=facts,
            )
        )

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that adds a class.

        Parameters of its constructor that the registry offers come from the configuration; all
        others are settings of its own, in the table [options.NAME], with annotated types.
        """

        def decorate(cls: T) -> T:
            taken, own = self.parameters(cls)
            settings = table(f"{cls.__name__}Settings", own, cls) if own else None
            facts = {fact: getattr(cls, fact) for fact in self.facts if hasattr(cls, fact)}
            self.add(Kind(name, lambda: cls, frozenset(taken), settings, facts))
            return cls

        return decorate

    def parameters(self, cls: type) -> tuple[set[str], list[tuple[str, Any, Any]]]:
        """What a constructor takes: of the offered settings, and as (name, type, default) others.

        Where it hands ``**options`` on, the constructor of the next base class counts, too.
        """
        taken: set[str] = set()
        own: dict[str, tuple[str, Any, Any]] = {}
        for base in cls.__mro__:
            if "__init__" not in vars(base) or base is object:
                continue
            constructor: Any = vars(base)["__init__"]
            parameters = list(inspect.signature(constructor).parameters.values())
            named = parameters[1 + self.positional :]
            # A dataclass's names are those of where each field was written, as in a base class.
            written = getattr(vars(base).get("__dataclass_params__"), "init", False)
            source = base if written else constructor
            hints = typing.get_type_hints(source, include_extras=True) if named else {}
            for p in named:
                if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
                    continue
                if p.name in self.offers:
                    taken.add(p.name)
                else:
                    hint, default = hints.get(p.name, Any), _default(base, p)
                    if isinstance(hint, dataclasses.InitVar):
                        hint = hint.type
                    own.setdefault(p.name, (p.name, hint, default))
            if all(p.kind is not p.VAR_KEYWORD for p in parameters):
                break
        return taken, list(own.values())


def table(
    name: str, own: Iterable[tuple[str, Any, Any]], owner: type, bases: tuple[type, ...] = ()
) -> type:
    """A frozen dataclass of settings, kept as ``owner.Settings`` so that it can be pickled.

    Args:
        name: of the dataclass.
        own: name, type and default of each setting; `inspect.Parameter.empty` for none.
        owner: the class whose settings they are.
        bases: base classes of the dataclass.
    """
    fields = [(key, hint, _field(default)) for key, hint, default in own]
    made = dataclasses.make_dataclass(name, fields, bases=bases, frozen=True, kw_only=True)
    made.__module__, made.__qualname__ = owner.__module__, f"{owner.__qualname__}.Settings"
    owner.Settings = made  # type: ignore[attr-defined]
    return made


def _field(default: Any) -> Any:
    """A field with a default, of which a list or dict is copied for each instance."""
    if default is inspect.Parameter.empty:
        return field()
    if type(default).__hash__ is None:
        return field(default_factory=lambda: copy.deepcopy(default))
    return field(default=default)


def _default(cls: type, parameter: inspect.Parameter) -> Any:
    """The default of a constructor's parameter; of a dataclass's field what its factory makes."""
    written = getattr(cls, "__dataclass_fields__", {}).get(parameter.name)
    if written is None or written.default_factory is dataclasses.MISSING:
        return parameter.default
    return written.default_factory()


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint at the nearest known name, if one is near."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {near[0]}?)" if near else ""


def _origin(kind: Kind) -> tuple[str, str]:
    made = kind.load()
    return getattr(made, "__module__", ""), getattr(made, "__qualname__", repr(made))
