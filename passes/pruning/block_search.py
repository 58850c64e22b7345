"""Which residual blocks go: one after another, until all that was asked for is saved.

Each time it is the one whose loss, for what it saves of what is still missing, is the least. All blocks that are left
are tried again without it, since a block often makes up for another one that is gone, but not for two. With ``latency``
blocks are measured by themselves, and the network as a whole when they seem to be enough; if it takes more than
`TOLERANCE` too long, what is missing is asked for again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ...ir import Graph, Op, Rewriter, TersorError, suggest
from ...ir.binding import bind_with_map, hints
from ..base import PassContext
from ..matching import rewrite
from ..numeric import CalibrationBatches, Deviation, first_batch, largest_deviation
from ..progress import Remaining
from ..referee import Keep, Referee, Trial
from .block_losses import BlockLosses
from .blocks import Block, find_blocks
from .gradients import Loss

RULE = "prune-blocks"
TOLERANCE = 0.03  # relative, of the measured time
_SLACK = 1e-9  # relative: shares are rounded
_SHOWN = 3


@dataclass
class Goal:
    """Something of which so much is to be saved.

    Attributes
    ----------
    option, noun
        As the user wrote it, and what is saved, for messages.
    whole
        What there is.
    wanted
        How much of it is to be saved.
    saves
        What a block saves.
    left
        Of a goal about time: the share that may be left of the network as a whole, which is measured in the end.
    saved
        What is saved so far.
    """

    option: str
    noun: str
    whole: float
    wanted: float
    saves: Callable[[Block], float]
    left: float | None = None
    saved: float = 0.0

    @property
    def is_met(self) -> bool:
        """Whether enough is saved."""
        return self.wanted - self.saved <= self.whole * _SLACK

    def gain(self, block: Block) -> float:
        """What a block saves of what is missing, as a share of the whole."""
        if self.is_met:
            return 0.0
        return max(0.0, min(self.saves(block), self.wanted - self.saved)) / self.whole


class BlockSearch:
    """Finds the blocks that go.

    Parameters
    ----------
    planned
        The graph without fused and dead ops; stays as it is.
    context
        Of the pass.
    skip
        Patterns of blocks that stay.
    keep
        Whether blocks stay that are not faster gone.
    loss
        The user's, or None for the distance of the outputs.

    Attributes
    ----------
    working
        A copy of fixed shapes, which loses the blocks.
    origins
        For ops of the copy, those of ``planned``.
    blocks
        All there are.
    gone
        Those that go, in this order.
    """

    def __init__(
        self, planned: Graph, context: PassContext, skip: Sequence[str], keep: Keep, loss: Loss | None
    ) -> None:
        self._context, self._skip, self._keep, self._loss = context, skip, keep, loss
        self.working, self.origins = bind_with_map(planned, hints(planned))
        self._original, _ = bind_with_map(planned, hints(planned))
        at_all_shapes = {(block.add, block.stays) for block in find_blocks(planned)}
        found = find_blocks(self.working)
        self.blocks = [block for block in found if (self.origins[block.add], block.stays) in at_all_shapes]
        self.gone: list[Block] = []
        self._lines: list[str] = []
        self._why: dict[Block, str] = {}  # why a block stays
        self._seconds: dict[Block, float] = {}

    def run(self, goals: Sequence[Goal]) -> None:
        """Choose blocks that reach all goals, and take them from ``working``.

        Raises
        ------
        TersorError
            When there is no block, a pattern matches none, the goals cannot be reached, or no network without a block
            makes finite numbers.
        """
        if not self.blocks:
            raise TersorError("nothing to prune: no sum of a value and of what layers make of it, whose types agree")
        _check_patterns(self._skip, self.blocks)
        free = [block for block in self.blocks if not self._is_skipped(block) and not self._is_slow(block)]
        losses = BlockLosses(self._original, CalibrationBatches(self._original, self._context.calibration), self._loss)
        remaining = Remaining(self._context.progress, "networks without a block", None)
        now = losses.as_it_is()
        while self._is_missing(goals):
            gains = {block: sum(goal.gain(block) for goal in goals) for block in free if block.is_there}
            tried = [block for block, gain in gains.items() if gain]
            if not tried:
                self._end(goals)
                return
            found = dict(zip(tried, losses.without(self.working, tried, remaining), strict=True))
            best = min(tried, key=lambda block: (found[block] - now) / gains[block])
            if not math.isfinite(found[best]):
                raise TersorError(f"outputs are not finite without {best.name}, nor without any other block")
            if not self.gone:
                self._why |= {block: f"{self._told(loss)} without it alone" for block, loss in found.items()}
            now = found[best]
            self._take(best, now, goals)

    def _is_skipped(self, block: Block) -> bool:
        found = next((pattern for pattern in self._skip if _matches(block, pattern)), None)
        if found is not None:
            self._why[block] = f"skip {found!r}"
        return found is not None

    def _is_slow(self, block: Block) -> bool:
        """Whether the target does not measure it faster gone."""
        latency = self._context.latency
        if latency is None or self._keep is Keep.ALL:
            return False
        pair = latency.compare(*block.alone())
        if pair.after < pair.before * (1 - pair.noise):
            return False
        self._why[block] = "a call is not faster without it"
        return True

    def _is_missing(self, goals: Sequence[Goal]) -> bool:
        """Whether more must go: by the sums of what blocks save, and then by the time of the whole network."""
        if any(not goal.is_met for goal in goals):
            return True
        for goal in goals:
            if goal.left is not None and self._context.latency is not None:
                pair = self._context.latency.compare(self._original, self.working)
                share = pair.after / pair.before
                if share > goal.left * (1 + TOLERANCE):
                    goal.wanted = goal.saved + (share - goal.left) * goal.whole
                    return True
                self._lines.append(f"{goal.option}: {share:.3f} of the time measured")
        return False

    def _take(self, block: Block, loss: float, goals: Sequence[Goal]) -> None:
        """Remove a block from ``working``, and note what that costs and saves."""
        for goal in goals:
            goal.saved += goal.saves(block)
        referee = Referee(Keep.ALL, self._context.latency, self._context.verdicts)  # what is not faster is not tried
        remark = f"{self._told(loss)} without it and those before"
        self._lines.append(referee.judge(Trial(block.name, (block.alone(),), remark=remark)).note)
        remove(block.add, block.stays, Rewriter(self.working))
        self.gone.append(block)

    def _end(self, goals: Sequence[Goal]) -> None:
        """Say that a goal is not met: an error, unless the clock keeps blocks that could go."""
        goal = next(goal for goal in goals if not goal.is_met)
        left = 1 - goal.saved / goal.whole
        reached = f"{left:.3f} of the {goal.noun} remain without {len(self.gone)} of {len(self.blocks)} blocks"
        slow = sum(why.startswith("a call") for why in self._why.values())
        if not slow:
            raise TersorError(
                f"{goal.option} cannot be reached: {reached}, and no other can go; ask for less, or prune channels too"
            )
        self._lines.append(f"{goal.option} is not reached: {reached}, and {slow} would be no faster gone")

    def seconds(self, block: Block) -> float:
        """Measured seconds that are saved without a block."""
        assert self._context.latency is not None
        if block not in self._seconds:
            pair = self._context.latency.compare(*block.alone())
            self._seconds[block] = pair.before - pair.after
        return self._seconds[block]

    def seconds_of_network(self) -> float:
        """Measured seconds of the network as it is."""
        assert self._context.latency is not None
        return self._context.latency.graph_seconds(self._original)

    def deviation(self) -> Deviation | None:
        """How far the outputs are from those before, on the first batch."""
        batch = first_batch(self._original, self._context.calibration)
        return largest_deviation(self._original, self.working, [batch])

    def notes(self) -> tuple[str, ...]:
        """A line for each block: those that go, then those that stay."""
        stay = [f"{block.name} stays: {why}" for block, why in self._why.items() if block not in self.gone]
        return (f"{len(self.gone)} of {len(self.blocks)} blocks go", *self._lines, *stay)

    def _told(self, loss: float) -> str:
        return f"outputs {math.sqrt(loss):.3g} off" if self._loss is None else f"loss {loss:.4g}"


def _matches(block: Block, pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in (block.name, *block.layers))


def _check_patterns(patterns: Sequence[str], blocks: Sequence[Block]) -> None:
    for pattern in patterns:
        if not any(_matches(block, pattern) for block in blocks):
            names = [block.name for block in blocks]
            hint = suggest(pattern, names)
            hint = hint if hint.startswith("; did you mean") else f"; blocks are called {', '.join(names[:_SHOWN])}"
            raise TersorError(f"skip: {pattern!r} matches no residual block{hint}")


def remove(add: Op, stays: int, rewriter: Rewriter) -> None:
    """Put what stays of a block in the place of its sum, and remove what nobody reads any more."""
    kept = add.operands[stays]
    assert kept is not None
    rewrite(RULE, add, rewriter, lambda: kept)
