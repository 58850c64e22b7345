"""Operators that make tensors out of numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch._ops import OpOverload

from ...ir import Value
from ...ir.ops import AddOp, IotaOp, MulOp
from ..context import Context, Number
from ..registry import Argument, Converter, converter, register_each

aten = torch.ops.aten


def _filled(number: Number) -> Callable[..., Value]:
    def convert(ctx: Context, *args: object, **options: object) -> Value:
        return ctx.full(number, ctx.result_type)  # shape and element type are those that PyTorch computed

    return convert


register_each(
    {
        aten.zeros.default: 0,
        aten.zeros_like.default: 0,
        aten.new_zeros.default: 0,
        aten.ones.default: 1,
        aten.ones_like.default: 1,
        aten.new_ones.default: 1,
        # Their contents are undefined in PyTorch; here they are zeros.
        aten.empty.memory_format: 0,
        aten.empty_like.default: 0,
        aten.new_empty.default: 0,
    },
    _filled,
)


@converter(aten.full.default, aten.full_like.default, aten.new_full.default)
def full(ctx: Context, like: object, *args: Argument, **options: object) -> Value:
    return ctx.full(args[-1], ctx.result_type)


@converter(aten.fill.Scalar)
def fill(ctx: Context, x: Value, value: Number) -> Value:
    return ctx.full(value, ctx.result_type)


@converter(aten.fill.Tensor)
def fill_tensor(ctx: Context, x: Value, value: Value) -> Value:
    return ctx.expand(ctx.cast(value, ctx.dtype), ctx.result_type.shape)


@converter(aten.scalar_tensor.default)
def scalar_tensor(ctx: Context, number: Number, **options: object) -> Value:
    return ctx.full(number, ctx.result_type)


def _computed(overload: OpOverload) -> Converter:
    name = str(overload).split(".")[1]

    def convert(ctx: Context, *args: Argument, **options: object) -> Value:
        if ctx.result_type.symbolic or ctx.keeps_constants:
            ctx.refuse(f"its result is {ctx.result_type}; leave that extent out of the dynamic shapes")
        placement = {"device": "cpu", "dtype": ctx.dtype.torch, "pin_memory": False, "layout": torch.strided}
        return ctx.constant(overload(*args, **placement), name)

    return convert


# Tensors without operands are computed now and kept as weights.
_FACTORIES = (
    aten.linspace.default,
    aten.eye.default,
    aten.eye.m,
    aten.tril_indices.default,
    aten.triu_indices.default,
)
register_each({overload: overload for overload in _FACTORIES}, _computed)


@converter(aten.arange.default)
def arange(ctx: Context, end: Number, **options: object) -> Value:
    return arange_start_step(ctx, 0, end)


@converter(aten.arange.start, aten.arange.start_step)
def arange_start_step(ctx: Context, start: Number, end: Number, step: Number = 1, **options: object) -> Value:
    type = ctx.result_type
    if not type.symbolic and not ctx.keeps_constants:
        return ctx.constant(torch.arange(start, end, step, dtype=type.dtype.torch), "arange")
    numbers = ctx.emit(IotaOp, attrs=IotaOp.attrs_type(count=type.shape[0], dtype=type.dtype))
    if step != 1:
        numbers = ctx.emit(MulOp, numbers, ctx.operand(step, type.dtype))
    return ctx.emit(AddOp, numbers, ctx.operand(start, type.dtype)) if start != 0 else numbers
