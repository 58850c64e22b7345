"""Recognize channel shuffles, together with the concatenation before and the slices after them.

Before, as ShuffleNetV2 (Ma et al. 2018) is written in PyTorch::

    %1 = concat(%a, %b) {axis=1}
    %2 = reshape(%1) {shape=[N,2,C,H,W]}
    %3 = permute(%2) {dims=[0,2,1,3,4]}
    %4 = reshape(%3) {shape=[N,2*C,H,W]}
    %5 = slice(%4) {axis=1, start=0, stop=C}

After::

    %5 = channel_shuffle(%a, %b) {groups=2, start=0, stop=C}

Five ops of which three need row-major storage become one that stays in channel blocks, so that no layout changes around
it. The reshapes and the permute must be read by nobody else. The concatenation is taken in when only the shuffle reads
it, the slices when nothing else reads the shuffled tensor; otherwise these stay as they are.
"""

from __future__ import annotations

from ..ir import Graph, Op, Rewriter, Value
from ..ir.ops import ChannelShuffleOp, ConcatOp, PermuteOp, ReshapeOp, SliceOp
from .base import Pass, PassContext, Result
from .matching import replace
from .registry import register_pass

_RULE = "channel-shuffle"


@register_pass(_RULE, purpose="simplify")
class ChannelShuffle(Pass):
    """Replace reshape, permute, reshape by one channel shuffle, with the concatenation and slices around it."""

    def run(self, graph: Graph, context: PassContext) -> Result:
        rewriter = context.rewriter(graph)
        for op in graph.ops:
            if not isinstance(op, ReshapeOp) or op.graph is not graph:
                continue
            groups = _groups(op)
            if groups and rewriter.commit(_RULE, op):
                _rewrite(op, groups, rewriter)
        return Result(rewriter.changed)


def _groups(op: ReshapeOp) -> int:
    """Groups of the channel shuffle that ends with ``op``; 0 if there is none."""
    permute = op.x.op
    if not isinstance(permute, PermuteOp):
        return 0
    split = permute.x.op
    if not isinstance(split, ReshapeOp) or split.x.type.rank != 4 or split.x.shape != op.result.shape:
        return 0
    batch, channels, *spatial = split.x.shape
    groups = split.result.shape[1] if split.result.type.rank > 1 else 0
    fits = groups and split.result.shape == (batch, groups, channels // groups, *spatial)
    alone = split.result.has_one_use and permute.result.has_one_use
    return groups if fits and alone and permute.attrs.dims == (0, 2, 1, 3, 4) else 0


def _rewrite(op: ReshapeOp, groups: int, rewriter: Rewriter) -> None:
    source = op.x.op.x.op.x
    parts: tuple[Value, ...] = (source,)
    if isinstance(source.op, ConcatOp) and source.op.attrs.axis == 1 and source.has_one_use:
        parts = source.op.parts
    slices = [user for user in op.result.users if _picks_channels(user)]
    kind = ChannelShuffleOp.attrs_type
    if op.result.is_output or len(slices) < len(op.result.users):
        shuffled = rewriter.create(ChannelShuffleOp, parts, kind(groups=groups, start=0, stop=source.shape[1]))
        replace(rewriter, op, shuffled.result)
        return
    for user in slices:
        attrs = kind(groups=groups, start=user.attrs.start, stop=user.attrs.stop)
        shuffled = rewriter.create(ChannelShuffleOp, parts, attrs, location=user.location)
        replace(rewriter, user, shuffled.result)


def _picks_channels(op: Op) -> bool:
    return isinstance(op, SliceOp) and op.attrs.axis == 1 and op.attrs.step == 1 and op.attrs.stop > op.attrs.start
