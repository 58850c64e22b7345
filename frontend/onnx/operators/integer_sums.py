"""Operators that sum products of 8-bit integers in 32 bits: the sums are exact, as the standard says.

They become ops on integers, which PyTorch has no operators for (`ir_operator`). Kernels take i8 weights, or two
operands of one type; the zero points of others, and zero points that are computed, are taken out of the sums, in i32::

    sum (x - a)(y - b) = sum x y - a sum y - b sum x + count a b

With shapes that vary, and for windows of three dimensions, sums are those of float32 numbers, exact up to 2^24.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ....ir import DType, Graph, IRError, Op, TensorType
from ....ir.core import Attrs
from ....ir.ops import Conv2dOp, LinearOp, MatmulOp
from ... import ir_operator
from ..known import is_known, refuse
from ..registry import operator
from .convolution import conv
from .windows import begins_and_ends

Tensor = torch.Tensor

_I8 = torch.iinfo(torch.int8)
_HALF = 128  # between u8 and i8 numbers


@operator("MatMulInteger")
def matmul_integer(x: Tensor, y: Tensor, x_zero: Tensor | None = None, y_zero: Tensor | None = None) -> Tensor:
    """Products with a constant matrix are those of a linear layer."""
    if not (_is_fixed(x) and _is_fixed(y)) or x.ndim < 2 or y.ndim < 2:
        return torch.matmul(_less(x, x_zero, (-1, 1)), _less(y, y_zero)).to(torch.int32)
    left, right = _zero(x_zero, (-1, 1)), _zero(y_zero, (-1,))
    if y.ndim == 2 and is_known(y) and is_known(right):
        weight = y.to(torch.int32) - right
        if _fits(weight):
            return _layer(x, left, weight.T.contiguous().to(torch.int8))
    (x, left), (y, right) = _unsigned(x, left), _unsigned(y, right)
    sums = _call(MatmulOp, None, x, y)
    sums = sums - right * x.sum(-1, keepdim=True, dtype=torch.int32) - left * y.sum(-2, keepdim=True, dtype=torch.int32)
    return sums + left * right * x.shape[-1]


@operator("ConvInteger")
def conv_integer(
    x: Tensor,
    weight: Tensor,
    x_zero: Tensor | None = None,
    weight_zero: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] = (),
    group: int = 1,
    kernel_shape: Sequence[int] = (),
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Tensor:
    """Padding stands for zero; weights that are no i8 numbers less their zero points are two of these, added."""
    kernel = weight.shape[2:]
    if not (_is_fixed(x) and _is_fixed(weight)) or len(kernel) > 2:
        numbers, factors = _less(x, x_zero), _less(weight, weight_zero, (-1, *[1] * len(kernel)))
        sums = conv(numbers, factors, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides)
        return sums.to(torch.int32)
    steps, spaces = (list(one) or [1] * len(kernel) for one in (strides, dilations))
    amounts = begins_and_ends(x.shape[2:], kernel, steps, spaces, pads, auto_pad)
    if len(kernel) == 1:
        x, weight = x.unsqueeze(2), weight.unsqueeze(2)
        steps, spaces, amounts = [1, *steps], [1, *spaces], [(0, 0), *amounts]
    zero = _zero(x_zero, ())
    (top, bottom), (left, right) = amounts
    padding = (top, left, bottom, right)
    windows = {"stride": tuple(steps), "padding": padding, "dilation": tuple(spaces), "groups": group}
    near, shift = _weights(weight, _zero(weight_zero, (-1, 1, 1, 1)))

    def convolved(operand: Tensor, number: int) -> Tensor:
        attrs = Conv2dOp.attrs_type(zero_point=number, **windows)
        sums = _call(Conv2dOp, attrs, operand, near, None)
        return sums if shift is None else sums - _call(Conv2dOp, attrs, operand, torch.ones_like(near), None) * shift

    sums = convolved(x, int(zero) if is_known(zero) else 0)
    if not is_known(zero):  # what it adds depends on how much of a window is padding
        sums = sums - zero * convolved(torch.ones((1, *x.shape[1:]), dtype=x.dtype), 0)
    return sums.squeeze(2) if len(kernel) == 1 else sums


def _weights(weight: Tensor, zero: Tensor) -> tuple[Tensor, Tensor | None]:
    """i8 weights with four dimensions, and what they are too large by, for each channel; None where they are right."""
    whole = weight.to(torch.int32) - zero
    if is_known(whole) and _fits(whole):
        return whole.to(torch.int8), None
    if weight.dtype is torch.uint8:
        weight, zero = (weight.to(torch.int32) - _HALF).to(torch.int8), zero - _HALF
    return weight, zero.reshape(-1, 1, 1)


def _layer(x: Tensor, zero: Tensor, weight: Tensor) -> Tensor:
    """A linear layer on ``x - zero``, with an i8 weight [N, K] that is known."""
    is_attribute = is_known(zero) and zero.numel() == 1
    attrs = LinearOp.attrs_type(zero_point=int(zero)) if is_attribute else None
    sums = _call(LinearOp, attrs, x, weight, None)
    return sums if is_attribute else sums - zero * weight.sum(1, dtype=torch.int32)


def _call(kind: type[Op], attrs: Attrs | None, *operands: Tensor | None) -> Tensor:
    """An op on tensors."""
    given = [one for one in operands if one is not None]
    types = [TensorType(tuple(one.shape), DType.from_torch(one.dtype)) for one in given]
    values = iter(Graph(kind.name, [(f"x{index}", type) for index, type in enumerate(types)]).inputs)
    try:
        op = kind(tuple(None if one is None else next(values) for one in operands), attrs)
    except IRError as error:
        refuse(str(error))
    return ir_operator.call(op, given)


def _is_fixed(x: Tensor) -> bool:
    """Whether no extent varies."""
    return all(type(extent) is int for extent in x.shape)


def _fits(whole: Tensor) -> bool:
    """Whether all numbers are i8 numbers."""
    return not whole.numel() or bool(whole.min() >= _I8.min and whole.max() <= _I8.max)


def _zero(zero: Tensor | None, shape: Sequence[int]) -> Tensor:
    """A zero point as i32; several of them have ``shape``."""
    if zero is None:
        return torch.zeros((), dtype=torch.int32)
    return zero.to(torch.int32).reshape(() if zero.numel() == 1 else shape if zero.ndim == 1 else zero.shape)


def _unsigned(x: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """An operand as u8, and its zero point then."""
    if x.dtype is torch.uint8:
        return x, zero
    return (x.to(torch.int32) + _HALF).to(torch.uint8), zero + _HALF


def _less(x: Tensor, zero: Tensor | None, shape: Sequence[int] = (-1,)) -> Tensor:
    """x less its zero point, in floating point; several zero points have ``shape``."""
    return x.float() - _zero(zero, shape).float()
