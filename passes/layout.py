"""``layout``: choose where each tensor's elements lie, for the whole graph at once.

Before: every value is stored row-major. After: convolutions read and write channel blocks of the target's vector width
(NCHW16c), everything between them stays blocked, and `RelayoutOp`s stand only where a blocked value meets an op that
needs row-major storage, or the other way round. ::

    %1 = conv2d(%x, %w)            : f32[1,64,56,56]      ->  : f32[1,64,56,56]@c16
    %2 = max_pool2d(%1)            : f32[1,64,28,28]      ->  : f32[1,64,28,28]@c16
    %3 = reshape(%2)               : f32[1,50176]         ->  %3 = relayout(%2) : f32[1,64,28,28]; reshape(%3)

Layout never changes values, so the pass is exact. A value is relaid at most once in each direction, however many ops
read it. Method: one forward sweep; an op declares through its trait `Op.storage` whether it wants blocks (convolution),
follows its operands (pooling, elementwise ops), or needs plain storage (everything else). Published as layout
propagation by Liu et al., "Optimizing CNN Model Inference on CPUs", 2019.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ir import Graph, Op, Rewriter, Storage, Value, is_constant
from ..ir.ops import FusedOp, RelayoutOp
from .base import Pass, PassContext, Result
from .registry import register_pass


@register_pass("layout")
@dataclass(frozen=True)
class Layout(Pass):
    """Choose blocked or row-major storage for every value.

    Attributes
    ----------
    block
        Channels of a block; 0 takes the vector width of the target.
    """

    block: int = 0

    def __post_init__(self) -> None:
        if self.block < 0 or self.block == 1 or self.block & (self.block - 1):
            raise ValueError(f"block must be a power of two from 2 on, or 0 for the target's, not {self.block}")

    def run(self, graph: Graph, context: PassContext) -> Result:
        block = self.block or (context.target.lanes() if context.target is not None else 0)
        rewriter = context.rewriter(graph)
        if not block:
            for op in graph.ops:
                if op.storage is Storage.BLOCKED:
                    rewriter.refuse("layout", op, "no target is given, nor how many channels a block has")
            return Result(False)
        sweep = _Sweep(graph, rewriter, block)
        for op in graph.ops:
            sweep.visit(op)
        sweep.finish()
        return Result(sweep.rewriter.changed)


class _Sweep:
    def __init__(self, graph: Graph, rewriter: Rewriter, block: int) -> None:
        self.graph = graph
        self.rewriter = rewriter
        self.block = block

    def visit(self, op: Op) -> None:
        if not op.inputs or isinstance(op, RelayoutOp):
            return
        blocked = self._wants_blocks(op)
        for index, value in enumerate(op.operands):
            if value is None or is_constant(value):
                continue
            wanted = self.block if blocked and self._takes_blocks(op, index, value) else 0
            if value.type.channel_block != wanted:
                self._relay(op, index, value, wanted)
        for result in op.results:
            if result.type.channel_block != (self.block if blocked else 0) and self.rewriter.commit("layout", op):
                self.rewriter.set_layout(result, self.block if blocked else 0)

    def finish(self) -> None:
        """Graph outputs are row-major: that is the program's contract."""
        for index, value in enumerate(self.graph.outputs):
            if value.type.channel_block and value.op is not None and self.rewriter.commit("layout", value.op):
                self.rewriter.set_output(index, self._relaid(value, 0) or self._relayout(value, 0, after=True))

    def _wants_blocks(self, op: Op) -> bool:
        members = op.body.ops if isinstance(op, FusedOp) and op.body is not None else (op,)
        storages = {member.storage for member in members if member.inputs}
        if Storage.PLAIN in storages or any(result.type.rank not in (2, 4) for result in op.results):
            return False
        if Storage.BLOCKED in storages:
            return True
        return any(value.type.channel_block and value.type.rank == 4 for value in op.inputs)

    def _takes_blocks(self, op: Op, index: int, value: Value) -> bool:
        if value.type.rank not in (4, op.results[0].type.rank):
            return False
        anchor = op.anchor if isinstance(op, FusedOp) else op
        narrow = anchor is not None and anchor.reads_narrow_plain and index == 0 and value.shape[1] < self.block
        return not narrow or value.type.channel_block > 0

    def _relay(self, op: Op, index: int, value: Value, wanted: int) -> None:
        if self.rewriter.commit("layout", op):
            self.rewriter.set_operand(op, index, self._relaid(value, wanted) or self._relayout(value, wanted))

    def _relaid(self, value: Value, wanted: int) -> Value | None:
        """The same tensor in the wanted layout, where it exists already."""
        if isinstance(value.op, RelayoutOp) and value.op.x.type.channel_block == wanted:
            return value.op.x
        return next(
            (u.result for u in value.users if isinstance(u, RelayoutOp) and u.attrs.channel_block == wanted), None
        )

    def _relayout(self, value: Value, wanted: int, *, after: bool = False) -> Value:
        attrs = RelayoutOp.attrs_type(channel_block=wanted)
        return self.rewriter.create(RelayoutOp, (value,), attrs, after=after).result
