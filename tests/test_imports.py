"""Dependencies point one way: see `docs/architecture.md`. Read from the sources' import statements."""

from __future__ import annotations

import ast
import functools
from collections.abc import Sequence
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).parents[1]
# From the lowest floor to the highest; a folder imports from floors below its own, and from nowhere else.
FLOORS = (
    {"ir"},
    {"frontend", "passes", "targets"},
    {"checking.py", "evaluation.py", "training"},
    {"measuring.py"},
    {"compiler.py"},
    {"exits.py", "shapes.py"},
    {"compression", "dynamo.py"},
    {"cli"},
    {"__init__.py", "__main__.py"},
)
FLOORS_OF_TARGETS = (
    {"machines"},
    {"templates", "runtime"},
    {"codegen", "packaging"},
    {"tuning", "cuda"},
    {"__init__.py"},
)


@functools.cache
def arrows() -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Each import from one file of the package to another, wherever it stands in the file, as paths."""
    tops = [ROOT / name for floor in FLOORS for name in sorted(floor)]
    files = [path for top in tops for path in (sorted(top.rglob("*.py")) if top.is_dir() else [top])]
    found = []
    for path in files:
        parts = path.relative_to(ROOT).parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                package = (*parts[: len(parts) - node.level], *(node.module or "").split("."))
                module = tuple(filter(None, package))
                imported = (next(filter(None, map(_file, ((*module, name.name), module))), None) for name in node.names)
                found += [(parts, one) for one in imported if one is not None]
    return found


@functools.cache
def _file(module: tuple[str, ...]) -> tuple[str, ...] | None:
    """The path of a module's source; None where there is none."""
    found = (path for path in (ROOT.joinpath(*module).with_suffix(".py"), ROOT.joinpath(*module, "__init__.py")))
    return next((path.relative_to(ROOT).parts for path in found if path.is_file()), None)


def points_down(importer: tuple[str, ...], imported: tuple[str, ...]) -> bool:
    """Whether a file may import another: it stands in the same folder, or on a higher floor."""
    if importer[0] == imported[0]:
        if importer[0] != "targets" or importer[1] == imported[1]:
            return True
        importer, imported = importer[1:], imported[1:]
        floors: Sequence[set[str]] = FLOORS_OF_TARGETS
    else:
        floors = FLOORS
    high, low = (next(i for i, floor in enumerate(floors) if path[0] in floor) for path in (importer, imported))
    return high > low


def test_every_folder_has_a_floor():
    apart = {"tests", "benchmarks", "examples", "tuning_logs"}  # no part of the package, or data
    assert {path.name for path in ROOT.glob("*.py")} == {name for floor in FLOORS for name in floor if "." in name}
    for folder, floors in ((ROOT, FLOORS), (ROOT / "targets", FLOORS_OF_TARGETS)):
        packages = {path.parent.name for path in folder.glob("*/__init__.py")} - apart
        assert packages == {name for floor in floors for name in floor if not name.endswith(".py")}


def test_arrows_point_down():
    known = [(importer, imported) for importer, imported in arrows() if imported[0] != "benchmarks"]
    upward = ["/".join(importer) for importer, imported in known if not points_down(importer, imported)]
    assert upward == [], "these files import upward"


def test_only_the_command_line_knows_the_checkout():
    """`tersor bench --against` runs in a checkout, and says so elsewhere."""
    assert {importer for importer, imported in arrows() if imported[0] == "benchmarks"} <= {("cli", "peers.py")}


def test_a_word_means_one_thing():
    """Public classes of one name would be mistaken for each other."""
    files = {path for arrow in arrows() for path in arrow if path[0] != "benchmarks"}
    classes = [
        node.name
        for path in files
        for node in ast.walk(ast.parse(ROOT.joinpath(*path).read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    assert sorted(classes) == sorted(set(classes))


def test_there_is_no_circle_between_neighbours():
    graph = nx.DiGraph()
    for importer, imported in arrows():
        a, b = importer[:-1], imported[:-1]
        if a != b and a != b[: len(a)] and b != a[: len(b)]:  # a package and its parts know each other
            graph.add_edge("/".join(a), "/".join(b))
    assert list(nx.simple_cycles(graph)) == []
