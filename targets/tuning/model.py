"""The ranker: gradient-boosted trees that correct the analytic estimate of how long a candidate takes.

The trees learn, from every fitting record of every layer,

    log(seconds) - log(estimate) - (the mean of the same over the layer's records)

Taking the layer's mean away leaves what ranking needs: which of the candidates of one layer is faster, and by how much.
A new layer therefore starts from what others taught; before anything was measured, the estimate alone ranks.

Trees of the same kind learn how long a candidate takes to build: a kernel written out in thousands of instructions
costs as much as a dozen others.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from ...ir import TersorError
from .features import CODE_SIZE, Features, Table

Numbers = Sequence[float] | np.ndarray

FEWEST_EXAMPLES = 12  # below this, the trees would only learn noise
ROUNDS = 120
THREADS = 1  # of training: its threads wait for each other so often that on a busy machine two are far slower than one
# What trying a candidate costs, before records tell: roughly, on one core.
TIMING_SECONDS = 0.1
LEAST_BUILD_SECONDS = 0.3
SECONDS_PER_INSTRUCTION = 4e-3  # of the innermost arithmetic, written out
PARAMETERS = {
    "objective": "reg:squarederror",
    "tree_method": "hist",
    "max_depth": 6,
    "eta": 0.1,
    "min_child_weight": 2,
    "subsample": 0.8,
    "colsample_bytree": 0.6,
    "verbosity": 0,
    "nthread": THREADS,
}


@dataclass(frozen=True)
class Example:
    """One measured candidate.

    Attributes
    ----------
    group
        What it competes with: equal for candidates of the same layer.
    features
        From `describe_candidate`.
    seconds
        How long a call took.
    build_seconds
        How long generating its code took; NaN if unknown.
    """

    group: Hashable
    features: Features
    seconds: float
    build_seconds: float = math.nan


def require_xgboost() -> ModuleType:
    """The module `xgboost`; raises TersorError with what to install when it is missing."""
    try:
        import xgboost
    except ImportError as error:
        raise TersorError("tuning needs xgboost, which is not installed: pip install 'tersor[tune]'") from error
    return xgboost


def log_estimates(samples: Sequence[Features]) -> np.ndarray:
    """Natural logarithms of the analytic estimates in seconds."""
    return np.array([sample["estimate"] for sample in samples]) * math.log(2)


class Trees:
    """Gradient-boosted trees on features that may be missing.

    Parameters
    ----------
    seed
        Of the rows and columns that each tree sees.
    """

    def __init__(self, seed: int = 0) -> None:
        self._xgboost = require_xgboost()
        self._parameters = {**PARAMETERS, "seed": seed}
        self._table = Table(())
        self._booster: Any = None

    def fit(self, samples: Sequence[Features], labels: np.ndarray) -> None:
        """Learn ``labels``, of shape (samples,)."""
        self._table = Table(samples)
        data = self._xgboost.DMatrix(self._table.encode(samples), label=labels, nthread=THREADS)
        self._booster = self._xgboost.train(self._parameters, data, num_boost_round=ROUNDS)

    def predict(self, samples: Sequence[Features]) -> np.ndarray:
        """Labels of other samples, float64 of shape (samples,)."""
        return self._booster.inplace_predict(self._table.encode(samples)).astype(np.float64)


class Ranker:
    """Predicts how candidates of one layer compare, and what trying them costs.

    Parameters
    ----------
    seed
        See `Trees`.

    Attributes
    ----------
    version
        How often it has learned.
    """

    def __init__(self, seed: int = 0) -> None:
        self._trees = Trees(seed)
        self._cost_trees = Trees(seed)
        self._knows_costs = False
        self.version = 0

    @property
    def trained(self) -> bool:
        """Whether it has learned anything; else the analytic estimate is all it knows."""
        return self.version > 0

    def fit(self, examples: Sequence[Example]) -> None:
        """Learn from measured candidates, which raises `version`; too few of them leave the ranker as it is."""
        if len(examples) < FEWEST_EXAMPLES:
            return
        samples = [example.features for example in examples]
        residuals = np.log([example.seconds for example in examples]) - log_estimates(samples)
        self._trees.fit(samples, residuals - _group_means(examples, residuals))
        self.version += 1
        self._fit_costs([example for example in examples if example.build_seconds > 0])

    def _fit_costs(self, examples: Sequence[Example]) -> None:
        if len(examples) < FEWEST_EXAMPLES:
            return
        samples = [example.features for example in examples]
        self._cost_trees.fit(samples, np.log([example.build_seconds for example in examples]))
        self._knows_costs = True

    def predict(self, samples: Sequence[Features]) -> np.ndarray:
        """Logarithms of seconds, up to a constant for each layer; float64 of shape (samples,)."""
        if not samples:
            return np.zeros(0)
        estimates = log_estimates(samples)
        return estimates + self._trees.predict(samples) if self.trained else estimates

    def costs(self, samples: Sequence[Features]) -> np.ndarray:
        """Seconds that it takes to build and to time candidates, of shape (samples,)."""
        if not samples:
            return np.zeros(0)
        if self._knows_costs:
            return TIMING_SECONDS + np.exp(self._cost_trees.predict(samples))
        written_out = np.array([sample.get(CODE_SIZE, 0.0) for sample in samples])
        return TIMING_SECONDS + LEAST_BUILD_SECONDS + SECONDS_PER_INSTRUCTION * written_out


def _group_means(examples: Sequence[Example], values: np.ndarray) -> np.ndarray:
    """For each example, the mean of the values of its group."""
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(example.group, len(numbers)) for example in examples])
    sums = np.bincount(index, weights=values)
    return (sums / np.bincount(index))[index]


def rank_correlation(predicted: Numbers, actual: Numbers) -> float:
    """Spearman's correlation of two rankings; NaN for fewer than two, or when all are equal."""
    if len(predicted) < 2:
        return math.nan
    first, second = _ranks(predicted), _ranks(actual)
    if first.std() == 0 or second.std() == 0:
        return math.nan
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: Numbers) -> np.ndarray:
    """Ranks from 0; ties share the mean of theirs."""
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    behind = np.cumsum(counts)
    return (behind - (counts + 1) / 2)[inverse]


def place_of_best(predicted: Numbers, actual: Numbers) -> float:
    """Where the ranker puts the candidate that is truly fastest: 0 is first, 1 is last."""
    best = int(np.argmin(actual))
    ahead = int((np.asarray(predicted) < predicted[best]).sum())
    return ahead / max(len(predicted) - 1, 1)


def regret(predicted: Numbers, actual: Numbers) -> float:
    """How much slower the candidate that the ranker puts first is than the fastest; 0 is perfect."""
    return float(actual[int(np.argmin(predicted))] / min(actual)) - 1
