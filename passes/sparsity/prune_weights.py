"""Set single weights to zero, the least important first.

Before::

    %1 = linear(%x, %fc.weight, %fc.bias)             : f32[128,1536]

After, with as many zeros in the weight as are asked for::

    %1 = linear(%x, %fc.weight..zeroed, %fc.bias)     : f32[128,1536]

A pattern says which weights are zero together (`patterns`), a criterion how much the network would miss each
(`criteria`), and scope, a scan or a table how many of each layer go (`shares`). The pass makes zeros in place: shapes,
ops and names of weights stay. Zeros make a model smaller to store and to send. Most make it no faster, since kernels
multiply by them. Kernels leave out whole blocks of zeros: with ``pattern=block`` layers say where these are, and the
referee decides (`blocks`, `tersor.passes.referee`): with ``keep=faster`` a layer keeps its weights unless it is faster
without the blocks.

Layers that share a weight get the same zeros; other readers of it keep the weight as it was. Groups made by ``fuse``
are taken apart first and fused again afterwards. Weights that are zero already go first, so a second run changes
nothing. Refused, with the reason in the report: weights that are computed, of integers, or not finite. Fails after
``layout``, and where no layer has a weight that could get zeros. The report says for each weight how many numbers stay,
and how far the outputs are from those before, which says little until the network is fine-tuned (docs/compression.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar

import torch

from ...ir import Graph, Op, Rewriter, TersorError, weights_loaded
from ...ir.ops import FusedOp, RelayoutOp
from ..base import Exactness, Pass, PassContext, Result
from ..fuse import Fuse
from ..numeric import first_batch, largest_deviation
from ..pruning.gradients import find_loss
from ..pruning.select import Scope
from ..referee import Keep, Referee
from ..registry import register_pass
from ..sensitivity import read_scan
from ..unfuse import take_apart
from .blocks import BlockWeight, judged, put_blocks, twins_of
from .criteria import WeightScoring, find_weight_criterion, needs_data, score_weights
from .criteria.registry import WEIGHT_CRITERIA
from .patterns import PATTERNS, ZeroPattern, parse_pattern
from .reconstruction import WEIGHT_RECONSTRUCTIONS
from .refit import refitted, refusal
from .shares import WantedZeros, units_that_go
from .weights import LayerWeight, find_weights

_RULE = "prune-weights"
_LANES = 16  # outputs of a block where no target says so
_RATIO = 0.5  # where nothing is asked for

_Zeros = tuple[torch.Tensor, int]  # which numbers of a weight stay, and how many units go


@register_pass(_RULE, purpose="prune")
class PruneWeights(Pass):
    """Set the least important weights of layers to zero.

    Attributes
    ----------
    ratio
        Share of the weights that is zero afterwards, above 0 and below 1; 0.5 if nothing else is asked for. One number,
        or a table by names of layers, as in {features.3: 0.25, "classifier*": 0}.
    pattern
        Which weights are zero together: single; nm:2:4 for at most two of each four inputs that are not zero;
        block:4x16 for 4 inputs times 16 outputs, which kernels leave out; block:4 with as many outputs as a vector has.
    criterion
        What importance is: a name, or a function as ``package.module:function``.
    loss
        For criteria that need gradients (obd): a function as ``package.module:function``, which takes what the model
        returns and the number of the calibration batch, and returns one number. Without it, the distance of the
        outputs to those of the network as it is.
    reconstruct
        How zeros are chosen by what layers return on calibration data, whose weights are then fitted by least squares:
        obc takes one after another and updates the others; refit keeps the choice of the criterion.
    scope
        Whether weights are compared in the whole network, or every layer loses the same share.
    sensitivity
        A file that ``tersor analyze sensitivity`` wrote: every layer loses what costs it the same by itself, and the
        criterion says which weights these are.
    skip
        Names of layers that keep all their weights; ``*`` stands for anything, as in ``skip=[features.0,layer4.*]``.
    floor
        Smallest fraction of a layer's weights that stays.
    seed
        For criteria that draw numbers.
    keep
        With pattern=block: whether only layers get zeros that the target measures faster then, or all.
    """

    ratio: float | dict[str, float] | None = None
    pattern: Annotated[str, PATTERNS] = "single"
    criterion: Annotated[str, WEIGHT_CRITERIA] = "l1"
    loss: str | None = None
    reconstruct: Annotated[str | None, WEIGHT_RECONSTRUCTIONS] = None
    scope: Scope = Scope.GLOBAL
    sensitivity: str | None = None
    skip: tuple[str, ...] = ()
    floor: float = 0.01
    seed: int = 0
    keep: Keep = Keep.FASTER

    exactness = Exactness.APPROXIMATE
    may_change_all = True  # before fine-tuning
    measures = True
    advice: ClassVar[Mapping[str, str]] = {"keep": "layers that keep all their weights are named by skip=[…]"}

    def __post_init__(self) -> None:
        pattern = parse_pattern(self.pattern)
        if not 0 <= self.floor < 1:
            raise ValueError(f"floor is a fraction of weights, from 0 to below 1, not {self.floor:g}")
        if pattern.fixed and (self.ratio is not None or self.sensitivity is not None):
            raise ValueError(f"pattern={self.pattern} says itself how many weights go; leave ratio and sensitivity out")
        for share in self.ratio.values() if isinstance(self.ratio, dict) else ():
            if not 0 <= share < 1:
                raise ValueError(f"ratio is the share of weights that becomes zero, from 0 to below 1, not {share:g}")
        if isinstance(self.ratio, dict) and self.sensitivity is not None:
            raise ValueError("sensitivity says how much of each layer goes: give one ratio for all, not a table")
        if isinstance(self.ratio, float) and not 0 < self.ratio <= 1 - self.floor:
            raise ValueError(
                f"ratio is the share of weights that becomes zero, above 0 and at most {1 - self.floor:g}, since"
                f" floor={self.floor:g} of each layer stays, not {self.ratio:g}"
            )
        if self.sensitivity is not None:
            if self.scope is Scope.LAYER:
                raise ValueError("sensitivity says how much of each layer goes; leave scope=layer out")
            read_scan(self.sensitivity)
        find_weight_criterion(self.criterion)
        if self.reconstruct is not None:
            WEIGHT_RECONSTRUCTIONS.find(self.reconstruct)
        find_loss(self.loss)

    @property
    def needs_data(self) -> bool:
        return self.reconstruct is not None or needs_data(self.criterion)

    def run(self, graph: Graph, context: PassContext) -> Result:
        if not weights_loaded(graph):
            raise TersorError("the graph's weights are not loaded, so none can be set to zero")
        if any(isinstance(op, RelayoutOp) for op in graph.ops):
            raise TersorError("layouts are chosen already; run prune-weights before layout")
        planned = graph.clone()  # everything is decided here; the graph itself changes only if a weight does
        take_apart(planned, Rewriter(planned), _RULE)
        pattern = parse_pattern(self.pattern).for_lanes(context.lanes(_LANES))
        weights, refused = find_weights(planned, pattern)
        rewriter = context.rewriter(graph)
        for op, reason in refused:
            rewriter.refuse(_RULE, op, reason)
        _check(weights, refused)
        chosen = self._chosen(planned, weights, refused, pattern, context)
        numbers, fitting = self._numbers(planned, chosen, pattern, context, rewriter)
        wanted = {weight: BlockWeight.of(one, pattern.blocks) for weight, one in numbers.items()}
        changed = {weight: one for weight, one in wanted.items() if _is_new(weight, one)}
        if not changed:
            return Result(False, ("as many weights are zero already",))
        result = self._apply(graph, planned, weights, changed, context, rewriter)
        return replace(result, notes=(*fitting, *result.notes))

    def _numbers(
        self,
        graph: Graph,
        chosen: Mapping[LayerWeight, _Zeros],
        pattern: ZeroPattern,
        context: PassContext,
        rewriter: Rewriter,
    ) -> tuple[dict[LayerWeight, torch.Tensor], tuple[str, ...]]:
        """What weights become, and lines for the report; ``graph`` stays as it is."""
        zeroed = {weight: torch.where(kept, weight.numbers, 0) for weight, (kept, _) in chosen.items()}
        if self.reconstruct is None:
            return zeroed, ()
        fresh = {weight: one for weight, one in chosen.items() if not torch.equal(zeroed[weight], weight.numbers)}
        for weight in [*fresh]:
            if reason := refusal(weight):
                rewriter.refuse(_RULE, weight.layers[0], reason)
                del fresh[weight]
        choose = WEIGHT_RECONSTRUCTIONS.find(self.reconstruct)
        fitted, note = refitted(graph, fresh, pattern, choose, context)
        return zeroed | fitted, (note,)

    def _apply(
        self,
        graph: Graph,
        planned: Graph,
        weights: Sequence[LayerWeight],
        changed: Mapping[LayerWeight, BlockWeight],
        context: PassContext,
        rewriter: Rewriter,
    ) -> Result:
        batch = first_batch(graph, context.calibration)
        referee = Referee(self.keep, context.latency, context.verdicts)
        notes: tuple[str, ...] = tuple(_notes(changed))
        if any(one.blocks for one in changed.values()):
            changed, notes = judged(planned, changed, referee, batch)
            if not changed:
                return Result(False, notes)
        after = planned.clone()
        _put(changed, dict(zip(planned.ops, after.ops, strict=True)), Rewriter(after))
        error = largest_deviation(planned, after, [batch])
        apart = f"before fine-tuning, {error}" if error else ""
        if any(one.blocks for one in changed.values()):
            whole = referee.judge_whole(graph, after, apart)
            notes = (*notes, whole.note)
            if not whole.stays:
                return Result(False, notes)
        fused = take_apart(graph, rewriter, _RULE)
        if any(isinstance(op, FusedOp) for op in graph.ops):
            return Result(rewriter.changed, ("left out by the bisection limit",))
        _put(changed, dict(zip(planned.ops, graph.ops, strict=True)), rewriter)
        line = _whole_note(weights, changed)
        return Result(rewriter.changed, (f"{line}; {apart}" if apart else line, *notes), (Fuse(),) if fused else ())

    def _chosen(
        self,
        graph: Graph,
        weights: Sequence[LayerWeight],
        refused: Sequence[tuple[Op, str]],
        pattern: ZeroPattern,
        context: PassContext,
    ) -> dict[LayerWeight, _Zeros]:
        """For each weight that gets zeros, which of its numbers the criterion keeps, and how many units go."""
        scoring = WeightScoring(graph, context.calibration, self.seed, find_loss(self.loss))
        scores = score_weights(self.criterion, weights, scoring)
        units = [_unit_scores(pattern, *pair) for pair in zip(weights, scores, strict=True)]
        counts = units_that_go(weights, units, self._request(pattern), refused)
        shapes = [weight.numbers.shape for weight in weights]
        kept = [pattern.kept(*one) for one in zip(units, shapes, counts, strict=True)]
        found = zip(weights, zip(kept, counts, strict=True), strict=True)
        return {weight: zeros for weight, zeros in found if zeros[1]}

    def _request(self, pattern: ZeroPattern) -> WantedZeros:
        if pattern.fixed:  # which weights it is for is all that can be asked for
            return WantedZeros(1.0, self.skip, Scope.LAYER, 0.0, None)
        ratio = _RATIO if self.ratio is None else self.ratio
        return WantedZeros(ratio, self.skip, self.scope, self.floor, self.sensitivity)


def _unit_scores(pattern: ZeroPattern, weight: LayerWeight, scores: torch.Tensor) -> torch.Tensor:
    """Scores of the units of a weight; those that are zero already go first."""
    is_zero = pattern.units((weight.numbers == 0).double()) == 1
    return pattern.units(scores).masked_fill(is_zero, -torch.inf)


def _check(weights: Sequence[LayerWeight], refused: Sequence[tuple[Op, str]]) -> None:
    if weights:
        return
    if not refused:
        raise TersorError("nothing to prune: the graph has no convolution or linear layer")
    op, reason = refused[0]
    raise TersorError(f"nothing to prune: no layer can get zeros; {op.describe()} gets none, since {reason}")


def _is_new(weight: LayerWeight, wanted: BlockWeight) -> bool:
    is_marked = all(op.attrs.blocks == wanted.blocks for op in weight.layers) if wanted.blocks else True
    return not is_marked or not torch.equal(weight.numbers, wanted.numbers)


def _put(weights: Mapping[LayerWeight, BlockWeight], twins: Mapping[Op, Op], rewriter: Rewriter) -> None:
    """Make the changes in a copy of the graph that they were planned on; ``twins`` are its ops."""
    for weight, wanted in weights.items():
        layers = twins_of(weight.layers, twins)
        if rewriter.commit(_RULE, layers[0]):
            put_blocks(layers, wanted, rewriter)


def _whole_note(weights: Sequence[LayerWeight], changed: Mapping[LayerWeight, BlockWeight]) -> str:
    total = sum(weight.numbers.numel() for weight in weights)
    before = sum(_filled(weight.numbers) for weight in weights)
    after = sum(_filled(changed[weight].numbers if weight in changed else weight.numbers) for weight in weights)
    return f"weights that are not zero {before} -> {after} of {total} ({after / total:.3f})"


def _notes(changed: Mapping[LayerWeight, BlockWeight]) -> Iterator[str]:
    for weight, wanted in changed.items():
        left, total = _filled(wanted.numbers), wanted.numbers.numel()
        yield f"{weight.name}: {left} of {total} weights are not zero ({left / total:.3f})"


def _filled(numbers: torch.Tensor) -> int:
    return int(numbers.count_nonzero())
