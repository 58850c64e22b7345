"""Kernels that move data: copies of views, concatenation, padding, table look-ups, changes of layout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from tvm import tirx

from ....ir import DType, TensorType, Value, is_constant
from ....ir.ops import ConcatOp, EmbeddingOp, PadOp, RelayoutOp, ScatterOp
from ...machines.target import Cpu
from ...templates import elementwise
from ...templates.base import Buffer, BufferSpec, Expr, VectorAt
from ...templates.moves import relayout, row_copy
from ...templates.vector.builder import load
from ...templates.vector.storage import NUMBERS, STORAGE
from ...templates.vector.vectors import dtype_of
from ..addressing import load_operand
from ..group import Group
from ..kernel import CompileError, Kernel, KernelContext, buffer_size, chosen_kernel, selects
from ..views import View
from .channels import gather_channels, stored

_MOST_ELEMENTS = 2**31  # of a buffer that 32-bit offsets reach


def copy_kernel(source: View, copy: Value, target: Cpu) -> Kernel:
    """Gather the elements of a view into a row-major buffer."""
    dtype = STORAGE[source.type.dtype]
    result = View.whole(copy)
    inputs = (BufferSpec("x", buffer_size(source), dtype),)
    spec = elementwise.ElementwiseSpec(source.type.shape or (1,), inputs, elementwise.COORDINATES, dtype=dtype)
    knobs = elementwise.candidates(spec, target)[0]

    def compute(at: VectorAt, buffers: Sequence[Buffer]) -> Expr:
        return load_operand(buffers[0], source, at, result)

    return Kernel(
        "copy",
        spec,
        (source,),
        result,
        lambda: elementwise.build(spec, target, knobs, compute),
        knobs,
        variant=f"{source.type}+{source.offset}{source.strides}",
    )


def part_kernel(part: Value, copy: Value, context: KernelContext) -> Kernel:
    """Copy one part of a concatenation to its place in the result, ``copy``, in the layout that ``copy`` has."""
    block = copy.type.channel_block
    if not block:
        return copy_kernel(context.view(part), copy, context.target)
    flat = TensorType((copy.type.physical_size,), copy.type.dtype)
    source = stored(part, block, context)
    base = Value(flat) if isinstance(source, torch.Tensor) else source.base
    kernel = copy_kernel(View(base, flat, 0, (1,)), Value(flat), context.target)
    return replace(kernel, operands=(source,))


@selects(ConcatOp)
def select_concat(group: Group, context: KernelContext) -> Kernel:
    """``concat``: rows of all parts one after the other."""
    op = group.anchor_as(ConcatOp)
    result = View.whole(group.result)
    block, axis = result.type.channel_block, op.attrs.axis
    outer = math.prod(result.type.shape[:axis])
    if block and axis > 1:
        outer = outer // result.type.shape[1] * -(-result.type.shape[1] // block)
    if any(part.type.channel_block != block and not is_constant(part) for part in op.parts):
        raise CompileError(f"{op.describe()} joins tensors in different layouts; run the pass 'layout'")
    if block and axis == 1 and any(part.shape[1] % block for part in op.parts[:-1]):
        return gather_channels(op, op.parts, tuple(range(result.type.shape[1])), context)
    parts = tuple(stored(part, block, context) if block else context.contiguous(part) for part in op.parts)
    runs = tuple(part.type.with_layout(block).physical_size // outer for part in op.parts)
    spec = row_copy.ConcatSpec(outer, runs, STORAGE[result.type.dtype])
    return Kernel("concat", spec, parts, result, lambda: row_copy.build_concat(spec, context.target))


@selects(PadOp)
def select_pad(group: Group, context: KernelContext) -> Kernel:
    """``pad`` of a row-major tensor."""
    op = group.anchor_as(PadOp)
    spec = row_copy.PadSpec(op.x.shape, op.attrs.before, op.attrs.after, _stored_number(op), STORAGE[op.x.type.dtype])
    return Kernel(
        "pad",
        spec,
        (context.contiguous(op.x),),
        View.whole(group.result),
        lambda: row_copy.build_pad(spec, context.target),
    )


def _stored_number(op: PadOp) -> float | int:
    """What fills the border, as the kernel that moves stored elements writes it."""
    if op.x.type.dtype is not DType.BF16:
        return op.attrs.value
    return torch.tensor(op.attrs.value, dtype=torch.bfloat16).view(torch.uint16).item()


@selects(EmbeddingOp)
def select_embedding(group: Group, context: KernelContext) -> Kernel:
    """Rows of a table, picked by integers.

    Integers that are inputs of the model are checked when it is called (see `tersor.targets.runtime.ports`); others
    that are out of range, an error in PyTorch, pick the first or the last row, so that no kernel reads foreign memory.
    """
    op = group.anchor_as(EmbeddingOp)
    if op.table.type.size >= _MOST_ELEMENTS:
        raise CompileError(f"{op.describe()}: kernels address tables of less than 2^31 elements, not {op.table.type}")
    last = op.table.shape[0] - 1
    width, count = op.table.shape[1], op.indices.type.size
    dtype = STORAGE[op.table.type.dtype]
    inputs = (
        BufferSpec("table", op.table.type.size, dtype),
        BufferSpec("indices", count, STORAGE[op.indices.type.dtype]),
    )
    spec = elementwise.ElementwiseSpec((count, width), inputs, elementwise.COORDINATES, dtype=dtype)
    knobs = elementwise.candidates(spec, context.target)[0]

    def compute(at: VectorAt, buffers: Sequence[Buffer]) -> Expr:
        table, indices = buffers
        row, column = at.coords
        index = indices[row]
        index = tirx.Max(tirx.Min(index, tirx.const(last, dtype_of(index))), tirx.const(0, dtype_of(index)))
        return load(table, tirx.Cast("int32", index) * width + column, at.lanes)

    return Kernel(
        "embedding",
        spec,
        (context.contiguous(op.table), context.contiguous(op.indices)),
        View.whole(group.result),
        lambda: elementwise.build(spec, context.target, knobs, compute),
        knobs,
    )


@selects(ScatterOp)
def select_scatter(group: Group, context: KernelContext) -> Kernel:
    """``scatter``: a copy of the table with rows written into it."""
    op = group.anchor_as(ScatterOp)
    combine, type = op.attrs.combine, op.table.type
    dtype = (STORAGE if combine == "replace" else NUMBERS)[type.dtype]
    if type.dtype is DType.BOOL:
        combine = {"sum": "amax", "prod": "amin"}.get(combine, combine)
    if max(type.size, op.rows.type.size) >= _MOST_ELEMENTS:
        raise CompileError(f"{op.describe()}: kernels address tables of less than 2^31 elements, not {type}")
    numbers = (*type.shape, op.indices.type.size)
    spec = row_copy.ScatterSpec(*numbers, combine, dtype, STORAGE[op.indices.type.dtype])
    return Kernel(
        "scatter",
        spec,
        tuple(context.contiguous(value) for value in op.inputs),
        View.whole(group.result),
        lambda: row_copy.build_scatter(spec, context.target),
    )


@selects(RelayoutOp)
def select_relayout(group: Group, context: KernelContext) -> Kernel:
    """``relayout`` between row-major and blocked storage."""
    op = group.anchor_as(RelayoutOp)
    block = op.result.type.channel_block
    to_blocked = block > 0
    batch, channels, *spatial = op.x.shape
    direction = relayout.TO_BLOCKED if to_blocked else relayout.TO_PLAIN
    spec = relayout.RelayoutSpec(
        direction, batch, channels, math.prod(spatial), block or op.x.type.channel_block, STORAGE[op.x.type.dtype]
    )
    choice = context.choose("relayout", spec)
    return chosen_kernel(
        choice,
        operands=(context.contiguous(op.x) if to_blocked else context.view(op.x),),
        result=View.whole(group.result),
        build=lambda: relayout.build(spec, context.target, choice.knobs),
    )
