"""Whether the tests notice a change of the core: mutants, each of one line, and those that survive.

    python tests/mutants.py --count 100 --seed 0

copies the repository, changes a line of `src/binep/core`, runs the tests of the core and of the
solvers until one fails, and goes on with the next line. A mutant that hangs counts as noticed.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
CORE = Path("src/binep/core")
LAST = ("test_habits", "test_door", "test_copies")
"""The tests of the core that take longest."""

SWAPS: dict[type[ast.AST], tuple[str, tuple[str, ...]]] = {
    ast.Lt: ("<", ("<=", ">")),
    ast.LtE: ("<=", ("<", ">")),
    ast.Gt: (">", (">=", "<")),
    ast.GtE: (">=", (">", "<")),
    ast.Eq: ("==", ("!=",)),
    ast.NotEq: ("!=", ("==",)),
    ast.Is: ("is", ("is not",)),
    ast.IsNot: ("is not", ("is",)),
    ast.In: ("in", ("not in",)),
    ast.NotIn: ("not in", ("in",)),
    ast.Add: ("+", ("-",)),
    ast.Sub: ("-", ("+",)),
    ast.Mult: ("*", ("/",)),
    ast.Div: ("/", ("*",)),
    ast.FloorDiv: ("//", ("*",)),
    ast.Mod: ("%", ("*",)),
    ast.Pow: ("**", ("*",)),
    ast.MatMult: ("@", ("*",)),
    ast.And: ("and", ("or",)),
    ast.Or: ("or", ("and",)),
}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "minimum": "maximum"}
NAMES |= {"maximum": "minimum", "amax": "amin", "ceil": "floor"}


class Mutant(NamedTuple):
    """One change: the bytes of a file from ``start`` to ``end`` become ``new``."""

    file: Path
    line: int
    start: int
    end: int
    new: str


class Finder(ast.NodeVisitor):
    """All mutants of a file."""

    def __init__(self, file: Path) -> None:
        self.file, self.source = file, (ROOT / file).read_bytes()
        self.found: list[Mutant] = []
        lines = self.source.splitlines(keepends=True)
        self._starts = [sum(map(len, lines[:n])) for n in range(len(lines))]
        self.visit(ast.parse(self.source))

    def _span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self._starts[node.lineno - 1] + node.col_offset
        return start, self._starts[node.end_lineno - 1] + node.end_col_offset

    def _text(self, node: ast.expr) -> str:
        start, end = self._span(node)
        return self.source[start:end].decode()

    def _add(self, start: int, end: int, new: str) -> None:
        line = self.source.count(b"\n", 0, start) + 1
        self.found.append(Mutant(self.file, line, start, end, new))

    def _replace(self, node: ast.expr | ast.stmt, new: str) -> None:
        self._add(*self._span(node), new)

    def _swap(self, op: ast.AST, left: ast.expr, right: ast.expr) -> None:
        old, others = SWAPS.get(type(op), ("", ()))
        start, end = self._span(left)[1], self._span(right)[0]
        at = self.source.find(old.encode(), start, end)
        for new in others:
            self._add(at, at + len(old), new)

    def visit_Compare(self, node: ast.Compare) -> None:
        sides = [node.left, *node.comparators]
        for op, left, right in zip(node.ops, sides, sides[1:], strict=False):
            self._swap(op, left, right)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        self._swap(node.op, node.left, node.right)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self._swap(node.op, node.values[0], node.values[1])
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        self._replace(node, self._text(node.operand))
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self._replace(node, str(not value))
        elif isinstance(value, int):
            self._replace(node, str(value + 1))
        elif isinstance(value, float):
            self._replace(node, str(value * 1.5 if value else 1.0))

    def visit_Name(self, node: ast.Name) -> None:
        if node.id in NAMES and isinstance(node.ctx, ast.Load):
            self._replace(node, NAMES[node.id])

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr in NAMES:
            end = self._span(node)[1]
            self._add(end - len(node.attr), end, NAMES[node.attr])
        self.visit(node.value)

    def _negate(self, test: ast.expr) -> None:
        self._replace(test, f"not ({self._text(test)})")

    def visit_If(self, node: ast.If) -> None:
        if self._text(node.test) != "TYPE_CHECKING":
            self._negate(node.test)
            self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):  # a docstring, or dots
            return
        self._replace(node, "pass")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._replace(node, "pass")
        self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        if any(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets):
            self._replace(node, "pass")
        self.visit(node.value)

    def visit_Raise(self, node: ast.Raise) -> None:
        self._replace(node, "pass")  # what it says is not looked at here

    def visit_Break(self, node: ast.Break) -> None:
        self._replace(node, "pass")

    def visit_Continue(self, node: ast.Continue) -> None:
        self._replace(node, "pass")

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for default in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
            self.visit(default)
        for statement in node.body:
            self.visit(statement)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if self._text(node.value) not in ("Literal", "Callable"):
            self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg not in ("strict", "repr"):  # they change nothing that is right
            self.generic_visit(node)

    def visit_Assert(self, node: ast.Assert) -> None:
        """For type checkers."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """What messages say is not looked at here."""


def mutants(seed: int) -> Iterator[Mutant]:
    """One of each line that can be changed, the lines in random order."""
    by_line: dict[tuple[Path, int], list[Mutant]] = {}
    for path in sorted((ROOT / CORE).glob("*.py")):
        for mutant in Finder(path.relative_to(ROOT)).found:
            by_line.setdefault((mutant.file, mutant.line), []).append(mutant)
    chooser = random.Random(seed)
    lines = sorted(by_line)
    chooser.shuffle(lines)
    for line in lines:
        yield chooser.choice(by_line[line])


def _order(test: str, module: str) -> tuple[bool, int, str]:
    return test != f"test_{module}", LAST.index(test) + 1 if test in LAST else 0, test


def is_noticed(copy: Path, module: str, limit: float) -> tuple[bool, str]:
    """Whether a test fails, and which; those named as the changed module go first."""
    paths = (copy / "tests/core").glob("test_*.py")
    files = sorted(map(str, paths), key=lambda name: _order(Path(name).stem, module))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--hypothesis-profile=quick"]
    command += ["-p", "no:cacheprovider", *files, "tests/solvers"]
    environment = os.environ | {"PYTHONPATH": str(copy / "src"), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return True, "ran too long"
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return done.returncode != 0, lines[0][:90] if lines else done.stdout[-90:].strip()


def describe(mutant: Mutant) -> str:
    """Where, the line as it was, and what became of a part of it."""
    source = (ROOT / mutant.file).read_bytes()
    old = " ".join(source[mutant.start : mutant.end].decode().split())
    line = source.splitlines()[mutant.line - 1].decode().strip()
    return f"{mutant.file.name}:{mutant.line}  {old} -> {mutant.new}    in: {line}"


def main() -> None:
    """Try so many mutants and print which survive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip", type=int, default=0, help="so many of the first ones")
    parser.add_argument("--limit", type=float, default=900, help="seconds for a run of the tests")
    parser.add_argument("--list", action="store_true", help="print the mutants alone")
    options = parser.parse_args()
    chosen = list(mutants(options.seed))[options.skip : options.skip + options.count]
    if options.list:
        print(*map(describe, chosen), sep="\n")
        return
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("src", "tests"):
            shutil.copytree(ROOT / part, copy / part)
        shutil.copy2(ROOT / "pyproject.toml", copy)
        noticed, why = is_noticed(copy, "", options.limit)
        if noticed:
            raise SystemExit(f"the tests fail without a change: {why}")
        for number, mutant in enumerate(chosen, start=options.skip + 1):
            source, start = (ROOT / mutant.file).read_bytes(), time.perf_counter()
            changed = source[: mutant.start] + mutant.new.encode() + source[mutant.end :]
            (copy / mutant.file).write_bytes(changed)
            noticed, why = is_noticed(copy, mutant.file.stem, options.limit)
            shutil.copy2(ROOT / mutant.file, copy / mutant.file)
            if not noticed:
                survivors.append(mutant)
            outcome = f"noticed: {why}" if noticed else "SURVIVED"
            seconds = time.perf_counter() - start
            print(f"{number:4} {seconds:4.0f} s  {describe(mutant)}\n       {outcome}", flush=True)
    print(f"\n{len(chosen) - len(survivors)} of {len(chosen)} make a test fail; survivors:")
    print(*map(describe, survivors), sep="\n")


if __name__ == "__main__":
    main()
