"""What must be known while a model is converted: shapes, axes, scales. They are attributes, or inputs with numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from ..registry import Inexpressible

# The numbers of element types in ONNX files (TensorProto.DataType), as far as the IR has them.
DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}
# Names of those that the IR does not have, for messages.
TYPE_NAMES = {
    4: "uint16",
    8: "string",
    12: "uint32",
    13: "uint64",
    14: "complex64",
    15: "complex128",
    17: "float8e4m3fn",
    18: "float8e4m3fnuz",
    19: "float8e5m2",
    20: "float8e5m2fnuz",
    21: "uint4",
    22: "int4",
    23: "float4e2m1",
}

Attribute = Any  # of a node: a number, a text, a tensor, a graph, or a list of these


def refuse(reason: str) -> NoReturn:
    """Give up this node, for the reason given."""
    raise Inexpressible(reason)


def is_known(x: Attribute) -> bool:
    """Whether a tensor has numbers."""
    return not isinstance(x, FakeTensor)


def known(x: Attribute) -> Attribute:
    """A tensor's numbers, nested in lists; what is no tensor, as it is."""
    if not is_known(x):
        refuse("an input that says a shape, an axis or the like depends on the data")
    if not isinstance(x, torch.Tensor):
        return x
    with _disable_current_modes():  # it is no op of the graph, whatever becomes of the results
        return x.tolist()


def numbers(x: torch.Tensor | Sequence[Attribute] | int | float | None) -> list[Attribute]:
    """All numbers of a tensor or an attribute; none for None."""
    return [] if x is None else _flat(known(x))


def _flat(nested: Attribute) -> list[Attribute]:
    if not isinstance(nested, list | tuple):
        return [nested]
    return [number for one in nested for number in _flat(one)]


def number(x: Attribute) -> Attribute:
    """The only number of a tensor or an attribute; None for None."""
    if x is None:
        return None
    one, *others = numbers(x)
    if others:
        refuse("several numbers where one is needed")
    return one


def dtype_of(code: int) -> torch.dtype:
    """The element type with a number in ONNX files."""
    if code not in DTYPES:
        refuse(f"element type {TYPE_NAMES.get(code, f'{code} of ONNX')}")
    return DTYPES[code]


def default_only(**attributes: Attribute) -> None:
    """Refuse attributes that have been set: the names of those that are true are told."""
    for name, value in attributes.items():
        if value:
            refuse(f"attribute {name} is {value!r}")
