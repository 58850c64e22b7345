"""``tersor::op``: one PyTorch operator for the ops that PyTorch has none for, so that modules of integers are exported.

A call holds the op as text, as a graph of its own, beside the tensors that it reads. The text is in hexadecimal digits,
since `program_json` takes no string for one that could end a string::

    torch.ops.tersor.op([q, weight, bias], "graph @conv2d(%x0: u8[1,8,6,6], %x1: i8[4,8,3,3], %x2: i32[4]) { ... }")

It computes what the interpreter computes, on a CPU or a GPU, and `from_torch` makes the op again that the text says.
A program with such calls is read where ``tersor`` was imported before.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from ..ir import Graph, IRError, Op, Value, clone_op, parse, print_graph
from ..ir.ops import DequantizeOp, QuantizeOp
from ..ir.ops.integers import QUANTIZED
from .context import Context
from .registry import foreign_converter

_LIBRARY = torch.library.Library("tersor", "DEF")
_LIBRARY.define("op(Tensor[] operands, str text) -> Tensor")


def is_foreign_to_pytorch(op: Op) -> bool:
    """Whether an op with operands rounds to 8-bit integers, computes with them, or makes numbers of them."""
    if not op.inputs or len(op.results) != 1 or op.body is not None:
        return False
    types = [value.type.dtype for value in (*op.inputs, op.result)]
    return isinstance(op, QuantizeOp | DequantizeOp) or any(dtype in QUANTIZED for dtype in types)


def call(op: Op, operands: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """The op's result, as a call that an exported program keeps."""
    result: torch.Tensor = torch.ops.tersor.op([one for one in operands if one is not None], _text(op))
    return result


def _text(op: Op) -> str:
    """The op as a graph whose inputs are its operands, one for each, in hexadecimal digits."""
    graph = Graph(op.name, [(f"x{index}", value.type.logical) for index, value in enumerate(op.inputs)])
    given = iter(graph.inputs)
    operands = tuple(None if value is None else next(given) for value in op.operands)
    graph.outputs = (graph.append(type(op)(operands, op.attrs, location=op.location)).result,)
    return print_graph(graph).encode().hex()


@functools.lru_cache(maxsize=4096)
def _graph(text: str) -> Graph:
    """What a text says; IRError unless it is one op on inputs."""
    try:
        graph = parse(bytes.fromhex(text).decode())
    except ValueError:
        raise IRError("the text of a call of tersor::op is no text in hexadecimal digits") from None
    if len(graph.ops) != 1 or len(graph.outputs) != 1 or graph.outputs[0].op is not graph.ops[0] or graph.weights:
        raise IRError("a call of tersor::op holds one op that reads its inputs")
    return graph


def _evaluate(operands: list[torch.Tensor], text: str) -> torch.Tensor:
    (op,) = _graph(text).ops
    numbers = iter(operands)
    result = op.evaluate(*(None if value is None else next(numbers) for value in op.operands))
    assert isinstance(result, torch.Tensor)  # guaranteed by is_foreign_to_pytorch
    memory = {one.untyped_storage().data_ptr() for one in operands}
    return result.clone() if result.untyped_storage().data_ptr() in memory else result


def _shape(operands: list[torch.Tensor], text: str) -> torch.Tensor:
    type = _graph(text).outputs[0].type
    return torch.empty(type.shape, dtype=type.dtype.torch, device=operands[0].device)


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("op", _evaluate, _device)
torch.library.register_fake("tersor::op", _shape, lib=_LIBRARY)


@foreign_converter("tersor::op.default", of_constants=True)
def op(context: Context, operands: list[Value], text: str) -> Value:
    """The op that the text says."""
    graph = _graph(text)
    expected = [value.type for value in graph.inputs]
    if [value.type for value in operands] != expected:
        context.refuse(f"its text is about {', '.join(map(str, expected))}, which its operands are not")
    return context.graph.append(clone_op(graph.ops[0], dict(zip(graph.inputs, operands, strict=True)))).result
