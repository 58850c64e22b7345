"""``quantize-calibrate``: measure the range of every value that is to be stored as integers.

Before::

    %2 = observe(%1)

After::

    %2 = observe(%1) {high=5.25}

The calibration batches stream through the interpreter one after another; a calibrator (`calibrators`) keeps what it
needs of each value, never the batches. With ``auto``, several calibrators see the same pass over the data, and the
layers choose between their ranges (`choice`). Values whose integers are moved to another value (pooling, concatenation,
reshaping) get one range with it, which covers both, so that moving them is all there is to do.

Fails without calibration data, on batches that do not fit the graph's inputs, on activations that are NaN or infinite,
and on those that are one number only, naming the layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import networkx
import torch

from ...ir import Graph, OnIntegers, Op, TersorError, Value
from ..base import Calibrated, Pass, PassContext, Result
from ..registry import register_pass
from .calibrators import Calibrator, RangeObserver, parse_calibrator
from .calibrators.histogram import SeveralRanges
from .calibrators.registry import CALIBRATORS
from .choice import Chosen, choose
from .placement import find_notes, name_of, underlying
from .sample import Sample
from .streaming import watch

_RULE = "quantize-calibrate"


@register_pass(_RULE, purpose="quantize")
class QuantizeCalibrate(Pass):
    """Measure the ranges of the values that are to be stored as integers, on calibration data.

    Attributes
    ----------
    method
        ``minmax``, ``percentile:99.99``, ``moving-average:0.9``, ``mse``, ``entropy``, or ``auto``: for each value the
        one with the least error of the layers that read it.
    """

    method: Annotated[str, CALIBRATORS] = "minmax"

    def __post_init__(self) -> None:
        parse_calibrator(self.method)

    @property
    def needs_data(self) -> bool:
        return True

    def run(self, graph: Graph, context: PassContext) -> Result:
        notes = find_notes(graph)
        if not notes:
            return Result(False, ("no value is to be stored as integers",))
        found, batches = observe_ranges(graph, notes, context, parse_calibrator(self.method))
        rewriter = context.rewriter(graph)
        for op, (low, high) in found.ranges.items():
            attrs = replace(op.attrs, low=low, high=high)
            if attrs != op.attrs and rewriter.commit(_RULE, op):
                rewriter.update(op, attrs)
        names = (found.names.get(op) for op in notes)
        calibrators = tuple(self.method if name is None else f"{self.method}:{name}" for name in names)
        context.calibrated = Calibrated(graph.clone(), calibrators)
        note = f"{len(notes)} ranges by {self.method} from {batches} batches{found.summary}"
        return Result(rewriter.changed, (note,))


def observe_ranges(
    graph: Graph,
    notes: Sequence[Op],
    context: PassContext,
    calibrator: Calibrator,
) -> tuple[Chosen, int]:
    """The range of what each of ``notes`` reads, shared where integers are moved, and the number of batches."""
    observers: dict[Op, RangeObserver] = {op: calibrator.observer() for op in notes}
    samples = {op: Sample() for op, one in observers.items() if isinstance(one, SeveralRanges)}
    values = {op.result: op for op in notes}
    first: dict[Op, float] = {}  # the only number seen so far
    seen: set[Op] = set()

    def observe(value: Value, numbers: torch.Tensor) -> None:
        op = values[value]
        low, high = (extreme.item() for extreme in torch.aminmax(numbers))
        if op not in seen and low == high:
            first[op] = low
        seen.add(op)
        if op in first and not low == high == first[op]:
            del first[op]
        observers[op].observe(numbers)
        if op in samples:
            samples[op].add(numbers)

    count = watch(graph, set(values), context, observe)
    if first:
        op, number = next(iter(first.items()))
        more = f" (and of {len(first) - 1} more layers)" if len(first) > 1 else ""
        raise TersorError(
            f"calibration data makes every number at {name_of(op.inputs[0])}{more} {number + 0.0:g};"
            " give data that varies, or leave the layers that read it out with skip=[...]"
        )
    return choose(tied_notes(graph, notes), observers, samples), count


def tied_notes(graph: Graph, notes: Sequence[Op]) -> list[list[Op]]:
    """Notes between which integers are only moved, so that one range is for all of them; in the order of ``notes``."""
    about = {underlying(op.inputs[0]): op for op in notes}
    ties = networkx.Graph()
    ties.add_nodes_from(notes)
    for op in graph.ops:
        if op.on_integers is OnIntegers.MOVES and op.result in about:
            sources = [about[underlying(value)] for value in op.inputs if underlying(value) in about]
            ties.add_edges_from((about[op.result], source) for source in sources)
    return [[op for op in notes if op in group] for group in networkx.connected_components(ties)]
