"""The rows of the paper's tables: what it claims of each, and what that is measured against."""

from __future__ import annotations

from dataclasses import dataclass

from binep.config import preset, preset_names


@dataclass(frozen=True)
class Row:
    """A row.

    Attributes:
        preset: what is run.
        claim: what the paper says of it, or how it serves.
        reference: preset of the full-precision network beside it, if there is one.
        original: test error (%) after epochs 1, 2, … that the paper's own program gave, seed 0.
    """

    preset: str
    claim: str
    reference: str | None = None
    original: tuple[float, ...] = ()


SOURCE = "Laydevant, Ernoult, Querlioz, Grollier (CVPR Workshops 2021), abstract"
"""Where the claims stand."""

_EQUAL = "equal to full precision, trained by equilibrium propagation"
_CIFAR = "1.9 points below full precision, same architecture"
_BITS_DENSE = "within 1 point of full precision"
_BITS_CONV = "equal to full precision"
_ORIGINAL = {"mnist-fc1-ep": (4.21, 3.26, 2.80, 2.60), "mnist-bits-fc1-ep": (9.3,)}


def _claim(name: str) -> str:
    if name.endswith("-reference"):
        return "the reference itself"
    if "-bits-" in name:
        return _BITS_CONV if "-conv-" in name else _BITS_DENSE
    if name.endswith("-bptt"):
        return "none in the abstract: to compare with"
    return _CIFAR if name.startswith("cifar10") else _EQUAL


def _reference(name: str) -> str | None:
    if name.endswith("-reference") or name.startswith("cifar10"):
        return None
    if "-fc1-ep-alpha" in name:  # 100 hidden neurons, unlike the other rows
        return "mnist-fc1-100-reference"
    (kind,) = (part for part in name.split("-") if part in ("fc1", "fc2", "conv"))
    return f"mnist-{kind}-reference"


def rows() -> dict[str, Row]:
    """Every row by its preset: the networks of real activations first, references last."""
    names = [name for name in preset_names() if preset(name).title != "Quick start"]
    order = sorted(names, key=lambda n: (n.endswith("-reference"), preset(n).title, n))
    return {n: Row(n, _claim(n), _reference(n), _ORIGINAL.get(n, ())) for n in order}
