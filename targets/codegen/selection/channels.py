"""Kernels that move channels in blocked layout: the channel shuffle, and concatenations and slices within blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ....ir import Op, Value, is_constant
from ....ir.ops import ChannelShuffleOp, SliceOp
from ...templates.moves import channel_gather
from ...templates.vector.storage import STORAGE
from ..addressing import flatten_physical
from ..group import Group
from ..kernel import CompileError, Kernel, KernelContext, Operand, selects
from ..views import View


@selects(ChannelShuffleOp)
def select_channel_shuffle(group: Group, context: KernelContext) -> Kernel:
    """``channel_gather``."""
    op = group.anchor_as(ChannelShuffleOp)
    return gather_channels(op, op.parts, op.sources, context)


@selects(SliceOp)
def select_slice(group: Group, context: KernelContext) -> Kernel:
    """``channel_gather`` of a blocked operand; slices of row-major ones are views."""
    op = group.anchor_as(SliceOp)
    attrs = op.attrs
    if attrs.axis != 1:
        raise CompileError(f"{op.describe()} along axis {attrs.axis} of {op.x.type}: run the pass 'layout'")
    return gather_channels(op, (op.x,), tuple(range(attrs.start, attrs.stop, attrs.step)), context)


def gather_channels(op: Op, parts: Sequence[Value], sources: tuple[int, ...], context: KernelContext) -> Kernel:
    """The kernel that makes ``op``'s result of channels ``sources`` of the joined ``parts``."""
    type = op.result.type
    block, dtype = type.channel_block, STORAGE[type.dtype]
    if not block or any(part.type.channel_block != block and not is_constant(part) for part in parts):
        raise CompileError(f"{op.describe()} needs all tensors in channel blocks; run the pass 'layout'")
    batch, _, *spatial = type.shape
    channels = tuple(part.shape[1] for part in parts)
    spec = channel_gather.ChannelGatherSpec(batch, math.prod(spatial), channels, sources, block, dtype)
    table = channel_gather.table(spec)
    return Kernel(
        "channel_gather",
        spec,
        (*(stored(part, block, context) for part in parts), *([] if table is None else [table])),
        View.whole(op.result),
        lambda: channel_gather.build(spec, context.target),
    )


def stored(part: Value, block: int, context: KernelContext) -> Operand:
    """A part as it is stored in channel blocks; constants are packed at compile time."""
    return flatten_physical(context.constant(part), block) if is_constant(part) else context.view(part)
