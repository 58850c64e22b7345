"""Predicted latency of graphs and ops, for passes that decide by time without measuring: from records alone.

A kernel that was measured takes what was measured. One that was not takes what `LatencyRegressor` has learned from the
others. What tuning knows nothing about (a copy, a global average) takes its memory traffic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ...ir import Graph, Op, graph_of
from ...ir.ops import RelayoutOp
from ..codegen.lowering import Call, lower
from ..machines.target import Cpu
from ..templates.machine_model import LAUNCH_SECONDS, STREAM
from ..templates.option import Option, Workload
from .examples import Examples
from .features import describe_candidate
from .latency import LatencyRegressor
from .measured_latency import ComparedLatency
from .records import Record, best
from .task import hollow_graph
from .tuned import Tuned

MEASURED_ERROR = 0.03  # relative: what a timing is worth on another day
TRAFFIC_ERROR = 0.5  # of time derived from memory traffic alone


@dataclass(frozen=True)
class Prediction:
    """Seconds of one execution, and the relative error to expect in about two cases of three."""

    seconds: float
    error: float


class PredictedLatency:
    """Implements `tersor.passes.base.Latency` without running anything.

    Parameters
    ----------
    target
        The machine; ``target.cores`` is the number of threads.
    records
        Measurements that fit the target, from `tersor.targets.tuning.driver.load_records`.
    prepare
        What turns a graph into one that can be lowered: the pass ``layout``, and whatever comes before it.
    """

    def __init__(
        self,
        target: Cpu,
        records: Iterable[Record],
        prepare: Callable[[Graph], Graph] = lambda graph: graph,
    ) -> None:
        records = list(records)
        examples = Examples(records)
        self._target = target
        self._prepare = prepare
        self._tuned = Tuned(best(records))
        self._known = examples.seconds()
        self._regressor = LatencyRegressor()
        self._regressor.fit(examples.all())

    def prepare(self, questions: Iterable[Sequence[Graph]]) -> None:
        """Nothing is compiled."""

    def graph_seconds(self, graph: Graph) -> float:
        """Predicted seconds of one execution of ``graph``."""
        return self.predict(graph).seconds

    def op_seconds(self, op: Op) -> float:
        """Predicted seconds of one execution of ``op`` alone, without the changes of layout around it."""
        calls = self._calls(graph_of(op))
        is_relayout = isinstance(op, RelayoutOp)
        return self._sum(call for call in calls if is_relayout or not isinstance(call.op, RelayoutOp)).seconds

    def compare(self, before: Graph, after: Graph) -> ComparedLatency:
        """Predicted seconds of both graphs; their errors are taken to be independent."""
        old, new = self.predict(before), self.predict(after)
        return ComparedLatency(old.seconds, new.seconds, math.hypot(old.error, new.error))

    def predict(self, graph: Graph) -> Prediction:
        """Seconds of ``graph`` and their error; the errors of its kernels are taken to be independent."""
        return self._sum(self._calls(graph))

    def _calls(self, graph: Graph) -> tuple[Call, ...]:
        return lower(hollow_graph(str(self._prepare(graph))), self._target, self._tuned).calls

    def _sum(self, calls: Iterable[Call]) -> Prediction:
        parts = [self._predict_call(call) for call in calls]
        seconds = math.fsum(part.seconds for part in parts)
        if not seconds:
            return Prediction(0.0, 0.0)
        return Prediction(seconds, math.hypot(*(part.seconds * part.error for part in parts)) / seconds)

    def predict_workload(self, workload: Workload, option: Option) -> Prediction:
        """Seconds of one kernel call and their error."""
        known = self._known.get((workload, option))
        if known is not None:
            return Prediction(known, MEASURED_ERROR)
        features = describe_candidate(workload.spec, option.template, option.knobs, self._target)
        seconds, error = self._regressor.predict([features])
        return Prediction(float(seconds[0]), float(error[0]))

    def _predict_call(self, call: Call) -> Prediction:
        choice = call.kernel.choice
        if choice is not None:
            return self.predict_workload(choice.workload, choice.option)
        moved = call.op.cost().bytes if call.op is not None else 2 * call.result.type.bytes
        return Prediction(LAUNCH_SECONDS + moved / (STREAM * self._target.cores), TRAFFIC_ERROR)
