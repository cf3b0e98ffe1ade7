"""How large and how tangled is the source? Prints the figures, and fails where one is worse than its limit.

    python -m tools.house            the figures, the longest functions, those with most parameters, the circles
    python -m tools.house --check    silent, exit code 1 where a limit is exceeded (make check)

Counted are the files of ``halpiee``, ``latency`` and ``tools``. A *circle* is a set of files that import each other, in
functions and under ``TYPE_CHECKING`` too. A function's length runs from its ``def`` to its last line, docstring
included; parameters do not count ``self`` and ``cls``.
"""

from __future__ import annotations

import argparse
import ast
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import networkx

ROOT = Path(__file__).parent.parent
PACKAGES = ("halpiee", "latency", "tools")
LONG = 80
MANY = 8


@dataclass(frozen=True)
class Limit:
    """A figure that must not grow: at most what holds today, which is lowered when the figure falls."""

    at_most: int
    aim: int


LIMITS = {
    "lines": Limit(53_408, 35_000),
    "files": Limit(217, 160),
    "circles": Limit(0, 0),
    f"functions above {LONG} lines": Limit(0, 0),
    f"functions with more than {MANY} parameters": Limit(0, 0),
}
"""The figures with a limit."""


@dataclass(frozen=True)
class Function:
    """A function or method of the source; parameters do not count ``self`` and ``cls``."""

    where: str
    name: str
    lines: int
    parameters: int


def functions(path: Path, tree: ast.AST) -> Iterator[Function]:
    """Yields every function of a file, nested ones too; overloads are signatures, not functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if any(isinstance(mark, ast.Name) and mark.id == "overload" for mark in node.decorator_list):
                continue
            taken = node.args
            named = [*taken.posonlyargs, *taken.args, *taken.kwonlyargs]
            bound = bool(named) and named[0].arg in ("self", "cls")
            stars = (taken.vararg is not None) + (taken.kwarg is not None)
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            where = f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}:{node.lineno}"
            yield Function(where, node.name, length, len(named) - bound + stars)


def imports(trees: Mapping[str, ast.AST]) -> dict[str, set[str]]:
    """Returns which module imports which other one of these, wherever in the file the import stands.

    Args:
        trees: module name → its parsed source. ``from package import name`` is an import of ``package.name`` where that
            is a module, else of ``package``.
    """
    found: dict[str, set[str]] = {}
    for name, tree in trees.items():
        wanted: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    wanted.add(inner if inner in trees else node.module)
        found[name] = (wanted & set(trees)) - {name}
    return found


def circles(edges: Mapping[str, set[str]]) -> list[tuple[str, ...]]:
    """Returns the sets of modules that reach each other, sorted: strongly connected components of two and more."""
    parts = networkx.strongly_connected_components(networkx.DiGraph(edges))
    return sorted(tuple(sorted(part)) for part in parts if len(part) > 1)


def main(argv: list[str] | None = None) -> int:
    """Prints or checks the figures and returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="print nothing but limits that are exceeded")
    check = parser.parse_args(argv).check
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    texts = {path: path.read_text(encoding="utf-8") for path in paths}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    lengths = [len(text.splitlines()) for text in texts.values()]
    every = [function for path, tree in trees.items() for function in functions(path, tree)]
    dotted = {".".join(p.relative_to(ROOT).with_suffix("").parts): tree for p, tree in trees.items()}
    rings = circles(imports({name.removesuffix(".__init__"): tree for name, tree in dotted.items()}))
    long = sorted((f for f in every if f.lines > LONG), key=lambda f: -f.lines)
    wide = sorted((f for f in every if f.parameters > MANY), key=lambda f: -f.parameters)
    figures = {
        "lines": sum(lengths),
        "files": len(paths),
        "circles": len(rings),
        f"functions above {LONG} lines": len(long),
        f"functions with more than {MANY} parameters": len(wide),
    }
    worse = [
        f"{name}: {figures[name]}, at most {limit.at_most} (tools/house.py)"
        for name, limit in LIMITS.items()
        if figures[name] > limit.at_most
    ]
    worse += [f"a new circle of imports: {', '.join(ring)}" for ring in rings]
    if not check:
        for name, limit in LIMITS.items():
            print(f"{figures[name]:7,}  {name} (limit {limit.at_most:,}, aim {limit.aim:,})")
        print(f"{statistics.median(lengths):7.0f}  lines in the median file")
        print("\ncircles", *(f"  {' '.join(ring)}" for ring in rings), sep="\n")
        print(
            f"\nfunctions above {LONG} lines",
            *(f"  {f.lines:3}  {f.name}  {f.where}" for f in long),
            sep="\n",
        )
        print(f"\nfunctions with more than {MANY} parameters")
        print(*(f"  {f.parameters:3}  {f.name}  {f.where}" for f in wide), sep="\n")
    for line in worse:
        print(line, file=sys.stderr)
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
