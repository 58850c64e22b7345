"""Numeric comparison of two graphs: seeded inputs, and how far outputs are apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import networkx
import torch

from ..ir import DType, Graph, IRError, Op, TersorError, Value, check_inputs, check_memory, evaluate_op
from ..ir.foreign import Json
from ..ir.ops import EmbeddingOp, QuantizeOp, ScatterOp

Tensors = tuple[torch.Tensor, ...]
Operands = Sequence[torch.Tensor | None]

_DRAWS = 3  # of numbers that move by what rounding is off
_EDGE = 0.01  # of a step: how far sums of integers with a rounded bias may be from the model's own
_RANGES = {DType.U8: (0, 256), DType.I8: (-128, 128)}  # of bytes that index no table


@dataclass(frozen=True)
class Deviation:
    """The output that differs most.

    Attributes
    ----------
    output
        Its index.
    difference
        Largest absolute difference of an element; infinite where one side is NaN or infinite and the other is not.
    scale
        Largest finite magnitude of the expected output, or 1 if that is zero.
    """

    output: int
    difference: float
    scale: float

    @property
    def relative(self) -> float:
        """Difference divided by scale."""
        return self.difference / self.scale

    def exceeds(self, tolerance: float) -> bool:
        """Whether the relative difference is larger than ``tolerance``."""
        return self.relative > tolerance

    def __str__(self) -> str:
        return f"output {self.output} differs by {self.difference:.3g} ({self.relative:.3g} of its scale)"


def deviation(expected: Sequence[torch.Tensor], actual: Sequence[torch.Tensor]) -> Deviation:
    """Compare outputs; raises IRError when their number, shapes or element types differ."""
    if len(expected) != len(actual):
        raise IRError(f"{len(actual)} outputs instead of {len(expected)}")
    worst = Deviation(0, 0.0, 1.0)
    for index, (left, right) in enumerate(zip(expected, actual, strict=True)):
        if left.shape != right.shape or left.dtype != right.dtype:
            raise IRError(
                f"output {index} is {right.dtype} {list(right.shape)} instead of {left.dtype} {list(left.shape)}"
            )
        one = _deviation(index, left.double(), right.double())
        if one.relative > worst.relative:
            worst = one
    return worst


@dataclass(frozen=True)
class Agreement:
    """How far a compiled program is from the model that it was made from, on the model's example inputs.

    Attributes
    ----------
    subject
        What was compared: the ``program``, or the optimized ``graph`` where the program does not run on this machine.
    exact
        Whether all passes are exact or close, so that outputs must agree.
    difference
        See `distance`.
    decibels
        Signal-to-noise ratio of the worst floating-point output; infinite where outputs are the same.
    rounding
        What rounding costs the model itself (`own_rounding`), measured where ``difference`` was too large to be taken
        for granted.
    skipped
        Why nothing was compared; empty if it was.
    """

    subject: str
    exact: bool
    difference: float = 0.0
    decibels: float = math.inf
    rounding: float | None = None
    skipped: str = ""

    @classmethod
    def between(
        cls, subject: str, exact: bool, expected: Sequence[torch.Tensor], actual: Sequence[torch.Tensor]
    ) -> Agreement:
        """Compare outputs."""
        ratios = [_decibels(*pair) for pair in zip(expected, actual, strict=True) if pair[0].is_floating_point()]
        return cls(subject, exact, distance(expected, actual), min(ratios, default=math.inf))

    def to_json(self) -> dict[str, Json]:
        """A dictionary of JSON types; what is infinite is null."""
        numbers = asdict(self)
        return {key: None if value in (math.inf, -math.inf) else value for key, value in numbers.items()}

    def __str__(self) -> str:
        if self.skipped:
            return f"not compared with the model: {self.skipped}"
        apart = f"largest difference {self.difference:.2g} of an output's scale"
        if not self.exact:
            apart = f"signal-to-noise ratio {self.decibels:.1f} dB, {apart}"
        if self.rounding is not None:
            apart += f"; rounding itself costs this model {self.rounding:.2g}"
        return f"{self.subject} compared with the model on its example inputs: {apart}"


def distance(expected: Sequence[torch.Tensor], actual: Sequence[torch.Tensor]) -> float:
    """How far outputs are apart: the largest difference as a share of an output's scale.

    Of integers and booleans it is the share of elements that differ. It is infinite where NaN or infinity stands on one
    side only, and where shapes differ.
    """
    if len(expected) != len(actual):
        return math.inf
    return max((_distance(*pair) for pair in zip(expected, actual, strict=True)), default=0.0)


def _distance(expected: torch.Tensor, actual: torch.Tensor) -> float:
    if expected.shape != actual.shape:
        return math.inf
    if not expected.is_floating_point():
        return (expected != actual).double().mean().item() if expected.numel() else 0.0
    return _deviation(0, expected.double(), actual.double()).relative


def _decibels(expected: torch.Tensor, actual: torch.Tensor) -> float:
    """Signal-to-noise ratio of the elements that are finite."""
    finite = expected.isfinite()
    signal = expected[finite].double()
    noise = (signal - actual[finite].double()).square().sum().item()
    if not noise:
        return math.inf
    power = signal.square().sum().item()
    return 10 * math.log10(power / noise) if power and math.isfinite(noise) else -math.inf


def _deviation(index: int, expected: torch.Tensor, actual: torch.Tensor) -> Deviation:
    if not expected.numel():
        return Deviation(index, 0.0, 1.0)
    same = (expected == actual) | (expected.isnan() & actual.isnan())
    difference = torch.where(same, 0.0, (expected - actual).abs().nan_to_num(math.inf, math.inf))
    scale = torch.where(expected.isfinite(), expected.abs(), 0.0).max().item()
    return Deviation(index, difference.max().item(), scale or 1.0)


def own_rounding(graph: Graph, inputs: Sequence[torch.Tensor]) -> float:
    """How far ``graph`` may be from itself, as a share of an output's scale: the largest of the three ways below."""
    return max(float32_rounding(graph, inputs), step_rounding(graph, inputs), result_rounding(graph, inputs))


def step_rounding(graph: Graph, inputs: Sequence[torch.Tensor]) -> float:
    """How far outputs move when all numbers that the graph rounds to integers move by up to a hundredth of the step.

    Those on the edge between two integers become the other one then. It is 0 for graphs that round none.
    """
    if not any(isinstance(op, QuantizeOp) for op in graph.ops):
        return 0.0
    generator = torch.Generator().manual_seed(0)

    def moved(op: Op, operands: Operands) -> Tensors:
        if not isinstance(op, QuantizeOp):
            return evaluate_op(op, operands)
        (x,) = operands
        assert x is not None
        return evaluate_op(op, (_moved(x, _EDGE * op.attrs.scale, generator),))

    return distance(graph.evaluate(*inputs), _evaluate_by(moved, graph, inputs))


def float32_rounding(graph: Graph, inputs: Sequence[torch.Tensor]) -> float:
    """How far float32 is from float64 on ``graph``, as a share of an output's scale: what sums that cancel cost it.

    It is 0 where that is not known, since an op takes float32 only, as fused ones do.
    """
    try:
        return distance(_evaluate_by(_in_float64, graph, inputs), graph.evaluate(*inputs))
    except IRError:
        return 0.0


def result_rounding(graph: Graph, inputs: Sequence[torch.Tensor]) -> float:
    """How far outputs move when the results of each op move by up to what float32 is off in them.

    It finds what `float32_rounding` finds by luck only: choices between numbers that are nearly the same. Where they
    fall the other way, as the place of a maximum that a number is put back to, outputs jump. What float32 computes
    exactly, such as an index, stays as it is. The largest of `_DRAWS` draws counts. It is 0 where an op takes float32
    only.
    """
    expected, generator = graph.evaluate(*inputs), torch.Generator().manual_seed(0)

    def moved(op: Op, operands: Operands) -> Tensors:
        results = evaluate_op(op, operands)
        if not op.operands:
            return results
        return tuple(
            _moved(result, _largest_difference(result, exact), generator) if result.is_floating_point() else result
            for result, exact in zip(results, _in_float64(op, operands), strict=True)
        )

    try:
        return max(distance(expected, _evaluate_by(moved, graph, inputs)) for _ in range(_DRAWS))
    except IRError:
        return 0.0


def _in_float64(op: Op, operands: Operands) -> Tensors:
    return evaluate_op(op, [x.double() if x is not None and x.is_floating_point() else x for x in operands])


def _moved(x: torch.Tensor, most: float, generator: torch.Generator) -> torch.Tensor:
    return x + (torch.rand(x.shape, generator=generator) * 2 - 1) * most


def _largest_difference(actual: torch.Tensor, exact: torch.Tensor) -> float:
    """Of the elements that are finite in both."""
    apart = (actual.double() - exact.double()).abs()
    return torch.where(apart.isfinite(), apart, 0.0).max().item() if apart.numel() else 0.0


def _evaluate_by(
    work: Callable[[Op, Operands], Tensors], graph: Graph, inputs: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """The outputs where the results of each op are what ``work`` makes of its operands."""
    environment: dict[Value, torch.Tensor] = dict(zip(graph.inputs, graph.with_state(inputs), strict=True))
    with torch.no_grad():
        for op in graph.ops:
            operands = [None if value is None else environment[value] for value in op.operands]
            environment.update(zip(op.results, work(op, operands), strict=True))
    return tuple(environment[value] for value in graph.outputs)


def difference(
    graph: Graph, inputs: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], tolerance: float
) -> tuple[str, tuple[torch.Tensor, ...]]:
    """Evaluate ``graph`` and compare with the outputs that it should have.

    Parameters
    ----------
    tolerance
        Allowed difference relative to an output's scale.

    Returns
    -------
    What is wrong, empty if nothing is, and the outputs; these are missing if the graph cannot be evaluated.
    """
    try:
        outputs = graph.evaluate(*inputs)
        worst = deviation(expected, outputs)
    except IRError as error:
        return f"the graph that it left cannot be evaluated or compared: {error}", ()
    return (f"{worst}, more than the tolerance {tolerance:g}" if worst.exceeds(tolerance) else ""), outputs


def largest_deviation(before: Graph, after: Graph, batches: Iterable[Sequence[torch.Tensor]]) -> Deviation | None:
    """How far the outputs of two graphs are apart, at most, on batches of inputs; None if there are no batches."""
    found = (deviation(before.evaluate(*batch), after.evaluate(*batch)) for batch in batches)
    return max(found, key=lambda one: one.relative, default=None)


def seeded_inputs(graph: Graph, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Random inputs that fit ``graph``: normal floats, booleans, bytes, integers inside of embedding tables.

    State is left out. Raises TersorError if this machine's memory cannot hold them.
    """
    check_memory(sum(value.type.bytes for value in graph.user_inputs), "the inputs")
    generator = torch.Generator().manual_seed(seed)
    return tuple(_random(value, _index_limit(graph, value), generator) for value in graph.user_inputs)


def first_batch(graph: Graph, calibration: Iterable[Sequence[torch.Tensor]] | None) -> Sequence[torch.Tensor]:
    """The first batch of calibration data, or `seeded_inputs` where there is none."""
    batch = None if calibration is None else next(iter(calibration), None)
    return seeded_inputs(graph) if batch is None else batch


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


@dataclass(frozen=True)
class CalibrationBatches:
    """`calibration_batches` that can be iterated repeatedly."""

    graph: Graph
    calibration: Iterable[Sequence[torch.Tensor]] | None

    def __iter__(self) -> Iterator[Sequence[torch.Tensor]]:
        return iter(calibration_batches(self.graph, self.calibration))


def _random(value: Value, limit: int | None, generator: torch.Generator) -> torch.Tensor:
    dtype = value.type.dtype
    if dtype.is_floating:
        return torch.randn(value.shape, generator=generator, dtype=torch.float64).to(dtype.torch)
    if limit is None or dtype is DType.BOOL:
        low, high = _RANGES.get(dtype, (0, 2))  # wider integers are masks
    else:
        low, high = 0, limit
    return torch.randint(low, high, value.shape, generator=generator).to(dtype.torch)


def _index_limit(graph: Graph, value: Value) -> int | None:
    """Smallest table that ``value`` indexes, directly or through integer ops; None if it indexes none."""
    flow = networkx.DiGraph()
    flow.add_node(value)
    for op in graph.ops:
        for result in op.results:
            if not result.type.dtype.is_floating:
                flow.add_edges_from((operand, result) for operand in op.inputs)
    reached = {value, *networkx.descendants(flow, value)}
    lookups = [op for op in graph.ops if isinstance(op, EmbeddingOp | ScatterOp)]
    tables = [op.table.shape[0] for op in lookups if op.indices in reached]
    return min(tables, default=None)
