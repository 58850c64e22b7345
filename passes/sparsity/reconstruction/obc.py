"""``obc``: one weight after another goes, each time the one that the others of its output replace best.

With H the mean product of what an output w of a layer is multiplied with, taking weight j away costs
``w_j^2 / [H^-1]_jj`` when the others change by ``-w_j [H^-1]_:j / [H^-1]_jj``. Then they do, the inverse is reduced to
what is left, ``H^-1 -= [H^-1]_:j [H^-1]_j: / [H^-1]_jj``, and the next weight is looked for (Optimal Brain Surgeon).
All outputs are taken to the end by themselves; what they lose at each step says how many weights of each output go.
Blocks go as a whole, at a cost of ``tr(w_B' ([H^-1]_BB)^-1 w_B)``; the outputs of a block share one inverse.

Of N:M patterns each group of M weights keeps its last N. The work grows with the third power of the terms of an output,
and with the number of outputs that do not share their zeros: where that is too much, the criterion chooses.

Method: Frantar, Singh, Alistarh, "Optimal Brain Compression", NeurIPS 2022; Hassibi, Stork, Wolff, "Optimal Brain
Surgeon", ICNN 1993.
"""

from __future__ import annotations

import torch

from ..patterns import FewOfMany
from .registry import WeightFit, register_weight_reconstruction

MOST_WORK = 1e11  # outputs that do not share zeros, times the third power of their terms: about two minutes
_BYTES = 64 << 20  # of inverses at a time


def is_affordable(task: WeightFit) -> bool:
    """Whether the work is not too much."""
    rows = task.weight.shape[0] * task.weight.shape[1] / (task.pattern.blocks or (1, 1))[1]
    return rows * task.weight.shape[2] ** 3 <= MOST_WORK


@register_weight_reconstruction("obc")
def obc(task: WeightFit) -> torch.Tensor:
    """See the module."""
    if not is_affordable(task):
        return task.chosen
    inputs, outputs = task.pattern.blocks or (1, 1)
    groups, rows, terms = task.weight.shape
    sharing = -(-rows // outputs)  # of rows that share their zeros, how many there are in each group
    padded = task.weight.new_zeros(groups, sharing * outputs, terms)
    padded[:, :rows] = task.weight
    weights = padded.reshape(groups * sharing, outputs, terms)
    inverses = torch.cholesky_inverse(torch.linalg.cholesky(task.hessian))
    labels, free = _limits(task)
    part = max(1, _BYTES // (8 * terms * terms))
    found = []
    for start in range(0, len(weights), part):
        chunk = weights[start : start + part]
        of_group = torch.arange(start, start + len(chunk)) // sharing
        found.append(_removals(chunk, inverses[of_group], inputs, labels, free))
    costs, units = (torch.cat(one) for one in zip(*found, strict=True))
    gone = _cheapest(costs, units, terms // inputs, costs.numel() if task.pattern.fixed else task.gone)
    kept = ~gone[:, None, :, None].expand(-1, outputs, -1, inputs).reshape(groups, sharing * outputs, terms)
    return kept[:, :rows]


def _limits(task: WeightFit) -> tuple[torch.Tensor, torch.Tensor]:
    """For each unit of an output the group that it is in, and how many units of each group may go."""
    terms = task.weight.shape[2]
    if not isinstance(task.pattern, FewOfMany):
        units = terms // (task.pattern.blocks or (1, 1))[0]
        return torch.zeros(units, dtype=torch.int64), torch.tensor([units])
    taps = terms // task.shape[1]
    channel, tap = torch.arange(terms) // taps, torch.arange(terms) % taps
    labels = channel // task.pattern.many * taps + tap
    return labels, (torch.bincount(labels) - task.pattern.few).clamp(min=0)


def _removals(
    weights: torch.Tensor, inverses: torch.Tensor, inputs: int, labels: torch.Tensor, free: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What it costs to take one unit after another, and which unit goes: [rows, steps].

    Parameters
    ----------
    weights
        [rows, outputs that share zeros, terms].
    inverses
        [rows, terms, terms].
    inputs
        Terms of a unit.
    labels, free
        See `_limits`.
    """
    weights, inverses = weights.clone(), inverses.clone()
    rows = torch.arange(len(weights))
    left = torch.ones(len(weights), len(labels), dtype=torch.bool)
    room = free.repeat(len(weights), 1)
    costs, units = [], []
    for _ in range(int(free.sum())):
        may_go = left & (room[:, labels] > 0)
        cost = _costs(weights, inverses, inputs).masked_fill(~may_go, torch.inf)
        unit = cost.argmin(1)
        costs.append(cost[rows, unit])
        units.append(unit)
        left[rows, unit] = False
        room[rows, labels[unit]] -= 1
        _remove(weights, inverses, unit[:, None] * inputs + torch.arange(inputs))
    return torch.stack(costs, 1), torch.stack(units, 1)


def _costs(weights: torch.Tensor, inverses: torch.Tensor, inputs: int) -> torch.Tensor:
    """What each unit costs, [rows, units]."""
    if inputs == 1:
        return weights.square().sum(1) / inverses.diagonal(dim1=1, dim2=2)
    units = weights.shape[2] // inputs
    blocks = inverses.unflatten(1, (units, inputs)).unflatten(3, (units, inputs))
    own = blocks.diagonal(dim1=1, dim2=3).movedim(3, 1)  # [rows, units, inputs, inputs]
    of_units = weights.unflatten(2, (units, inputs)).permute(0, 2, 3, 1)
    return (of_units * torch.linalg.solve(own, of_units)).sum((2, 3))


def _remove(weights: torch.Tensor, inverses: torch.Tensor, terms: torch.Tensor) -> None:
    """Take some terms [rows, inputs] away, and update what stays, in place."""
    count = weights.shape[2]
    columns = inverses.gather(2, terms[:, None, :].expand(-1, count, -1))
    own = columns.gather(1, terms[:, :, None].expand(-1, -1, terms.shape[1]))
    shares = torch.linalg.solve(own, columns.mT)  # [rows, inputs, terms]
    index = terms[:, None, :].expand(-1, weights.shape[1], -1)
    weights -= weights.gather(2, index) @ shares
    weights.scatter_(2, index, 0.0)
    torch.baddbmm(inverses, columns, shares, alpha=-1, out=inverses)
    inverses.scatter_(2, terms[:, None, :].expand(-1, count, -1), 0.0)  # they have nothing to do with the others
    inverses.scatter_(1, terms[:, :, None].expand(-1, -1, count), 0.0)
    rows = torch.arange(len(weights))[:, None]
    inverses[rows, terms, terms] = 1.0


def _cheapest(costs: torch.Tensor, units: torch.Tensor, count: int, gone: int) -> torch.Tensor:
    """Which units of each row go, [rows, count], when the steps that cost least are taken, ``gone`` of them."""
    steps = costs.cummax(1).values.flatten().argsort(stable=True)[:gone]
    taken = torch.zeros(costs.numel(), dtype=torch.bool)
    taken[steps] = True
    found = torch.zeros(len(costs), count, dtype=torch.bool)
    return found.scatter_(1, units, taken.reshape(costs.shape))
