"""Let layers leave out the blocks of zeros that their weights have already.

Before::

    %1 = linear(%x, %fc.weight)
    %1 = linear(%x, %fc.weight) {blocks=[4,16,3456]}      after

For models whose weights came with zeros: pruned by ``prune-weights{pattern=block}`` and trained on (`to_torch` keeps
numbers, not attributes), or elsewhere. No number changes. For each linear layer and each convolution with a 1x1 window,
blocks of four, two and one inputs times a vector of outputs are looked at, and those taken that leave the fewest
multiply-adds. The referee decides (`tersor.passes.referee`): with ``keep=faster`` a layer leaves its zeros out if the
target measures it faster so. Infinities and NaN of the operand that zeros would make NaN of are left out with them.

Refused, with the reason in the report: layers with too few blocks of zeros, and what `BlockZeros` refuses. Fails after
``layout``.
"""

from __future__ import annotations

from ...ir import Graph, Rewriter, TersorError, weights_loaded
from ...ir.ops import FusedOp, RelayoutOp
from ..base import Exactness, Pass, PassContext, Result
from ..fuse import Fuse
from ..numeric import first_batch
from ..referee import Keep, Referee
from ..registry import register_pass
from ..unfuse import take_apart
from .blocks import BlockWeight, judged, put_blocks, twins_of
from .patterns import BlockZeros
from .weights import LayerWeight, find_weights

_RULE = "skip-zeros"
_LANES = 16  # outputs of a block where no target says so
_INPUTS = (4, 2, 1)  # of a block
_PLACE = 0.15  # what reading the place of a block costs, in multiply-adds of a vector with all positions of a tile


@register_pass(_RULE, purpose="prune")
class SkipZeros(Pass):
    """Let layers leave out blocks of zeros that are in their weights already.

    Attributes
    ----------
    most
        Largest share of the multiply-adds that may be left for a layer to be looked at.
    keep
        Whether only layers leave zeros out that the target measures faster then, or all with enough of them.
    """

    most: float = 0.7
    keep: Keep = Keep.FASTER

    exactness = Exactness.CLOSE
    measures = True

    def __post_init__(self) -> None:
        if not 0 < self.most < 1:
            raise ValueError(f"most is a share of multiply-adds, above 0 and below 1, not {self.most:g}")

    def run(self, graph: Graph, context: PassContext) -> Result:
        if not weights_loaded(graph):
            raise TersorError("the graph's weights are not loaded, so nobody knows which are zero")
        if any(isinstance(op, RelayoutOp) for op in graph.ops):
            raise TersorError("layouts are chosen already; run skip-zeros before layout")
        planned = graph.clone()
        take_apart(planned, Rewriter(planned), _RULE)
        rewriter = context.rewriter(graph)
        weights, refused = find_weights(planned, BlockZeros("1"))
        for op, reason in refused:
            rewriter.refuse(_RULE, op, reason)
        wanted: dict[LayerWeight, BlockWeight] = {}
        for weight in weights:
            if any(op.attrs.blocks for op in weight.layers):
                continue
            found = _best(weight, context.lanes(_LANES))
            share = _work(found) / weight.numbers.numel()
            if share <= self.most:
                wanted[weight] = found
            elif weight.zeros:
                rewriter.refuse(_RULE, weight.layers[0], f"{share:.3f} of its multiply-adds would be left")
        if not wanted:
            return Result(False, ("no layer has blocks of zeros that it does not leave out already",))
        referee = Referee(self.keep, context.latency, context.verdicts)
        wanted, notes = judged(planned, wanted, referee, first_batch(graph, context.calibration))
        if not wanted:
            return Result(False, notes)
        fused = take_apart(graph, rewriter, _RULE)
        if any(isinstance(op, FusedOp) for op in graph.ops):
            return Result(rewriter.changed, ("left out by the bisection limit",))
        twins = dict(zip(planned.ops, graph.ops, strict=True))
        for weight, one in wanted.items():
            layers = twins_of(weight.layers, twins)
            if rewriter.commit(_RULE, layers[0]):
                put_blocks(layers, one, rewriter)
        return Result(rewriter.changed, notes, (Fuse(),) if fused else ())


def _best(weight: LayerWeight, lanes: int) -> BlockWeight:
    """The shape of blocks that leaves the least work."""
    inputs = weight.numbers.shape[1]
    shapes = [(count, lanes) for count in _INPUTS if not inputs % count]
    return min((BlockWeight.of(weight.numbers, shape) for shape in shapes), key=_work)


def _work(weight: BlockWeight) -> float:
    inputs, outputs, kept = weight.blocks
    return kept * outputs * (inputs + _PLACE)
