"""Convolutions in blocked layout; `tersor.targets.codegen.options` lists the templates that compute them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ....ir import Value, is_constant
from ....ir.ops import Conv2dOp, Conv3dOp, ConvTranspose2dOp
from ...templates.conv2d.spec import Conv2dSpec
from ...templates.conv2d.transposed import TransposedSpec
from ...templates.conv2d.volume import VolumeSpec
from ..group import Group
from ..kernel import CompileError, FusedEpilogue, Kernel, KernelContext, anchor_type, fused_kernel, selects
from ..views import View


@selects(Conv2dOp)
def select_conv2d(group: Group, context: KernelContext) -> Kernel:
    """One of the templates for convolutions, bias and epilogue fused; the result is blocked."""
    op = group.anchor_as(Conv2dOp)
    dtype = anchor_type(group, integers=True)
    source, weight, bias, result = _operands(group, context)
    batch, channels, height, width = source.type.shape
    attrs, (outputs, _, kernel_height, kernel_width) = op.attrs, weight.shape
    spec = Conv2dSpec(
        batch,
        channels,
        height,
        width,
        outputs,
        (kernel_height, kernel_width),
        attrs.stride,
        attrs.padding,
        attrs.dilation,
        attrs.groups,
        "blocked" if source.type.channel_block else "plain",
        dtype,
        attrs.zero_point,
    )
    choice = context.choose("conv2d", spec)
    packed = choice.template.pack_weight(choice.spec, context.target, choice.knobs, weight)
    return fused_kernel(choice, context, (source, packed), FusedEpilogue(group, context, result, bias=bias))


@selects(Conv3dOp)
def select_conv3d(group: Group, context: KernelContext) -> Kernel:
    """``conv3d``, bias and epilogue fused; the result is blocked."""
    op = group.anchor_as(Conv3dOp)
    dtype = anchor_type(group)
    source, weight, bias, result = _operands(group, context)
    batch, channels, frames, height, width = source.type.shape
    attrs, (outputs, _, deep, high, wide) = op.attrs, weight.shape
    front, top, left, back, bottom, right = attrs.padding
    spec = VolumeSpec(
        batch,
        channels,
        height,
        width,
        outputs,
        (high, wide),
        attrs.stride[1:],
        (top, left, bottom, right),
        attrs.dilation[1:],
        attrs.groups,
        "blocked" if source.type.channel_block else "plain",
        dtype,
        d=frames,
        depth_kernel=deep,
        depth_stride=attrs.stride[0],
        depth_padding=(front, back),
        depth_dilation=attrs.dilation[0],
    )
    choice = context.choose("conv3d", spec)
    packed = choice.template.pack_weight(spec, context.target, choice.knobs, weight)
    return fused_kernel(choice, context, (source, packed), FusedEpilogue(group, context, result, bias=bias))


@selects(ConvTranspose2dOp)
def select_conv_transpose2d(group: Group, context: KernelContext) -> Kernel:
    """``conv2d_transposed``, bias and epilogue fused; the result is blocked."""
    op = group.anchor_as(ConvTranspose2dOp)
    dtype = anchor_type(group)
    data, weight, bias, result = _operands(group, context)
    batch, channels, height, width = data.type.shape
    attrs = op.attrs
    # Where an axis has a stride and a dilation, the weight's own zeros stand for the taps in between.
    spread = [dilation if stride > 1 else 1 for stride, dilation in zip(attrs.stride, attrs.dilation, strict=True)]
    weight = _spread(weight, spread)
    spec = TransposedSpec(
        batch,
        channels,
        height,
        width,
        weight.shape[0],
        (result.type.shape[2], result.type.shape[3]),
        (weight.shape[2], weight.shape[3]),
        attrs.stride,
        attrs.padding,
        (attrs.dilation[0] // spread[0], attrs.dilation[1] // spread[1]),
        attrs.groups,
        "blocked" if data.type.channel_block else "plain",
        dtype,
    )
    choice = context.choose("conv2d_transposed", spec)
    packed = choice.template.pack_weight(spec, context.target, choice.knobs, weight)
    return fused_kernel(choice, context, (data, packed), FusedEpilogue(group, context, result, bias=bias))


def _operands(group: Group, context: KernelContext) -> tuple[View, torch.Tensor, Value | None, View]:
    """The data, as a blocked or a whole row-major buffer; the weight; the bias; and the blocked result."""
    assert group.anchor is not None
    data, weight, bias = group.operand(0), group.operand(1), group.anchor_operand(2)
    if not is_constant(weight):
        raise CompileError(f"{group.anchor.describe()}: the weight is computed at run time; run the pass 'decompose'")
    result, lanes = View.whole(group.result), context.target.lanes()
    if result.type.channel_block != lanes:
        raise CompileError(f"{group.anchor.describe()} must write channel blocks of {lanes}; run the pass 'layout'")
    source = context.view(data)
    return source if source.type.channel_block else context.contiguous(data), context.constant(weight), bias, result


def _spread(weight: torch.Tensor, steps: Sequence[int]) -> torch.Tensor:
    """The weight with its taps ``steps`` apart, and zeros between them."""
    height, width = (step * (extent - 1) + 1 for step, extent in zip(steps, weight.shape[2:], strict=True))
    spread = weight.new_zeros(*weight.shape[:2], height, width)
    spread[:, :, :: steps[0], :: steps[1]] = weight
    return spread
