"""Operators that change nothing in a functional program on one device: copies, aliases, and dropout at inference."""

from __future__ import annotations

import torch

from ...ir import Value
from ..context import Context
from ..registry import DROPOUTS, Converted, converter

aten = torch.ops.aten


@converter(
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.detach_.default,
    aten.lift_fresh_copy.default,
)
def same(ctx: Context, x: Value, **options: object) -> Value:
    return x


@converter(aten._to_copy.default, aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other)
def to(ctx: Context, x: Value, *args: object, **options: object) -> Value:
    return ctx.cast(x, ctx.dtype)


@converter(*DROPOUTS)
def dropout(ctx: Context, x: Value, p: float, train: bool) -> Value:
    if train and p:
        ctx.refuse("it is in training mode; call model.eval() before torch.export.export")
    return x


@converter(aten.native_dropout.default)
def native_dropout(ctx: Context, x: Value, p: float, train: bool | None) -> Converted:
    return dropout(ctx, x, p, train is not False), None
