"""Ranks by a scan of what each layer costs alone: one loss for all layers, such that a ratio of the operations is left.

Each layer takes the lowest ranks at which, alone, it moves the outputs by no more than one loss, which is the same for
all layers. The lowest such loss is taken at which the graph needs no more multiply-adds than wanted. Between scanned
ranks, losses lie on straight lines; no rank is taken below the lowest scanned one.

This is what ``prune-channels{sensitivity=…}`` does with channels (see `tersor.passes.pruning.equal_loss` for sources).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ....ir import TersorError
from ...sensitivity import LossCurve, find_curves, layer_names, read_scan
from ..candidate import Candidate
from ..methods import Ranks
from ..methods.registry import name_of_method
from .registry import Choice, RankRule, Request, register_rank_rule

RANKS = "ranks"  # the axis of a scan

_RATIO = 0.5  # where none is given
_STEPS = 256  # shares of the full rank that are looked at


@dataclass(frozen=True)
class _Falling:
    """What a layer can become, from as it is (None) to the lowest ranks: losses rise, multiply-adds fall."""

    choices: tuple[Choice, ...]
    losses: NDArray[np.float64]
    macs: tuple[int, ...]

    def place(self, loss: float) -> int:
        """The last choice that costs no more than ``loss``."""
        return int(np.searchsorted(self.losses, loss, side="right")) - 1


@register_rank_rule("sensitivity")
@dataclass(frozen=True)
class EqualLoss(RankRule):
    """``sensitivity:scan.json:0.4`` leaves at most four tenths of the graph's multiply-adds; half without a number.

    Attributes
    ----------
    scan
        The file that ``tersor analyze sensitivity`` wrote, and the ratio behind a colon.
    """

    scan: str

    def __post_init__(self) -> None:
        path, ratio = self._given
        if not path:
            raise ValueError("the file of a scan must be named: sensitivity:scan.json")
        if not 0 < ratio < 1:
            raise ValueError(f"the ratio of multiply-adds to leave is above 0 and below 1, not {ratio:g}")
        read_scan(path)

    @property
    def _given(self) -> tuple[str, float]:
        """The file, and the ratio."""
        path, colon, number = self.scan.rpartition(":")
        try:
            return (path, float(number)) if colon else (self.scan, _RATIO)
        except ValueError:
            return self.scan, _RATIO

    def choose(self, candidates: Sequence[Candidate], request: Request) -> list[Choice]:
        if not candidates:
            return []
        path, ratio = self._given
        names = layer_names([candidate.layers[0] for candidate in candidates])
        sizes = [tuple(spectrum.full for spectrum in candidate.factors.spectra) for candidate in candidates]
        method = name_of_method(candidates[0].factors)
        curves = find_curves(read_scan(path), path, RANKS, list(zip(names, sizes, strict=True)), method)
        paths = [_falling(candidate, curve, request) for candidate, curve in zip(candidates, curves, strict=True)]
        others = request.macs - sum(candidate.macs for candidate in candidates)
        allowed = np.unique(np.concatenate([one.losses for one in paths]))

        def left(index: int) -> float:
            taken = [one.macs[one.place(float(allowed[index]))] for one in paths]
            return (others + sum(taken)) / request.macs

        lowest = bisect.bisect_left(range(len(allowed)), True, key=lambda index: left(index) <= ratio)
        if lowest == len(allowed):
            raise TersorError(
                f"ranks=sensitivity:{self.scan} cannot be reached: {left(lowest - 1):.3f} of the multiply-adds remain"
                f" when every layer has the lowest rank that was scanned (a multiple of {request.multiple}); ask for"
                f" more than {ratio:g}, or scan lower ranks"
            )
        return [one.choices[one.place(float(allowed[lowest]))] for one in paths]


def _falling(candidate: Candidate, curve: LossCurve, request: Request) -> _Falling:
    """All ranks with fewer multiply-adds than the layer itself, down to the lowest scanned ones."""
    choices: list[Choice] = [None]
    losses, macs = [0.0], [candidate.macs]
    shares = [point.value for point in curve.points if math.isfinite(point.loss)]
    for share in np.linspace(1.0, min(shares, default=1.0), _STEPS).tolist():
        ranks = _ranks_at(share, candidate, request)
        if ranks == choices[-1] or candidate.macs_at(ranks) >= macs[-1]:
            continue
        kept = min(rank / one.full for rank, one in zip(ranks, candidate.factors.spectra, strict=True))
        choices.append(ranks)
        losses.append(float(curve.losses(kept, whole=1)))
        macs.append(candidate.macs_at(ranks))
    return _Falling(tuple(choices), np.array(losses), tuple(macs))


def _ranks_at(share: float, candidate: Candidate, request: Request) -> Ranks:
    """A share of all full ranks, rounded up."""
    return tuple(request.rounded(rank_at(share, one.full), one) for one in candidate.factors.spectra)


def rank_at(share: float, full: int) -> int:
    """A share of the full rank: 1 or more."""
    return max(1, math.ceil(share * full - 1e-9))
