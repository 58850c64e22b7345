"""Layers whose weights are integers already, in models that other tools quantized."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...ir import Value
from ...ir.ops import DequantizeOp, LayerOp
from ..matching import tensor
from .scheme import LARGEST_BIAS, MOST_TERMS, IntegerLayer

_SAME_UNIT = 1e-4  # relative difference of two scales that are one, up to rounding


@dataclass(frozen=True)
class Given:
    """Constant integers, and what they stand for.

    Attributes
    ----------
    integers
        i32, less their zero point.
    scales
        f32, of the same shape: what one unit of each stands for.
    """

    integers: torch.Tensor
    scales: torch.Tensor


def given_integers(value: Value | None) -> Given | None:
    """Those of a constant that is dequantized, and then possibly transposed or reshaped; None for anything else."""
    op = None if value is None else value.op
    if isinstance(op, DequantizeOp):
        integers, scale = tensor(op.x), tensor(op.scale)
        if integers is None or scale is None:
            return None
        return Given(integers.to(torch.int32) - op.attrs.zero_point, scale.expand(integers.shape))
    if op is None or not op.strided or len(op.inputs) != 1:
        return None
    given = given_integers(op.inputs[0])
    if given is None:
        return None
    moved, scales = op.evaluate(given.integers), op.evaluate(given.scales)
    assert isinstance(moved, torch.Tensor)  # such ops have one result
    assert isinstance(scales, torch.Tensor)
    return Given(moved, scales)


def source_of(value: Value) -> Value:
    """The constant that ``value`` is made from."""
    while value.op is not None and value.op.inputs:
        value = value.op.inputs[0]
    return value


def given_refusal(op: LayerOp) -> str:
    """Why a layer with a dequantized weight cannot sum integers; empty if it can."""
    weight = given_integers(op.weight)
    if weight is None:
        return "its weight is computed, or has several zero points"
    if op.bias is not None and tensor(op.bias) is None and given_integers(op.bias) is None:
        return "its bias is computed at run time, or not loaded"
    rows = weight.scales.flatten(1)
    if not rows.numel() or bool((rows != rows[:, :1]).any()):
        return "its weight has scales along another dimension than that of the new channels"
    if weight.integers.min() < -128 or weight.integers.max() > 127:
        return "its weight, less its zero point, has more than 8 bits"
    return f"sums of {rows.shape[1]} products may not fit into i32" if rows.shape[1] > MOST_TERMS else ""


def given_layer(op: LayerOp, input_scale: float) -> IntegerLayer | None:
    """The integers of a layer without a `given_refusal`; None if its bias has more than 30 bits."""
    weight = given_integers(op.weight)
    assert weight is not None  # guaranteed by given_refusal
    sums = weight.scales.flatten(1)[:, 0].double() * input_scale
    integers = weight.integers.to(torch.int8).contiguous()
    if op.bias is None:
        return IntegerLayer(integers, None, sums)
    bias = given_integers(op.bias)
    if bias is None:
        numbers = tensor(op.bias)
        assert numbers is not None  # guaranteed by given_refusal
        return IntegerLayer(integers, None, sums, numbers.double())
    if bool(((bias.scales.double() / sums - 1).abs() < _SAME_UNIT).all()):
        return IntegerLayer(integers, bias.integers, sums) if bias.integers.abs().max() <= LARGEST_BIAS else None
    return IntegerLayer(integers, None, sums, bias.integers.double() * bias.scales.double())
