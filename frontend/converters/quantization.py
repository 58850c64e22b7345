"""Models that PyTorch's PT2E flow, or ONNX, quantized: numbers to integers and back, by scales that are constants."""

from __future__ import annotations

import torch

from ...ir import DType, TensorType, Value
from ...ir.ops import CastOp, ClampOp, DequantizeOp, FullOp, MulOp, QuantizeOp, SubOp, WeightOp
from ...ir.ops.integers import QUANTIZED, integer_range
from ..context import Context, axis_of
from ..registry import foreign_converter

_NAMESPACE = "quantized_decomposed"


@foreign_converter(f"{_NAMESPACE}::quantize_per_tensor.default", f"{_NAMESPACE}::quantize_per_tensor.tensor")
def quantize_per_tensor(
    context: Context,
    x: Value,
    scale: Value | float,
    zero_point: Value | int,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
) -> Value:
    """One step and one zero point for all numbers; a range narrower than the element type is a clamp before."""
    step, zero = _single(context, scale, zero_point)
    kind = _checked(context, torch.tensor(step), zero, dtype)
    number = context.cast(x, DType.F32)
    if (quant_min, quant_max) != integer_range(kind):
        bounds = ClampOp.attrs_type(min=(quant_min - zero) * step, max=(quant_max - zero) * step)
        number = context.emit(ClampOp, number, attrs=bounds)
    return context.emit(QuantizeOp, number, attrs=QuantizeOp.attrs_type(scale=step, zero_point=zero, dtype=kind))


@foreign_converter(f"{_NAMESPACE}::quantize_per_channel.default")
def quantize_per_channel(
    context: Context,
    x: Value,
    scales: Value,
    zero_points: Value,
    axis: int,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
) -> Value:
    """Of a constant: its integers. Activations have one step."""
    if not isinstance(x.op, WeightOp):
        context.refuse(f"a step for each index of axis {axis} of numbers that are computed; a tensor has one step")
    scale, zero = _channels(context, x, scales, axis), _channels(context, x, zero_points, axis)
    for one in zero.flatten().unique().tolist():
        _checked(context, scale, one, dtype)
    numbers = context.graph.weights[x.op.attrs.id].float()
    if bool(numbers.isnan().any()):
        context.refuse("it is given a constant with NaN, which no integer stands for")
    steps = torch.round(numbers * (1 / scale)) + zero
    return context.constant(steps.clamp(quant_min, quant_max).to(dtype), "integers")


@foreign_converter(
    f"{_NAMESPACE}::dequantize_per_tensor.default",
    f"{_NAMESPACE}::dequantize_per_tensor.tensor",
    of_constants=True,
)
def dequantize_per_tensor(
    context: Context,
    x: Value,
    scale: Value | float,
    zero_point: Value | int,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
    *,
    out_dtype: torch.dtype | None = None,
) -> Value:
    """``(x - zero_point) * scale``."""
    step, zero = _single(context, scale, zero_point)
    _check_steps(context, torch.tensor(step))
    return _numbers(context, x, context.full(step, TensorType(())), torch.tensor(zero))


@foreign_converter(f"{_NAMESPACE}::dequantize_per_channel.default", of_constants=True)
def dequantize_per_channel(
    context: Context,
    x: Value,
    scales: Value,
    zero_points: Value | None,
    axis: int,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
    *,
    out_dtype: torch.dtype | None = None,
) -> Value:
    """The same with a scale and a zero point for each index along ``axis``."""
    scale = _channels(context, x, scales, axis)
    _check_steps(context, scale)
    zeros = torch.tensor(0) if zero_points is None else _channels(context, x, zero_points, axis)
    return _numbers(context, x, context.constant(scale, "scale"), zeros)


def _numbers(context: Context, x: Value, scale: Value, zeros: torch.Tensor) -> Value:
    """``(x - zeros) * scale`` in the element type of the call's result."""
    zero = int(zeros.flatten()[0])
    is_plain = bool((zeros == zero).all()) and (x.type.dtype in QUANTIZED or (x.type.dtype is DType.I32 and not zero))
    if is_plain:
        attrs = DequantizeOp.attrs_type(zero_point=zero)
        return context.cast(context.emit(DequantizeOp, x, scale, attrs=attrs), context.dtype)
    number = context.emit(CastOp, x, attrs=CastOp.attrs_type(dtype=DType.F32))
    if zeros.any():
        number = context.emit(SubOp, number, context.constant(zeros.float(), "zero_point"))
    return context.cast(context.emit(MulOp, number, scale), context.dtype)


def _checked(context: Context, steps: torch.Tensor, zero: int, dtype: torch.dtype) -> DType:
    """The element type of integers; refuses what no kernel has."""
    _check_steps(context, steps)
    kinds = {one.torch: one for one in QUANTIZED}
    if dtype not in kinds:
        context.refuse(f"quantized numbers are u8 or i8, not {str(dtype).removeprefix('torch.')}")
    low, high = integer_range(kinds[dtype])
    if not low <= zero <= high:
        context.refuse(f"zero point {zero} is no {kinds[dtype].value} number")
    return kinds[dtype]


def _check_steps(context: Context, steps: torch.Tensor) -> None:
    reason = step_refusal(steps)
    if reason:
        context.refuse(reason)


def step_refusal(steps: torch.Tensor) -> str:
    """Why integers with these scales cannot be imported; empty if they can."""
    limit = torch.finfo(torch.float32)
    wrong = steps[~((steps >= limit.tiny) & (steps <= 1 / limit.tiny))]
    if not wrong.numel():
        return ""
    if bool(wrong.isinf().any()):
        return (
            "a scale is inf, which makes NaN of finite numbers, 0 * inf: it was calibrated on infinite numbers, as "
            "those of an attention mask; quantize the model again without this operator (in ONNX Runtime: "
            "op_types_to_quantize=['MatMul', 'Gemm'])"
        )
    return f"a scale is {wrong.flatten()[0]:g}; scales are positive, normal in f32, and so are their reciprocals"


def _single(context: Context, scale: Value | float, zero_point: Value | int) -> tuple[float, int]:
    """Step, as an f32 number, and zero point of a tensor."""
    found = []
    for one, what in ((scale, "scale"), (zero_point, "zero point")):
        numbers = _constant(context, one, what)
        if numbers.numel() != 1:
            context.refuse(f"its {what} has {numbers.numel()} numbers where one is needed")
        found.append(numbers.reshape(()))
    return found[0].float().item(), int(found[1])


def _channels(context: Context, x: Value, one: Value, axis: int) -> torch.Tensor:
    """Scales, f32, or zero points, i64, in a shape that broadcasts to ``x``."""
    numbers = _constant(context, one, "scale or zero point")
    axis = axis_of(axis, x.type.rank)
    if not 0 <= axis < x.type.rank:
        context.refuse(f"axis {axis} of a tensor of rank {x.type.rank}")
    if numbers.shape != (x.shape[axis],):
        context.refuse(f"scales or zero points {list(numbers.shape)} for axis {axis} of {list(x.shape)}")
    numbers = numbers.float() if numbers.is_floating_point() else numbers.to(torch.int64)
    return numbers.reshape(-1, *[1] * (x.type.rank - 1 - axis))


def _constant(context: Context, one: Value | float | int, what: str) -> torch.Tensor:
    if not isinstance(one, Value):
        return torch.tensor(one)
    if isinstance(one.op, WeightOp):
        return context.graph.weights[one.op.attrs.id]
    if not isinstance(one.op, FullOp) or not one.op.known:
        context.refuse(f"its {what} is computed at run time; only constants are supported")
    return one.op.evaluate()
