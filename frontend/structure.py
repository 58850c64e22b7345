"""How a program of `torch.export` is called and what it returns, as the IR keeps it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils._pytree import TreeSpec

from ..ir import Structure, TersorError, Tree, shorten
from ..ir.foreign import Json, UserObject
from ..ir.structure import CONSTANTS, class_name
from .program import user_results
from .program_json import PLAIN_CONTAINERS

# In the metadata of a program that was read from a file: what it returns, as JSON that names classes.
CLASSES = "tersor_classes"


def structure_of(program: ExportedProgram) -> Structure:
    """The structure of arguments and results; raises TersorError for what is neither a tensor nor a constant."""
    specs = program.graph_signature.input_specs
    inputs = [spec.arg for spec in specs if spec.kind is InputKind.USER_INPUT]
    given = iter([_constant(arg.value) if isinstance(arg, ConstantArgument) else Tree() for arg in inputs])
    positional, keyword = [_tree(child, given) for child in program.call_spec.in_spec.children()]
    returned = iter([Tree() if isinstance(one, fx.Node) else _constant(one) for one in user_results(program)])
    result = _tree(program.call_spec.out_spec, returned)
    if CLASSES in program.graph_module.meta:
        result = _named(result, json.loads(program.graph_module.meta[CLASSES])[1])
    entry = program.module_call_graph[0].signature
    names = tuple((entry and entry.forward_arg_names) or ())[: len(positional.children)]
    if len(names) == len(positional.children):
        positional = replace(positional, keys=names)
    return Structure(positional, keyword, result)


def _constant(value: UserObject) -> Tree:
    plain = value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))
    if not plain:
        raise TersorError(
            f"the model takes or returns {shorten(repr(value))}, which is neither a tensor nor a number; use tensors"
        )
    return Tree("constant", value=value)


def _tree(spec: TreeSpec, leaves: Iterator[Tree]) -> Tree:
    if spec.is_leaf():
        return next(leaves)
    kind, context, children = spec.type, spec.context, tuple(_tree(child, leaves) for child in spec.children())
    if not isinstance(kind, type):  # PyTorch's mark for all named tuples
        kind = context
    if kind is tuple or issubclass(kind, list | deque):
        return Tree("tuple" if kind is tuple else "list", children)
    if issubclass(kind, tuple):
        keys = getattr(kind, "_fields", getattr(kind, "__match_args__", ()))
        return Tree("named tuple", children, keys, class_name(kind), made_of=kind)
    if kind.__name__ in ("dict", "immutable_dict", "defaultdict"):
        keys = context[-1] if kind.__name__ == "defaultdict" else context
        if any(type(key) not in (str, int) for key in keys):
            raise TersorError(f"the model takes or returns a dict with keys {shorten(keys)}; use texts or numbers")
        return Tree("dict", children, tuple(keys))
    return _record(class_name(kind), context, children, kind)


def _named(tree: Tree, spec: Json) -> Tree:
    """The tree with the names of classes that a file gives; `frontend.program_json` has looked at its form."""
    children = tuple(_named(child, part) for child, part in zip(tree.children, spec["children_spec"], strict=True))
    if spec["type"] is None or spec["type"] in PLAIN_CONTAINERS:
        return replace(tree, children=children)
    context = spec["context"] and json.loads(spec["context"])
    return _record(context if isinstance(context, str) else spec["type"], context, children)


def _record(name: str, context: Json, children: Sequence[Tree], made_of: type | None = None) -> Tree:
    """The tree for a class that is registered with PyTorch's pytree: its fields are in the context, or unknown.

    The context of a dataclass lists fields with a value, and those that are None. That of other classes may list fields
    and constants, for example the windows of a cache.
    """
    names, rest = context, []
    if isinstance(context, list) and len(context) == 2 and all(isinstance(part, list) for part in context):
        names, rest = context
    if not isinstance(names, list) or not names or len(names) != len(children) or not _are_texts(names):
        return Tree("named tuple", tuple(children), (), name)
    keys = tuple(names)
    if _are_texts(rest) and (made_of is None or dataclasses.is_dataclass(made_of) or not rest):
        return Tree("record", (*children, *(Tree("constant") for _ in rest)), (*keys, *rest), name, made_of=made_of)
    return Tree("record", (*children, _constants(rest)), (*keys, CONSTANTS), name, made_of=made_of)


def _are_texts(values: Sequence[Json]) -> bool:
    return all(isinstance(value, str) for value in values)


def _constants(value: Json) -> Tree:
    return Tree("list", tuple(map(_constants, value))) if isinstance(value, list) else _constant(value)
