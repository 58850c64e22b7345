"""Compute in a floating-point type of 16 bits: what ``to-bf16`` and ``to-fp16`` have in common.

Convolutions, linear layers, matrix products and attention are converted wherever they are; elementwise ops, pooling,
normalisation, means and data movement only where an operand is converted already, so that what stands between two
converted ops stays narrow. Sums are accumulated in float32 and rounded once; biases and parameters of normalisations
stay float32, and so do the graph's inputs and outputs.

Groups made by ``fuse`` are taken apart first and fused again afterwards, so that ``O3,to-bf16`` and ``O2,to-bf16,fuse``
are the same.

Refused for weights that are not loaded, for numbers beyond the range of the type, and after ``layout``. The report
tells how far the outputs are from those of the float32 graph, on the calibration batches or on seeded random inputs.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..ir import DType, Graph, Narrowing, Op, Rewriter, TensorType, Value, graph_of
from ..ir.ops import CastOp, FullOp, RelayoutOp, WeightOp
from .base import Exactness, Pass, PassContext, Result
from .fuse import Fuse
from .matching import numbers, prune, tensor, weight_name
from .numeric import largest_deviation, seeded_inputs
from .unfuse import take_apart


@dataclass(frozen=True)
class HalfPrecision(Pass):
    """Base of the passes; a subclass says which type.

    Attributes
    ----------
    dtype
        The narrow type.
    """

    exactness = Exactness.APPROXIMATE
    dtype: ClassVar[DType]

    def run(self, graph: Graph, context: PassContext) -> Result:
        rewriter = context.rewriter(graph)
        if any(isinstance(op, RelayoutOp) for op in graph.ops):
            rewriter.refuse(self.name, graph.ops[0], f"layouts are chosen already; run {self.name} before layout")
            return Result(False)
        if not any(_is_float_compute(op) for part in graph.parts for op in part.ops):
            return Result(False)
        original = graph.clone()
        fused = take_apart(graph, rewriter, self.name)
        converted = narrow(rewriter, self.name, self.dtype)
        then = (Fuse(),) if fused else ()
        if not converted:
            return Result(rewriter.changed, then=then)
        batches = [seeded_inputs(original)] if context.calibration is None else context.calibration
        error = largest_deviation(original, graph, batches)
        done = f"{converted} ops in {self.dtype.value}"
        return Result(True, (f"{done}; {error}" if error else done,), then)


def narrow(rewriter: Rewriter, rule: str, dtype: DType, leaders: Collection[Op] | None = None) -> int:
    """Compute a graph in a narrow type, and count the ops that changed.

    Parameters
    ----------
    rewriter
        Of the graph.
    rule
        Name of the rewrites.
    dtype
        The narrow type.
    leaders
        Of the ops that are converted wherever they are, only these; all if None.
    """
    conversion = _Conversion(rewriter, rule, dtype, leaders)
    return sum(conversion.convert(op) for op in rewriter.graph.ops)


def leaders_of(graph: Graph, dtype: DType) -> list[Op]:
    """The ops of a graph that can be converted wherever they are."""
    conversion = _Conversion(Rewriter(graph), "", dtype)
    return [
        op for op in graph.ops if _is_float_compute(op) and conversion.is_candidate(op) and not conversion.fault(op)
    ]


def narrow_twin(op: Op, dtype: DType) -> Graph:
    """A graph of an op alone, computed in a narrow type: what it reads and its result are stored so too.

    Times are what it is for.
    """
    graph = graph_of(op)
    narrow(Rewriter(graph), "narrow-twin", dtype)
    return graph_of(next(one for one in graph.ops if type(one) is type(op)))


class _Conversion:
    """Converts the ops of one graph, in execution order."""

    def __init__(self, rewriter: Rewriter, rule: str, dtype: DType, leaders: Collection[Op] | None = None) -> None:
        self._rewriter = rewriter
        self._rule = rule
        self._dtype = dtype
        self._leaders = leaders

    def convert(self, op: Op) -> bool:
        """Replace ``op`` by casts, the same op on narrow numbers, and a cast back."""
        if not self.is_candidate(op):
            return False
        reason = self.fault(op)
        if reason:
            return self._rewriter.refuse(self._rule, op, reason)
        if not self._rewriter.commit(self._rule, op):
            return False
        wide = _first_wide_operand(op)
        operands = [self._narrow(v) if index < wide else v for index, v in enumerate(op.operands)]
        result = self._rewriter.create(type(op), operands, op.attrs, location=op.location).result
        self._replace(op, result)
        return True

    def is_candidate(self, op: Op) -> bool:
        """Whether ``op`` is one to convert, now that everything before it is done."""
        if len(op.results) != 1 or op.result.type.dtype is not DType.F32 or not op.inputs or isinstance(op, CastOp):
            return False
        if op.narrowing is Narrowing.LEADS and (self._leaders is None or op in self._leaders):
            return True
        return op.narrowing is Narrowing.FOLLOWS and any(self._source(value) is not None for value in op.inputs)

    def fault(self, op: Op) -> str:
        """Why ``op`` cannot be converted; empty if it can."""
        wide = _first_wide_operand(op)
        for index, value in enumerate(op.operands):
            if value is None:
                continue
            loaded = tensor(value)
            if isinstance(value.op, WeightOp) and loaded is None:
                return "a weight is not loaded"
            if isinstance(value.op, FullOp) and not self._fits(
                torch.tensor(float(value.op.attrs.value), dtype=torch.float64)
            ):
                return f"the constant {value.op.attrs.value} is beyond the range of {self._dtype.value}"
            if index >= wide or loaded is None or loaded.dtype is not torch.float32:
                continue
            if not self._fits(loaded):
                return f"a weight is beyond the range of {self._dtype.value}"
        return ""

    def _fits(self, numbers: torch.Tensor) -> bool:
        """Whether what is finite stays finite."""
        finite = numbers[numbers.isfinite()]
        return bool(finite.to(self._dtype.torch).isfinite().all())

    def _narrow(self, value: Value | None) -> Value | None:
        """The narrow form of an operand; what is not float32 stays as it is."""
        if value is None or value.type.dtype is not DType.F32:
            return value
        source = self._source(value)
        if source is not None:
            return source
        if isinstance(value.op, FullOp):
            return self._rewriter.full(value.op.attrs.value, TensorType(value.shape, self._dtype))
        if isinstance(value.op, WeightOp):
            return self._rewriter.weight(numbers(value).to(self._dtype.torch), weight_name(value, self._dtype.value))
        made = (user for user in value.users if isinstance(user, CastOp) and user.attrs.dtype is self._dtype)
        earlier = next(made, None)
        if earlier is not None:
            return earlier.result
        return self._rewriter.create(CastOp, (value,), CastOp.attrs_type(dtype=self._dtype)).result

    def _source(self, value: Value) -> Value | None:
        """The narrow value that ``value`` is widened from, if it is."""
        op = value.op
        if isinstance(op, CastOp) and op.attrs.dtype is DType.F32 and op.x.type.dtype is self._dtype:
            return op.x
        return None

    def _replace(self, op: Op, narrow: Value) -> None:
        """Let readers of ``op`` read ``narrow``, widened again; remove the op and operands that nothing else reads."""
        operands = op.inputs
        widened = self._rewriter.create(CastOp, (narrow,), CastOp.attrs_type(dtype=DType.F32)).result
        self._rewriter.replace(op, widened)
        prune(self._rewriter, operands)


def _is_float_compute(op: Op) -> bool:
    """Whether this is one of the ops that make converting worth while, still in float32."""
    return op.narrowing is Narrowing.LEADS and op.result.type.dtype is DType.F32


def _first_wide_operand(op: Op) -> int:
    """The operand from which on they keep their element type: biases, parameters of a normalisation, masks."""
    return len(op.operands) if op.wide_operands is None else op.wide_operands
