"""``quantize-calibrate``: measure the range of every value that is to be stored as integers.

Before::

    %2 = observe(%1)

After::

    %2 = observe(%1) {high=5.25}

The calibration batches stream through the interpreter one after another; a calibrator (`calibrators`) keeps what it
needs of each value, never the batches. With ``auto``, several calibrators see the same pass over the data, and the
layers choose between their ranges (`choice`). Values whose integers are moved to another value (pooling, concatenation,
reshaping) get one range with it, which covers both, so that moving them is all there is to do.

An activation that is one number only has no range that would hold for other data. Its note is removed, so the layers
that read it stay in floating point, with the reason in the report.

Fails without calibration data, on batches that do not fit the graph's inputs, on activations that are NaN or infinite,
and on inputs that are one number only. Warns where the second half of the data has another scale than the first.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import networkx
import torch

from ...ir import Graph, OnIntegers, Op, Rewriter, TersorError, TersorWarning, Value
from ..base import Calibrated, Pass, PassContext, Result
from ..matching import replace as replace_op
from ..registry import register_pass
from .calibrators import Calibrator, RangeObserver, parse_calibrator
from .calibrators.histogram import SeveralRanges
from .calibrators.registry import CALIBRATORS
from .choice import choose
from .placement import find_notes, name_of, underlying
from .sample import Sample
from .spread import Spread, drift_warning
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
        seen = observe(graph, notes, context, parse_calibrator(self.method))
        drift = drift_warning(seen.spreads)
        if drift:
            warnings.warn(drift, TersorWarning, stacklevel=2)
        rewriter = context.rewriter(graph)
        groups = tied_notes(graph, notes)
        constant = [group for group in groups if _constant_of(group, seen.spreads) is not None]
        for group in constant:
            _leave_in_floating_point(group, seen.spreads, rewriter)
        found = choose([group for group in groups if group not in constant], seen.observers, seen.samples)
        for op, (low, high) in found.ranges.items():
            attrs = replace(op.attrs, low=low, high=high)
            if attrs != op.attrs and rewriter.commit(_RULE, op):
                rewriter.update(op, attrs)
        names = (found.names.get(op) for op in found.ranges)
        calibrators = tuple(self.method if name is None else f"{self.method}:{name}" for name in names)
        context.calibrated = Calibrated(graph.clone(), calibrators)
        note = f"{len(found.ranges)} ranges by {self.method} from {seen.batches} batches{found.summary}"
        return Result(rewriter.changed, (note,))


@dataclass(frozen=True)
class _Seen:
    """What calibration data told of each note: in the calibrator's way, a sample of its numbers, and their spread."""

    observers: Mapping[Op, RangeObserver]
    samples: Mapping[Op, Sample]
    spreads: Mapping[Op, Spread]
    batches: int


def observe(graph: Graph, notes: Sequence[Op], context: PassContext, calibrator: Calibrator) -> _Seen:
    """Run the calibration data; raises TersorError where an input of the graph is one number only."""
    observers: dict[Op, RangeObserver] = {op: calibrator.observer() for op in notes}
    samples = {op: Sample() for op, one in observers.items() if isinstance(one, SeveralRanges)}
    spreads = {op: Spread() for op in notes}
    values = {op.result: op for op in notes}

    def see(value: Value, numbers: torch.Tensor) -> None:
        op = values[value]
        spreads[op].add(numbers)
        observers[op].observe(numbers)
        if op in samples:
            samples[op].add(numbers)

    count = watch(graph, set(values), context, see)
    for op, spread in spreads.items():
        if underlying(op.inputs[0]).op is None and spread.constant is not None:
            raise TersorError(
                f"calibration data makes every number at {name_of(op.inputs[0])} {spread.constant:g};"
                " give data that varies, or leave the layers that read it out with skip=[...]"
            )
    return _Seen(observers, samples, spreads, count)


def _constant_of(group: Sequence[Op], spreads: Mapping[Op, Spread]) -> float | None:
    """The number that all notes of a group always are; None if they vary, or differ."""
    found = {spreads[op].constant for op in group}
    return found.pop() if len(found) == 1 else None


def _leave_in_floating_point(group: Sequence[Op], spreads: Mapping[Op, Spread], rewriter: Rewriter) -> None:
    """Remove notes about what is one number only."""
    number = _constant_of(group, spreads)
    for note in group:
        if rewriter.commit(_RULE, note):
            for reader in note.result.users:
                if reader.on_integers in (OnIntegers.SUMS, OnIntegers.PRODUCTS):
                    at = name_of(note.inputs[0])
                    rewriter.refuse(_RULE, reader, f"calibration data makes every number at {at} {number:g}")
            replace_op(rewriter, note, note.inputs[0])


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
