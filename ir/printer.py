"""Graph to text. `tersor.ir.parser` reads it back.

One op a line, defaults of attributes left out, values numbered in execution order::

    graph @net(%x: f32[1,3,8,8]) {
      %0 = weight {id="conv.weight", type=f32[4,3,3,3]} : f32[4,3,3,3] loc("conv")
      %1 = conv2d(%x, %0) {padding=[1,1,1,1]} : f32[1,4,8,8] loc("conv")
      return %1
    } takes ("x": *) {} gives *

The last line says how the model is called and what it returns, with a star for each tensor. An input with the name of
a weight behind it is state: it begins as that weight, and the output at its place from the end is its next value.
A graph of several shapes names its symbols, each with the number that passes assume and its bounds, and writes extents
as formulas: ``graph @net[batch=2 in [1,inf]](%x: f32[batch,3,8,8])``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields

from .core import Attrs, Op, Value
from .graph import Graph
from .structure import Structure, Tree
from .types import DType, TensorType

_UNSAFE = re.compile(r"[^A-Za-z0-9_.]")  # what names of values must not have in text
_UNSAFE_SYMBOL = re.compile(r"[^A-Za-z0-9_.\-]")


def print_graph(graph: Graph) -> str:
    """The text of ``graph``, without its weights; ends with a newline."""
    return "\n".join(_graph_lines(graph, "graph ", "")) + "\n"


def value_names(graph: Graph) -> dict[Value, str]:
    """The names that the text uses: inputs keep theirs (made unique), results are numbered."""
    names: dict[Value, str] = {}
    taken: set[str] = set()
    for value in graph.inputs:
        base = _UNSAFE.sub("_", value.name)
        if not base or base.isdigit():
            base = f"arg{value.index}"
        name, suffix = base, 1
        while name in taken:
            name, suffix = f"{base}.{suffix}", suffix + 1
        taken.add(name)
        names[value] = name
    for number, value in enumerate(result for op in graph.ops for result in op.results):
        names[value] = str(number)
    return names


def graph_symbol(graph: Graph) -> str:
    """The name that the text uses for the graph itself."""
    return _UNSAFE_SYMBOL.sub("_", graph.name) or "graph"


def print_attrs(attrs: Attrs) -> str:
    """Attributes that differ from their defaults, in braces; empty when there is none."""
    shown = []
    for entry in fields(attrs):
        value = print_attr(getattr(attrs, entry.name))
        # Compared as text: -0.0 equals 0.0, but is not the same number.
        if entry.default is MISSING or value != print_attr(entry.default):
            shown.append(f"{entry.name}={value}")
    return f"{{{', '.join(shown)}}}" if shown else ""


def print_attr(value: object) -> str:
    """One attribute value: number, string, dtype, type, or a list of these."""
    if isinstance(value, tuple):
        return f"[{','.join(map(print_attr, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, DType):
        return value.value
    if isinstance(value, TensorType | int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else {math.inf: "inf", -math.inf: "-inf"}.get(value, "nan")
    if isinstance(value, str):
        return json.dumps(value)
    raise TypeError(f"attribute value {value!r} has no text form")


def print_structure(structure: Structure) -> str:
    """How a model is called and what it returns, for example ``takes ("x": *) {} gives (*, *)``."""
    parts = map(print_tree, (structure.positional, structure.keyword, structure.result))
    return "takes {} {} gives {}".format(*parts)


def print_tree(tree: Tree) -> str:
    """A nested value: ``*`` for a tensor, constants, (tuples), [lists], {dicts}, and records with their class."""
    if tree.kind == "tensor":
        return "*"
    if tree.kind == "constant":
        return "none" if tree.value is None else print_attr(tree.value)
    members = list(map(print_tree, tree.children))
    if tree.keys:
        members = [f"{print_attr(key)}: {text}" for key, text in zip(tree.keys, members, strict=True)]
    form = {"list": "[{}]", "dict": "{{{}}}", "record": "{{{}}}"}.get(tree.kind, "({})")
    return (f"{json.dumps(tree.name)} " if tree.name else "") + form.format(", ".join(members))


def _graph_lines(graph: Graph, keyword: str, indent: str) -> Iterator[str]:
    names = value_names(graph)
    first = ["" for _ in graph.user_inputs] + [f" = {json.dumps(id)}" for id in graph.states]
    inputs = ", ".join(f"%{names[value]}: {value.type}{id}" for value, id in zip(graph.inputs, first, strict=True))
    symbols = f"[{', '.join(map(str, graph.symbols))}]" if graph.symbols else ""
    yield f"{indent}{keyword}@{graph_symbol(graph)}{symbols}({inputs}) {{"
    for op in graph.ops:
        yield from _op_lines(op, names, indent + "  ")
    returned = ", ".join(f"%{names[value]}" for value in graph.outputs)
    yield f"{indent}  return {returned}".rstrip()
    yield f"{indent}}}" + ("" if graph.structure is None else f" {print_structure(graph.structure)}")


def _op_lines(op: Op, names: dict[Value, str], indent: str) -> Iterator[str]:
    results = ", ".join(f"%{names[value]}" for value in op.results)
    operands = ", ".join("_" if value is None else f"%{names[value]}" for value in op.operands)
    types = ", ".join(str(value.type) for value in op.results)
    parts = [f"{indent}{results} = {op.name}" + (f"({operands})" if op.operands else "")]
    parts.append(print_attrs(op.attrs))
    parts.append(f": {types}")
    parts.append(f"loc({json.dumps(op.location)})" if op.location else "")
    parts.append(f"rule({json.dumps(op.rule)})" if op.rule else "")
    line = " ".join(part for part in parts if part)
    if op.body is None:
        yield line
        return
    head, *rest = _graph_lines(op.body, "body ", indent)
    yield f"{line} {head.strip()}"
    yield from rest
