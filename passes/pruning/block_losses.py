"""What the outputs lose without a residual block: measured on calibration data, by running the network without it.

Each batch runs through the network once, op by op, and branches off at every block: what follows is computed without it
(`tersor.passes.partial_runs`). Outputs are compared with those of the network before anything was removed, so what
blocks lose together counts, as in Song et al., "SLEB: Streamlining LLMs through Redundancy Verification and Elimination
of Transformer Blocks", ICML 2024.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from ...ir import Graph, Op, TersorError
from ..partial_runs import Change, Evaluate, Outputs, PartialRuns
from ..progress import Remaining
from .blocks import Block
from .gradients import Loss, call_loss


@dataclass(frozen=True)
class BlockLosses:
    """Measures networks without blocks.

    Attributes
    ----------
    original
        The network before anything was removed, of fixed shapes, without fused ops.
    batches
        Inputs; may be iterated repeatedly.
    loss
        The user's function, see `tersor.passes.pruning.gradients`; None for the distance of the outputs to those of
        ``original``.
    """

    original: Graph
    batches: Iterable[Sequence[torch.Tensor]]
    loss: Loss | None

    def as_it_is(self) -> float:
        """What the network loses with all its blocks."""
        if self.loss is None:
            return 0.0
        runs, found = PartialRuns(self.original), _LossSum(self.original, self.loss)
        for number, batch in enumerate(self.batches):
            found.add(number, None, runs.finish(runs.begin(batch)))
        return found.value()

    def without(self, graph: Graph, blocks: Sequence[Block], remaining: Remaining) -> list[float]:
        """What ``graph``, which may have lost blocks already, loses without each of ``blocks``.

        Returns
        -------
        For each block the user's loss, on the mean of the batches; or the mean square of the outputs' change relative
        to that of the outputs, of the output for which this is largest. Infinite where that is not finite.
        """
        runs, before = PartialRuns(graph), PartialRuns(self.original)
        at: dict[Op, list[int]] = defaultdict(list)
        for index, block in enumerate(blocks):
            at[block.add].append(index)
        sums = [self._sum() for _ in blocks]
        for number, batch in enumerate(self.batches):
            expected = None if self.loss else before.finish(before.begin(batch))
            values = runs.begin(batch)
            for place, op in enumerate(runs.ops):
                for index in at[op]:
                    change = Change(ops={op: _picking(blocks[index].stays)})
                    sums[index].add(number, expected, runs.finish(values, place, change))
                    remaining.step()
                with torch.no_grad():
                    runs.step(values, place)
        return [one.value() for one in sums]

    def _sum(self) -> _LossSum | _DistanceSum:
        return _DistanceSum() if self.loss is None else _LossSum(self.original, self.loss)


def _picking(index: int) -> Evaluate:
    return lambda *operands: operands[index]


@dataclass
class _LossSum:
    """The user's loss over batches."""

    graph: Graph
    loss: Loss
    found: list[float] = field(default_factory=list)

    def add(self, number: int, expected: Outputs | None, outputs: Outputs) -> None:
        self.found.append(call_loss(self.loss, self.graph, outputs, number).item())

    def value(self) -> float:
        total = math.fsum(self.found) / len(self.found)
        return total if math.isfinite(total) else math.inf


@dataclass
class _DistanceSum:
    """Squares of the outputs, and of their change, over batches."""

    powers: list[float] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)

    def add(self, number: int, expected: Outputs | None, outputs: Outputs) -> None:
        assert expected is not None
        if not self.powers:
            self.powers, self.noise = [0.0] * len(expected), [0.0] * len(expected)
        for index, (exact, found) in enumerate(zip(expected, outputs, strict=True)):
            if bool(exact.isnan().any()):
                raise TersorError(
                    f"calibration batch {number} makes outputs that are not a number (NaN), so nothing can be compared;"
                    " look at the data, and at the weights"
                )
            there = exact.isfinite()
            self.powers[index] += exact[there].double().square().sum().item()
            self.noise[index] += (exact[there].double() - found[there].double()).square().sum().item()

    def value(self) -> float:
        shares = [noise / (power or 1.0) for noise, power in zip(self.noise, self.powers, strict=True)]
        return max(shares) if all(map(math.isfinite, shares)) else math.inf
