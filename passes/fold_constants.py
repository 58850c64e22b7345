"""Constant folding: evaluate at compile time what depends on constants only.

Before::

    %1 = weight {id="table"} : f32[512,384]
    %2 = slice(%1) {axis=0, start=0, stop=128}
    %3 = full {value=0.0, shape=[1,128]}
    %4 = expand(%3) {shape=[12,128]}

After::

    %1 = weight {id="table.folded"} : f32[128,384]
    %2 = full {value=0.0, shape=[12,128]}

The reference evaluation of the op computes the result. A result whose elements are all the same bits becomes ``full``,
which takes no memory; so does a weight without dimensions. An op is refused when its weights are not loaded, when the
result is above ``limit_mb``, or when it would be much larger than what it is made from (an expanded table belongs to
the kernel that reads it, not into the file).
"""

from __future__ import annotations

import torch

from ..ir import Graph, Op, Rewriter, Value, is_constant
from ..ir.ops import FullOp, WeightOp
from .base import Pass, PassContext, Result
from .matching import part_name, replace, tensor
from .registry import register_pass

_RULE = "fold-constants"
_SMALL_BYTES = 1 << 20  # results up to this size are folded however small their operands are


@register_pass(_RULE, purpose="simplify")
class FoldConstants(Pass):
    """Evaluate ops whose operands are all constant.

    Attributes
    ----------
    limit_mb
        Largest result, in megabytes (10^6 bytes).
    max_growth
        Largest ratio of a result's size to that of its operands, for results above 1 MiB.
    """

    limit_mb: float = 256.0
    max_growth: float = 2.0

    def __post_init__(self) -> None:
        if self.limit_mb <= 0 or self.max_growth <= 0:
            raise ValueError("limit_mb and max_growth must be positive")

    def run(self, graph: Graph, context: PassContext) -> Result:
        rewriter = context.rewriter(graph)
        for op in graph.ops:
            if isinstance(op, WeightOp):
                _fold_scalar_weight(op, rewriter)
            elif op.graph is graph and not isinstance(op, FullOp) and all(map(is_constant, op.inputs)):
                self._fold(op, rewriter)
        return Result(rewriter.changed)

    def _fold(self, op: Op, rewriter: Rewriter) -> None:
        if len(op.results) != 1 or op.result.type.channel_block or not op.result.uses:
            return
        if op.result.type.symbolic or any(isinstance(one.op, FullOp) and not one.op.known for one in op.inputs):
            return
        operands = [tensor(value) for value in op.operands]
        if any(value is not None and known is None for value, known in zip(op.operands, operands, strict=True)):
            rewriter.refuse(_RULE, op, "the weights are not loaded")
            return
        if op.result.type.bytes > self.limit_mb * 1e6:
            rewriter.refuse(_RULE, op, f"the result {op.result.type} is larger than {self.limit_mb:g} MB")
            return
        try:
            evaluated = op.evaluate(*operands)
        except (RuntimeError, NotImplementedError) as error:
            rewriter.refuse(_RULE, op, f"PyTorch cannot evaluate it ({error})")
            return
        result = evaluated[0] if isinstance(evaluated, tuple) else evaluated
        filled = _filled_with(result)
        if filled is None and self._grows(op):
            rewriter.refuse(_RULE, op, f"the result {op.result.type} is much larger than the operands")
            return
        if not rewriter.commit(_RULE, op):
            return
        if filled is not None:
            value = rewriter.full(filled, op.result.type.logical)
        else:
            value = rewriter.weight(result, part_name(_source(op), "folded"))
        replace(rewriter, op, value)

    def _grows(self, op: Op) -> bool:
        stored = sum(value.type.bytes for value in op.inputs if isinstance(value.op, WeightOp))
        return op.result.type.bytes > max(_SMALL_BYTES, self.max_growth * stored)


def _fold_scalar_weight(op: WeightOp, rewriter: Rewriter) -> None:
    """A weight without dimensions -> full, so that kernels take the number as an immediate."""
    numbers = tensor(op.result)
    if op.result.type.rank or numbers is None or not op.result.uses or not rewriter.commit(_RULE, op):
        return
    replace(rewriter, op, rewriter.full(numbers.item(), op.result.type))


def _filled_with(result: torch.Tensor) -> float | int | bool | None:
    """The number that fills ``result``, compared bit by bit; None if there are several."""
    if result.numel() < 2:  # one element may have any strides, and its bytes none that could be read
        return result.item() if result.numel() else None
    rows = result.contiguous().reshape(-1).view(torch.uint8).reshape(result.numel(), -1)
    return result.flatten()[0].item() if bool((rows == rows[0]).all()) else None


def _source(op: Op) -> Value:
    """The value that names the result: the first weight."""
    return next((value for value in op.inputs if isinstance(value.op, WeightOp)), (*op.inputs, op.result)[0])
