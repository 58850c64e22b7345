"""Matrix products and attention."""

from __future__ import annotations

import torch

from ...ir import DType, Value
from ...ir.ops import AddOp, AttentionOp, EmbeddingOp, LinearOp, LtOp, MatmulOp, MulOp, SearchOp, WhereOp
from ..context import Context, Number
from ..registry import converter, foreign_converter

aten = torch.ops.aten


@converter(aten.linear.default)
def linear(ctx: Context, x: Value, weight: Value, bias: Value | None = None) -> Value:
    matrix = weight if len(weight.shape) == 2 else ctx.reshape(weight, (1, *weight.shape))
    row = ctx.reshape(bias, (1,)) if bias is not None and not bias.shape else bias
    return ctx.reshape(ctx.emit(LinearOp, x, matrix, row), ctx.result_type.shape)


@converter(aten.matmul.default, aten.bmm.default, aten.mm.default)
def matmul(ctx: Context, lhs: Value, rhs: Value) -> Value:
    if not lhs.shape[-1]:
        return ctx.full(0, ctx.result_type)  # sums of no products
    rows = ctx.reshape(lhs, (1, *lhs.shape)) if len(lhs.shape) == 1 else lhs
    columns = ctx.reshape(rhs, (*rhs.shape, 1)) if len(rhs.shape) == 1 else rhs
    return ctx.reshape(ctx.emit(MatmulOp, rows, columns), ctx.result_type.shape)


@converter(aten.addmm.default, aten.baddbmm.default)
def addmm(ctx: Context, x: Value, lhs: Value, rhs: Value, *, beta: Number = 1, alpha: Number = 1) -> Value:
    product = ctx.emit(MatmulOp, lhs, rhs)
    scaled = _times(ctx, product, alpha)
    return ctx.emit(AddOp, scaled, _times(ctx, x, beta)) if beta else scaled  # x may hold NaN if beta is 0


@converter(aten.addbmm.default)
def addbmm(ctx: Context, x: Value, lhs: Value, rhs: Value, *, beta: Number = 1, alpha: Number = 1) -> Value:
    """The products of a batch are summed: one product, along the batch as well."""
    batch, rows, inner = lhs.shape
    wide = ctx.reshape(ctx.permute(lhs, (1, 0, 2)), (rows, batch * inner))
    return addmm(ctx, x, wide, ctx.reshape(rhs, (batch * inner, rhs.shape[2])), beta=beta, alpha=alpha)


def _times(ctx: Context, x: Value, factor: Number) -> Value:
    return x if factor == 1 else ctx.emit(MulOp, x, ctx.operand(factor, x.type.dtype))


@converter(aten.scaled_dot_product_attention.default)
def attention(
    ctx: Context,
    query: Value,
    key: Value,
    value: Value,
    attn_mask: Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    if dropout_p:
        ctx.refuse("attention with dropout; call model.eval() before torch.export.export")
    if scale == 0:
        ctx.refuse("attention with scale 0")
    if enable_gqa:
        key, value = (_repeat_heads(ctx, x, query.shape[-3]) for x in (key, value))
    batch = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    query, key, value = (ctx.expand(x, (*batch, *x.shape[-2:])) for x in (query, key, value))
    if attn_mask is not None and attn_mask.type.dtype is not DType.BOOL:
        attn_mask = ctx.cast(attn_mask, query.type.dtype)
    attrs = AttentionOp.attrs_type(scale=float(scale or 0.0), causal=is_causal)
    return ctx.emit(AttentionOp, query, key, value, attn_mask, attrs=attrs)


def _repeat_heads(ctx: Context, x: Value, heads: int) -> Value:
    """Grouped queries: every head of ``x`` [..., H, K, D] serves heads / H heads of the query in a row."""
    *batch, own, length, size = x.shape
    if own == heads:
        return x
    spread = ctx.expand(ctx.reshape(x, (*batch, own, 1, length, size)), (*batch, own, heads // own, length, size))
    return ctx.reshape(spread, (*batch, heads, length, size))


@foreign_converter("transformers::grouped_mm_fallback.default")
def grouped_mm(ctx: Context, x: Value, weights: Value, offsets: Value) -> Value:
    """Rows [S, K], sorted by their experts, times the matrix of each row's expert: [E, K, N] to [S, N].

    ``offsets`` [E] says where the rows of each expert end; rows after all of them become zeros. Which rows an expert
    has is known at run time only. So all rows are multiplied by all matrices, and each takes its own product.
    """
    rows, (experts, inner, columns) = x.shape[0], weights.shape
    products = ctx.emit(MatmulOp, ctx.expand(ctx.reshape(x, (1, rows, inner)), (experts, rows, inner)), weights)
    numbers = ctx.constant(torch.arange(rows), "positions")
    expert = ctx.emit(SearchOp, ctx.cast(offsets, DType.I64), numbers, attrs=SearchOp.attrs_type(right=True))
    expert = ctx.cast(expert, DType.I64)
    has_one = ctx.emit(LtOp, expert, ctx.operand(experts, DType.I64))
    start = ctx.emit(MulOp, ctx.emit(WhereOp, has_one, expert, ctx.operand(0, DType.I64)), ctx.operand(rows, DType.I64))
    table = ctx.reshape(products, (experts * rows, columns))
    own = ctx.emit(EmbeddingOp, table, ctx.emit(AddOp, start, numbers))
    return ctx.emit(WhereOp, ctx.reshape(has_one, (rows, 1)), own, ctx.operand(0, ctx.dtype))
