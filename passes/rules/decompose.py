"""Ops without a kernel of their own, by ops that have one.

==================================  ==========================================================
softmax-last-axis                   softmax(x) along another axis -> permute(softmax(permute(x))) along the last one
log-softmax                         log_softmax(x) -> d - log(sum(exp(d))), where d = x - max(x), for float32
linear-to-matmul                    linear(x, w, b) -> matmul(x, w^T) + b for a weight that is computed from inputs
==================================  ==========================================================
"""

from __future__ import annotations

from ...ir import DType, Op, Rewriter, Value
from ...ir.ops import AddOp, ExpOp, LinearOp, LogOp, MatmulOp, MaxOp, PermuteOp, SoftmaxOp, SubOp, SumOp
from ..matching import replace


def softmax_last_axis(op: Op, rewriter: Rewriter) -> bool:
    """softmax(x) along another axis -> permute(softmax(permute(x)))."""
    if not isinstance(op, SoftmaxOp) or op.attrs.log or op.attrs.axis == op.x.type.rank - 1:
        return False
    if not rewriter.commit("softmax-last-axis", op):
        return False
    last = op.x.type.rank - 1
    swapped = list(range(last + 1))
    swapped[op.attrs.axis], swapped[last] = last, op.attrs.axis
    swap = PermuteOp.attrs_type(dims=tuple(swapped))  # its own inverse
    rows = rewriter.create(PermuteOp, (op.x,), swap).result
    shares = rewriter.create(SoftmaxOp, (rows,), SoftmaxOp.attrs_type(axis=last)).result
    replace(rewriter, op, rewriter.create(PermuteOp, (shares,), swap).result)
    return True


def log_softmax(op: Op, rewriter: Rewriter) -> bool:
    """log_softmax(x) -> d - log(sum(exp(d))), where d = x - max(x)."""
    if not isinstance(op, SoftmaxOp) or not op.attrs.log:
        return False
    if op.x.type.dtype is not DType.F32:
        return rewriter.refuse(
            "log-softmax", op, "the steps would round to a narrow type, or have no kernel for a wide one"
        )
    if not rewriter.commit("log-softmax", op):
        return False
    axis = MaxOp.attrs_type(axes=(op.attrs.axis,), keepdim=True)
    largest = rewriter.create(MaxOp, (op.x,), axis).result
    below = rewriter.create(SubOp, (op.x, largest)).result
    total = rewriter.create(SumOp, (rewriter.create(ExpOp, (below,)).result,), axis).result
    replace(rewriter, op, rewriter.create(SubOp, (below, rewriter.create(LogOp, (total,)).result)).result)
    return True


def linear_to_matmul(op: Op, rewriter: Rewriter) -> bool:
    """linear(x, w, b) -> matmul(x, w^T) + b."""
    if not isinstance(op, LinearOp) or op.x.type.rank < 2 or not _depends_on_inputs(op.weight):
        return False
    if not rewriter.commit("linear-to-matmul", op):
        return False
    product = rewriter.create(MatmulOp, (op.x, op.weight), MatmulOp.attrs_type(transpose_rhs=True)).result
    replace(rewriter, op, product if op.bias is None else rewriter.create(AddOp, (product, op.bias)).result)
    return True


def _depends_on_inputs(value: Value) -> bool:
    """Whether constant folding will leave ``value`` to be computed."""
    pending, seen = [value], set()
    while pending:
        op = (current := pending.pop()).op
        if op is None:
            return True
        if current not in seen:
            seen.add(current)
            pending.extend(op.inputs)
    return False


RULES = (softmax_last_axis, log_softmax, linear_to_matmul)
