"""Ops that move elements: no-ops go, chains become one op.

==================================  ==========================================================
same-shape                          reshape, permute, expand, slice, concat, pad that change nothing -> x
reshape-of-reshape                  reshape(reshape(x)) -> reshape(x)
permute-of-permute                  permute(permute(x)) -> permute(x) by the composed permutation
permute-to-reshape                  a permutation that only moves extents of 1 -> reshape(x)
expand-of-expand                    expand(expand(x)) -> expand(x)
slice-of-slice                      two ranges along one axis -> one range
implicit-broadcast                  x + expand(y) -> x + y, when x alone gives the result its shape
squeeze-reduction                   reshape(mean(x, keepdim)) -> mean(x), when the reshape drops the reduced axes
reduction-of-reduction              mean(mean(x)) -> mean(x) over both sets of axes; sums, maxima and minima too
==================================  ==========================================================
"""

from __future__ import annotations

from ...ir import IRError, Op, Rewriter, Value
from ...ir.ops import AttentionOp, BinaryOp, ConcatOp, ExpandOp, PadOp, PermuteOp, ReduceOp, ReshapeOp, SliceOp, WhereOp
from ..matching import become, rewrite


def same_shape(op: Op, rewriter: Rewriter) -> bool:
    """Movements that change nothing -> x."""
    if isinstance(op, ReshapeOp | ExpandOp | SliceOp | PadOp):
        unchanged = op.result.shape == op.x.shape  # a slice or pad that keeps the extents keeps every element
    elif isinstance(op, PermuteOp):
        unchanged = op.attrs.dims == tuple(range(op.x.type.rank))
    else:
        unchanged = isinstance(op, ConcatOp) and len(op.parts) == 1
    if not unchanged:
        return False
    return rewrite("same-shape", op, rewriter, lambda: op.inputs[0])


def reshape_of_reshape(op: Op, rewriter: Rewriter) -> bool:
    """reshape(reshape(x)) -> reshape(x)."""
    if not isinstance(op, ReshapeOp) or not isinstance(op.x.op, ReshapeOp):
        return False
    return become("reshape-of-reshape", op, rewriter, ReshapeOp, (op.x.op.x,), op.attrs)


def permute_of_permute(op: Op, rewriter: Rewriter) -> bool:
    """permute(permute(x)) -> permute(x)."""
    if not isinstance(op, PermuteOp) or not isinstance(op.x.op, PermuteOp):
        return False
    inner = op.x.op
    dims = tuple(inner.attrs.dims[dim] for dim in op.attrs.dims)
    return become("permute-of-permute", op, rewriter, PermuteOp, (inner.x,), PermuteOp.attrs_type(dims=dims))


def permute_to_reshape(op: Op, rewriter: Rewriter) -> bool:
    """A permutation that keeps the order of all extents but 1 moves no element."""
    if not isinstance(op, PermuteOp):
        return False
    moved = [dim for dim in op.attrs.dims if op.x.shape[dim] != 1]
    if moved != sorted(moved) or op.result.shape == op.x.shape:
        return False
    return become("permute-to-reshape", op, rewriter, ReshapeOp, (op.x,), ReshapeOp.attrs_type(shape=op.result.shape))


def expand_of_expand(op: Op, rewriter: Rewriter) -> bool:
    """expand(expand(x)) -> expand(x)."""
    if not isinstance(op, ExpandOp) or not isinstance(op.x.op, ExpandOp):
        return False
    return become("expand-of-expand", op, rewriter, ExpandOp, (op.x.op.x,), op.attrs)


def slice_of_slice(op: Op, rewriter: Rewriter) -> bool:
    """Two ranges along one axis -> one range."""
    if not isinstance(op, SliceOp) or not isinstance(op.x.op, SliceOp):
        return False
    inner, axis = op.x.op, op.attrs.axis
    if inner.attrs.axis != axis:
        return False
    picked = range(inner.attrs.start, inner.attrs.stop, inner.attrs.step)
    picked = picked[op.attrs.start : op.attrs.stop : op.attrs.step]
    # Where nothing is picked, the ends of the range may lie outside of the operand.
    start, stop = (picked.start, min(picked.stop, inner.x.shape[axis])) if len(picked) else (0, 0)
    attrs = SliceOp.attrs_type(axis=axis, start=start, stop=stop, step=picked.step)
    return become("slice-of-slice", op, rewriter, SliceOp, (inner.x,), attrs)


def implicit_broadcast(op: Op, rewriter: Rewriter) -> bool:
    """Elementwise ops and attention masks broadcast by themselves: they read what was expanded."""
    if not isinstance(op, BinaryOp | WhereOp | AttentionOp):
        return False
    for index, value in enumerate(op.operands):
        if value is None or not isinstance(value.op, ExpandOp) or (isinstance(op, AttentionOp) and index != 3):
            continue
        operands = (*op.operands[:index], value.op.x, *op.operands[index + 1 :])
        if _result_shape(op, operands) == op.result.shape:
            return become("implicit-broadcast", op, rewriter, type(op), operands, op.attrs)
    return False


def squeeze_reduction(op: Op, rewriter: Rewriter) -> bool:
    """reshape(mean(x, keepdim)) -> mean(x)."""
    if not isinstance(op, ReshapeOp) or not isinstance(op.x.op, ReduceOp) or not op.x.has_one_use:
        return False
    reduction = op.x.op
    axes = reduction.attrs.axes
    squeezed = tuple(extent for axis, extent in enumerate(reduction.x.shape) if axis not in axes)
    if not reduction.attrs.keepdim or op.result.shape != squeezed:
        return False
    attrs = type(reduction.attrs)(axes=axes)
    return become("squeeze-reduction", op, rewriter, type(reduction), (reduction.x,), attrs)


def reduction_of_reduction(op: Op, rewriter: Rewriter) -> bool:
    """mean(mean(x)) -> mean(x): all groups that the inner one averages have the same size."""
    if not isinstance(op, ReduceOp) or not op.x.has_one_use or type(op.x.op) is not type(op):
        return False
    inner = op.x.op
    if inner.attrs.keepdim != op.attrs.keepdim:
        return rewriter.refuse("reduction-of-reduction", op, "only one of the two keeps the reduced dimensions")
    kept = [axis for axis in range(inner.x.type.rank) if inner.attrs.keepdim or axis not in inner.attrs.axes]
    axes = tuple(sorted({*inner.attrs.axes, *(kept[axis] for axis in op.attrs.axes)}))
    attrs = type(op.attrs)(axes=axes, keepdim=op.attrs.keepdim)
    return become("reduction-of-reduction", op, rewriter, type(op), (inner.x,), attrs)


def _result_shape(op: Op, operands: tuple[Value | None, ...]) -> tuple[int, ...] | None:
    """Shape that ``op`` would have with other operands, or None if they do not fit."""
    try:
        trial = type(op)(operands, op.attrs)
    except IRError:
        return None
    shape = trial.result.shape
    trial.operands = ()  # leaves no trace in the use lists
    return shape


RULES = (
    same_shape,
    reshape_of_reshape,
    permute_of_permute,
    permute_to_reshape,
    expand_of_expand,
    slice_of_slice,
    implicit_broadcast,
    squeeze_reduction,
    reduction_of_reduction,
)
