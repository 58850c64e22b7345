"""The JSON of an exported program, turned into PyTorch's own records by an allow-list.

PyTorch writes names from this JSON into source text that it executes, imports types that tree specs name, evaluates
guards and formulas, and resolves dotted targets by attribute. So nothing is passed on that is not known here: fields
are those of PyTorch's schema, values have the declared types, names are identifiers, other text has no character that
could end a string literal, operators are those of a fixed kind, and tree specs consist of tuples, lists and dicts:
tuples stand for objects of other classes, whose names are kept as text (`tersor.frontend.structure`).
What a graph does not need (guards, traces, custom metadata) is left out. Formulas of extents that vary become the
numbers of the example; `file_extents` reads those of inputs.
"""

from __future__ import annotations

import dataclasses
import json
import keyword
import math
import re
from collections.abc import Callable
from enum import IntEnum
from functools import cache
from types import UnionType
from typing import TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch._export.serde import schema
from torch._export.serde.union import _Union
from torch._ops import OpOverload
from torch.export import default_decompositions

from ..ir import TersorError, shorten
from ..ir.foreign import Annotation, Instance, Json
from .registry import CONVERTERS, FOREIGN_CONVERTERS, FOREIGN_MODULES, load_foreign

Record = TypeVar("Record")

_NAME = re.compile(r"(?:[A-Za-z_][A-Za-z0-9_]*)?")
_TEXT = re.compile(r"[\w .,:/+@<>=()\[\]*|&-]*")  # nothing that ends a string literal or a line
_STACK_ITEM = r"[\w .@/+:-]*,[\w .@/+:-]*,[\w .<>-]*"
_STACK = re.compile(rf"{_STACK_ITEM}(?:;{_STACK_ITEM})*")
_TARGET = re.compile(r"torch\.ops\.([A-Za-z_]\w*)\.([A-Za-z_]\w*)\.([A-Za-z_]\w*)", re.ASCII)
_NAMESPACES = ("aten", "prims")
_REGION = "torch.ops.higher_order.wrap_with_set_grad_enabled"  # PyTorch inlines it
# Arithmetic on extents; no powers, which take for ever on large numbers.
_EXTENT_CALLS = (
    *("torch.ops.aten.sym_size.int", "torch.ops.aten.sym_numel.default"),
    *("_operator.add", "_operator.sub", "_operator.mul", "_operator.floordiv", "_operator.mod", "_operator.neg"),
)
_ASSERTIONS = ("_assert_tensor_metadata", "_assert_async", "_functional_assert_async")
_SHOWN = 8
_OUTWARD = ("from_file", "set_data")  # operators on files and on the identity of tensors
PLAIN_CONTAINERS = ("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
_DIALECTS = ("", "ATEN", "TRAINING")
_FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
INT64 = 1 << 63


def read_record(kind: type[Record], data: Json) -> Record:
    """A record of PyTorch's schema from parsed JSON.

    Raises
    ------
    TersorError
        When a field is unknown, missing or of another type, or its text could become code.
    """
    return _build(kind, data, kind.__name__)


def read_program(data: Json) -> schema.ExportedProgram:
    """The record of a whole program; raises TersorError as `read_record` does, and for what graphs cannot express."""
    return read_record(schema.ExportedProgram, data)


# Types of the schema ----------------------------------------------------------------------------------------------


def _build(kind: Annotation, data: Json, where: str) -> Instance:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):  # in the schema always `X | None`
        return None if data is None else _build(arguments[0], data, where)
    if origin is list:
        return [_build(arguments[0], item, where) for item in _checked(list, data, where)]
    if origin is dict:
        items = _checked(dict, data, where).items()
        return {_name(key, where): _build(arguments[1], item, where) for key, item in items}
    if issubclass(kind, _Union):
        return _build_union(kind, data, where)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, data, where)
    if issubclass(kind, IntEnum):
        if type(data) is not int or data not in kind._value2member_map_:
            raise _malformed(where, data)
        return data
    if kind is str:
        return _name(data, where)
    if kind is float:
        if isinstance(data, str):
            return _FLOATS[data] if data in _FLOATS else _checked(float, data, where)
        return float(data) if type(data) is int else _checked(float, data, where)
    if kind is int and type(data) is int and not -INT64 <= data < INT64:
        raise _malformed(where, data)
    return _checked(kind, data, where)


def _build_union(kind: Annotation, data: Json, where: str) -> Instance:
    if len(_checked(dict, data, where)) != 1:
        raise _malformed(where, data)
    ((tag, value),) = data.items()
    if (kind, tag) == (schema.SymInt, "as_expr"):
        return kind.create(as_int=_example_of(value, where))
    if tag not in _hints(kind) or tag in _REFUSED:
        raise TersorError(f"has {shorten(tag)!r} in {where}, which is not supported; keep tensors and numbers only")
    return kind.create(**{tag: _build_field(kind, tag, value)})


def _build_dataclass(kind: Annotation, data: Json, where: str) -> Instance:
    hints = _hints(kind)
    unknown = next((name for name in _checked(dict, data, where) if name not in hints), None)
    if unknown is not None:
        raise TersorError(f"has an unknown field {shorten(unknown)!r} in {where}; {AGAIN}")
    for field in dataclasses.fields(kind):
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if field.name not in data and not optional:
            raise damaged(f"{where} has no {field.name}")
    return kind(**{name: _build_field(kind, name, value) for name, value in data.items() if name not in _DROPPED})


def _build_field(kind: Annotation, name: str, value: Json) -> Instance:
    where = f"{kind.__name__}.{name}"
    read = _FIELDS.get(where)
    return _build(_hints(kind)[name], value, where) if read is None else read(value, where)


@cache
def _hints(kind: type) -> dict[str, Annotation]:
    return get_type_hints(kind, globalns=vars(schema))


def _checked(kind: type, data: Json, where: str) -> Json:
    if type(data) is not kind:
        raise _malformed(where, data)
    return data


def damaged(detail: str = "") -> TersorError:
    """The error for a file that PyTorch did not write as it is."""
    return TersorError(f"is damaged or not an exported program{detail and f' ({detail})'}; {AGAIN}")


def _malformed(where: str, data: Json) -> TersorError:
    return damaged(f"{where} is {shorten(repr(data), 40)}")


# Text -------------------------------------------------------------------------------------------------------------


def _name(data: Json, where: str) -> str:
    if not _NAME.fullmatch(_checked(str, data, where)) or keyword.iskeyword(data):
        raise _malformed(where, data)
    return data


def _argument_name(data: Json, where: str) -> str:
    return data if keyword.iskeyword(data) else _name(data, where)  # some operators have an argument `from`


def _text(data: Json, where: str) -> str:
    if not _TEXT.fullmatch(_checked(str, data, where)):
        raise _malformed(where, data)
    return data


def _texts(data: Json, where: str) -> list[str]:
    return [_text(item, where) for item in _checked(list, data, where)]


def _path(data: Json, where: str) -> str:
    if any(part.startswith("__") for part in _text(data, where).split(".")):
        raise _malformed(where, data)
    return data


def _metadata(data: Json, where: str) -> dict[str, str]:
    """Of a call's metadata only the modules that it comes from, and those only if PyTorch can split their text."""
    stack = _checked(dict, data, where).get("nn_module_stack")
    return {"nn_module_stack": stack} if isinstance(stack, str) and _STACK.fullmatch(stack) else {}


def _dialects(data: Json, where: str) -> list[str]:
    if not set(_texts(data, where)) <= set(_DIALECTS):
        raise TersorError(f"is of dialect {shorten(', '.join(data))!r}; save what torch.export.export returns")
    return data


# Operators --------------------------------------------------------------------------------------------------------


def _calls(data: Json, where: str) -> list[schema.Node]:
    """The calls of a graph; those that are refused are all named at once."""
    targets = [_checked(str, _checked(dict, call, where).get("target"), where) for call in _checked(list, data, where)]
    allowed = {_REGION, *_EXTENT_CALLS}
    refused = dict.fromkeys(shorten(target) for target in targets if target not in allowed and not _is_allowed(target))
    if refused:
        names = ", ".join(map(repr, [*refused][:_SHOWN])) + (", ..." if len(refused) > _SHOWN else "")
        raise TersorError(f"calls {names}, which a graph cannot hold; export a model of PyTorch's ATen operators")
    return [_build(schema.Node, call, where) for call in data]


@cache
def _is_allowed(target: str) -> bool:
    match = _TARGET.fullmatch(target)
    if match is None:
        return False
    namespace, name, overload = match.groups()
    if namespace in FOREIGN_MODULES and f"{namespace}::{name}.{overload}" in FOREIGN_CONVERTERS:
        load_foreign(namespace)
        return True
    if namespace not in _NAMESPACES:
        return False
    operator = getattr(getattr(getattr(torch.ops, namespace), name, None), overload, None)
    if not isinstance(operator, OpOverload):
        return False
    if operator in CONVERTERS or name in _ASSERTIONS:
        return True
    if namespace != "aten" or name.startswith("_"):
        return operator in default_decompositions()
    return (
        torch._C._dispatch_has_kernel(operator.name())  # others exist for TorchScript only, `save` among them
        and name not in _OUTWARD
        and all(str(result.type) in ("Tensor", "List[Tensor]") for result in operator._schema.returns)
    )


# Extents ----------------------------------------------------------------------------------------------------------


def _example_of(data: Json, where: str) -> int:
    """An extent's number in the example, in place of its formula, which is not read here (see `file_extents`)."""
    if set(_checked(dict, data, where)) - {"expr_str", "hint"} or not isinstance(data.get("expr_str"), str):
        raise _malformed(where, data)
    hint = data.get("hint")
    if hint is None:
        raise TersorError("has extents that depend on the data; keep all elements, or a fixed number as topk does")
    if set(_checked(dict, hint, where)) != {"as_int"}:
        raise _malformed(where, data)
    return int(_build(int, hint["as_int"], where))


# Structure of arguments and results -------------------------------------------------------------------------------


def _call_signatures(data: Json, where: str) -> list[schema.ModuleCallEntry]:
    """The model's own signature; those of its modules are not needed."""
    if not _checked(list, data, where):
        raise _malformed(where, data)
    return [_build(schema.ModuleCallEntry, data[0], where)]


def _input_spec(data: Json, where: str) -> str:
    spec = json.loads(_tree(data, where))[1]
    kinds = [spec["type"], *(child["type"] for child in spec["children_spec"])]
    if kinds != ["builtins.tuple", "builtins.tuple", "builtins.dict"]:
        raise _malformed(where, data)
    for key in json.loads(spec["children_spec"][1]["context"]):
        _name(key, where)
    return json.dumps([1, spec])


def _tree(data: Json, where: str) -> str:
    protocol, spec = json.loads(_checked(str, data, where))
    if protocol != 1:
        raise _malformed(where, data)
    return json.dumps([1, _tree_node(spec, where)])


def _tree_node(spec: Json, where: str) -> dict[str, Json]:
    """A node for PyTorch, which is not told of classes: it gets tuples in their place (see `frontend.structure`)."""
    kind, context, children = (_checked(dict, spec, where).get(key) for key in ("type", "context", "children_spec"))
    made = [_tree_node(child, where) for child in _checked(list, children, where)]
    if kind is None:
        if made or context is not None:
            raise _malformed(where, spec)
        return {"type": None, "context": None, "children_spec": []}
    if _checked(str, kind, where) not in PLAIN_CONTAINERS:
        return {"type": "builtins.tuple", "context": "null", "children_spec": made}
    keys = json.loads(_checked(str, context, where))
    if kind in ("builtins.tuple", "builtins.list"):
        if keys is not None:
            raise _malformed(where, spec)
    elif len(_checked(list, keys, where)) != len(made):
        raise _malformed(where, spec)
    else:
        keys = [key if type(key) is int else _text(key, where) for key in keys]
    return {"type": kind, "context": json.dumps(keys), "children_spec": made}


AGAIN = "export it again with this version of PyTorch"

_REFUSED = ("as_expr", "as_custom_obj", "as_operator", "as_string_to_argument", "custom_obj", "token")
_DROPPED = ("guards_code", "treespec_namedtuple_fields", "custom_obj_values")
_FIELDS: dict[str, Callable[[Json, str], Instance]] = {
    "Argument.as_string": _text,
    "Argument.as_strings": _texts,
    "ConstantValue.as_string": _text,
    "Device.index": lambda data, where: None,
    "Device.type": lambda data, where: "cpu",  # a model from another machine's GPU is the same graph
    "ExportedProgram.range_constraints": lambda data, where: {},
    "ExportedProgram.torch_version": _text,
    "ExportedProgram.verifiers": _dialects,
    "Graph.nodes": _calls,
    "GraphModule.metadata": lambda data, where: {},
    "GraphModule.module_call_graph": _call_signatures,
    "ModuleCallSignature.in_spec": _input_spec,
    "ModuleCallSignature.out_spec": _tree,
    "NamedArgument.name": _argument_name,
    "Node.metadata": _metadata,
    "Node.target": lambda data, where: data,  # `_calls` has looked at it
    "PayloadConfig.config": lambda data, where: {
        _path(name, where): _build(schema.PayloadMeta, meta, where)
        for name, meta in _checked(dict, data, where).items()
    },
    **{
        f"{kind}.{name}": _path
        for kind, name in (
            ("InputToParameterSpec", "parameter_name"),
            ("InputToBufferSpec", "buffer_name"),
            ("InputToTensorConstantSpec", "tensor_constant_name"),
            ("BufferMutationSpec", "buffer_name"),
            ("ParameterMutationSpec", "parameter_name"),
            ("GradientToParameterSpec", "parameter_name"),
        )
    },
}
