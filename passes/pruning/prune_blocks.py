"""Remove whole residual blocks, those first that cost the outputs least for what they save.

Before::

    %1 = relu(%x)                    : f32[1,64,56,56]
    %2 = conv2d(%1, %w1, %b1)        : f32[1,64,56,56]
    %3 = relu(%2)                    : f32[1,64,56,56]
    %4 = conv2d(%3, %w2, %b2)        : f32[1,64,56,56]
    %5 = add(%1, %4)                 : f32[1,64,56,56]
    %6 = relu(%5)                    : f32[1,64,56,56]

After::

    %1 = relu(%x)                    : f32[1,64,56,56]
    %6 = relu(%1)                    : f32[1,64,56,56]

A network of residual blocks is an average of paths of many lengths, and loses little with one of them (Veit et al.,
"Residual Networks Behave Like Ensembles of Relatively Shallow Networks", NeurIPS 2016). Unlike fewer channels, fewer
layers save what a call of a kernel costs, and leave all shapes as they are. What a block is, `blocks` says; attention
and the layers behind it are two blocks of a transformer.

Blocks go one after another (`block_search`), by what the outputs lose on calibration data (`block_losses`). With
``keep=faster``, a block stays where the target does not measure a call faster without it (`tersor.passes.referee`).

Fails when the graph has no block, when what is asked for cannot be reached, and after ``layout``. The report has a line
for every block that went, with what it cost and saved, and for every other, with what it would cost by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ...ir import Graph, Rewriter, TersorError, weights_loaded
from ...ir.ops import RelayoutOp
from ..base import Exactness, Pass, PassContext, Result
from ..dce import DeadCodeElimination
from ..fuse import Fuse
from ..referee import Keep, Referee
from ..registry import register_pass
from ..unfuse import take_apart
from .block_search import RULE, BlockSearch, Goal, remove
from .blocks import Block
from .budgets import check_left
from .gradients import find_loss

_MACS = 0.75  # where nothing is asked for


@register_pass(RULE, purpose="prune")
class PruneBlocks(Pass):
    """Remove the residual blocks that cost the outputs least for what they save.

    Attributes
    ----------
    macs
        Ratio of the graph's multiply-adds that is left at most, between 0 and 1; 0.75 if nothing else is asked for.
    latency
        Ratio of the graph's measured time that is left, between 0 and 1; needs a target whose code runs here.
    ratio
        Share of the residual blocks that goes at least, between 0 and 1.
    count
        How many blocks go at least.
    loss
        A function as ``package.module:function``, which takes what the model returns and the number of the calibration
        batch, and returns one number. Without it, the distance of the outputs to those of the network as it is.
    skip
        Names of blocks, or of layers in them, that stay; ``*`` stands for anything, as in ``skip=[layer4.*]``.
    keep
        Whether only blocks go whose absence the target measures faster, or all that were chosen.
    """

    macs: float | None = None
    latency: float | None = None
    ratio: float | None = None
    count: int | None = None
    loss: str | None = None
    skip: tuple[str, ...] = ()
    keep: Keep = Keep.FASTER

    exactness = Exactness.APPROXIMATE
    may_change_all = True  # before fine-tuning
    measures = True
    advice: ClassVar[Mapping[str, str]] = {"keep": "blocks that stay are named by skip=[…]"}

    def __post_init__(self) -> None:
        check_left(macs=self.macs, latency=self.latency)
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ValueError(f"ratio is the share of blocks that goes, above 0 and up to 1, not {self.ratio:g}")
        if self.count is not None and self.count < 1:
            raise ValueError(f"count is how many blocks go, 1 or more, not {self.count}")
        find_loss(self.loss)

    @property
    def needs_data(self) -> bool:
        return True

    def run(self, graph: Graph, context: PassContext) -> Result:
        if not weights_loaded(graph):
            raise TersorError("the graph's weights are not loaded, so no block can be tried")
        if any(isinstance(op, RelayoutOp) for op in graph.ops):
            raise TersorError("layouts are chosen already; run prune-blocks before layout")
        if self.latency is not None and context.latency is None:
            raise TersorError(
                f"latency={self.latency:g} needs a clock: name a target whose code runs on this machine, such as"
                " x86:native, or ask for macs instead"
            )
        planned = graph.clone()  # everything is decided here; the graph itself changes only if a block goes
        take_apart(planned, Rewriter(planned), RULE)
        DeadCodeElimination().run(planned, PassContext())
        search = BlockSearch(planned, context, self.skip, self.keep, find_loss(self.loss))
        search.run(self._goals(search))
        if not search.gone:
            return Result(False, search.notes())
        whole = Referee(self.keep, context.latency, context.verdicts).judge_whole(
            graph, search.working, f"before fine-tuning, {search.deviation()}"
        )
        if not whole.stays:
            return Result(False, (whole.note, *search.notes()))
        rewriter = context.rewriter(graph)
        fused = take_apart(graph, rewriter, RULE)
        swept = DeadCodeElimination().run(graph, context)
        if len(graph) != len(planned):
            return Result(rewriter.changed or swept.changed, ("left out by the bisection limit",))
        twins = dict(zip(planned.ops, graph.ops, strict=True))
        for block in search.gone:
            remove(twins[search.origins[block.add]], block.stays, rewriter)
        return Result(rewriter.changed or swept.changed, (whole.note, *search.notes()), (Fuse(),) if fused else ())

    def _goals(self, search: BlockSearch) -> list[Goal]:
        """What is asked for; multiply-adds if nothing is."""
        macs, blocks = self.macs, len(search.blocks)
        if self.macs is self.latency is self.ratio is self.count is None:
            macs = _MACS
        goals = []
        if self.count is not None:
            goals.append(Goal(f"count={self.count}", "blocks", blocks, self.count, lambda block: 1))
        if self.ratio is not None:
            goals.append(Goal(f"ratio={self.ratio:g}", "blocks", blocks, self.ratio * blocks, lambda block: 1))
        if macs is not None:
            whole = search.working.cost().macs
            goals.append(Goal(f"macs={macs:g}", "multiply-adds", whole, (1 - macs) * whole, Block.macs))
        if self.latency is not None:
            seconds = search.seconds_of_network()
            wanted = (1 - self.latency) * seconds
            option = f"latency={self.latency:g}"
            goals.append(Goal(option, "measured time", seconds, wanted, search.seconds, self.latency))
        return goals
