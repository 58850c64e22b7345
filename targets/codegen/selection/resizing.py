"""Interpolation of images, in the layout that they have."""

from __future__ import annotations

import torch

from ....ir.ops import ResizeOp
from ...templates.windows import resize
from ..group import Group
from ..kernel import FusedEpilogue, Kernel, KernelContext, anchor_type, selects
from ..views import View


@selects(ResizeOp)
def select_resize(group: Group, context: KernelContext) -> Kernel:
    """``resize`` with the epilogue fused."""
    op = group.anchor_as(ResizeOp)
    data = group.operand(0)
    block = data.type.channel_block
    rows, columns = op.taps(0), op.taps(1)
    counts = (rows.places.shape[1], columns.places.shape[1])
    spec = resize.ResizeSpec(*op.x.shape, *op.attrs.size, *counts, block, anchor_type(group, integers=True, wide=True))
    number = torch.float64 if spec.number == "float64" else torch.float32
    tables = [
        torch.cat([one.flatten() for one in (tall, wide if block else wide.t())])
        for tall, wide in ((rows.places, columns.places), (rows.weights.to(number), columns.weights.to(number)))
    ]
    epilogue = FusedEpilogue(group, context, View.whole(group.result))
    operand = context.view(data) if block else context.contiguous(data)
    return Kernel(
        "resize",
        spec,
        (operand, *tables, *epilogue.operands),
        epilogue.result,
        lambda: resize.build(spec, context.target, epilogue.build()),
        variant=epilogue.variant,
    )
