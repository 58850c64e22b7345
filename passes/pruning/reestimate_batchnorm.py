"""Measure the statistics of batch normalisations again, on calibration data.

Before::

    %2 = batch_norm(%1, %mean, %variance, %gamma, %beta)

After::

    %2 = batch_norm(%1, %mean..reestimated, %variance..reestimated, %gamma, %beta)

After pruning or factorizing, activations have other means and variances than those that were stored in training; the
right ones often recover much of the accuracy without any training (Li et al., "EagleEye", ECCV 2020).

Calibration batches run through the graph in chunks. Within a chunk all batches pass an op before the next op, so that a
batch normalisation sees them all, is measured, and passes them on normalised by what was measured, as in training with
the chunk as the batch. Statistics are averaged over the chunks; the stored variance is the unbiased one, as in PyTorch.
Memory holds the activations of one chunk. Statistics that several normalisations share become one for each.

Fails without calibration data, with data that does not fit or leads to activations that are not finite (the layer is
named), and when no batch normalisation is left, since O2 and O3 fold them.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ...ir import Graph, Op, Rewriter, TersorError, Value, evaluate_op
from ...ir.ops import BatchNormOp
from ..base import Exactness, Pass, PassContext, Result
from ..matching import prune, weight_name
from ..numeric import calibration_batches
from ..registry import register_pass

_RULE = "reestimate-batchnorm"
Batch = Sequence[torch.Tensor]


@register_pass(_RULE, purpose="prune")
class ReestimateBatchNorm(Pass):
    """Measure means and variances of batch normalisations again, on calibration data.

    Attributes
    ----------
    chunk
        Batches that are normalised together, and whose activations are in memory together.
    """

    chunk: int = 32

    exactness = Exactness.APPROXIMATE
    may_change_all = True  # data may have any statistics
    repairs = True

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"chunk is a number of batches, 1 or more, not {self.chunk}")

    @property
    def needs_data(self) -> bool:
        return True

    def run(self, graph: Graph, context: PassContext) -> Result:
        norms = [op for op in graph.ops if isinstance(op, BatchNormOp)]
        if not norms:
            raise TersorError(
                "no batch normalisation is left to measure; put reestimate-batchnorm before fold-batchnorm (O2, O3)"
            )
        found: dict[Op, list[BatchMoments]] = defaultdict(list)
        count = 0
        for batches in _chunks(graph, context, self.chunk):
            count += len(batches)
            for op, moments in _measure(graph, batches).items():
                found[op].append(moments)
        rewriter = context.rewriter(graph)
        for op in norms:
            if rewriter.commit(_RULE, op):
                _store(op, found[op], rewriter)
        return Result(rewriter.changed, (f"{len(norms)} batch normalisations measured on {count} batches",))


@dataclass(frozen=True)
class BatchMoments:
    """Mean and biased variance of each channel over ``count`` numbers, in float64."""

    mean: torch.Tensor
    variance: torch.Tensor
    count: int


def _chunks(graph: Graph, context: PassContext, size: int) -> Iterator[list[Batch]]:
    batches = iter(calibration_batches(graph, context.calibration))
    while chunk := list(itertools.islice(batches, size)):
        yield chunk


def _measure(graph: Graph, batches: Sequence[Batch]) -> dict[Op, BatchMoments]:
    """Run all batches op by op; batch normalisations use the moments over all of them."""
    environments: list[dict[Value, torch.Tensor]] = [
        dict(zip(graph.inputs, graph.with_state(batch), strict=True)) for batch in batches
    ]
    remaining = Counter(value for op in graph.ops for value in op.inputs)
    found: dict[Op, BatchMoments] = {}
    with torch.no_grad():
        for op in graph.ops:
            rows = [[None if v is None else values[v] for v in op.operands] for values in environments]
            if isinstance(op, BatchNormOp):
                found[op] = moments = batch_moments(op, [values[op.x] for values in environments])
                if not bool((moments.mean.isfinite() & moments.variance.isfinite()).all()):
                    raise TersorError(f"calibration data leads to activations that are not finite at {op.describe()}")
                dtype = op.mean.type.dtype.torch
                rows = [[row[0], moments.mean.to(dtype), moments.variance.to(dtype), *row[3:]] for row in rows]
            for values, row in zip(environments, rows, strict=True):
                values.update(zip(op.results, evaluate_op(op, row), strict=True))
            for value in op.inputs:
                remaining[value] -= 1
                if not remaining[value]:
                    for values in environments:
                        del values[value]
    return found


def batch_moments(op: BatchNormOp, tensors: Sequence[torch.Tensor]) -> BatchMoments:
    """What a normalisation sees in several batches together; raises TersorError for one number for each channel."""
    axes = [axis for axis in range(tensors[0].ndim) if axis != 1]
    count = sum(tensor.numel() // tensor.shape[1] for tensor in tensors)
    if count < 2:
        raise TersorError(f"{op.describe()} sees one number per channel; give more calibration data")
    mean = torch.stack([tensor.double().sum(axes) for tensor in tensors]).sum(0) / count
    around = mean.reshape(-1, *[1] * (tensors[0].ndim - 2))
    squares = [(tensor.double() - around).square().sum(axes) for tensor in tensors]
    variance = torch.stack(squares).sum(0) / count
    return BatchMoments(mean, variance, count)


def _store(op: BatchNormOp, chunks: Sequence[BatchMoments], rewriter: Rewriter) -> None:
    """Read fresh statistics, averaged over chunks, which count as many times as they have numbers."""
    shares = [one.count / sum(other.count for other in chunks) for one in chunks]
    mean = torch.stack([one.mean * share for one, share in zip(chunks, shares, strict=True)]).sum(0)
    unbiased = [one.variance * (one.count / (one.count - 1)) for one in chunks]
    variance = torch.stack([one * share for one, share in zip(unbiased, shares, strict=True)]).sum(0)
    for index, old, statistic in ((1, op.mean, mean), (2, op.variance, variance)):
        fresh = rewriter.weight(statistic.to(old.type.dtype.torch), weight_name(old, "reestimated"))
        rewriter.set_operand(op, index, fresh)
        prune(rewriter, (old,))
