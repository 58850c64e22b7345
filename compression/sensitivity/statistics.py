"""Batch normalisations measured again behind a change, as ``reestimate-batchnorm`` does when the change is made.

All batches pass an op before the next one, so that a normalisation sees them all, and passes them on normalised by what
was measured. Whether that was a change of the layer before or of an earlier one makes no difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from ...ir.ops import BatchNormOp
from ...passes.partial_runs import NO_CHANGE, AliveValues, Change, Evaluate, Outputs, PartialRuns
from ...passes.pruning.reestimate_batchnorm import BatchMoments, batch_moments


def measured_again(
    runs: PartialRuns, alive: Sequence[AliveValues], index: int = 0, change: Change = NO_CHANGE
) -> tuple[list[Outputs], Change]:
    """Outputs of some batches with a change and new statistics behind it.

    Parameters
    ----------
    alive
        For each batch the values at op ``index``; they stay as they are.

    Returns
    -------
    For each batch the user's outputs, and the change with the new statistics in it.

    Raises
    ------
    TersorError
        When a normalisation sees one number for each channel.
    """
    branches = [runs.branch(values, change) for values in alive]
    functions = dict(change.ops)
    whole = Change(change.weights, functions)
    with torch.no_grad():
        for at, op in enumerate(runs.ops[index:], start=index):
            if isinstance(op, BatchNormOp):
                functions[op] = _normalise(op, batch_moments(op, [values[op.x] for values in branches]))
            for values in branches:
                runs.step(values, at, whole)
    return [tuple(values[value] for value in runs.graph.user_outputs) for values in branches], whole


def _normalise(op: BatchNormOp, moments: BatchMoments) -> Evaluate:
    dtype = op.mean.type.dtype.torch
    return partial(_evaluate, op, moments.mean.to(dtype), moments.variance.to(dtype))


def _evaluate(
    op: BatchNormOp,
    new_mean: torch.Tensor,
    new_variance: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    *others: torch.Tensor | None,
) -> torch.Tensor:
    return op.evaluate(x, new_mean, new_variance, *others)
