"""Views: which elements of which buffer a value of the graph is, so that moving data often costs nothing.

A reshape, permute, slice or expand of a plain tensor is the same buffer read through other strides. Kernels whose
templates take strides read views in place; the others get a contiguous copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...ir import Op, TensorType, Value


@dataclass(frozen=True)
class View:
    """Elements of a buffer.

    Attributes
    ----------
    base
        The value that owns the buffer.
    type
        Logical shape, element type and layout of what is seen. A blocked view is always a whole buffer.
    offset, strides
        In elements, for plain views.
    """

    base: Value
    type: TensorType
    offset: int
    strides: tuple[int, ...]

    @classmethod
    def whole(cls, value: Value) -> View:
        """A value's own buffer in row-major order, or in its blocked layout."""
        return cls(value, value.type, 0, torch.empty(value.shape, device="meta").stride())

    @classmethod
    def permuted(cls, value: Value, dims: tuple[int, ...]) -> View:
        """A value stored so that its permutation by ``dims`` is contiguous."""
        stored = torch.empty([value.shape[dim] for dim in dims], device="meta")
        inverse = sorted(range(len(dims)), key=dims.__getitem__)
        return cls(value, value.type, 0, stored.permute(inverse).stride())

    @property
    def is_contiguous(self) -> bool:
        """Whether this is a whole buffer in row-major order."""
        return self.type.size == self.base.type.size and self.offset == 0 and self.is_dense

    @property
    def is_dense(self) -> bool:
        """Whether the elements lie side by side in row-major order."""
        return not self.type.channel_block and self._meta().is_contiguous()

    def _meta(self) -> torch.Tensor:
        storage = torch.empty(1, device="meta")
        return torch.as_strided(storage, self.type.shape, self.strides, self.offset)


def apply_view(op: Op, source: View) -> View | None:
    """What ``op`` makes of a view of its operand; None when no strides express it."""
    if source.type.channel_block:
        return None
    try:
        moved = op.strided_view(source._meta())
    except RuntimeError:
        return None
    return View(source.base, op.result.type, int(moved.storage_offset()), tuple(moved.stride()))
