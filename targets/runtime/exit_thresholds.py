"""Thresholds of exits from samples: the fewest multiply-adds for what may be lost, or the least lost for what is left.

At first no sample leaves early. Then, step by step, the threshold of one exit is lowered, to any of `_CHOICES` values:
the step that loses least of the score for the multiply-adds that it saves, until no step is allowed or enough is saved.
So a plateau, on which a threshold alone would have to cross a loss, is crossed at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...ir import TersorError

_CHOICES = 128  # values of one threshold
_ROUNDING = 1e-9

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ExitSamples:
    """What all exits of a model say of some samples.

    Attributes
    ----------
    confidences
        [exits but the last, samples].
    scores
        [exits, samples]: what leaving there is worth.
    macs
        [exits]: multiply-adds until there.
    """

    confidences: Floats
    scores: Floats
    macs: Floats


@dataclass(frozen=True)
class _Move:
    """A lower threshold, what it loses of the mean score and saves of the mean multiply-adds."""

    exit: int
    threshold: float
    lost: float
    saved: float


def find_thresholds(samples: ExitSamples, max_drop: float | None, macs: float | None) -> tuple[float | None, ...]:
    """The threshold of each exit but the last; None where no sample is to leave.

    Parameters
    ----------
    max_drop
        How much the mean score may be below that of the last exit.
    macs
        Or else, the ratio of the multiply-adds that may be left.

    Raises
    ------
    TersorError
        When the first exit alone needs more than ``macs``.
    """
    whole = samples.macs[-1]
    if macs is not None and samples.macs[0] > macs * whole:
        raise TersorError(
            f"macs={macs:g} cannot be reached: {samples.macs[0] / whole:.3f} of the multiply-adds come before the"
            " first exit; ask for more"
        )
    exits, count = samples.confidences.shape
    thresholds: list[float | None] = [None] * exits
    leaves = np.full(count, exits)  # the exit of each sample
    drop, left = 0.0, float(whole)
    while macs is None or left > macs * whole * (1 + _ROUNDING):
        missing = np.inf if macs is None else left - macs * whole
        moves = [move for move in _moves(samples, leaves) if move.saved > 0]
        if max_drop is not None:
            moves = [move for move in moves if drop + move.lost <= max_drop + _ROUNDING]
        if not moves:
            break
        best = min(moves, key=lambda move: (max(0.0, move.lost) / min(move.saved, missing), -move.saved))
        thresholds[best.exit] = best.threshold
        leaves[_moved(samples, leaves, best.exit, best.threshold)] = best.exit
        drop, left = drop + best.lost, left - best.saved
    return tuple(thresholds)


def _moved(samples: ExitSamples, leaves: NDArray[np.int64], exit: int, threshold: float) -> NDArray[np.bool_]:
    """The samples that would leave at an exit instead of a later one."""
    moved: NDArray[np.bool_] = (leaves > exit) & (samples.confidences[exit] >= threshold)
    return moved


def _moves(samples: ExitSamples, leaves: NDArray[np.int64]) -> Iterator[_Move]:
    count = len(leaves)
    scores = samples.scores[leaves, np.arange(count)]
    for exit, confidences in enumerate(samples.confidences):
        there = np.sort(confidences[(leaves > exit) & np.isfinite(confidences)])
        if not len(there):
            continue
        places = np.unique(np.linspace(0, len(there) - 1, min(_CHOICES, len(there))).round().astype(int))
        for threshold in np.unique(there[places]).tolist():
            moved = _moved(samples, leaves, exit, threshold)
            lost = float((scores - samples.scores[exit])[moved].sum()) / count
            saved = float((samples.macs[leaves] - samples.macs[exit])[moved].sum()) / count
            yield _Move(exit, threshold, lost, saved)
