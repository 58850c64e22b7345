"""Element types and tensor types: what a value is, apart from its numbers."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

import torch

from .errors import IRError, TersorError, shorten
from .extents import evaluate, is_symbolic, plain

_TorchDType = torch.dtype  # inside of DType, `torch` is a property


class DType(Enum):
    """Element type of a tensor; the enum's value is its name in IR text."""

    F64 = "f64"
    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    I64 = "i64"
    I32 = "i32"
    I16 = "i16"
    I8 = "i8"
    U8 = "u8"
    BOOL = "bool"

    @property
    def torch(self) -> torch.dtype:
        """The corresponding PyTorch dtype."""
        return _TORCH_DTYPES[self]

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.torch.itemsize

    @property
    def is_floating(self) -> bool:
        """Whether this is a floating-point type."""
        return self.torch.is_floating_point

    @classmethod
    def from_torch(cls, dtype: _TorchDType) -> DType:
        """The IR's name for a PyTorch dtype; raises IRError for one that the IR does not have (complex, quantized)."""
        try:
            return _FROM_TORCH[dtype]
        except KeyError:
            raise IRError(f"element type {dtype} is not supported; cast it to one of {', '.join(_NAMES)}") from None


_TORCH_DTYPES = {
    DType.F64: torch.float64,
    DType.F32: torch.float32,
    DType.F16: torch.float16,
    DType.BF16: torch.bfloat16,
    DType.I64: torch.int64,
    DType.I32: torch.int32,
    DType.I16: torch.int16,
    DType.I8: torch.int8,
    DType.U8: torch.uint8,
    DType.BOOL: torch.bool,
}
_FROM_TORCH = {dtype: name for name, dtype in _TORCH_DTYPES.items()}
_NAMES = tuple(dtype.value for dtype in DType)


@dataclass(frozen=True)
class TensorType:
    """Shape, element type and physical layout of a tensor.

    Attributes
    ----------
    shape
        Logical extents; every pass and every reference evaluation sees only these. Those that a call chooses are of
        class `tersor.ir.extents.Extent`.
    dtype
        Element type.
    channel_block
        0 for plain row-major storage. ``c > 0`` stores dimension 1 in blocks of ``c`` with the block innermost (NCHW
        becomes NCHW16c for ``c = 16``), the last block padded. Layout never changes the value, only where its elements
        lie.
    """

    shape: tuple[int, ...]
    dtype: DType = DType.F32
    channel_block: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(map(plain, self.shape)))
        if any(extent < 0 for extent in self.shape):
            raise IRError(f"negative extent in shape {shorten(list(self.shape))}")
        if self.channel_block < 0 or (self.channel_block and len(self.shape) < 2):
            raise IRError(
                f"channel block {self.channel_block} needs a tensor with a channel dimension, not {shorten(self.shape)}"
            )

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of logical elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of the logical elements."""
        return self.size * self.dtype.itemsize

    @property
    def physical_size(self) -> int:
        """Number of stored elements, the padding of the last channel block included."""
        if not self.channel_block:
            return self.size
        channels = -(-self.shape[1] // self.channel_block) * self.channel_block
        return self.shape[0] * channels * math.prod(self.shape[2:])

    @property
    def symbolic(self) -> bool:
        """Whether the shape depends on extents that a call chooses."""
        return any(map(is_symbolic, self.shape))

    @property
    def logical(self) -> TensorType:
        """The same type in plain layout."""
        return self.with_layout(0)

    def stays_in_place(self, channel_block: int) -> bool:
        """Whether storing the tensor in ``channel_block`` moves no element: one position, whole blocks."""
        if channel_block == self.channel_block:
            return True
        return math.prod(self.shape[2:]) == 1 and self.shape[1] % max(channel_block, self.channel_block) == 0

    def with_layout(self, channel_block: int) -> TensorType:
        """The same logical type in another layout."""
        return self if channel_block == self.channel_block else replace(self, channel_block=channel_block)

    def with_shape(self, shape: tuple[int, ...]) -> TensorType:
        """A plain tensor of the same element type."""
        return TensorType(shape, self.dtype)

    def with_dtype(self, dtype: DType) -> TensorType:
        """The same shape in plain layout with another element type."""
        return TensorType(self.shape, dtype)

    def __str__(self) -> str:
        layout = f"@c{self.channel_block}" if self.channel_block else ""
        return f"{self.dtype.value}[{','.join(map(str, self.shape))}]{layout}"

    @classmethod
    def parse(cls, text: str, extents: Mapping[str, int] | None = None) -> TensorType:
        """Read a type as ``str`` writes it, for example ``f32[1,64,56,56]@c16``.

        ``extents`` says what names stand for: an `Extent`, or a number.
        """
        match = _TYPE.fullmatch(text.strip())
        if match is None or match["dtype"] not in _NAMES:
            raise IRError(f"{shorten(text)!r} is not a tensor type; expected something like f32[1,3,224,224]")
        parts = [extent for extent in match["shape"].split(",") if extent]
        if not extents and not all(map(str.isdigit, parts)):
            raise IRError(f"{shorten(text)!r} is not a tensor type; expected something like f32[1,3,224,224]")
        shape = tuple(int(extent) if extent.isdigit() else evaluate(extent, extents or {}) for extent in parts)
        return cls(shape, DType(match["dtype"]), int(match["block"] or 0))


EXTENT = r"[0-9A-Za-z_+*/%()\-]+"  # a number or a formula, as a regular expression
_TYPE = re.compile(rf"(?P<dtype>[a-z]+[0-9]*)\[(?P<shape>(?:{EXTENT}(?:,{EXTENT})*)?)\](?:@c(?P<block>[0-9]+))?")


def check_memory(size: int, what: str) -> None:
    """Raise TersorError if ``size`` bytes are more than this machine's memory."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > available:
        needed = f"{size >> 30:,}" if size.bit_length() < 100 else f"2^{size.bit_length() - 31}"
        raise TersorError(
            f"{what} need {needed} GiB, but this machine has {available >> 30:,}; make their shapes smaller"
        )


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape that all shapes broadcast to; None if they do not. (PyTorch's own imports 500 modules when called.)"""
    rank = max(map(len, shapes))
    aligned = zip(*((1,) * (rank - len(shape)) + shape for shape in shapes), strict=True)
    extents = [{*extents} - {1} or {1} for extents in aligned]
    return tuple(extent for (extent,) in extents) if all(len(extent) == 1 for extent in extents) else None
