"""Reductions over axes, and what runs along one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..known import number, numbers
from ..registry import operator, operators

Tensor = torch.Tensor
Reduce = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _product(x: Tensor, axes: tuple[int, ...], keepdim: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = torch.prod(x, axis, keepdim)
    return x


def _sum(x: Tensor, axes: tuple[int, ...], keepdim: bool) -> Tensor:
    return torch.sum(x, axes, keepdim, dtype=x.dtype)


def _reduction(reduce: Reduce) -> Callable[..., Tensor]:
    def compute(
        x: Tensor, axes: Tensor | Sequence[int] | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Tensor:
        chosen = tuple(numbers(axes))
        if not chosen and noop_with_empty_axes:
            return reduce(x[None], (0,), False)
        return reduce(x, chosen or tuple(range(x.ndim)), bool(keepdims))

    return compute


operators(
    {
        "ReduceL1": lambda x, axes, keepdim: _sum(x.abs(), axes, keepdim),
        "ReduceL2": lambda x, axes, keepdim: _sum(x * x, axes, keepdim).sqrt(),
        "ReduceLogSum": lambda x, axes, keepdim: _sum(x, axes, keepdim).log(),
        "ReduceLogSumExp": torch.logsumexp,
        "ReduceMax": torch.amax,
        "ReduceMean": torch.mean,
        "ReduceMin": torch.amin,
        "ReduceProd": _product,
        "ReduceSum": _sum,
        "ReduceSumSquare": lambda x, axes, keepdim: _sum(x * x, axes, keepdim),
    },
    _reduction,
)


def _place(find: Callable[[Tensor, int, bool], Tensor]) -> Callable[..., Tensor]:
    def compute(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
        if not select_last_index:
            return find(x, axis, bool(keepdims))
        return x.shape[axis] - 1 - find(x.flip(axis), axis, bool(keepdims))

    return compute


operators({"ArgMax": torch.argmax, "ArgMin": torch.argmin}, _place)


@operator("CumSum")
def cumsum(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    along = int(number(axis))
    x = x.flip(along) if reverse else x
    total = torch.cumsum(x, along, dtype=x.dtype)
    total = total - x if exclusive else total
    return total.flip(along) if reverse else total


@operator("TopK")
def topk(
    x: Tensor, k: Tensor | int | None = None, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Tensor, ...]:
    numbers_, places = torch.topk(x, int(number(k)), axis, bool(largest), bool(sorted))
    return numbers_, places


@operator("Trilu")
def trilu(x: Tensor, k: Tensor | None = None, *, upper: int = 1) -> Tensor:
    distance = int(number(k) or 0)
    rows, columns = torch.arange(x.shape[-2])[:, None], torch.arange(x.shape[-1])
    kept = columns - rows >= distance if upper else columns - rows <= distance
    return torch.where(kept, x, torch.zeros((), dtype=x.dtype))


@operator("com.microsoft::BiasGelu")
def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    return torch.nn.functional.gelu(x + bias)
