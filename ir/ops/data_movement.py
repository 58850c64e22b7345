"""Ops that move elements without computing: reshape, permute, slice, concatenate, pad, gather."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from ..core import Attrs, Op, Operand
from ..errors import IRError
from ..traits import ChannelFlow, Cost, Narrowing, OnIntegers, Storage
from ..types import DType, TensorType, broadcast_shapes
from .constant import FullOp, WeightOp


class StridedOp(Op):
    """Base of the ops that see elements of their operand through other strides, where strides express it."""

    x = Operand()
    linear = True
    strided = True
    default_narrowing = Narrowing.FOLLOWS

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return self.strided_view(x.contiguous()).contiguous()


@dataclass(frozen=True)
class ShapeAttrs(Attrs):
    """Shape of the result."""

    shape: tuple[int, ...]


class ReshapeOp(StridedOp, name="reshape", attrs=ShapeAttrs):
    """The same elements in row-major order under another shape."""

    view = True
    keeps_numbers = True
    channels = ChannelFlow.RESHAPE
    on_integers = OnIntegers.MOVES

    def infer_types(self) -> tuple[TensorType, ...]:
        if math.prod(self.attrs.shape) != self.x.type.size:
            raise self.error(f"{self.x.type} has {self.x.type.size} elements, not those of {list(self.attrs.shape)}")
        return (self.x.type.with_shape(self.attrs.shape),)

    def strided_view(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(self.attrs.shape)

    def apart(self, index: int, axis: int) -> int | None:
        before, shape = math.prod(self.x.shape[:axis]), self.attrs.shape
        places = [place for place in range(len(shape)) if math.prod(shape[:place]) == before]
        return places[-1] if places else None  # those before it have extent 1


@dataclass(frozen=True)
class PermuteAttrs(Attrs):
    """Dimension ``i`` of the result is dimension ``dims[i]`` of the operand."""

    dims: tuple[int, ...]


class PermuteOp(StridedOp, name="permute", attrs=PermuteAttrs):
    """Reorder dimensions."""

    keeps_numbers = True
    channels = ChannelFlow.PERMUTE
    on_integers = OnIntegers.MOVES

    def infer_types(self) -> tuple[TensorType, ...]:
        if sorted(self.attrs.dims) != list(range(self.x.type.rank)):
            raise self.error(f"{list(self.attrs.dims)} is not a permutation of the dimensions of {self.x.type}")
        return (self.x.type.with_shape(tuple(self.x.shape[dim] for dim in self.attrs.dims)),)

    def strided_view(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(self.attrs.dims)

    def apart(self, index: int, axis: int) -> int | None:
        return int(self.attrs.dims.index(axis))


class ExpandOp(StridedOp, name="expand", attrs=ShapeAttrs):
    """Broadcast to a larger shape."""

    keeps_numbers = True
    channels = ChannelFlow.EXPAND

    def infer_types(self) -> tuple[TensorType, ...]:
        if broadcast_shapes(self.x.shape, self.attrs.shape) != self.attrs.shape:
            raise self.error(f"{self.x.type} does not broadcast to {list(self.attrs.shape)}")
        return (self.x.type.with_shape(self.attrs.shape),)

    def strided_view(self, x: torch.Tensor) -> torch.Tensor:
        return x.expand(self.attrs.shape)

    def apart(self, index: int, axis: int) -> int | None:
        return axis + len(self.attrs.shape) - self.x.type.rank


@dataclass(frozen=True)
class SliceAttrs(Attrs):
    """Elements ``start``, ``start + step``, … below ``stop`` along ``axis``; all within the operand."""

    axis: int
    start: int
    stop: int
    step: int = 1


class SliceOp(StridedOp, name="slice", attrs=SliceAttrs):
    """A strided range along one axis."""

    channels = ChannelFlow.SLICE
    on_integers = OnIntegers.MOVES
    any_image_order = True

    @property
    def storage(self) -> Storage:
        """Channels can be taken out of a blocked tensor."""
        return Storage.FOLLOWS if self.x.type.rank in (4, 5) and self.attrs.axis == 1 else Storage.PLAIN

    def infer_types(self) -> tuple[TensorType, ...]:
        x, attrs = self.x.type, self.attrs
        if not 0 <= attrs.axis < x.rank or not 0 <= attrs.start <= attrs.stop <= x.shape[attrs.axis] or attrs.step < 1:
            raise self.error(f"{attrs} is outside of {x}")
        shape = list(x.shape)
        shape[attrs.axis] = -((attrs.start - attrs.stop) // attrs.step)
        return (x.with_shape(tuple(shape)),)

    def strided_view(self, x: torch.Tensor) -> torch.Tensor:
        index = [slice(None)] * x.ndim
        index[self.attrs.axis] = slice(self.attrs.start, self.attrs.stop, self.attrs.step)
        return x[tuple(index)]

    def apart(self, index: int, axis: int) -> int | None:
        return None if axis == self.attrs.axis else axis


@dataclass(frozen=True)
class AxisAttrs(Attrs):
    """The dimension that the op works along."""

    axis: int


class ConcatOp(Op, name="concat", attrs=AxisAttrs):
    """Join tensors along one axis."""

    parts = Operand(variadic=True)
    linear = True
    channels = ChannelFlow.CONCAT
    on_integers = OnIntegers.MOVES
    default_narrowing = Narrowing.FOLLOWS
    any_image_order = True

    @property
    def storage(self) -> Storage:
        """Whole channel blocks can follow one another; channels of other parts are moved within registers."""
        return Storage.FOLLOWS if self.parts[0].type.rank in (4, 5) else Storage.PLAIN

    def infer_types(self) -> tuple[TensorType, ...]:
        types, axis = [part.type for part in self.parts], self.attrs.axis
        if not types or not 0 <= axis < types[0].rank:
            raise self.error(f"nothing to join along axis {axis}")
        rest = {(t.dtype, t.shape[:axis], t.shape[axis + 1 :]) for t in types}
        if len(rest) != 1:
            raise self.error(f"{', '.join(map(str, types))} differ outside of axis {axis}")
        shape = list(types[0].shape)
        shape[axis] = sum(t.shape[axis] for t in types)
        return (types[0].with_shape(tuple(shape)),)

    def evaluate(self, *parts: torch.Tensor) -> torch.Tensor:
        return torch.cat(parts, self.attrs.axis)

    def apart(self, index: int, axis: int) -> int | None:
        return None if axis == self.attrs.axis else axis


@dataclass(frozen=True)
class ChannelShuffleAttrs(Attrs):
    """``groups`` as in `torch.nn.ChannelShuffle`; the channels from ``start`` up to ``stop`` are kept."""

    groups: int
    start: int
    stop: int


class ChannelShuffleOp(Op, name="channel_shuffle", attrs=ChannelShuffleAttrs):
    """Join parts [N,C_i,H,W] along the channels, shuffle the C channels, and keep a range [N,stop-start,H,W].

    The channels of the first group, of C / groups channels, come first, groups apart, then those of the second between
    them: channel ``i * groups + g`` of the shuffled tensor is channel ``g * C / groups + i`` of the joined one
    (Zhang et al. 2018, "ShuffleNet").
    """

    parts = Operand(variadic=True)
    linear = True
    channels = ChannelFlow.SHUFFLE
    default_storage = Storage.BLOCKED
    on_integers = OnIntegers.MOVES
    any_image_order = True

    @property
    def sources(self) -> tuple[int, ...]:
        """For each channel of the result, the channel of the joined parts that it comes from."""
        attrs, total = self.attrs, sum(part.shape[1] for part in self.parts)
        size = total // attrs.groups
        return tuple(
            channel % attrs.groups * size + channel // attrs.groups for channel in range(attrs.start, attrs.stop)
        )

    def infer_types(self) -> tuple[TensorType, ...]:
        types, attrs = [part.type for part in self.parts], self.attrs
        if not types or any(t.rank != 4 for t in types):
            raise self.error(f"needs 4-d parts, got {', '.join(map(str, types)) or 'none'}")
        if len({(t.dtype, t.shape[0], t.shape[2:]) for t in types}) != 1:
            raise self.error(f"{', '.join(map(str, types))} differ outside of the channels")
        total = sum(t.shape[1] for t in types)
        if attrs.groups < 1 or total % attrs.groups or not 0 <= attrs.start < attrs.stop <= total:
            raise self.error(f"{attrs} does not fit {total} channels")
        batch, _, height, width = types[0].shape
        return (types[0].with_shape((batch, attrs.stop - attrs.start, height, width)),)

    def evaluate(self, *parts: torch.Tensor) -> torch.Tensor:
        return torch.cat(parts, 1)[:, list(self.sources)]

    def apart(self, index: int, axis: int) -> int | None:
        return None if axis == 1 else axis


@dataclass(frozen=True)
class PadAttrs(Attrs):
    """``before`` and ``after`` count the elements added, one number per dimension; ``value`` fills them."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    value: float = 0.0


class PadOp(Op, name="pad", attrs=PadAttrs):
    """Surround with a constant."""

    x = Operand()
    channels = ChannelFlow.PAD
    on_integers = OnIntegers.MOVES
    default_narrowing = Narrowing.FOLLOWS
    any_image_order = True

    def infer_types(self) -> tuple[TensorType, ...]:
        x, attrs = self.x.type, self.attrs
        if len(attrs.before) != x.rank or len(attrs.after) != x.rank or min((0, *attrs.before, *attrs.after)) < 0:
            raise self.error(f"{attrs} does not fit {x}; padding must not be negative")
        extents = zip(attrs.before, x.shape, attrs.after, strict=True)
        return (x.with_shape(tuple(before + extent + after for before, extent, after in extents)),)

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        amounts = [
            n for pair in zip(reversed(self.attrs.before), reversed(self.attrs.after), strict=True) for n in pair
        ]
        return functional.pad(x, amounts, value=self.attrs.value)

    def apart(self, index: int, axis: int) -> int | None:
        return None if self.attrs.before[axis] or self.attrs.after[axis] else axis


class TableOp(Op):
    """Base of the ops that look rows of a table [V, D] up: indices are integers of at least 0 and below V."""

    table = Operand()
    indices = Operand()


class EmbeddingOp(TableOp, name="embedding"):
    """Rows of a table [V, D] picked by an integer tensor [...] -> [..., D]."""

    absorbing = (0,)

    @property
    def on_integers(self) -> OnIntegers:
        """Rows of a tensor that is computed mean what they meant; a constant table has a scale of its own for each."""
        return OnIntegers.NOTHING if isinstance(self.table.op, WeightOp | FullOp) else OnIntegers.MOVES

    def infer_types(self) -> tuple[TensorType, ...]:
        table, indices = self.table.type, self.indices.type
        if table.rank != 2 or indices.dtype not in (DType.I64, DType.I32):
            raise self.error(f"needs a 2-d table and integer indices, got {table} and {indices}")
        return (table.with_shape((*indices.shape, table.shape[1])),)

    def evaluate(self, table: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        return functional.embedding(indices, table)

    def apart(self, index: int, axis: int) -> int | None:
        columns = index == 0 and axis == 1
        return axis if index == 1 else self.indices.type.rank if columns else None

    def cost(self) -> Cost:
        """Of the table, only the rows that are picked are read."""
        return Cost(0, self.indices.type.bytes + 2 * self.result.type.bytes)


COMBINATIONS = ("replace", "sum", "prod", "amax", "amin")


@dataclass(frozen=True)
class ScatterAttrs(Attrs):
    """How rows are combined with those of the table, one after the other: one of `COMBINATIONS`."""

    combine: str = "replace"

    def __post_init__(self) -> None:
        if self.combine not in COMBINATIONS:
            raise IRError(f"combine must be one of {', '.join(COMBINATIONS)}, not {self.combine!r}")


class ScatterOp(TableOp, name="scatter", attrs=ScatterAttrs):
    """A table [V, D] with rows [..., D] put where an integer tensor [...] says: what `embedding` picks, put back.

    Of several rows that replace one, the last stays, as in PyTorch on one thread. Sums of booleans are their maxima,
    and products their minima.
    """

    rows = Operand()

    def infer_types(self) -> tuple[TensorType, ...]:
        table, indices, rows = self.table.type, self.indices.type, self.rows.type
        if table.rank != 2 or indices.dtype not in (DType.I64, DType.I32):
            raise self.error(f"needs a 2-d table and integer indices, got {table} and {indices}")
        if rows.logical != table.with_shape((*indices.shape, table.shape[1])):
            raise self.error(f"rows {rows} do not fit {table} and {indices}")
        return (table.logical,)

    def evaluate(self, table: torch.Tensor, indices: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        combine = self.attrs.combine
        if combine in ("replace", "sum"):
            return table.index_put((indices,), rows, accumulate=combine == "sum")
        index = indices.long().reshape(-1, 1).expand(-1, table.shape[1])
        return table.scatter_reduce(0, index, rows.reshape(index.shape), combine)

    def cost(self) -> Cost:
        """The table is copied, and the rows are written again."""
        return Cost(0, self.indices.type.bytes + 2 * (self.table.type.bytes + self.rows.type.bytes))


@dataclass(frozen=True)
class RelayoutAttrs(Attrs):
    """``channel_block`` of the result; 0 for plain storage."""

    channel_block: int


class RelayoutOp(Op, name="relayout", attrs=RelayoutAttrs):
    """The same tensor stored in another physical layout; the identity for every logical purpose."""

    x = Operand()
    linear = True
    keeps_numbers = True
    channels = ChannelFlow.IDENTITY

    def infer_types(self) -> tuple[TensorType, ...]:
        return (self.x.type.with_layout(self.attrs.channel_block),)

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return x
