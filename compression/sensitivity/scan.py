"""A scan: the errors of all axes, which are cheap, then what the user's function says of each changed model."""

from __future__ import annotations

import datetime
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from ...evaluation import Evaluation, interpreted_model
from ...ir import Graph, TersorError
from ...passes.calibration import Batches
from ...passes.partial_runs import Change, Outputs, PartialRuns
from ...passes.progress import Remaining
from ...passes.sensitivity import LossCurve, LossPoint, ScannedAxis, SensitivityScan
from ..machine import describe_machine, describe_versions
from .axes import AxisContext, SensitivityAxis
from .statistics import measured_again
from .sweep import errors, portions
from .variants import AxisPlan, PlannedCurve, Variant

Axes = Mapping[str, SensitivityAxis]
_Key = tuple[str, str, str, str]  # axis, name and kind of a curve, label of a point


@dataclass(frozen=True)
class _FirstBatches:
    """The first batches of the data, as often as is wanted."""

    data: Batches
    most: int

    def __iter__(self) -> Iterator[Sequence[torch.Tensor]]:
        return itertools.islice(self.data, self.most)


class Scanner:
    """Scans one model.

    Parameters
    ----------
    graph
        Of fixed shapes, without fused ops; stays as it is.
    data
        Batches of its inputs.
    most
        How many of them are looked at.
    criterion
        Which channels go first.
    progress
        Told what is left.
    reestimate
        Whether batch normalisations are measured again behind each change.
    """

    def __init__(
        self,
        graph: Graph,
        data: Batches,
        most: int,
        criterion: str,
        progress: Callable[[str], None],
        reestimate: bool = False,
    ) -> None:
        self._graph = graph
        self._reestimate = reestimate
        self._source = data.name
        self._batches = _FirstBatches(data, most)
        self._context = AxisContext(self._batches, criterion, progress)
        self._say = progress

    def run(
        self, axes: Axes, all_wanted: bool, evaluation: Evaluation | None, seconds: float | None
    ) -> SensitivityScan:
        """Scan.

        Parameters
        ----------
        all_wanted
            Whether an axis without any layer is a mistake; if not, it is left out.
        evaluation
            Scores models, or None.
        seconds
            After which no further model is scored, or None.
        """
        self._say("read the data")
        count = sum(1 for _ in self._batches)
        scanned = [self._scanned(name, axis, count) for name, axis in axes.items()]
        self._check(scanned, all_wanted)
        scan = SensitivityScan(
            model=self._graph.name,
            axes=tuple(one for one in scanned if one.curves),
            data=self._source,
            batches=count,
            reestimated=self._reestimate,
            machine=describe_machine(),
            versions=describe_versions(),
            date=datetime.datetime.now(datetime.UTC).isoformat(sep=" ", timespec="seconds"),
        )
        return scan if evaluation is None else self._scored(scan, axes, evaluation, seconds)

    def _check(self, scanned: Sequence[ScannedAxis], all_wanted: bool) -> None:
        empty = [one for one in scanned if not one.curves]
        if len(empty) == len(scanned):
            names = ", ".join(one.name for one in empty)
            raise TersorError(f"{self._graph.name} has no layer that can be compressed ({names}){_reason(empty[0])}")
        if empty and all_wanted:
            name = empty[0].name
            raise TersorError(f"axis {name}: {self._graph.name} has no layer for it{_reason(empty[0])}; leave it out")

    def _scanned(self, name: str, axis: SensitivityAxis, count: int) -> ScannedAxis:
        """The errors of one axis."""
        curves: list[LossCurve] = []
        left: dict[str, str] = {}
        self._say(f"{name}: plan")
        for plan in axis.plans(self._graph, self._context):
            left |= plan.left
            variants = [one for curve in plan.curves for one in curve.variants]
            total = count * sum(one.make is not None for one in variants)
            remaining = Remaining(self._say, f"{name}: outputs of changed models", total)
            swept = errors(plan.graph, self._batches, variants, remaining.step, self._reestimate) if variants else ()
            found = iter(swept)
            for curve in plan.curves:
                points = tuple(LossPoint(one.label, one.value, one.detail, next(found)) for one in curve.variants)
                curves.append(LossCurve(curve.name, curve.kind, curve.layers, curve.size, points))
        changed = {layer for curve in curves for layer in curve.layers}
        notes = tuple(f"{layer}: {reason}" for layer, reason in left.items() if layer not in changed)
        return ScannedAxis(name, axis.title, tuple(curves), notes)

    def _scored(
        self, scan: SensitivityScan, axes: Axes, evaluation: Evaluation, seconds: float | None
    ) -> SensitivityScan:
        """The same with a score of each point, as far as the time goes."""
        self._say(f"score {scan.model}")
        original = evaluation(interpreted_model(self._graph))
        total = sum(len(curve.points) for axis in scan.axes for curve in axis.curves)
        remaining = Remaining(self._say, f"scores by {evaluation.name}", total)
        scores: dict[_Key, float] = {}
        began, end, is_interrupted = time.perf_counter(), "", False
        try:
            for key, score in self._changed_models(scan, axes, evaluation):
                if seconds is not None and time.perf_counter() - began > seconds:
                    end = f"{seconds:g} s were over: {len(scores)} of {total} models are scored"
                    break
                scores[key] = original if score is None else score()
                remaining.step()
        except KeyboardInterrupt:
            end, is_interrupted = f"interrupted: {len(scores)} of {total} models are scored", True
        scored = tuple(_with_scores(axis, scores) for axis in scan.axes)
        found = replace(scan, axes=scored, evaluate=evaluation.name, score=original)
        return replace(found, end=end, is_interrupted=is_interrupted)

    def _changed_models(
        self, scan: SensitivityScan, axes: Axes, evaluation: Evaluation
    ) -> Iterator[tuple[_Key, Callable[[], float] | None]]:
        """All points, those of small changes first, with what scores them; None where nothing changes."""
        for axis in scan.axes:
            for plan in axes[axis.name].plans(self._graph, self._context):
                runs = PartialRuns(plan.graph)
                for curve, variant in _by_setting(plan):
                    make = variant.make
                    if make is not None and self._reestimate:
                        make = partial(_reestimated, runs, make, self._batches)
                    score = None if make is None else partial(_score, runs, make, evaluation, axis.name, curve, variant)
                    yield (axis.name, curve.name, curve.kind, variant.label), score


def _by_setting(plan: AxisPlan) -> Iterator[tuple[PlannedCurve, Variant]]:
    for index in range(max((len(curve.variants) for curve in plan.curves), default=0)):
        yield from ((curve, curve.variants[index]) for curve in plan.curves if index < len(curve.variants))


def _reestimated(runs: PartialRuns, make: Callable[[], Change], batches: Iterable[Sequence[torch.Tensor]]) -> Change:
    """A change with statistics of batch normalisations that are measured behind it, on as many batches as fit."""
    portion = next(portions(runs, batches))
    return measured_again(runs, [runs.begin(batch) for batch in portion], change=make())[1]


def _score(
    runs: PartialRuns,
    make: Callable[[], Change],
    evaluation: Evaluation,
    axis: str,
    curve: PlannedCurve,
    variant: Variant,
) -> float:
    change = make()

    def run(*inputs: torch.Tensor) -> Outputs:
        return runs.finish(runs.begin(inputs), change=change)

    try:
        return evaluation(interpreted_model(runs.graph, run))
    except TersorError as error:
        raise TersorError(f"{axis} of {curve.name} at {variant.label}: {error}") from error


def _with_scores(axis: ScannedAxis, scores: Mapping[_Key, float]) -> ScannedAxis:
    curves = tuple(
        replace(
            curve,
            points=tuple(
                replace(point, score=scores.get((axis.name, curve.name, curve.kind, point.label)))
                for point in curve.points
            ),
        )
        for curve in axis.curves
    )
    return replace(axis, curves=curves)


def _reason(axis: ScannedAxis) -> str:
    return f": {axis.notes[0]}" if axis.notes else ""
