"""Records as examples to learn from: one for each candidate, drift between its samples taken out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

from ..templates.option import Option, Workload
from .features import Features, describe_candidate
from .model import Example
from .outcome import Outcome
from .records import Record

MOST_SPREAD = 0.2  # of a timing that teaches anything
MOST_DRIFT = 1.5  # factor between a sample's default and the typical one: beyond it other programs took the cores


class Examples:
    """Collects records as they come.

    A candidate's time is the median of its ratios to the default, times the median of all timings of the default: the
    machine may have been slower when some of them were taken. Samples that were disturbed teach nothing.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._samples: dict[Workload, dict[Option, list[Outcome]]] = {}
        self._build_seconds: dict[tuple[Workload, Option], float] = {}
        self._features: dict[tuple[Workload, Option], Features] = {}
        for record in records:
            self.add(record)

    def __len__(self) -> int:
        """Candidates that ran."""
        return sum(len(samples) for samples in self._samples.values())

    def add(self, record: Record) -> None:
        """Take up one measurement; failed ones teach nothing about time."""
        if not record.outcome.ok:
            return
        samples = self._samples.setdefault(record.workload, {})
        samples.setdefault(record.option, []).append(record.outcome)
        key = (record.workload, record.option)
        self._build_seconds.setdefault(key, record.outcome.build_seconds)
        if key not in self._features:
            option = record.option
            spec, target = record.workload.spec, record.task.target
            self._features[key] = describe_candidate(spec, option.template, option.knobs, target)

    def seconds(self) -> dict[tuple[Workload, Option], float]:
        """Typical seconds of every candidate that ran undisturbed."""
        return {
            (workload, option): seconds
            for workload, samples in self._samples.items()
            for option, seconds in typical_seconds(samples).items()
        }

    def all(self) -> list[Example]:
        """Every candidate that ran undisturbed, those of one workload as one group."""
        return [
            Example(key[0], self._features[key], seconds, self._build_seconds[key])
            for key, seconds in self.seconds().items()
        ]


def typical_seconds(samples: dict[Option, list[Outcome]]) -> dict[Option, float]:
    """Seconds of each candidate of one workload, drift between samples taken out where a default was timed beside it.

    Candidates of which every sample was disturbed are left out: the candidate's timings or the default's are far apart.
    """
    outcomes = [one for several in samples.values() for one in several]
    baselines = [one.baseline for one in outcomes if not math.isnan(one.baseline)]
    usual = statistics.median(baselines) if baselines else math.nan
    found: dict[Option, float] = {}
    for option, several in samples.items():
        calm = [one for one in several if not one.spread > MOST_SPREAD]
        ratios = [one.ratio for one in calm if 1 / MOST_DRIFT <= one.baseline / usual <= MOST_DRIFT]
        alone = [one.seconds for one in calm if math.isnan(one.baseline)]
        if ratios:
            found[option] = statistics.median(ratios) * usual
        elif alone:
            found[option] = statistics.median(alone)
    return found
