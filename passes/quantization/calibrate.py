"""``quantize-calibrate``: measure the range of every value that is to be stored as integers.

Before::

    %2 = observe(%1)

After::

    %2 = observe(%1) {high=5.25}

The calibration batches stream through the interpreter one after another; a calibrator (`calibrators`) keeps what it
needs of each value, never the batches. Values whose integers are moved to another value (pooling, concatenation,
reshaping) get one range with it, which covers both, so that moving them is all there is to do.

Fails without calibration data, on batches that do not fit the graph's inputs, on activations that are NaN or infinite,
and on those that are one number only, naming the layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Annotated

import networkx
import torch

from ...ir import Graph, IRError, OnIntegers, Op, TersorError, check_inputs, evaluate
from ..base import Pass, PassContext, Result
from ..registry import register_pass
from .calibrators import Calibrator, RangeObserver, parse_calibrator
from .calibrators.registry import CALIBRATORS
from .placement import find_notes, name_of, underlying

_RULE = "quantize-calibrate"


@register_pass(_RULE, purpose="quantize")
class QuantizeCalibrate(Pass):
    """Measure the ranges of the values that are to be stored as integers, on calibration data.

    Attributes
    ----------
    method
        ``minmax``, ``percentile:99.99`` or ``moving-average:0.9``.
    """

    method: Annotated[str, CALIBRATORS] = "minmax"

    def __post_init__(self) -> None:
        parse_calibrator(self.method)

    def run(self, graph: Graph, context: PassContext) -> Result:
        notes = find_notes(graph)
        if not notes:
            return Result(False, ("no value is to be stored as integers",))
        ranges, batches = observe_ranges(graph, notes, context.calibration, parse_calibrator(self.method))
        rewriter = context.rewriter(graph)
        for op, (low, high) in _joined(graph, notes, ranges).items():
            attrs = replace(op.attrs, low=low, high=high)
            if attrs != op.attrs and rewriter.commit(_RULE, op):
                rewriter.update(op, attrs)
        context.calibrated = graph.clone()
        return Result(rewriter.changed, (f"{len(notes)} ranges by {self.method} from {batches} batches",))


def calibration_batches(graph: Graph, calibration: Iterable[Sequence[torch.Tensor]] | None) -> Iterable[Sequence]:
    """The batches, one after another; raises TersorError where one does not fit, or where there is none."""
    index = -1
    for index, batch in enumerate(calibration or ()):
        try:
            check_inputs(graph, batch)
        except IRError as error:
            raise TersorError(f"calibration batch {index} does not fit: {error}") from error
        yield batch
    if index < 0:
        raise TersorError("needs calibration data: give at least one batch of inputs (calibration=...)")


def observe_ranges(
    graph: Graph,
    notes: Sequence[Op],
    calibration: Iterable[Sequence[torch.Tensor]] | None,
    calibrator: Calibrator,
) -> tuple[dict[Op, tuple[float, float]], int]:
    """The range of what each of ``notes`` reads, and the number of batches that were seen."""
    observers: dict[Op, RangeObserver] = {op: calibrator.observer() for op in notes}
    first: dict[Op, float] = {}  # the only number seen so far
    count = 0

    def observe(op: Op, results: tuple[torch.Tensor, ...]) -> None:
        if op not in observers:
            return
        low, high = (extreme.item() for extreme in torch.aminmax(results[0]))
        if not bool(results[0].isfinite().all()):
            raise TersorError(f"calibration batch {count} makes numbers at {name_of(op.inputs[0])} that are not finite")
        if count == 0 and low == high:
            first[op] = low
        if op in first and not low == high == first[op]:
            del first[op]
        observers[op].observe(results[0])

    state: Sequence[torch.Tensor] = ()  # goes from batch to batch, as it will from call to call
    for batch in calibration_batches(graph, calibration):
        state = evaluate(graph, (*batch, *state), observe)[len(graph.user_outputs) :]
        count += 1
    if first:
        op, number = next(iter(first.items()))
        more = f" (and of {len(first) - 1} more layers)" if len(first) > 1 else ""
        raise TersorError(
            f"calibration data makes every number at {name_of(op.inputs[0])}{more} {number + 0.0:g};"
            " give data that varies, or leave the layers that read it out with skip=[...]"
        )
    return {op: observer.range() for op, observer in observers.items()}, count


def _joined(graph: Graph, notes: Sequence[Op], ranges: dict[Op, tuple[float, float]]) -> dict[Op, tuple[float, float]]:
    """One range for notes between which integers are only moved."""
    about = {underlying(op.inputs[0]): op for op in notes}
    ties = networkx.Graph()
    ties.add_nodes_from(notes)
    for op in graph.ops:
        if op.on_integers is OnIntegers.MOVES and op.result in about:
            sources = [about[underlying(value)] for value in op.inputs if underlying(value) in about]
            ties.add_edges_from((about[op.result], source) for source in sources)
    joined: dict[Op, tuple[float, float]] = {}
    for group in networkx.connected_components(ties):
        low, high = min(ranges[op][0] for op in group), max(ranges[op][1] for op in group)
        joined.update(dict.fromkeys(group, (low, high)))
    return {op: joined[op] for op in notes}
