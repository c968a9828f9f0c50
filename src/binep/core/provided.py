"""What lower packages ask for and higher ones have, by name.

The core imports nothing above it. Where the parts lie that it asks for, `binep` itself says, which
puts the whole together: Python imports it before any of its packages.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in `binep` itself
if TYPE_CHECKING:
    from typing import Any

_PLACES: dict[str, str] = {}


def provide(name: str, place: str) -> None:
    """Say where a part is: "module", or "module:name"."""
    _PLACES[name] = place


def provided(name: str) -> Any:
    """A part, imported when it is first asked for."""
    from importlib import import_module

    module, _, attribute = _PLACES[name].partition(":")
    found = import_module(module)
    return getattr(found, attribute) if attribute else found
