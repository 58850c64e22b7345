"""Sums, products and extrema of integers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvm import te, tirx

from ..base import Expr, row_major_strides
from .schedule import ANCHOR, Formula, LoopSpec

INTEGERS = ("int8", "uint8", "int16", "int32", "int64")
_multiply = te.comm_reducer(lambda a, b: a * b, lambda dtype: tirx.const(1, dtype), "prod")
_COMBINE = {"sum": te.sum, "prod": _multiply, "max": te.max, "min": te.min}


@dataclass(frozen=True)
class IntegerReduceSpec(LoopSpec):
    """``kind`` (``"sum"``, ``"prod"``, ``"max"`` or ``"min"``) of a row-major tensor of integers over ``axes``."""

    kind: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        if self.kind not in _COMBINE:
            raise ValueError(f"kind must be one of {', '.join(_COMBINE)}, not {self.kind!r}")
        if self.dtype not in INTEGERS:
            raise ValueError(f"dtype must be one of {', '.join(INTEGERS)}, not {self.dtype!r}")
        if not self.axes or any(not 0 <= axis < len(self.shape) for axis in self.axes):
            raise ValueError(f"axes {self.axes} are not axes of a tensor of shape {self.shape}")

    @property
    def in_size(self) -> int:
        """Elements of the operand."""
        return math.prod(self.shape)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """The kept axes."""
        return tuple(extent for axis, extent in enumerate(self.shape) if axis not in self.axes)

    @property
    def macs(self) -> int:
        """Additions or comparisons."""
        return self.in_size

    def formula(self, data: te.Tensor) -> Formula:
        """The reduction itself."""
        reduced = {axis: te.reduce_axis((0, self.shape[axis]), f"k{axis}") for axis in self.axes}
        strides = row_major_strides(self.shape)

        def total(*kept: Expr) -> Expr:
            rest = iter(kept)
            indices = [reduced[axis] if axis in reduced else next(rest) for axis in range(len(self.shape))]
            offset = sum((index * stride for index, stride in zip(indices, strides, strict=True)), start=tirx.const(0))
            return _COMBINE[self.kind](data[offset], list(reduced.values()))

        shape = self.out_shape
        return te.compute(shape or (1,), total if shape else lambda _: total(), ANCHOR), lambda value, *_: value
