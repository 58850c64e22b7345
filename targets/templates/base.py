"""What every kernel template shares: where a vector of results lies, and what a fused epilogue does to it.

A template writes one PrimFunc with TVM's IR builder. All its buffers are flat (one dimension, physical element count),
because a Relax value of ours is a flat buffer: reshapes cost nothing and shapes are checked once, at the program's
boundary. The arguments of a PrimFunc come in this order: activations, packed weights, the epilogue's buffers, the
output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

# What comes from TVM, which is imported only when a kernel is built and has no types that mypy could check.
PrimFunc = Any  # tvm.tirx.PrimFunc
Expr = Any  # an expression of tvm.tirx
Buffer = Any  # tvm.tirx.Buffer
Index = Any  # a Python int where the value is known, else an expression


@dataclass(frozen=True)
class VectorAt:
    """Where one vector of a kernel's result lies in its output tensor.

    Attributes
    ----------
    coords
        Logical coordinates of the first lane, one expression per dimension of the output's logical shape.
    axis
        The logical dimension that the lanes run along; lane ``i`` has coordinate ``coords[axis] + i``.
    lanes
        Number of lanes; 1 means a scalar.
    flat
        Element offset of the first lane in the output's physical buffer; the lanes are contiguous there.
    """

    coords: tuple[Expr, ...]
    axis: int
    lanes: int
    flat: Expr


@dataclass(frozen=True)
class BufferSpec:
    """A flat buffer that a PrimFunc takes: its name in the code, element count, and element type.

    ``"bfloat16"`` is read as float32 and rounded when stored; see `tersor.targets.templates.vector.bfloat16`.
    """

    name: str
    size: int
    dtype: str = "float32"


@dataclass(frozen=True)
class JointStore:
    """How an epilogue makes one vector of the results of several, for templates that have these at hand.

    Attributes
    ----------
    vectors, lanes
        How many it takes, and lanes of each.
    before
        Like `Epilogue.apply`, without the last op.
    join
        ``join(vectors)``: the last op of all of them, and what it gives one behind the other.
    """

    vectors: int
    lanes: int
    before: Callable[[Expr, VectorAt, Sequence[Buffer]], Expr]
    join: Callable[[Sequence[Expr]], Expr]


@dataclass(frozen=True)
class Epilogue:
    """What happens to each vector of the main op's result before it is stored.

    Attributes
    ----------
    buffers
        The further operands that it reads (bias, residual, …), in argument order.
    apply
        ``apply(value, at, buffers)`` returns the expression to store; ``value`` has ``at.lanes`` lanes and ``buffers``
        are the TIR buffers made for ``self.buffers``.
    dtype
        Element type of what is stored.
    llvm_ir
        Functions in LLVM's language that ``apply`` calls, for instructions that TVM has no name for.
    joint
        A faster way to the same results for vectors that lie one behind the other, if there is one.
    """

    buffers: tuple[BufferSpec, ...] = ()
    apply: Callable[[Expr, VectorAt, Sequence[Buffer]], Expr] = field(default=lambda value, at, buffers: value)
    dtype: str = "float32"
    llvm_ir: str = ""
    joint: JointStore | None = None


NO_EPILOGUE = Epilogue()


def row_major_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Elements between neighbours along each dimension of a plain tensor."""
    return tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))


def offset_of(base: Index, batch: Sequence[Index], strides: Sequence[int]) -> Index:
    """Element offset of one matrix of a batch; ``strides`` may go on beyond the batch dimensions."""
    for index, stride in zip(batch, strides, strict=False):
        base = base + index * stride
    return base
