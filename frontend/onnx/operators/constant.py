"""Operators that make tensors out of numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..known import dtype_of, known, number, numbers
from ..registry import operator

Tensor = torch.Tensor


@operator("Constant")
def constant(
    *,
    value: Tensor | None = None,
    value_float: float | None = None,
    value_floats: Sequence[float] | None = None,
    value_int: int | None = None,
    value_ints: Sequence[int] | None = None,
) -> Tensor:
    floats = value_floats if value_float is None else value_float
    ints = value_ints if value_int is None else value_int
    if value is not None:
        return value
    if floats is not None:
        return torch.tensor(floats, dtype=torch.float32)
    return torch.tensor(ints, dtype=torch.int64)


@operator("ConstantOfShape")
def constant_of_shape(shape: Tensor, *, value: Tensor | None = None) -> Tensor:
    if value is None:
        return torch.zeros(numbers(shape))
    return torch.full(numbers(shape), number(value), dtype=value.dtype)


@operator("Range")
def range_(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(number(start), number(limit), number(delta), dtype=start.dtype)


@operator("EyeLike")
def eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    rows, columns = x.shape
    on = torch.arange(columns)[None] - torch.arange(rows)[:, None] == k
    return on.to(x.dtype if dtype is None else dtype_of(dtype))


@operator("Shape")
def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(tuple(x.shape)[start:end], dtype=torch.int64)


@operator("Size")
def size(x: Tensor) -> Tensor:
    return torch.tensor(x.numel())


@operator("NonZero")
def non_zero(x: Tensor) -> Tensor:
    known(x)
    return torch.nonzero(x).T.contiguous()


@operator("OneHot")
def one_hot(indices: Tensor, depth: Tensor, values: Tensor, *, axis: int = -1) -> Tensor:
    extent = int(number(depth))
    rows = indices.to(torch.int64)
    rows = torch.where(rows < 0, rows + extent, rows)
    off, on = values[0], values[1]
    return torch.where(rows[..., None] == torch.arange(extent), on, off).movedim(-1, axis)
