"""Remove channels, the least important first, until a ratio of the multiply-adds is left.

Before::

    %1 = conv2d(%x, %w1, %b1)                 : f32[1,64,56,56]
    %2 = relu(%1)                             : f32[1,64,56,56]
    %3 = conv2d(%2, %w2, %b2)                 : f32[1,128,56,56]

After, with 40 of the 64 channels kept::

    %1 = conv2d(%x, %w1.pruned, %b1.pruned)   : f32[1,40,56,56]
    %2 = relu(%1)                             : f32[1,40,56,56]
    %3 = conv2d(%2, %w2.pruned, %b2)          : f32[1,128,56,56]

A channel goes with everything that belongs to it: the filter that makes it, its bias and normalisation, its slice of
all weights that read it, and the channels of other layers that are added to it or otherwise tied (see `groups`). The
result is the network whose weights are zero at all these places, without the zeros. What is left is chosen by one
threshold for the whole network (`select`) on the scores of a criterion (`criteria`).

Groups made by ``fuse`` are taken apart first and fused again afterwards. Layers whose channels reach an output of the
graph, or an op that reads all channels together (layer normalisation, softmax, attention), stay as they are; the report
says why. Fails when nothing can be pruned, when the ratio would empty a layer, and after ``layout``. Where the target
can be measured, the referee decides (`tersor.passes.referee`): with ``keep=faster`` a group gets its channels back
unless the layers that make and read them are faster together without (`trial`). The report gives multiply-adds,
milliseconds, parameters and what is left of each group, and how far the outputs are from those before, which says
little until the network is fine-tuned (docs/compression.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from ...ir import Attrs, Graph, Rewriter, TensorType, TersorError, weights_loaded
from ...ir.imports import find_function
from ...ir.ops import FusedOp, RelayoutOp, WeightOp
from ..base import Exactness, Pass, PassContext, Result
from ..fuse import Fuse
from ..matching import weight_name
from ..numeric import first_batch, largest_deviation
from ..referee import Keep, Referee
from ..registry import register_pass
from ..unfuse import take_apart
from .criteria import Scoring, find_criterion, score
from .criteria.registry import CRITERIA
from .flows import cut, flow_of
from .gradients import Loss
from .groups import ChannelGroup, ChannelMap, find_channels
from .select import Limits, select, stay
from .trial import judge_groups

_RULE = "prune-channels"
_NAMED_LAYERS = 3  # of a group, in the report


@register_pass(_RULE, purpose="prune")
class PruneChannels(Pass):
    """Remove the least important channels of all layers, with all that belongs to them.

    Attributes
    ----------
    macs
        Ratio of the graph's multiply-adds that is left at most, between 0 and 1.
    criterion
        What importance is: a name, or a function as ``package.module:function``.
    loss
        For criteria that need gradients (taylor, obd): a function as ``package.module:function``, which takes what the
        model returns and the number of the calibration batch, and returns one number. Without it, the distance of the
        outputs to those of the network as it is.
    floor
        Smallest fraction of a group's channels that stays.
    multiple
        Kept filters of a layer are rounded up to a multiple of this; 0 takes the target's vector width.
    seed
        For criteria that draw numbers.
    keep
        Whether only groups shrink whose layers the target measures faster then, or all that were chosen.
    """

    macs: float = 0.5
    criterion: Annotated[str, CRITERIA] = "l1"
    loss: str | None = None
    floor: float = 0.1
    multiple: int = 0
    seed: int = 0
    keep: Keep = Keep.FASTER

    exactness = Exactness.APPROXIMATE
    may_change_all = True  # before fine-tuning
    measures = True

    def __post_init__(self) -> None:
        if not 0 < self.macs < 1:
            raise ValueError(f"macs is the ratio of multiply-adds to leave, above 0 and below 1, not {self.macs:g}")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor is a fraction of channels, from 0 to 1, not {self.floor:g}")
        if self.multiple < 0:
            raise ValueError(f"multiple must be 1 or more, or 0 for the target's vector width, not {self.multiple}")
        find_criterion(self.criterion)
        self._loss()

    def run(self, graph: Graph, context: PassContext) -> Result:
        if not weights_loaded(graph):
            raise TersorError("the graph's weights are not loaded, so no channel can be scored or removed")
        if any(isinstance(op, RelayoutOp) for op in graph.ops):
            raise TersorError("layouts are chosen already; run prune-channels before layout")
        original = graph.clone()
        rewriter = context.rewriter(graph)
        fused = take_apart(graph, rewriter, _RULE)
        if any(isinstance(op, FusedOp) for op in graph.ops):
            return Result(rewriter.changed, ("left out by the bisection limit",))
        channels = find_channels(graph)
        _check(channels)
        for op, reason in channels.held:
            rewriter.refuse(_RULE, op, reason)
        masks = self._choose(graph, channels, context)
        notes = self._judge(original, graph, channels, masks, context)
        for group, mask in zip(channels.groups, masks, strict=True):
            if not mask.all() and not rewriter.commit(_RULE, group.layers[0]):
                mask[:] = True
        kept = stay(channels, masks)
        if not kept.all():
            shrink(graph, channels, kept, rewriter)
        return Result(rewriter.changed, notes, (Fuse(),) if fused else ())

    def _judge(
        self,
        original: Graph,
        graph: Graph,
        channels: ChannelMap,
        masks: list[NDArray[np.bool_]],
        context: PassContext,
    ) -> tuple[str, ...]:
        """Give the channels of groups back that are not worth it, in ``masks``; returns lines for the report."""
        if all(mask.all() for mask in masks):
            return ("every channel stays",)
        referee = Referee(self.keep, context.latency, context.verdicts)
        groups = judge_groups(graph, channels, masks, referee, _describe) if context.latency else ()
        changed = shrunk(graph, channels, stay(channels, masks))
        error = largest_deviation(original, changed, [first_batch(original, context.calibration)])
        whole = referee.judge_whole(original, changed, f"before fine-tuning, {error}" if error else "")
        if not whole.stays:
            for mask in masks:
                mask[:] = True
            return (whole.note, *groups)
        return (whole.note, _parameters_note(original, changed), *(groups or _group_notes(channels, masks)))

    def _choose(self, graph: Graph, channels: ChannelMap, context: PassContext) -> list[NDArray[np.bool_]]:
        scoring = Scoring(graph, context.calibration, self.seed, self._loss())
        scores = score(self.criterion, channels.groups, scoring)
        return select(channels, scores, self.macs, Limits(self.floor, self.multiple or context.lanes(1)))

    def _loss(self) -> Loss | None:
        return None if self.loss is None else find_function(self.loss, "that takes outputs and returns a loss")


def _check(channels: ChannelMap) -> None:
    if channels.groups:
        return
    if not channels.layers:
        raise TersorError("nothing to prune: the graph has no convolution or linear layer")
    op, reason = channels.held[0] if channels.held else (channels.layers[0].op, "its channels must stay")
    raise TersorError(f"nothing to prune: no layer can lose channels; those of {op.describe()} stay, since {reason}")


def shrink(graph: Graph, channels: ChannelMap, kept: NDArray[np.bool_], rewriter: Rewriter) -> None:
    """Remove channels from weights, attributes and types.

    Parameters
    ----------
    kept
        Mask over `ChannelMap.classes` of the channels that stay.
    rewriter
        In the state after a commit.
    """
    masks = {value: tuple(kept[classes] for classes in dims) for value, dims in channels.classes.items()}
    fresh: dict[str, str] = {}  # ids of cut weights: a shared weight is cut once
    for op in graph.ops:
        operands, results = [masks[value] for value in op.inputs], [masks[value] for value in op.results]
        if all(mask.all() for dims in (*operands, *results) for mask in dims):
            continue
        if isinstance(op, WeightOp):
            rewriter.update(op, _cut(graph, op, results[0], fresh))
        else:
            rewriter.update(op, flow_of(op).resize(op, operands, results[0]))


def _cut(graph: Graph, op: WeightOp, masks: Sequence[NDArray[np.bool_]], fresh: dict[str, str]) -> Attrs:
    """Attributes that name the weight without what goes, which is added to the store the first time."""
    id, dtype = op.attrs.id, op.attrs.type.dtype
    if id not in fresh:
        fresh[id] = graph.weights.add(cut(graph.weights[id], masks), weight_name(op.result, "pruned"))
    return WeightOp.attrs_type(id=fresh[id], type=TensorType(tuple(graph.weights[fresh[id]].shape), dtype))


def shrunk(graph: Graph, channels: ChannelMap, kept: NDArray[np.bool_]) -> Graph:
    """A copy of ``graph`` without the channels that go."""
    copy, mapping = graph.clone_with_map()
    classes = {mapping[value]: dims for value, dims in channels.classes.items()}
    rewriter = Rewriter(copy)
    rewriter.commit(_RULE, copy.ops[0])
    shrink(copy, replace(channels, classes=classes), kept, rewriter)
    return copy


def _group_notes(channels: ChannelMap, masks: Sequence[NDArray[np.bool_]]) -> tuple[str, ...]:
    pairs = zip(channels.groups, masks, strict=True)
    return tuple(_describe(group, mask) for group, mask in pairs if not mask.all())


def _describe(group: ChannelGroup, mask: NDArray[np.bool_]) -> str:
    names = [op.location or op.describe() for op in group.layers]
    more = f" and {len(names) - _NAMED_LAYERS} more" if len(names) > _NAMED_LAYERS else ""
    kept = f"{mask.sum() * group.width} of {group.size * group.width} channels"
    return f"{kept}: {', '.join(names[:_NAMED_LAYERS])}{more}"


def _parameters_note(original: Graph, graph: Graph) -> str:
    before, after = _parameters(original), _parameters(graph)
    return f"parameters {before} -> {after} ({after / before:.3f})"


def _parameters(graph: Graph) -> int:
    """Numbers in the weights that the graph reads, shared ones once."""
    ids = {op.attrs.id for op in graph.ops if isinstance(op, WeightOp)}
    return sum(graph.weights[id].numel() for id in ids)
