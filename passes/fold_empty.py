"""Tensors without elements: what has none is a constant, and so is what is computed from these alone.

Before::

    %1 = slice(%x) {axis=0, start=2, stop=2}      : f32[0,8]
    %2 = relu(%1)                                 : f32[0,8]
    %3 = concat(%1, %y) {axis=0}                  : f32[4,8]
    %4 = sum(%2) {axes=[0]}                       : f32[8]
    return %2, %3, %4

After::

    %1 = full {value=0.0, shape=[0,8]}            : f32[0,8]
    %2 = full {value=0.0, shape=[0,8]}            : f32[0,8]
    %4 = sum(%1) {axes=[0]}                       : f32[8]
    return %2, %y, %4

All tensors of one type without elements are equal, so ``full`` stands for each of them, inputs of the graph included.
`fold-constants` computes what reads nothing else: here the sum, which is zero. Kernels have no code for such tensors,
so this pass runs before every pipeline. An op that reads one beside other tensors, and makes elements all the same, is
left alone unless it is a ``concat``; code generation refuses it.
"""

from __future__ import annotations

import torch

from ..ir import Graph, Op, Rewriter, Value
from ..ir.ops import ConcatOp, FullOp
from .base import Pass, PassContext, Result
from .matching import prune
from .registry import register_pass

_RULE = "fold-empty"


@register_pass(_RULE, purpose="simplify")
class FoldEmpty(Pass):
    """Make constants of tensors without elements."""

    def run(self, graph: Graph, context: PassContext) -> Result:
        rewriter = context.rewriter(graph)
        for op in graph.ops:
            if op.graph is not graph or isinstance(op, FullOp):
                continue
            if not any(result.type.size for result in op.results):
                _replace(op, rewriter)
            elif isinstance(op, ConcatOp):
                _join_others(op, rewriter)
            else:
                _read_constants(op, rewriter)
        return Result(rewriter.changed)


def _replace(op: Op, rewriter: Rewriter) -> None:
    """An op whose results have no elements -> constants."""
    if rewriter.commit(_RULE, op):
        operands = op.inputs
        rewriter.replace(op, [_constant(result, rewriter) for result in op.results])
        prune(rewriter, operands)


def _join_others(op: ConcatOp, rewriter: Rewriter) -> None:
    """A concat -> the concat of the parts that have elements, or the only one of them."""
    operands = op.inputs
    parts = [part for part in operands if part.type.size]
    if len(parts) < len(operands) and rewriter.commit(_RULE, op):
        joined = parts[0] if len(parts) == 1 else rewriter.create(ConcatOp, parts, op.attrs).result
        rewriter.replace(op, joined)
        prune(rewriter, operands)


def _read_constants(op: Op, rewriter: Rewriter) -> None:
    """An op that reads inputs without elements -> the same op, which reads constants."""
    for index, value in enumerate(op.operands):
        if value is not None and not value.type.size and value.op is None and rewriter.commit(_RULE, op):
            rewriter.set_operand(op, index, _constant(value, rewriter))


def _constant(value: Value, rewriter: Rewriter) -> Value:
    type = value.type.logical
    return rewriter.full(torch.zeros((), dtype=type.dtype.torch).item(), type)
