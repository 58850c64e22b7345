"""Operators that make tensors out of numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch._ops import OpOverload

from ...ir import Value
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
        placement = {"device": "cpu", "dtype": ctx.dtype.torch, "pin_memory": False, "layout": torch.strided}
        return ctx.constant(overload(*args, **placement), name)

    return convert


# Tensors without operands are computed now and kept as weights.
_FACTORIES = (
    aten.arange.default,
    aten.arange.start,
    aten.arange.start_step,
    aten.linspace.default,
    aten.eye.default,
    aten.eye.m,
    aten.tril_indices.default,
    aten.triu_indices.default,
)
register_each({overload: overload for overload in _FACTORIES}, _computed)
