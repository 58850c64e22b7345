"""The search of one task: which candidates to measure next, what more there may be to gain, and which one wins.

The ranker predicts every candidate. What was measured of the task fixes the constant that the ranker leaves open, and
how wrong its predictions were says how much to trust them; together they give each candidate an expected improvement
[1]_ over the best so far. A batch holds the candidates with the largest for each second that trying them takes, and a
few picked at random, so that the ranker also learns of what it believes to be slow.

.. [1] Jones, Schonlau, Welch: "Efficient Global Optimization of Expensive Black-Box Functions", 1998
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..templates.option import Option
from .features import Features, describe_candidate
from .model import Ranker, rank_correlation, regret
from .outcome import Outcome
from .result import BatchReport

if TYPE_CHECKING:
    from .task import Task

PRIOR_ERROR = 0.12  # of the ranker's log seconds, before it was put to the test …
PRIOR_TRIALS = 6  # … and how many trials that belief is worth
LEAST_ERROR = 0.02  # of any prediction: timings are not more exact
COST_WEIGHT = 0.05  # in a first batch, trying ten times as long must promise a kernel that is 12 % faster
FEWEST_SAMPLES = 2  # after which the best is believed to be fast …
MOST_SAMPLES = 4  # … and after which no more are asked for, though samples differ …
CONTRADICTION = 0.1  # … by more than this
RECENT = 24  # predictions that the error is judged by


@dataclass(frozen=True)
class SearchOptions:
    """How one task is searched.

    Attributes
    ----------
    batch
        Candidates measured at once.
    explore
        Share of a batch that is picked at random.
    patience
        Trials without an improvement after which the task is given up.
    improvement
        Relative gain that counts as one.
    """

    batch: int = 8
    explore: float = 0.125
    patience: int = 24
    improvement: float = 0.01

    def __post_init__(self) -> None:
        if self.batch < 1 or self.patience < 1:
            raise ValueError("batch and patience must be at least 1")
        if not 0 <= self.explore <= 1:
            raise ValueError(f"explore must lie between 0 and 1, not {self.explore}")


@dataclass(frozen=True)
class _Forecast:
    """What one version of a ranker says about all candidates of a task."""

    ranker: Ranker
    version: int
    logs: np.ndarray
    costs: np.ndarray


class TaskSearch:
    """What is known of one task, and what to measure next.

    Parameters
    ----------
    task
        What is tuned.
    options
        All candidates, the default first.
    settings
        See `SearchOptions`.
    """

    def __init__(self, task: Task, options: Sequence[Option], settings: SearchOptions) -> None:
        self.task = task
        self.options = tuple(options)
        self._settings = settings
        self._numbers = {option: index for index, option in enumerate(self.options)}
        self._features: dict[Option, Features] = {}
        self._forecast: _Forecast | None = None
        self._outcomes: dict[Option, list[Outcome]] = {}
        self._errors: list[float] = []
        self._since_improvement = 0

    # What is known ------------------------------------------------------------------------------------------------

    @property
    def default(self) -> Option:
        """What is used without records."""
        return self.options[0]

    @property
    def trials(self) -> int:
        """Candidates measured so far, failed ones included."""
        return len(self._outcomes)

    @property
    def failed(self) -> int:
        """Candidates that never ran."""
        return sum(not any(one.ok for one in outcomes) for outcomes in self._outcomes.values())

    @property
    def default_seconds(self) -> float:
        """Median of the default's timings, those as an incumbent included; NaN before the first."""
        own = [one.seconds for one in self._outcomes.get(self.default, ()) if one.ok]
        beside = [
            one.baseline
            for outcomes in self._outcomes.values()
            for one in outcomes
            if one.ok and not math.isnan(one.baseline)
        ]
        return statistics.median(own + beside) if own or beside else math.nan

    def ratio(self, option: Option) -> float:
        """Seconds over the default's: the median of its samples; NaN if it never ran."""
        if option == self.default:
            return 1.0
        samples = [one for one in self._outcomes.get(option, ()) if one.ok]
        if not samples:
            return math.nan
        beside = [one.ratio for one in samples if not math.isnan(one.baseline)]
        if beside:
            return statistics.median(beside)
        return statistics.median(one.seconds for one in samples) / self.default_seconds

    def ranked(self) -> list[Option]:
        """Candidates that ran, the fastest first."""
        ran = [option for option in self._outcomes if not math.isnan(self.ratio(option))]
        return sorted(ran, key=self.ratio)

    @property
    def best(self) -> Option:
        """The fastest so far; the default if nothing ran."""
        ranked = self.ranked()
        return ranked[0] if ranked else self.default

    @property
    def best_seconds(self) -> float:
        """Seconds of `best`, in units of the default's median; NaN before the default was timed."""
        return self.default_seconds * min((self.ratio(option) for option in self.ranked()), default=1.0)

    @property
    def unconfirmed(self) -> bool:
        """Whether the best is faster than the default by one sample only, or by samples that contradict each other."""
        found = self.best
        if not self.ratio(found) < 1 - self._settings.improvement:
            return False
        ratios = [one.ratio for one in self._outcomes[found] if one.ok]
        contradictory = max(ratios) > (1 + CONTRADICTION) * min(ratios)
        return len(ratios) < (MOST_SAMPLES if contradictory else FEWEST_SAMPLES)

    def samples(self, option: Option) -> int:
        """How often an option ran."""
        return sum(one.ok for one in self._outcomes.get(option, ()))

    @property
    def untried(self) -> list[Option]:
        """Candidates never measured."""
        return [option for option in self.options if option not in self._outcomes]

    @property
    def fresh(self) -> bool:
        """Whether nothing but the default was measured."""
        return self._outcomes.keys() <= {self.default}

    @property
    def failing(self) -> bool:
        """Whether the default itself does not run here, so that nothing can be compared with it."""
        outcomes = self._outcomes.get(self.default)
        return bool(outcomes) and math.isnan(self.default_seconds)

    @property
    def failure(self) -> str:
        """Why the default did not run when it was last tried; empty if it did, or was not tried."""
        outcomes = self._outcomes.get(self.default)
        return "" if not outcomes or outcomes[-1].ok else outcomes[-1].detail or outcomes[-1].status

    @property
    def done(self) -> bool:
        """Whether nothing is left to measure, or the last trials brought nothing."""
        exhausted = self.default in self._outcomes and not self.untried
        return self.failing or exhausted or self._since_improvement >= self._settings.patience

    def features(self, options: Iterable[Option]) -> list[Features]:
        """Features of candidates of this task."""
        return [self._describe(option) for option in options]

    def _describe(self, option: Option) -> Features:
        found = self._features.get(option)
        if found is None:
            task = self.task
            found = describe_candidate(task.workload.spec, option.template, option.knobs, task.target)
            self._features[option] = found
        return found

    # Predictions: of all candidates at once, and again only when the ranker has learned ---------------------------

    def _predict(self, ranker: Ranker, options: Sequence[Option]) -> np.ndarray:
        """`Ranker.predict` of candidates; those of the log that no longer exist are left to the ranker."""
        if any(option not in self._numbers for option in options):
            return ranker.predict(self.features(options))
        return self._forecast_by(ranker).logs[[self._numbers[option] for option in options]]

    def _costs(self, ranker: Ranker, options: Sequence[Option]) -> np.ndarray:
        return self._forecast_by(ranker).costs[[self._numbers[option] for option in options]]

    def _forecast_by(self, ranker: Ranker) -> _Forecast:
        known = self._forecast
        if known is None or known.ranker is not ranker or known.version != ranker.version:
            samples = self.features(self.options)
            known = _Forecast(ranker, ranker.version, ranker.predict(samples), ranker.costs(samples))
            self._forecast = known
        return known

    # What to measure ----------------------------------------------------------------------------------------------

    def propose(self, ranker: Ranker, generator: np.random.Generator, limit: float = math.inf) -> list[Option]:
        """The next batch, with at most ``limit`` candidates never tried; empty when nothing is left.

        The default and the best of every template come first, whatever the ranker thinks of them. A later batch
        measures the best so far once more until it is confirmed: what was fastest by luck loses its place.
        """
        count = int(min(self._settings.batch, limit))
        untried = self.untried
        if self.default in untried and count == 1:
            return [self.default]
        if self.fresh:
            return self._first_batch(ranker)[:count]
        again = [self.best] if self.unconfirmed else []
        if len(untried) <= count:
            return untried + again
        values = self._improvements(ranker, untried) / self._costs(ranker, untried)
        by_value = [untried[index] for index in np.argsort(-values, kind="stable")]
        at_random = int(generator.binomial(count, self._settings.explore))
        chosen = by_value[: count - at_random]
        others = by_value[count - at_random :]
        picks = generator.choice(len(others), size=at_random, replace=False)
        return chosen + [others[index] for index in picks] + again

    def _first_batch(self, ranker: Ranker) -> list[Option]:
        scores = self._predict(ranker, self.options) + COST_WEIGHT * np.log(self._costs(ranker, self.options))
        order = [self.options[index] for index in np.argsort(scores, kind="stable")]
        leaders = {option.template: option for option in reversed(order)}
        wanted = dict.fromkeys((self.default, *leaders.values(), *order))
        return [option for option in wanted if option not in self._outcomes][: self._settings.batch]

    def expected_gain(self, ranker: Ranker) -> float:
        """Share of the task's time that the best next candidate is expected to save."""
        untried = self.untried
        if self.done or not untried:
            return 0.0
        if math.isnan(self.default_seconds):
            return 1.0
        return float(self._improvements(ranker, untried).max())

    def _improvements(self, ranker: Ranker, untried: Sequence[Option]) -> np.ndarray:
        """Expected improvements in log seconds, of shape (untried,)."""
        from scipy.special import ndtr  # not needed to compile

        predicted = self._predict(ranker, untried) + self._offset(ranker)
        error = self.prediction_error
        margin = (math.log(self.best_seconds) - predicted) / error
        density = np.exp(-0.5 * margin**2) / math.sqrt(2 * math.pi)
        return error * (margin * ndtr(margin) + density)

    def _offset(self, ranker: Ranker) -> float:
        """What the ranker leaves open for each layer: measured less predicted log seconds, at the median."""
        ran = self.ranked()
        measured = np.log([self.ratio(option) * self.default_seconds for option in ran])
        return float(np.median(measured - self._predict(ranker, ran)))

    @property
    def prediction_error(self) -> float:
        """Standard deviation of the ranker's log seconds on candidates of this task that it had not seen."""
        recent = self._errors[-RECENT:]
        squares = sum(error**2 for error in recent) + PRIOR_TRIALS * PRIOR_ERROR**2
        return max(math.sqrt(squares / (len(recent) + PRIOR_TRIALS)), LEAST_ERROR)

    # Learning -----------------------------------------------------------------------------------------------------

    def restore(self, outcomes: Iterable[Outcome]) -> None:
        """Take up measurements that were not proposed here: earlier ones from the log, and repeated ones."""
        for outcome in outcomes:
            self._outcomes.setdefault(outcome.option, []).append(outcome)

    def record(self, outcomes: Sequence[Outcome], ranker: Ranker) -> BatchReport:
        """Take up a measured batch, and say how well ``ranker``, which has not seen it, had predicted it."""
        before = self.best_seconds
        self.restore(outcomes)
        after = self.best_seconds
        improved = 0.0 if math.isnan(before) or math.isnan(after) else before / after - 1
        if improved >= self._settings.improvement or math.isnan(before):
            self._since_improvement = 0
        else:
            self._since_improvement += len(outcomes)
        ran = [one.option for one in outcomes if one.ok and not math.isnan(self.ratio(one.option))]
        predicted = self._predict(ranker, ran)
        actual = np.array([self.ratio(option) for option in ran])
        self._learn_errors(predicted, actual)
        return BatchReport(
            task=str(self.task.workload),
            trials=len(outcomes),
            failed=len(outcomes) - len(ran),
            correlation=rank_correlation(predicted, actual),
            regret=regret(predicted, actual) if ran else math.nan,
            improved=improved,
        )

    def _learn_errors(self, predicted: np.ndarray, actual: np.ndarray) -> None:
        if len(predicted) < 3:
            return
        differences = np.log(actual) - predicted
        self._errors.extend((differences - np.median(differences)).tolist())
