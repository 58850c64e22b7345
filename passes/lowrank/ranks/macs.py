"""Ranks for the whole network, such that a ratio of its multiply-adds is left.

The share of energy that a layer keeps stands for what it does to the accuracy, and the product over all layers for the
network's (Zhang et al., "Accelerating Very Deep Convolutional Networks for Classification and Detection", 2015). So the
loss of a layer is minus the logarithm of its share, and the sum of losses is made small for the multiply-adds that are
wanted. Each layer has a path from full rank down to the lowest, on which the rank that saves the most for its loss is
lowered next. For a price of multiply-adds each layer takes the place on its path where loss plus price is least; the
price is found by bisection, and what is left of the budget goes to the layers that gain most from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ....ir import TersorError
from ..candidate import Candidate
from ..methods import Ranks
from .registry import Choice, RankRule, Request, register_rank_rule

_PRICES = (-40.0, 40.0)  # logarithms, of the loss that all multiply-adds of the graph are worth
_STEPS = 60  # of the bisection


@dataclass(frozen=True)
class _Path:
    """What a layer can become: ranks (None: as it is), losses, and multiply-adds over those of the graph."""

    choices: tuple[Choice, ...]
    losses: np.ndarray
    macs: np.ndarray


@register_rank_rule("macs")
@dataclass(frozen=True)
class Macs(RankRule):
    """``macs:0.5`` leaves at most half of the graph's multiply-adds."""

    ratio: float

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError(f"the ratio of multiply-adds to leave is above 0 and below 1, not {self.ratio:g}")

    def choose(self, candidates: Sequence[Candidate], request: Request) -> list[Choice]:
        if not candidates:
            return []
        paths = [_path(candidate, request) for candidate in candidates]
        others = 1 - sum(candidate.macs for candidate in candidates) / request.macs
        least = others + sum(path.macs.min() for path in paths)
        if least > self.ratio:
            raise TersorError(
                f"ranks=macs:{self.ratio:g} cannot be reached: {least:.3f} of the multiply-adds remain when every layer"
                f" has its lowest rank (a multiple of {request.multiple}); ask for more, or a lower multiple"
            )
        places = _allocate(paths, self.ratio - others)
        return [path.choices[place] for path, place in zip(paths, places, strict=True)]


def _path(candidate: Candidate, request: Request) -> _Path:
    """All ranks from the largest that need fewer multiply-adds than the layer itself, to the lowest."""
    logarithms = [np.log(spectrum.energies) for spectrum in candidate.factors.spectra]

    def loss(ranks: Ranks) -> float:
        return -math.fsum(float(one[rank - 1]) for one, rank in zip(logarithms, ranks, strict=True))

    choices: list[Choice] = [None]
    losses, macs = [0.0], [candidate.macs]
    ranks: Ranks | None = tuple(spectrum.full for spectrum in candidate.factors.spectra)
    while ranks is not None:
        if candidate.macs_at(ranks) < candidate.macs:
            choices.append(ranks)
            losses.append(loss(ranks))
            macs.append(candidate.macs_at(ranks))
        ranks = _lower(ranks, request.multiple, loss, candidate)
    return _Path(tuple(choices), np.array(losses), np.array(macs) / request.macs)


def _lower(ranks: Ranks, multiple: int, loss: Callable[[Ranks], float], candidate: Candidate) -> Ranks | None:
    """``ranks`` with the one at the next lower multiple that loses least for what it saves; None at the lowest."""
    now, cost = loss(ranks), candidate.macs_at(ranks)
    lower = []
    for at, rank in enumerate(ranks):
        below = (rank - 1) // multiple * multiple
        if below:
            lower.append((*ranks[:at], below, *ranks[at + 1 :]))
    return min(lower, key=lambda one: (loss(one) - now) / max(1, cost - candidate.macs_at(one)), default=None)


def _allocate(paths: Sequence[_Path], budget: float) -> list[int]:
    """For each path the place to take, within the budget."""

    def cheapest(log_price: float) -> list[int]:
        price = math.exp(log_price)
        return [int(np.argmin(path.losses + price * path.macs)) for path in paths]

    def spent(places: Sequence[int]) -> float:
        return math.fsum(float(path.macs[place]) for path, place in zip(paths, places, strict=True))

    low, high = _PRICES
    places = [int(np.argmin(path.macs)) for path in paths]
    for _ in range(_STEPS):
        middle = (low + high) / 2
        found = cheapest(middle)
        if spent(found) <= budget:
            high, places = middle, found
        else:
            low = middle
    return _spend(paths, places, budget - spent(places))


def _spend(paths: Sequence[_Path], places: list[int], left: float) -> list[int]:
    """Improve layers, the one that gains most for its multiply-adds first, until nothing more fits."""
    while True:
        steps = []
        for index, (path, place) in enumerate(zip(paths, places, strict=True)):
            cost, gain = path.macs - path.macs[place], path.losses[place] - path.losses
            fits = (cost > 0) & (cost <= left) & (gain > 0)
            ratios = np.divide(gain, cost, out=np.zeros_like(gain), where=fits)
            steps.append((float(ratios.max()), -index, int(ratios.argmax())))
        worth, index, place = max(steps)
        if not worth:
            return places
        left -= float(paths[-index].macs[place] - paths[-index].macs[places[-index]])
        places[-index] = place
