"""Replace layers by chains of smaller ones: a weight of nearly low rank is the product of narrow weights.

Before::

    %1 = conv2d(%x, %conv.weight, %conv.bias)     : f32[1,256,14,14]      256 channels in, 3x3

After ``low-rank{method=tucker2}``, with ranks 64 and 80::

    %1 = conv2d(%x, %conv.weight.reduce)          : f32[1,64,14,14]       1x1
    %2 = conv2d(%1, %conv.weight.core)            : f32[1,80,14,14]       3x3
    %3 = conv2d(%2, %conv.weight.expand, %conv.bias)  : f32[1,256,14,14]  1x1

How a layer is taken apart is the method's business (`methods`), how much of it stays the rank rule's (`ranks`). Ranks
are rounded up to the target's vector width. The referee then decides layer by layer: with ``keep=faster`` a layer is
replaced only if the chain measures faster on the target.

Layers that share a weight are factorized once and share the factors. Groups made by ``fuse`` are taken apart first and
fused again afterwards. Refused, with the reason in the report: layers that the method is not made for, grouped ones,
weights that are no float32 constants, factors of an earlier run, and layers whose chain has no fewer multiply-adds.
Fails after ``layout`` and without weights. The report gives each layer's ranks, multiply-adds, milliseconds and output
error, on the first calibration batch or on seeded random inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch

from ...ir import Graph, Op, Rewriter, TersorError, weights_loaded
from ...ir.ops import FusedOp, RelayoutOp
from ..base import Exactness, Pass, PassContext, Result
from ..fuse import Fuse
from ..numeric import first_batch, largest_deviation
from ..referee import Keep, Referee, Trial, Verdict, output_errors
from ..registry import register_pass
from ..unfuse import take_apart
from .candidate import find_candidates
from .chain import RULE as _RULE
from .chain import Chain, alone, put_chains
from .methods import Ranks
from .methods.registry import METHODS
from .ranks import Request, parse_rank_rule
from .ranks.registry import RANK_RULES


@register_pass(_RULE, purpose="factorize")
class LowRank(Pass):
    """Replace convolutions and linear layers by chains of smaller ones.

    Attributes
    ----------
    method
        How a layer is factorized: ``svd``, ``spatial``, ``tucker2``.
    ranks
        How ranks are chosen: ``vbmf``, ``energy:0.9``, ``macs:0.5``, ``fixed:32``, ``sensitivity:scan.json``.
    keep
        Whether only layers stay that the target measures faster, or all.
    multiple
        Ranks are rounded up to a multiple of this; 0 takes the target's vector width.
    """

    method: Annotated[str, METHODS] = "tucker2"
    ranks: Annotated[str, RANK_RULES] = "vbmf"
    keep: Keep = Keep.FASTER
    multiple: int = 0

    exactness = Exactness.APPROXIMATE
    may_change_all = True  # before fine-tuning
    measures = True

    def __post_init__(self) -> None:
        METHODS.find(self.method)
        parse_rank_rule(self.ranks)
        if self.multiple < 0:
            raise ValueError(f"multiple must be 1 or more, or 0 for the target's vector width, not {self.multiple}")

    def run(self, graph: Graph, context: PassContext) -> Result:
        if not weights_loaded(graph):
            raise TersorError("the graph's weights are not loaded, so no layer can be factorized")
        if any(isinstance(op, RelayoutOp) for op in graph.ops):
            raise TersorError("layouts are chosen already; run low-rank before layout")
        rewriter = context.rewriter(graph)
        planned = graph.clone()  # everything is decided here; the graph itself changes only if something stays
        take_apart(planned, Rewriter(planned), _RULE)
        chains = self._chains(planned, context, rewriter)
        if not chains:
            return Result(False, ("no layer to factorize",))
        batch = first_batch(graph, context.calibration)
        referee = Referee(self.keep, context.latency, context.verdicts)
        verdicts = _judge(planned, chains, referee, batch)
        notes = tuple(verdict.note for verdict in verdicts.values())
        kept = {op: chain for op, chain in chains.items() if verdicts[op].stays}
        if not kept:
            return Result(False, notes)
        whole = _judge_whole(graph, planned, kept, referee, batch)
        if not whole.stays:
            return Result(False, (*notes, whole.note))
        fused = take_apart(graph, rewriter, _RULE)
        if any(isinstance(op, FusedOp) for op in graph.ops):
            return Result(rewriter.changed, ("left out by the bisection limit",))
        twins: dict[Op | None, Op] = dict(zip(planned.ops, graph.ops, strict=True))
        put_chains(graph, {twins[op]: chain for op, chain in kept.items()}, rewriter)
        return Result(rewriter.changed, (*notes, whole.note), (Fuse(),) if fused else ())

    def _chains(self, graph: Graph, context: PassContext, rewriter: Rewriter) -> dict[Op, Chain]:
        """What each layer is to become that does fewer multiply-adds then; all others are refused."""
        candidates, refused = find_candidates(graph, METHODS.find(self.method))
        for op, reason in refused:
            rewriter.refuse(_RULE, op, reason)
        request = Request(graph.cost().macs, self.multiple or context.lanes(1))
        chosen = parse_rank_rule(self.ranks).choose(candidates, request)
        chains: dict[Op, Chain] = {}
        for candidate, ranks in zip(candidates, chosen, strict=True):
            reason = _pointless(candidate.macs, ranks, 0 if ranks is None else candidate.macs_at(ranks))
            if reason or ranks is None:
                for op in candidate.layers:
                    rewriter.refuse(_RULE, op, reason)
                continue
            chain = Chain.cut(candidate.factors, ranks)
            chains.update((op, chain) for op in candidate.layers)
        return dict(sorted(chains.items(), key=lambda item: graph.ops.index(item[0])))


def _pointless(before: int, ranks: Ranks | None, after: int) -> str:
    if ranks is None:
        return "others lose less for the multiply-adds that are wanted"
    if after < before:
        return ""
    return f"at rank {_shown(ranks)} it needs {after} multiply-adds instead of {before}"


def _shown(ranks: Ranks) -> str:
    return "x".join(map(str, ranks))


def _judge(graph: Graph, chains: dict[Op, Chain], referee: Referee, batch: Sequence[torch.Tensor]) -> dict[Op, Verdict]:
    """The referee's verdict on each chain by itself."""
    pairs = {op: alone(op, chain) for op, chain in chains.items()}
    errors = output_errors(graph, {op: after for op, (_, after) in pairs.items()}, batch)
    trials = [
        Trial(f"{op.location or op.describe()} at rank {_shown(chain.ranks)}", (pairs[op],), errors[op])
        for op, chain in chains.items()
    ]
    return dict(zip(chains, referee.judge_all(trials), strict=True))


def _judge_whole(
    graph: Graph, planned: Graph, kept: dict[Op, Chain], referee: Referee, batch: Sequence[torch.Tensor]
) -> Verdict:
    changed, mapping = planned.clone_with_map()
    put_chains(changed, {mapping[op.results[0]].op: chain for op, chain in kept.items()}, Rewriter(changed))
    error = largest_deviation(graph, changed, [batch])
    return referee.judge_whole(graph, changed, f"before fine-tuning, {error}" if error else "")
