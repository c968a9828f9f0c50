"""What the paper claims, by preset, and which full-precision network it is compared with.

The claims stand in experiment/claims.toml. A preset may do without one.
"""

from __future__ import annotations

import importlib.resources
import tomllib
from dataclasses import dataclass
from functools import cache

_CLAIMS = tomllib.loads(
    (importlib.resources.files("binep.experiment") / "claims.toml").read_text("utf-8")
)

SOURCE: str = _CLAIMS["source"]
"""Where the claims stand."""


@dataclass(frozen=True)
class Row:
    """A row of the tables: a preset and what the paper claims of it.

    Attributes:
        preset: what is run.
        claim: what the paper claims of it, or how it serves; empty where the paper has no such row.
        reference: preset of the full-precision network beside it, if there is one.
        corrects: the row whose printed command the authors later corrected to this one.
        original_errors: test error (%) after epochs 1, 2, … that the paper's own program gave, seed
            0.
    """

    preset: str
    claim: str = ""
    reference: str | None = None
    corrects: str | None = None
    original_errors: tuple[float, ...] = ()

    @property
    def is_reference(self) -> bool:
        """Whether other rows are measured against this one."""
        return any(row.reference == self.preset for row in rows().values())


@cache
def rows() -> dict[str, Row]:
    """Every row that the paper has, by its preset, in the order of the tables."""
    return {
        name: Row(name, **{**row, "original_errors": tuple(row.get("original_errors", ()))})
        for name, row in _CLAIMS["rows"].items()
    }


def row_of(preset: str) -> Row:
    """The row of a preset, without a claim where the paper has none."""
    return rows().get(preset, Row(preset))
