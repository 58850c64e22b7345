"""Remove channels, the least important first, until a ratio of the multiply-adds is left.

Before::

    %1 = conv2d(%x, %w1, %b1)                 : f32[1,64,56,56]
    %2 = relu(%1)                             : f32[1,64,56,56]
    %3 = conv2d(%2, %w2, %b2)                 : f32[1,128,56,56]

After, with 40 of the 64 channels kept::

    %1 = conv2d(%x, %w1..pruned, %b1..pruned) : f32[1,40,56,56]
    %2 = relu(%1)                             : f32[1,40,56,56]
    %3 = conv2d(%2, %w2..pruned, %b2)         : f32[1,128,56,56]

A channel goes with everything that belongs to it: the filter that makes it, its bias and normalisation, its slice of
all weights that read it, and the channels of other layers that are added to it or otherwise tied (see `groups`). The
result is the network whose weights are zero at all these places, without the zeros. What is left is chosen by one
threshold for the whole network, or one share for all layers (`select`), on the scores of a criterion (`criteria`), such
that what may be left is met (`budgets`, `layer_shares`); with ``latency`` by measured time (`by_time`), with
``sensitivity`` by what each group costs alone (`equal_loss`). With ``reconstruct`` the layers that read pruned channels
get other weights, by least squares on calibration data (`rebuild`). With ``rounds`` all of this is done step by step,
with training in between (`rounds`): channels that are gone stay gone.

Groups made by ``fuse`` are taken apart first and fused again afterwards. A channel may be a group of
a group norm, an attention head or a unit of a recurrent layer, with all that belongs to it (`groups`). Layers whose
channels reach an output of the graph, or an op that reads them together (softmax), stay as they are; the report
says why. Fails when nothing can be pruned, when the ratio would empty a layer, and after ``layout``. Where the target
can be measured, the referee decides (`tersor.passes.referee`): with ``keep=faster`` a group gets its channels back
unless the layers that make and read them are faster together without (`trial`). The report gives multiply-adds,
milliseconds, parameters and what is left of each group, and how far the outputs are from those before, which says
little until the network is fine-tuned (docs/compression.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from ...ir import Graph, Rewriter, TersorError, live_ops, weights_loaded
from ...ir.foreign import UserObject
from ...ir.imports import find_function
from ...ir.ops import FusedOp, RelayoutOp, WeightOp
from ..base import Exactness, Pass, PassContext, Result
from ..fuse import Fuse
from ..numeric import CalibrationBatches, first_batch, largest_deviation
from ..referee import Keep, Referee
from ..registry import register_pass
from ..report import Staircase
from ..sensitivity import read_scan
from ..unfuse import take_apart
from .budgets import Remainder, channels_budget, check_left, macs_budget, params_budget
from .by_time import Clock
from .criteria import Scoring, find_criterion, needs_data, score
from .criteria.registry import CRITERIA
from .equal_loss import Losses, loss_note, losses_of_groups
from .gradients import find_loss
from .groups import ChannelGroup, ChannelMap, find_channels
from .layer_shares import shares_of_groups
from .rebuild import Rebuilder
from .reconstruction.registry import RECONSTRUCTIONS
from .rounds import trained
from .select import Limits, Masks, PruningSchedule, Scope, Wanted, select, stay
from .shrink import shrink, shrunk, with_numbers, without_channels
from .trial import judge_groups

_RULE = "prune-channels"
_MACS = 0.5  # where nothing is asked for
_SURGEON = "obs"  # the criterion with an update
_TRAIN = "that trains a module"
_NAMED_LAYERS = 3  # of a group, in the report


@register_pass(_RULE, purpose="prune")
class PruneChannels(Pass):
    """Remove the least important channels of all layers, with all that belongs to them.

    Attributes
    ----------
    macs
        Ratio of the graph's multiply-adds that is left at most, between 0 and 1; 0.5 if nothing else is asked for.
    params
        Ratio of the graph's parameters that is left at most, between 0 and 1.
    latency
        Ratio of the graph's measured time that is left, between 0 and 1; needs a target whose code runs here.
    ratio
        Share of the channels that goes, below 1: one number, or a table by names of layers, as in
        {features.3: 0.25, "classifier*": 0}.
    criterion
        What importance is: a name, or a function as ``package.module:function``.
    loss
        For criteria that need gradients (taylor, obd): a function as ``package.module:function``, which takes what the
        model returns and the number of the calibration batch, and returns one number. Without it, the distance of the
        outputs to those of the network as it is.
    reconstruct
        How channels are chosen by what the next layers return, which are then fitted by least squares on calibration
        data; refit keeps the choice of the criterion, without this nothing is fitted.
    sensitivity
        A file that ``tersor analyze sensitivity`` wrote: every group loses what costs it the same by itself, and the
        criterion says which channels these are.
    skip
        Names of layers that keep all their channels; ``*`` stands for anything, as in ``skip=[features.0,layer4.*]``.
    scope
        Whether channels are compared in the whole network, or every layer loses the same share.
    schedule
        With scope=layer: whether later layers lose more.
    rounds
        Prune in so many steps, by the same factor each.
    train
        A function as ``package.module:function`` that trains the module it is given, between rounds.
    floor
        Smallest fraction of a group's channels that stays.
    multiple
        Kept filters of a layer are rounded up to a multiple of this; 0 takes the target's vector width.
    seed
        For criteria that draw numbers, and for the positions of pictures that reconstruction looks at.
    keep
        Whether only groups shrink whose layers the target measures faster then, or all that were chosen.
    """

    macs: float | None = None
    criterion: Annotated[str, CRITERIA] = "l1"
    params: float | None = None
    latency: float | None = None
    ratio: float | dict[str, float] | None = None
    loss: str | None = None
    reconstruct: Annotated[str | None, RECONSTRUCTIONS] = None
    sensitivity: str | None = None
    skip: tuple[str, ...] = ()
    scope: Scope = Scope.GLOBAL
    schedule: PruningSchedule = PruningSchedule.UNIFORM
    rounds: int = 1
    train: str | None = None
    floor: float = 0.1
    multiple: int = 0
    seed: int = 0
    keep: Keep = Keep.FASTER

    exactness = Exactness.APPROXIMATE
    may_change_all = True  # before fine-tuning
    measures = True
    advice: ClassVar[Mapping[str, str]] = {"keep": "layers that keep all their channels are named by skip=[…]"}

    def __post_init__(self) -> None:
        check_left(macs=self.macs, params=self.params, latency=self.latency)
        for share in self._ratios.values():
            if not 0 <= share < 1:
                raise ValueError(f"ratio is the share of channels that goes, from 0 to below 1, not {share:g}")
        if self.ratio == 0:
            raise ValueError("ratio is the share of channels that goes, above 0, not 0: nothing would be pruned")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor is a fraction of channels, from 0 to 1, not {self.floor:g}")
        if self.multiple < 0:
            raise ValueError(f"multiple must be 1 or more, or 0 for the target's vector width, not {self.multiple}")
        if self.rounds < 1:
            raise ValueError(f"rounds is a number of steps, 1 or more, not {self.rounds}")
        if self.train is not None and self.rounds == 1:
            raise ValueError("train is for what happens between rounds; ask for rounds=2 or more")
        if self.schedule is not PruningSchedule.UNIFORM and self.scope is Scope.GLOBAL:
            raise ValueError("schedule=triangle needs scope=layer; with scope=global one threshold decides")
        if self.sensitivity is not None:
            if self.scope is Scope.LAYER or self.latency is not None:
                other = "scope=layer" if self.scope is Scope.LAYER else "latency"
                raise ValueError(f"sensitivity decides how much of each layer goes; leave {other} out")
            if isinstance(self.ratio, dict) and self.macs is self.params is None:
                raise ValueError("sensitivity needs macs or params beside a table of ratios: what is left to share out")
            read_scan(self.sensitivity)
        find_criterion(self.criterion)
        if self.reconstruct is not None:
            RECONSTRUCTIONS.find(self.reconstruct)
        find_loss(self.loss)
        _function(self.train, _TRAIN)

    @property
    def needs_data(self) -> bool:
        return self.reconstruct is not None or needs_data(self.criterion)

    @property
    def _ratios(self) -> dict[str, float]:
        """Shares of channels by patterns of names; the number for all layers has the name *."""
        return self.ratio if isinstance(self.ratio, dict) else {} if self.ratio is None else {"*": self.ratio}

    def run(self, graph: Graph, context: PassContext) -> Result:
        if not weights_loaded(graph):
            raise TersorError("the graph's weights are not loaded, so no channel can be scored or removed")
        if any(isinstance(op, RelayoutOp) for op in graph.ops):
            raise TersorError("layouts are chosen already; run prune-channels before layout")
        if self.latency is not None and context.latency is None:
            raise TersorError(
                f"latency={self.latency:g} needs a clock: name a target whose code runs on this machine, such as"
                " x86:native, or ask for macs instead"
            )
        original = graph.clone()
        rewriter = context.rewriter(graph)
        fused = take_apart(graph, rewriter, _RULE)
        _drop_dead(graph, rewriter)
        if any(isinstance(op, FusedOp) for op in graph.ops):
            return Result(rewriter.changed, ("left out by the bisection limit",))
        channels = find_channels(graph)
        _check(channels)
        for op, reason in channels.held:
            rewriter.refuse(_RULE, op, reason)
        plan = self._plan(original, graph, channels, context)
        whole = self._judge(original, graph, channels, plan, context)
        for group, mask in zip(channels.groups, plan.masks, strict=True):
            if not mask.all() and not rewriter.commit(_RULE, group.layers[0]):
                mask[:] = True
                plan.numbers = {}  # they are for all groups together
        kept = stay(channels, plan.masks)
        if not kept.all():
            shrink(graph, channels, kept, rewriter, plan.numbers)
        return Result(rewriter.changed, whole, (Fuse(),) if fused else (), self._staircases(channels, plan))

    def _plan(self, original: Graph, graph: Graph, channels: ChannelMap, context: PassContext) -> _Plan:
        """What goes, round by round; ``graph`` stays as it is."""
        plan = _Plan([np.ones(group.size, bool) for group in channels.groups])
        fixed = shares_of_groups(channels, self.skip, self._ratios_of_layers(), self.floor)
        if self.sensitivity is not None:
            plan.losses = losses_of_groups(channels, self.sensitivity, fixed)
        if self.latency is not None and context.latency is not None:
            limits = Limits(self.floor, self.multiple or context.lanes(1))
            skipped = frozenset(index for index, share in fixed.items() if not share)
            plan.clock = Clock(original, graph, channels, context.latency, limits, context.progress, skipped)
        train = _function(self.train, _TRAIN)
        rebuilder = self._rebuilder(graph, channels, context)
        for turn in range(1, self.rounds + 1):
            present = [mask.copy() for mask in plan.masks]
            plan.masks = self._choose(graph, channels, plan, context, fixed, turn)
            if context.latency and plan.clock is None:  # which knows already what is faster
                referee = Referee(self.keep, context.latency, context.verdicts)
                plan.notes = judge_groups(graph, channels, plan.masks, referee, _describe)
                plan.masks = [mask & there for mask, there in zip(plan.masks, present, strict=True)]
            if rebuilder is not None:
                rebuilder.numbers = plan.numbers
                plan.masks = rebuilder.run(plan.masks, present)
                plan.numbers = rebuilder.numbers
            if turn < self.rounds:
                plan.numbers = without_channels(graph, channels, plan.masks, plan.numbers)
                if train is not None:
                    plan.numbers = trained(graph, channels, stay(channels, plan.masks), plan.numbers, train)
        plan.notes = plan.notes or _group_notes(channels, plan.masks)
        if plan.losses:
            plan.notes = (loss_note(plan.losses, plan.masks), *plan.notes)
        if plan.clock is not None:
            plan.notes = (*plan.clock.notes, *plan.notes)
        if self.rounds > 1:
            between = "" if self.train is None else f", with training by {self.train} in between"
            plan.notes = (f"{self.rounds} rounds{between}", *plan.notes)
        if rebuilder is not None:
            plan.notes = (rebuilder.note(), *plan.notes)
        return plan

    def _rebuilder(self, graph: Graph, channels: ChannelMap, context: PassContext) -> Rebuilder | None:
        method = self.reconstruct
        if method is None and self.criterion == _SURGEON:
            method = "refit"  # its scores count on the update of what stays
        if method is None:
            return None
        batches = CalibrationBatches(graph, context.calibration)
        return Rebuilder(graph, channels, batches, RECONSTRUCTIONS.find(method), self.seed)

    def _judge(
        self, original: Graph, graph: Graph, channels: ChannelMap, plan: _Plan, context: PassContext
    ) -> tuple[str, ...]:
        """Give all channels back if the whole is slower without, in ``plan``; returns lines for the report."""
        if all(mask.all() for mask in plan.masks):
            return ("every channel stays", *(plan.notes if context.latency else ()))
        changed = shrunk(graph, channels, stay(channels, plan.masks), plan.numbers)
        error = largest_deviation(original, changed, [first_batch(original, context.calibration)])
        referee = Referee(self.keep, context.latency, context.verdicts)
        whole = referee.judge_whole(original, changed, f"before fine-tuning, {error}" if error else "")
        if not whole.stays:
            for mask in plan.masks:
                mask[:] = True
            return (whole.note, *plan.notes)
        return (whole.note, _parameters_note(original, changed), *plan.notes)

    def _choose(
        self,
        graph: Graph,
        channels: ChannelMap,
        plan: _Plan,
        context: PassContext,
        fixed: Mapping[int, float],
        turn: int,
    ) -> Masks:
        """The channels that stay in a round, of those that did so far."""
        current = with_numbers(graph, plan.numbers)
        scoring = Scoring(current, context.calibration, self.seed, find_loss(self.loss))
        scores = score(self.criterion, channels.groups, scoring)
        part = turn / self.rounds
        shares = {index: 1 - (1 - share) ** part for index, share in fixed.items()}
        if isinstance(self.ratio, float) and self.scope is Scope.LAYER:
            weights = self.schedule.weights(len(channels.groups))
            for index, weight in enumerate(weights.tolist()):
                share = 1 - (1 - min(1 - self.floor, weight * self.ratio)) ** part
                shares.setdefault(index, share)
        limits = Limits(self.floor, self.multiple or context.lanes(1))
        budgets = tuple(self._budgets(graph, channels, part))
        wanted = Wanted(budgets, limits, self.scope, self.schedule, shares, plan.losses)
        if plan.clock is not None and self.latency is not None:
            return plan.clock.choose(scores, wanted, plan.masks, self.latency**part)
        return select(channels, scores, wanted, plan.masks)

    def _budgets(self, graph: Graph, channels: ChannelMap, part: float) -> Iterator[Remainder]:
        """What may be left when a part of all rounds is over."""
        macs = self.macs
        if self.macs is self.params is self.latency is self.ratio is None:
            macs = _MACS
        if macs is not None:
            yield macs_budget(channels, macs**part)
        if self.params is not None:
            yield params_budget(graph, channels, self.params**part)
        if isinstance(self.ratio, float) and self.scope is Scope.GLOBAL:
            yield channels_budget(channels, (1 - self.ratio) ** part)

    def _staircases(self, channels: ChannelMap, plan: _Plan) -> tuple[Staircase, ...]:
        names = [_layer_names(group) for group in channels.groups]
        return () if plan.clock is None else plan.clock.staircases(plan.masks, names)

    def _ratios_of_layers(self) -> dict[str, float]:
        return self.ratio if isinstance(self.ratio, dict) else {}


@dataclass
class _Plan:
    """What is to be done.

    Attributes
    ----------
    masks
        For each group the channels that stay.
    numbers
        Weights that become others, in full extents.
    notes
        Lines for the report.
    clock
        Chooses by time, if that is asked for.
    losses
        What groups cost by themselves, if a scan was given.
    """

    masks: Masks
    numbers: dict[str, torch.Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    clock: Clock | None = None
    losses: Losses = field(default_factory=dict)


def _function(spec: str | None, purpose: str) -> Callable[..., UserObject] | None:
    return None if spec is None else find_function(spec, purpose)


def _drop_dead(graph: Graph, rewriter: Rewriter) -> None:
    """Ops that no output depends on would tie channels, as the last states of recurrent layers that nobody reads do."""
    live = live_ops(graph)
    for op in reversed(graph.ops):
        if op not in live and rewriter.commit(_RULE, op):
            rewriter.erase(op)


def _check(channels: ChannelMap) -> None:
    if channels.groups:
        return
    if not channels.layers:
        raise TersorError("nothing to prune: the graph has no convolution or linear layer")
    op, reason = channels.held[0] if channels.held else (channels.layers[0].op, "its channels must stay")
    raise TersorError(f"nothing to prune: no layer can lose channels; those of {op.describe()} stay, since {reason}")


def _group_notes(channels: ChannelMap, masks: Sequence[NDArray[np.bool_]]) -> tuple[str, ...]:
    pairs = zip(channels.groups, masks, strict=True)
    return tuple(_describe(group, mask) for group, mask in pairs if not mask.all())


def _describe(group: ChannelGroup, mask: NDArray[np.bool_]) -> str:
    return f"{mask.sum() * group.width} of {group.size * group.width} channels: {_layer_names(group)}"


def _layer_names(group: ChannelGroup) -> str:
    names = [op.location or op.describe() for op in group.layers]
    more = f" and {len(names) - _NAMED_LAYERS} more" if len(names) > _NAMED_LAYERS else ""
    return f"{', '.join(names[:_NAMED_LAYERS])}{more}"


def _parameters_note(original: Graph, graph: Graph) -> str:
    before, after = _parameters(original), _parameters(graph)
    return f"parameters {before} -> {after} ({after / before:.3f})"


def _parameters(graph: Graph) -> int:
    """Numbers in the weights that the graph reads, shared ones once."""
    ids = {op.attrs.id for op in graph.ops if isinstance(op, WeightOp)}
    return sum(graph.weights[id].numel() for id in ids)
