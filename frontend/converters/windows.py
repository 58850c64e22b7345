"""Windows cut out by slices: for every tap of a window, the elements that all windows read with it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ...ir import DType, Value
from ...ir.ops import ConcatOp, PadOp
from ...ir.ops.convolution import window_extent
from ..context import Context


@dataclass(frozen=True)
class Windows:
    """Windows over the last dimensions of a tensor; one number for each of those dimensions.

    Attributes
    ----------
    extents
        Of the tensor.
    padding
        Elements before; those after follow from ``out``.
    out
        Windows along each dimension.
    """

    extents: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    out: tuple[int, ...]

    @classmethod
    def over(
        cls,
        extents: Sequence[int],
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        ceil: bool = False,
    ) -> Windows:
        """All windows that fit; arguments that PyTorch gives as one number are repeated."""
        rank = len(extents)
        kernel, stride, padding, dilation = (
            tuple(numbers) * (rank if len(numbers) == 1 else 1)
            for numbers in (kernel, stride or kernel, padding, dilation)
        )
        each = zip(extents, kernel, stride, padding, padding, dilation, strict=True)
        out = tuple(window_extent(*window, ceil) for window in each)
        return cls(tuple(extents), kernel, stride, padding, dilation, out)

    @property
    def taps(self) -> int:
        """Elements of a window."""
        return math.prod(self.kernel)

    def parts(self, ctx: Context, x: Value, fill: float = 0.0) -> Iterator[Value]:
        """For each tap, in row-major order, what all windows read with it: [..., *out]."""
        lead = len(x.shape) - len(self.extents)
        reach = [
            (out - 1) * stride + dilation * (kernel - 1) + 1
            for out, stride, dilation, kernel in zip(self.out, self.stride, self.dilation, self.kernel, strict=True)
        ]
        after = [max(0, end - pad - size) for end, pad, size in zip(reach, self.padding, self.extents, strict=True)]
        if any(self.padding) or any(after):
            none = (0,) * lead
            x = ctx.emit(PadOp, x, attrs=PadOp.attrs_type((*none, *self.padding), (*none, *after), fill))
        for tap in itertools.product(*map(range, self.kernel)):
            part = x
            for axis, (index, step, gap, out) in enumerate(
                zip(tap, self.stride, self.dilation, self.out, strict=True), start=lead
            ):
                first = index * gap
                part = ctx.slice(part, axis, first, first + (out - 1) * step + 1, step)
            yield part

    def stacked(self, ctx: Context, x: Value, axis: int, fill: float = 0.0) -> Value:
        """The parts of all taps along a new dimension ``axis``."""
        parts = [ctx.reshape(part, (*part.shape[:axis], 1, *part.shape[axis:])) for part in self.parts(ctx, x, fill)]
        return concat(ctx, parts, axis)

    def first_elements(self) -> torch.Tensor:
        """Where each window begins among the elements of one plane, which may be before it: [*out] of int64."""
        return self._positions(self.out, self.stride, self.padding)

    def tap_offsets(self) -> torch.Tensor:
        """How far each tap lies behind the beginning of its window: [taps] of int64."""
        return self._positions(self.kernel, self.dilation, (0,) * len(self.kernel)).flatten()

    def _positions(self, counts: Sequence[int], steps: Sequence[int], before: Sequence[int]) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.int64)
        for count, step, pad, extent in zip(counts, steps, before, self.extents, strict=True):
            total = total[..., None] * extent + torch.arange(count) * step - pad
        return total


def concat(ctx: Context, parts: Sequence[Value], axis: int) -> Value:
    """The parts one after another, those without elements left out; a single one as it is."""
    parts = [part for part in parts if part.shape[axis]] or parts[:1]
    return parts[0] if len(parts) == 1 else ctx.emit(ConcatOp, *parts, attrs=ConcatOp.attrs_type(axis=axis))


def lowest(dtype: DType) -> float:
    """What no element is below."""
    if dtype.is_floating:
        return -math.inf
    return 0.0 if dtype is DType.BOOL else float(torch.iinfo(dtype.torch).min)
