"""Weights as integers of few bits with a scale for each group of inputs: which scales, and which integers.

An integer of b bits is from -2^(b-1) to 2^(b-1) - 1. The number of largest magnitude of a group becomes the smallest
integer, which has the largest magnitude: a scale may be negative, so that none of the 2^b integers is left unused (as
in the format Q4_0 of llama.cpp).
"""

from __future__ import annotations

import torch
from torch.nn import functional

from ...ir.ops.packed import spread
from .gptq import round_most_varied_first

_SMALLEST_SCALE = 1e-30  # far from numbers that f32 cannot hold any more
_SHARES = tuple(1 - 0.05 * step for step in range(9))  # of the scale that covers a group: what is beyond it saturates
_ROWS = 256  # at a time


def largest_scales(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """f32 [N, groups]: scales with which the largest number of each group of a weight [N, K] is an integer."""
    return _scales(_grouped(weight.float(), group), -(1 << bits - 1))


def best_scales(weight: torch.Tensor, importance: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """f32 [N, groups]: of scales that cover each group or somewhat less, those with the least error.

    Parameters
    ----------
    weight
        [N, K].
    importance
        [K]: what the squared error of a weight of each input counts.
    """
    counts = _grouped(importance.float()[None], group)
    return torch.cat([_best(_grouped(rows.float(), group), counts, bits) for rows in weight.split(_ROWS)])


def nearest_integers(weight: torch.Tensor, scale: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """The integers next to a weight [N, K], as numbers of its type."""
    return _rounded(weight, spread(scale, group, weight.shape[1]).to(weight.dtype), bits)


def compensated_integers(
    weight: torch.Tensor, scale: torch.Tensor, covariance: torch.Tensor, bits: int, damping: float
) -> torch.Tensor:
    """Integers for some of the inputs of a layer, by GPTQ (`tersor.passes.quantization.gptq`).

    Parameters
    ----------
    weight
        float64 [N, inputs].
    scale
        [N, inputs]: that of each weight.
    covariance
        float64 [inputs, inputs]: of the numbers that the weights are multiplied with.
    bits
        Of an integer.
    damping
        Added to the diagonal of the covariance, as a share of its mean.
    """
    scale = scale.double()

    def nearest(term: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        factors = scale[:, term].T
        return _rounded(column, factors, bits) * factors

    numbers = round_most_varied_first(weight[None], covariance[None], damping, nearest)[0]
    return (numbers / scale).round()


def _rounded(numbers: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    end = 1 << bits - 1
    return (numbers / scale).round().clamp(-end, end - 1)


def _grouped(numbers: torch.Tensor, group: int) -> torch.Tensor:
    """[N, K] as [N, groups, inputs of a group]; the last group is filled up with zeros."""
    missing = -numbers.shape[1] % group
    return functional.pad(numbers, (0, missing)).reshape(len(numbers), -1, group)


def _scales(groups: torch.Tensor, integer: int, share: float = 1.0) -> torch.Tensor:
    """[N, groups]: with which the number of the largest magnitude, or a share of it, becomes ``integer``."""
    extreme = groups.gather(2, groups.abs().argmax(2, keepdim=True)).squeeze(2)
    scale = extreme * (share / integer)
    return torch.where(scale.abs() < _SMALLEST_SCALE, _SMALLEST_SCALE, scale)


def _best(groups: torch.Tensor, counts: torch.Tensor, bits: int) -> torch.Tensor:
    end = 1 << bits - 1
    best = least = None
    for share in _SHARES:
        for integer in (-end, end - 1):
            scale = _scales(groups, integer, share)
            factors = scale[:, :, None]
            error = ((_rounded(groups, factors, bits) * factors - groups).square_() * counts).sum(2)
            if best is None or least is None:
                best, least = scale, error
            else:
                better = error < least
                best, least = torch.where(better, scale, best), torch.where(better, error, least)
    assert best is not None
    return best
