"""What converters work with: the graph under construction, and the few ops that they all need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch

from ..ir import Attrs, DType, Extent, Graph, Op, TensorType, Value
from ..ir.ops import CastOp, ExpandOp, FullOp, PermuteOp, ReshapeOp, SliceOp, WeightOp
from .registry import Inexpressible

Number = float | int | bool


class Context:
    """Builds ops at the end of a graph.

    Attributes
    ----------
    graph
        The graph under construction.
    location
        Module path given to new ops.
    row_major
        Whether the tensors that the call reads lie in PyTorch's memory in row-major order, from its start.
    strides
        Of the first tensor that the call reads, if it lies from the start of its memory, and they are known.
    types
        Types of the results of the call that is being converted, as PyTorch computed them; None for a result that is
        not a tensor of an element type of the IR.
    used_results
        Which of several results something reads.
    keeps_constants
        Whether tensors of no other tensor are to become ops, too, since their shapes may follow from symbols.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.location = ""
        self.row_major = True
        self.strides: tuple[int, ...] | None = None
        self.types: tuple[TensorType | None, ...] = ()
        self.used_results: frozenset[object] = frozenset()
        self.keeps_constants = False

    @property
    def result_type(self) -> TensorType:
        """Type of the only, or first, result of the call."""
        if self.types[0] is None:
            self.refuse("its result is not a tensor of a supported element type")
        return self.types[0]

    @property
    def dtype(self) -> DType:
        """Element type of the only, or first, result of the call."""
        return self.result_type.dtype

    def refuse(self, reason: str) -> NoReturn:
        """Give up this call, for the reason given."""
        raise Inexpressible(reason)

    # Ops ------------------------------------------------------------------------------------------------------

    def emit(self, kind: type[Op], *operands: Value | None, attrs: Attrs | None = None) -> Value:
        """Append an op and return its result; trailing operands that are None are left out."""
        present = list(operands)
        while present and present[-1] is None:
            present.pop()
        return self.graph.append(kind(tuple(present), attrs, location=self.location)).result

    def cast(self, x: Value, dtype: DType) -> Value:
        """``x`` in another element type; ``x`` itself if it has it."""
        return x if x.type.dtype is dtype else self.emit(CastOp, x, attrs=CastOp.attrs_type(dtype=dtype))

    def full(self, number: Number, type: TensorType) -> Value:
        """A tensor filled with ``number``, which is converted to the element type first."""
        number = _as_dtype(number, type.dtype)
        return self.emit(FullOp, attrs=FullOp.attrs_type(value=number, shape=type.shape, dtype=type.dtype))

    def operand(self, x: Value | Number, dtype: DType) -> Value:
        """``x`` in element type ``dtype``; a number becomes a tensor of rank 0."""
        return self.cast(x, dtype) if isinstance(x, Value) else self.full(x, TensorType((), dtype))

    def constant(self, tensor: torch.Tensor, name: str) -> Value:
        """A tensor known now, stored as a weight named after the location and ``name``."""
        id = self.graph.weights.add(tensor, f"{self.location}.{name}" if self.location else name)
        return self.weight(id)

    def weight(self, id: str) -> Value:
        """A new op that reads weight ``id`` of the graph's store."""
        tensor = self.graph.weights[id]
        type = TensorType(tuple(tensor.shape), DType.from_torch(tensor.dtype))
        return self.emit(WeightOp, attrs=WeightOp.attrs_type(id=id, type=type))

    # Shapes: no op when nothing changes -----------------------------------------------------------------------

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """The elements of ``x`` under another shape."""
        shape = tuple(shape)
        return x if shape == x.shape else self.emit(ReshapeOp, x, attrs=ReshapeOp.attrs_type(shape=shape))

    def permute(self, x: Value, dims: Sequence[int]) -> Value:
        """``x`` with its dimensions in another order."""
        dims = tuple(dims)
        if dims == tuple(range(len(dims))):
            return x
        return self.emit(PermuteOp, x, attrs=PermuteOp.attrs_type(dims=dims))

    def expand(self, x: Value, shape: Sequence[int]) -> Value:
        """``x`` broadcast to ``shape``."""
        shape = tuple(shape)
        return x if shape == x.shape else self.emit(ExpandOp, x, attrs=ExpandOp.attrs_type(shape=shape))

    def slice(self, x: Value, axis: int, start: int, stop: int, step: int = 1) -> Value:
        """Elements ``start``, ``start + step``, … below ``stop`` along ``axis``."""
        if (start, stop, step) == (0, x.shape[axis], 1):
            return x
        return self.emit(SliceOp, x, attrs=SliceOp.attrs_type(axis=axis, start=start, stop=stop, step=step))


def axis_of(dim: int, rank: int) -> int:
    """A dimension counted from the front; PyTorch lets tensors of rank 0 have one."""
    return dim + max(rank, 1) if dim < 0 else dim


def pair(numbers: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) from what PyTorch accepts: one number, a list of one, or a list of two."""
    if isinstance(numbers, int):
        return numbers, numbers
    first, *rest = numbers
    return int(first), int(rest[0] if rest else first)


def triple(numbers: int | Sequence[int]) -> tuple[int, int, int]:
    """(depth, height, width) from one number, a list of one, or a list of three."""
    one, *rest = (numbers,) if isinstance(numbers, int) else numbers
    two, three = rest or (one, one)
    return int(one), int(two), int(three)


def promote(x: Value | Number, y: Value | Number) -> DType:
    """The element type in which PyTorch combines two operands."""
    return DType.from_torch(torch.result_type(_stand_in(x), _stand_in(y)))


def _stand_in(x: Value | Number) -> torch.Tensor | Number:
    # Only the element type and whether the rank is 0 matter for promotion.
    if not isinstance(x, Value):
        return x
    return torch.empty((1,) * min(len(x.shape), 1), dtype=x.type.dtype.torch, device="meta")


def _as_dtype(number: Number, dtype: DType) -> Number:
    if dtype.is_floating:
        return float(number)
    if dtype is DType.BOOL:
        return bool(number)
    return number if isinstance(number, Extent) else int(number)
