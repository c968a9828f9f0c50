"""Draws the packages, and which imports which: python docs/draw_packages.py."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "binep"
FIGURE = Path(__file__).parent / "figures" / "packages.svg"
FLOORS = (
    ("cli",),
    ("analysis",),
    ("export", "cluster"),
    ("runs",),
    ("experiment",),
    ("data", "ising", "solvers"),
    ("registry", "core"),
)
"""From what is called to what calls nothing."""
WORDS = {
    "cli": "commands",
    "analysis": "reports, checks, tables",
    "cluster": "many runs (Ray)",
    "export": "files for other programs",
    "runs": "the run folder",
    "experiment": "configuration, training",
    "data": "data sets",
    "ising": "Ising models (dimod)",
    "solvers": "faster steps (numba)",
    "registry": "kinds by name",
    "core": "the science (torch)",
}


def name_of(path: Path) -> str:
    """The dotted name of a module of the package."""
    parts = ("binep", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(part for part in parts if part != "__init__")


def _is_module(name: str) -> bool:
    path = SOURCE.joinpath(*name.split(".")[1:])
    return name.startswith("binep.") and (path.is_dir() or path.with_suffix(".py").exists())


def _imports(node: ast.AST) -> Iterator[str]:
    """What is imported anywhere below a node, but for types alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            for other in child.orelse:
                yield from _imports(other)
        elif isinstance(child, ast.ImportFrom) and child.module and not child.level:
            names = [f"{child.module}.{alias.name}" for alias in child.names]
            modules = [name for name in names if _is_module(name)]
            yield from modules
            if len(modules) < len(names):
                yield child.module
        elif isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        else:
            yield from _imports(child)


def graph() -> dict[str, set[str]]:
    """Each module of the package, and the names that it imports, also inside functions."""
    paths = SOURCE.rglob("*.py")
    return {name_of(path): set(_imports(ast.parse(path.read_text()))) for path in paths}


def package_of(module: str) -> str:
    """The package of a module: "binep.core.costs" is in "core"; "" is `binep` itself."""
    return [*module.split("."), ""][1]


def packages(modules: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Each package, and the other packages that it imports."""
    found: dict[str, set[str]] = {}
    for module, imported in modules.items():
        mine = package_of(module)
        others = {package_of(name) for name in imported if name.startswith("binep.")}
        found.setdefault(mine, set()).update(others & set(WORDS) - {mine})
    return found


def _without_shortcuts(arrows: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Only arrows that no others imply: without a → c where a → b → c."""

    def reached(name: str) -> set[str]:
        return set().union(*({other, *reached(other)} for other in arrows.get(name, ())))

    return {
        name: others - set().union(*(reached(other) for other in others))
        for name, others in arrows.items()
    }


def _around(
    x: float, to_x: float, places: Mapping[str, tuple[float, int]], floors: Iterable[int]
) -> str:
    """The way of an arrow: through the gap between two packages of each floor in between."""
    way, last = "", x
    for y in floors:
        row = sorted(place[0] for place in places.values() if place[1] == y)
        gaps = [(a + b) / 2 for a, b in pairwise(row)] or [row[0] + 115]
        gap = min(gaps, key=lambda g: abs(g - (x + to_x) / 2))
        way += f"C{last:.0f} {y - 15} {gap:.0f} {y - 25} {gap:.0f} {y}L{gap:.0f} {y + 52}"
        last = gap
    return way + "L"


def drawn(arrows: Mapping[str, set[str]]) -> str:
    """The picture: a floor under another; arrows go down, those that others imply left out."""
    arrows = _without_shortcuts(arrows)
    width, height, high = 880, 92 * len(FLOORS) + 10, 52
    places = {}
    for y, floor in enumerate(FLOORS):
        for x, name in enumerate(floor):
            places[name] = (width * (x + 1) / (len(floor) + 1), 10 + 92 * y)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" text-anchor="middle">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#666"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for name in places:
        for other in sorted(arrows.get(name, ())):
            (x, y), (to_x, to_y) = places[name], places[other]
            parts.append(
                f'<path d="M{x:.0f} {y + high}{_around(x, to_x, places, range(y + 92, to_y, 92))}'
                f' {to_x:.0f} {to_y}" fill="none" stroke="#888" marker-end="url(#tip)"/>'
            )
    for name, (x, y) in places.items():
        parts.append(
            f'<rect x="{x - 95:.0f}" y="{y}" width="190" height="{high}" rx="6" fill="#eef3f8" '
            f'stroke="#456"/><text x="{x:.0f}" y="{y + 22}" font-weight="bold">{name}</text>'
            f'<text x="{x:.0f}" y="{y + 41}" font-size="13">{WORDS[name]}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    FIGURE.write_text(drawn(packages(graph())))
