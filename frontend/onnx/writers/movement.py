"""Ops that move elements."""

from __future__ import annotations

from ....ir import ops
from ..writer import Writer, writes


@writes(ops.ReshapeOp)
def reshape(writer: Writer, op: ops.ReshapeOp) -> str:
    shape = op.result.shape
    return writer.node("Reshape", writer.name(op.x), writer.numbers(shape), **({"allowzero": 1} if 0 in shape else {}))


@writes(ops.PermuteOp)
def permute(writer: Writer, op: ops.PermuteOp) -> str:
    return writer.node("Transpose", writer.name(op.x), perm=list(op.attrs.dims))


@writes(ops.ExpandOp)
def expand(writer: Writer, op: ops.ExpandOp) -> str:
    return writer.node("Expand", writer.name(op.x), writer.numbers(op.result.shape))


@writes(ops.SliceOp)
def slice_(writer: Writer, op: ops.SliceOp) -> str:
    attrs = op.attrs
    ranges = [writer.numbers([one]) for one in (attrs.start, attrs.stop, attrs.axis, attrs.step)]
    return writer.node("Slice", writer.name(op.x), *ranges)


@writes(ops.ConcatOp)
def concat(writer: Writer, op: ops.ConcatOp) -> str:
    return writer.node("Concat", *map(writer.name, op.inputs), axis=op.attrs.axis)


@writes(ops.PadOp)
def pad(writer: Writer, op: ops.PadOp) -> str:
    dtype = op.x.type.dtype
    value = writer.number(op.attrs.value if dtype.is_floating else int(op.attrs.value), dtype.torch)
    return writer.node("Pad", writer.name(op.x), writer.numbers((*op.attrs.before, *op.attrs.after)), value)


@writes(ops.EmbeddingOp)
def embedding(writer: Writer, op: ops.EmbeddingOp) -> str:
    return writer.node("Gather", writer.name(op.table), writer.name(op.indices), axis=0)
