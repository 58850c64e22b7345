"""Scaled dot-product attention in one kernel."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx

from ....ir import DType, TensorType, Value, is_constant
from ....ir.ops import AttentionOp
from ...templates.attention.spec import AttentionSpec
from ...templates.base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue, Expr, VectorAt
from ...templates.vector.builder import broadcast, constant
from ...templates.vector.operand_types import is_integer
from ...templates.vector.storage import NUMBERS
from ..addressing import load_operand
from ..emit import as_condition
from ..group import Group
from ..kernel import FusedEpilogue, Kernel, KernelContext, Operand, anchor_type, buffer_size, chosen_kernel, selects
from ..views import View
from .matmul import permuted_result


@selects(AttentionOp)
def select_attention(group: Group, context: KernelContext) -> Kernel:
    """An attention's kernel: heads are split and merged by strides, the mask is applied to the scores."""
    op = group.anchor_as(AttentionOp)
    dtype = anchor_type(group, ignore=(group.anchor_operand(3),), integers=True)
    query, key, value = (context.view(group.operand(index)) for index in range(3))
    if is_integer(dtype) and query.strides[-1] != 1:
        query = context.contiguous(group.operand(0))
    *batch, queries, width = query.type.shape
    result = permuted_result(group)
    spec = AttentionSpec(
        tuple(batch),
        queries,
        key.type.shape[-2],
        width,
        value.type.shape[-1],
        op.scale,
        query.strides,
        key.strides,
        value.strides,
        result.strides,
        query.offset,
        key.offset,
        value.offset,
        buffer_size(query),
        buffer_size(key),
        buffer_size(value),
        buffer_size(result),
        dtype,
        op.attrs.query_zero,
        op.attrs.value_zero,
    )
    choice = context.choose("attention", spec)
    epilogue = FusedEpilogue(group, context, result)
    mask = _Mask(op, group.anchor_operand(3), context)
    return chosen_kernel(
        choice,
        operands=(query, key, value, *mask.operands, *epilogue.operands),
        result=result,
        build=lambda: choice.template.build(spec, context.target, choice.knobs, epilogue.build(), mask.build()),
        variant=f"{mask.variant} {epilogue.variant}",
    )


class _Mask:
    """What happens to the scores: an additive or a boolean mask, and the causal one."""

    def __init__(self, op: AttentionOp, mask: Value | None, context: KernelContext) -> None:
        self._causal = op.attrs.causal
        self._view = None
        if mask is not None:
            self._view = context.contiguous(mask) if is_constant(mask) else context.view(mask)
        shape = (*op.query.shape[:-1], op.key.shape[-2])
        # The scores have no buffer of their own: a view without strides is like no operand's.
        self._scores = View(op.result, TensorType(shape), 0, ())

    @property
    def operands(self) -> tuple[Operand, ...]:
        return (self._view,) if self._view is not None else ()

    @property
    def variant(self) -> str:
        view = self._view
        return f"causal={self._causal} mask={view and (str(view.type), view.offset, view.strides)}"

    def build(self) -> Epilogue:
        if self._view is None and not self._causal:
            return NO_EPILOGUE
        buffers: tuple[BufferSpec, ...] = ()
        if self._view is not None:
            buffers = (BufferSpec("mask", buffer_size(self._view), NUMBERS[self._view.type.dtype]),)
        return Epilogue(buffers, self._apply)

    def _apply(self, score: Expr, at: VectorAt, buffers: Sequence[Buffer]) -> Expr:
        hidden = constant(float("-inf"), at.lanes)
        if self._view is not None:
            mask = load_operand(buffers[0], self._view, at, self._scores)
            boolean = self._view.type.dtype is DType.BOOL
            score = tirx.Select(as_condition(mask), score, hidden) if boolean else score + mask
        if self._causal:
            *_, query, key = at.coords
            keys = tirx.Ramp(key, 1, at.lanes) if at.lanes > 1 else key
            score = tirx.Select(tirx.LE(keys, broadcast(query, at.lanes)), score, hidden)
        return score
