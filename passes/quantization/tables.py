"""``quantize-tables``: tables of embeddings as 8-bit integers, with a scale for each row.

Before::

    %1 = embedding(%w, %ids)                          : f32[1,128,384]       w: f32[30522,384]

After::

    %1 = embedding(%w.i8, %ids)                       : i8[1,128,384]        w.i8: i8[30522,384]
    %2 = embedding(%w.scale, %ids)                    : f32[1,128,1]         w.scale: f32[30522,1]
    %3 = dequantize(%1, %2)                           : f32[1,128,384]

In small language models, the table of words is half of all numbers. Rows that are picked become numbers again in the
kernel that adds them up, so the time hardly changes, and it is the size that this is for. The largest number of each
row becomes 127 or -127. Nothing is calibrated.

The referee is asked about all tables together: they stay unless the whole graph is slower. Refused, with the reason in
the report: tables that ``skip`` names, that something else reads too (the weights of a last layer, for example), and
that are computed at run time, not finite, or have fewer than 8 numbers a row.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...ir import DType, Graph, Op, Rewriter, TersorError, Value
from ...ir.ops import DequantizeOp, EmbeddingOp, RelayoutOp, WeightOp
from ..base import Exactness, Pass, PassContext, Result
from ..fuse import Fuse
from ..matching import numbers, replace, tensor, weight_name
from ..numeric import largest_deviation, seeded_inputs
from ..referee import Keep, Referee
from ..registry import register_pass
from ..unfuse import take_apart
from .placement import is_skipped
from .scheme import rounded_weight, weight_scales

_RULE = "quantize-tables"
_SHORTEST = 8  # numbers of a row


@register_pass(_RULE, purpose="quantize")
class QuantizeTables(Pass):
    """Store tables of embeddings as 8-bit integers with a scale for each row.

    Attributes
    ----------
    skip
        Names of embeddings that stay as they are; ``*`` stands for anything.
    keep
        Whether tables stay as they are if the target measures the whole graph slower with integers, or never.
    """

    skip: tuple[str, ...] = ()
    keep: Keep = Keep.FASTER

    exactness = Exactness.APPROXIMATE
    measures = True

    def run(self, graph: Graph, context: PassContext) -> Result:
        if not any(_float_embeddings(part) for part in graph.parts):
            return Result(False)
        if any(isinstance(op, RelayoutOp) for op in graph.ops):
            raise TersorError(f"layouts are chosen already; run {_RULE} before layout")
        rewriter = context.rewriter(graph)
        fused = take_apart(graph, rewriter, _RULE)
        then = (Fuse(),) if fused else ()
        found = [op for op in _float_embeddings(graph) if not self._is_refused(op, rewriter)]
        if not found:
            return Result(rewriter.changed, (), then)
        original = graph.clone()
        whole = Referee(self.keep, context.latency, context.verdicts).judge_whole(original, _draft(graph, found))
        if not whole.stays:
            return Result(rewriter.changed, (whole.note,), then)
        sizes = {op.table.op.attrs.id: op.table.type.shape for op in found if isinstance(op.table.op, WeightOp)}
        _replace(found, rewriter)
        before = sum(4 * rows * columns for rows, columns in sizes.values())
        after = sum(rows * (columns + 4) for rows, columns in sizes.values())
        batches = [seeded_inputs(original)] if context.calibration is None else context.calibration
        error = largest_deviation(original, graph, batches)
        done = f"{len(sizes)} tables of 8 bits: {before} -> {after} bytes"
        return Result(True, (f"{done}; {error}" if error else done, whole.note), then)

    def _is_refused(self, op: EmbeddingOp, rewriter: Rewriter) -> bool:
        reason = "it is to be skipped" if is_skipped(op, self.skip) else _refusal(op)
        if reason:
            rewriter.refuse(_RULE, op, reason)
        return bool(reason)


def _float_embeddings(graph: Graph) -> list[EmbeddingOp]:
    return [op for op in graph.ops if isinstance(op, EmbeddingOp) and op.table.type.dtype is DType.F32]


def _refusal(op: EmbeddingOp) -> str:
    """Why a table stays as it is; empty if it need not."""
    made, known = op.table.op, tensor(op.table)
    if not isinstance(made, WeightOp) or known is None:
        return "its table is computed at run time, or not loaded"
    if known.shape[1] < _SHORTEST:
        return "its rows are short beside a scale"
    if not bool(known.isfinite().all()):
        return "its table has numbers that are not finite"
    assert op.graph is not None
    same = [one for one in op.graph.ops if isinstance(one, WeightOp) and one.attrs.id == made.attrs.id]
    uses = [use for one in same for use in one.result.uses]
    if not all(isinstance(use.user, EmbeddingOp) and use.index == 0 for use in uses):
        return "its table is read by something else too"
    return ""


def _draft(graph: Graph, ops: Sequence[Op]) -> Graph:
    """A copy with tables of integers."""
    copy, mapping = graph.clone_with_map()
    twins = [mapping[op.result].op for op in ops]
    _replace([op for op in twins if isinstance(op, EmbeddingOp)], Rewriter(copy))
    return copy


def _replace(ops: Sequence[EmbeddingOp], rewriter: Rewriter) -> None:
    made: dict[str, tuple[Value, Value]] = {}  # several embeddings may read one table
    for op in ops:
        if not rewriter.commit(_RULE, op):
            continue
        assert isinstance(op.table.op, WeightOp)
        id = op.table.op.attrs.id
        if id not in made:
            made[id] = _integer_table(op.table, rewriter)
        rows, scales = (rewriter.create(EmbeddingOp, (table, op.indices)).result for table in made[id])
        replace(rewriter, op, rewriter.create(DequantizeOp, (rows, scales)).result)


def _integer_table(table: Value, rewriter: Rewriter) -> tuple[Value, Value]:
    """Rows as integers, and the scale of each."""
    scales = weight_scales(numbers(table))
    integers = rounded_weight(numbers(table), scales).to(DType.I8.torch)
    return (
        rewriter.weight(integers, weight_name(table, "i8")),
        rewriter.weight(scales.float().reshape(-1, 1), weight_name(table, "scale")),
    )
