"""``layout``: choose where each tensor's elements lie, for the whole graph at once.

Before: every value is stored row-major. After: convolutions read and write channel blocks of the target's vector width
(NCHW16c), what lies between them stays blocked where that is cheapest, and `RelayoutOp`s stand only where a value is
read in another layout than it is made in. ::

    %1 = conv2d(%x, %w)            : f32[1,64,56,56]      ->  : f32[1,64,56,56]@c16
    %2 = max_pool2d(%1)            : f32[1,64,28,28]      ->  : f32[1,64,28,28]@c16
    %3 = reshape(%2)               : f32[1,50176]         ->  %3 = relayout(%2) : f32[1,64,28,28]; reshape(%3)

The choice is the cheapest there is, by the target's `LayoutCosts`: see `tersor.passes.layout_cut` for what an op may
choose, what it costs and how the minimum is found. A value is relaid at most once, however many ops read it; graph
inputs and outputs are row-major: that is the program's contract. Layout never changes values, so the pass is exact.
Where a target's kernels take no channel blocks, as those for GPUs, everything stays row-major.

Which algorithm computes a convolution (direct, Winograd, GEMM) is no part of this problem: all of them read and write
the same blocks, so the cheapest one of each layer is cheapest in every layout, and `tersor.targets.codegen.options`
chooses it layer by layer.
"""

from __future__ import annotations

from ..ir import Graph, Op, Rewriter, Storage, TensorType, Value
from ..ir.ops import RelayoutOp
from .base import LayoutCosts, Pass, PassContext, Result
from .layout_cut import cheapest_blocked_ops, origin, reads
from .registry import register_pass


@register_pass("layout", purpose="lay out")
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
        block = self.block or context.lanes(0)
        rewriter = context.rewriter(graph)
        if not block:
            for op in graph.ops:
                if op.storage is Storage.BLOCKED:
                    rewriter.refuse("layout", op, "no target is given, nor how many channels a block has")
            return Result(False)
        costs: LayoutCosts | None = TrafficCosts() if context.target is None else context.target.layout_costs()
        if costs is None:
            return Result(False)
        blocked = cheapest_blocked_ops(graph, block, costs)
        _Assignment(rewriter, blocked, block).apply()
        return Result(rewriter.changed)


class TrafficCosts:
    """`LayoutCosts` where no target is given: bytes moved."""

    def access(self, type: TensorType) -> int:
        return type.physical_size * type.dtype.itemsize

    def relayout(self, type: TensorType, channel_block: int) -> int:
        if type.stays_in_place(channel_block):
            return 0
        return self.access(type) + self.access(type.with_layout(channel_block))


class _Assignment:
    """Carries a choice of layouts out; relayouts that exist already are used, and removed where nothing reads them."""

    def __init__(self, rewriter: Rewriter, blocked: frozenset[Op], block: int) -> None:
        self._rewriter = rewriter
        self._blocked = blocked
        self._block = block
        self._copies: dict[tuple[Value, int], Value] = {}

    def apply(self) -> None:
        graph = self._rewriter.graph
        for op in graph.ops:
            if isinstance(op, RelayoutOp):
                self._copies.setdefault((origin(op.x), op.attrs.channel_block), op.result)
            elif op.inputs:
                self._store(op, self._block if op in self._blocked else 0)
        for index, value in enumerate(graph.outputs):
            self._return(index, value)
        for op in reversed(graph.ops):
            if isinstance(op, RelayoutOp) and not op.result.uses and self._rewriter.commit("layout", op):
                self._rewriter.erase(op)

    def _store(self, op: Op, block: int) -> None:
        """Make ``op`` write its results in ``block``, and read its operands as that demands."""
        sources = [(index, origin(value), read) for index, value, read in reads(op, self._block)]
        wanted = [(index, source, read.layout(block, source)) for index, source, read in sources]
        stale = [(i, source, layout) for i, source, layout in wanted if self._find(source, layout) != op.operands[i]]
        results = [result for result in op.results if result.type.channel_block != block]
        if not (stale or results) or not self._rewriter.commit("layout", op):
            return
        for index, source, layout in stale:
            self._rewriter.set_operand(op, index, self._find(source, layout) or self._relay(source, layout))
        for result in results:
            self._rewriter.set_layout(result, block)

    def _return(self, index: int, value: Value) -> None:
        """Make output ``index`` of the graph row-major."""
        source = origin(value)
        if self._find(source, 0) is value or source.op is None or not self._rewriter.commit("layout", source.op):
            return
        self._rewriter.set_output(index, self._find(source, 0) or self._relay(source, 0, after=True))

    def _find(self, source: Value, layout: int) -> Value | None:
        """The same tensor as ``source`` in another layout, where it exists."""
        return source if source.type.channel_block == layout else self._copies.get((source, layout))

    def _relay(self, source: Value, layout: int, *, after: bool = False) -> Value:
        attrs = RelayoutOp.attrs_type(channel_block=layout)
        made = self._rewriter.create(RelayoutOp, (source,), attrs, after=after).result
        self._copies[source, layout] = made
        return made
