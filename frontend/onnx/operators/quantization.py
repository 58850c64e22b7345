"""Numbers to 8-bit integers and back, and the operators that compute on integers, as functions of floating-point ones.

The operators of PyTorch's own flow do the work, so that both kinds of files become the same ops. A constant that is
dequantized stays the integers that it is in the file. See https://onnx.ai/onnx/operators/ for what each one means.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...registry import load_foreign
from ..known import default_only, dtype_of, is_known, number, refuse
from ..registry import operator
from .convolution import conv

Tensor = torch.Tensor

_PT2E = "quantized_decomposed"
_QUANTIZED = (torch.uint8, torch.int8)


@operator("QuantizeLinear", "com.microsoft::QuantizeLinear")
def quantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Tensor:
    """``clamp(round(x / scale) + zero_point)``; where the quotient is between two integers, to the even one."""
    default_only(block_size=block_size)
    dtype = dtype_of(output_dtype) if output_dtype else torch.uint8 if zero_point is None else zero_point.dtype
    if dtype not in _QUANTIZED:
        refuse(f"quantized numbers are int8 or uint8, not {str(dtype).removeprefix('torch.')}")
    zeros = _zero_points(scale, zero_point)
    limits = torch.iinfo(dtype)
    if is_known(x):
        _check(x, scale, zeros, axis)
        if bool(x.isnan().any()):
            refuse("it is given a constant with NaN, which no integer stands for")
        steps = torch.round(x / _along(scale, x, axis)) + _along(zeros, x, axis)
        return steps.clamp(limits.min, limits.max).to(dtype)
    if scale.numel() != 1:
        refuse(f"a scale for each index of axis {axis} of numbers that are computed; one for the tensor is supported")
    return load_foreign(_PT2E).quantize_per_tensor(
        x.float(), float(number(scale)), int(number(zeros)), limits.min, limits.max, dtype
    )


@operator("DequantizeLinear", "com.microsoft::DequantizeLinear")
def dequantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    """``(x - zero_point) * scale``."""
    default_only(block_size=block_size)
    if x.dtype not in (*_QUANTIZED, torch.int32):
        refuse(f"integers are int8, uint8 or int32, not {_name(x)}")
    if zero_point is not None and zero_point.dtype != x.dtype:
        refuse("a zero point of {} for integers of {}".format(*map(_name, (zero_point, x))))
    zeros = _zero_points(scale, zero_point)
    _check(x, scale, zeros, axis)
    limits = torch.iinfo(x.dtype)
    if scale.numel() == 1:
        result = load_foreign(_PT2E).dequantize_per_tensor(
            x, float(number(scale)), int(number(zeros)), limits.min, limits.max, x.dtype
        )
    else:
        result = load_foreign(_PT2E).dequantize_per_channel(
            x, scale.float(), zeros.to(torch.int64), axis, limits.min, limits.max, x.dtype
        )
    return result.to(dtype_of(output_dtype) if output_dtype else scale.dtype)


@operator("DynamicQuantizeLinear")
def dynamic_quantize_linear(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A scale and a zero point from the extremes of each call's numbers: computed in floating point."""
    low, high = x.amin().clamp(max=0.0), x.amax().clamp(min=0.0)
    scale = (high - low) / 255.0
    scale = torch.where(scale > 0, scale, 1.0)
    zero = torch.round((-low / scale).clamp(0.0, 255.0))
    integers = (torch.round(x / scale) + zero).clamp(0.0, 255.0)
    return integers.to(torch.uint8), scale, zero.to(torch.uint8)


@operator("QLinearMatMul")
def qlinear_matmul(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    y: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    scale: Tensor,
    zero_point: Tensor,
) -> Tensor:
    left = dequantize_linear(x, x_scale, x_zero)
    right = dequantize_linear(y, y_scale, y_zero, axis=y.ndim - 1)
    return quantize_linear(torch.matmul(left, right), scale, zero_point)


@operator("QLinearConv")
def qlinear_conv(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] = (),
    group: int = 1,
    kernel_shape: Sequence[int] = (),
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Tensor:
    """A bias is in units of the products of the scales of x and of the weight."""
    number_of = dequantize_linear(x, x_scale, x_zero)
    weight_of = dequantize_linear(weight, weight_scale, weight_zero, axis=0)
    bias_of = None
    if bias is not None:
        bias_of = dequantize_linear(bias, (x_scale * weight_scale).expand(bias.shape[0]), axis=0)
    result = conv(
        number_of, weight_of, bias_of, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides
    )
    return quantize_linear(result, scale, zero_point)


def _zero_points(scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """Zero points of the shape of the scales; both are constants."""
    for one, what in ((scale, "scale"), (zero_point, "zero point")):
        if one is not None and not is_known(one):
            refuse(f"its {what} is computed at run time; only constants are supported")
    if not scale.numel():
        refuse("its scale has no number")
    if zero_point is None:
        return torch.zeros(scale.shape, dtype=torch.int32)
    if zero_point.numel() != scale.numel():
        refuse(f"{scale.numel()} scales, but {zero_point.numel()} zero points")
    return zero_point.to(torch.int32)


def _name(x: Tensor) -> str:
    """Of the element type."""
    return str(x.dtype).removeprefix("torch.")


def _check(x: Tensor, scale: Tensor, zeros: Tensor, axis: int) -> None:
    if scale.ndim > 1:
        refuse(f"scales of shape {list(scale.shape)}; one for the tensor, or for each index of an axis, is supported")
    if scale.numel() == 1:
        return
    if not -x.ndim <= axis < x.ndim:
        refuse(f"axis {axis} of a tensor of rank {x.ndim}")
    if scale.shape[0] != x.shape[axis]:
        refuse(f"{scale.shape[0]} scales for the {x.shape[axis]} indices of axis {axis}")


def _along(one: Tensor, x: Tensor, axis: int) -> Tensor:
    """One number, or one for each index of an axis, in a shape that broadcasts to x."""
    return one.reshape(()) if one.numel() == 1 else one.reshape(-1, *[1] * (x.ndim - 1 - axis % x.ndim))
