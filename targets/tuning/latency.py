"""How long would this layer take? An answer with an error estimate, from records of other layers.

Several sets of trees each learn from four fifths of the layers. What they say about the remaining fifth tells how wrong
they are about layers never seen; how far they disagree about one candidate tells where it is worse than that.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from .features import Features
from .model import FEWEST_EXAMPLES, Example, Trees, log_estimates

FOLDS = 5
COVERED = 0.68  # share of layers whose true time lies within the error estimate
UNTRAINED_ERROR = 1.0  # relative: the estimate alone may be off by a factor of two
ERROR_LIMIT = 3.0  # larger logarithmic errors say nothing more


class LatencyRegressor:
    """Predicts seconds of one kernel call."""

    def __init__(self) -> None:
        self._members: list[Trees] = []
        self._noise = UNTRAINED_ERROR
        self._factor = 1.0

    @property
    def trained(self) -> bool:
        """Whether there were enough records to learn from."""
        return bool(self._members)

    def fit(self, examples: Sequence[Example]) -> None:
        """Learn from measured candidates; too few of them leave the regressor as it is."""
        samples = [example.features for example in examples]
        folds = _folds(examples)
        if len(examples) < FEWEST_EXAMPLES or len(set(folds)) < 2:
            return
        labels = np.log([example.seconds for example in examples]) - log_estimates(samples)
        self._members = []
        unseen = np.zeros(len(examples))
        for fold in sorted(set(folds)):
            kept, held = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            trees = Trees(int(fold))
            trees.fit([samples[index] for index in kept], labels[kept])
            unseen[held] = trees.predict([samples[index] for index in held]) - labels[held]
            self._members.append(trees)
        self._calibrate(samples, np.abs(unseen))

    def _calibrate(self, samples: Sequence[Features], errors: np.ndarray) -> None:
        """Scale the error estimate so that it covers `COVERED` of the errors made about unseen layers."""
        self._noise = max(float(np.median(errors)), 1e-3)
        self._factor = 1.0
        _, spread = self._log_predict(samples)
        self._factor = float(np.quantile(errors / spread, COVERED))

    def _log_predict(self, samples: Sequence[Features]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and error of log seconds."""
        said = np.stack([trees.predict(samples) for trees in self._members])
        spread = np.sqrt(said.var(axis=0) + self._noise**2) * self._factor
        return said.mean(axis=0) + log_estimates(samples), spread

    def predict(self, samples: Sequence[Features]) -> tuple[np.ndarray, np.ndarray]:
        """Seconds and relative errors of candidates, each of shape (samples,).

        The true time lies within ``seconds * (1 +- error)`` for about two layers of three.
        """
        if not samples:
            return np.zeros(0), np.zeros(0)
        if not self.trained:
            return np.exp(log_estimates(samples)), np.full(len(samples), UNTRAINED_ERROR)
        mean, spread = self._log_predict(samples)
        return np.exp(mean), np.expm1(np.minimum(spread, ERROR_LIMIT))


def _folds(examples: Sequence[Example]) -> np.ndarray:
    """A fold for each example, the same for all of one layer, whatever the order of the records."""
    return np.array([zlib.crc32(repr(example.group).encode()) % FOLDS for example in examples])
