"""Convolutions in blocked layout; `tersor.targets.codegen.options` lists the templates that compute them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from ....ir import is_constant
from ....ir.ops import Conv2dOp, Conv3dOp, ConvTranspose2dOp
from ...templates.conv2d.spec import Conv2dSpec
from ...templates.conv2d.transposed import TransposedSpec
from ...templates.conv2d.volume import VolumeSpec
from ...templates.sparse.blocks import stored_blocks, supports
from ...templates.sparse.spec import SparseConv2dSpec
from ...templates.vector.dot_product import useful_bits
from ..group import Group
from ..kernel import CompileError, FusedEpilogue, Kernel, KernelContext, anchor_type, layer_kernel, selects
from ..views import View

_Layout = Literal["blocked", "plain"]


@selects(Conv2dOp)
def select_conv2d(group: Group, context: KernelContext) -> Kernel:
    """One of the templates for convolutions, bias and epilogue fused; the result is blocked."""
    attrs, dtype = group.anchor_as(Conv2dOp).attrs, anchor_type(group, integers=True)
    data, weight, layout, epilogue = _operands(group, context)
    batch, channels, height, width = data.type.shape
    outputs, _, high, wide = weight.shape
    pointwise = (high, wide) == (1, 1) and attrs.groups == 1 and not any(attrs.padding)
    if pointwise and dtype == "float32" and layout == "blocked":
        matrix = weight.flatten(1)
        if (blocks := stored_blocks(matrix, attrs.blocks)) is not None:
            sparse = SparseConv2dSpec(outputs, channels, *blocks, n=batch, h=height, w=width, stride=attrs.stride)
            if supports(sparse, context.target):
                return layer_kernel("sparse_conv2d", sparse, context, (data, matrix), epilogue)
    window = ((high, wide), attrs.stride, attrs.padding, attrs.dilation, attrs.groups)
    bits = useful_bits(context.target, dtype, attrs.weight_bits, weight)
    spec = Conv2dSpec(batch, channels, height, width, outputs, *window, layout, dtype, attrs.zero_point, bits)
    return layer_kernel("conv2d", spec, context, (data, weight), epilogue)


@selects(Conv3dOp)
def select_conv3d(group: Group, context: KernelContext) -> Kernel:
    """``conv3d``, bias and epilogue fused; the result is blocked."""
    attrs, dtype = group.anchor_as(Conv3dOp).attrs, anchor_type(group)
    data, weight, layout, epilogue = _operands(group, context)
    batch, channels, frames, height, width = data.type.shape
    outputs, _, deep, high, wide = weight.shape
    front, top, left, back, bottom, right = attrs.padding
    window = ((high, wide), attrs.stride[1:], (top, left, bottom, right), attrs.dilation[1:], attrs.groups)
    image = (batch, channels, height, width, outputs, *window, layout, dtype)
    spec = VolumeSpec(
        *image,
        d=frames,
        depth_kernel=deep,
        depth_stride=attrs.stride[0],
        depth_padding=(front, back),
        depth_dilation=attrs.dilation[0],
    )
    return layer_kernel("conv3d", spec, context, (data, weight), epilogue)


@selects(ConvTranspose2dOp)
def select_conv_transpose2d(group: Group, context: KernelContext) -> Kernel:
    """``conv2d_transposed``, bias and epilogue fused; the result is blocked."""
    attrs, dtype = group.anchor_as(ConvTranspose2dOp).attrs, anchor_type(group, integers=True)
    data, weight, layout, epilogue = _operands(group, context)
    # Where an axis has a stride and a dilation, the weight's own zeros stand for the taps in between.
    spread = [dilation if stride > 1 else 1 for stride, dilation in zip(attrs.stride, attrs.dilation, strict=True)]
    weight = _spread(weight, spread)
    batch, channels, height, width = data.type.shape
    outputs, _, high, wide = weight.shape
    _, _, rows, columns = epilogue.result.type.shape
    dilation = (attrs.dilation[0] // spread[0], attrs.dilation[1] // spread[1])
    window = ((high, wide), attrs.stride, attrs.padding, dilation, attrs.groups)
    image = (batch, channels, height, width, outputs, (rows, columns))
    bits = useful_bits(context.target, dtype, attrs.weight_bits, weight)
    spec = TransposedSpec(*image, *window, layout, dtype, attrs.zero_point, bits)
    return layer_kernel("conv2d_transposed", spec, context, (data, weight), epilogue)


def _operands(group: Group, context: KernelContext) -> tuple[View, torch.Tensor, _Layout, FusedEpilogue]:
    """The data, as a blocked or a whole row-major buffer, and which; the weight; the epilogue to the blocked result."""
    assert group.anchor is not None
    weight, source = group.operand(1), context.view(group.operand(0))
    if not is_constant(weight):
        raise CompileError(f"{group.anchor.describe()}: the weight is computed at run time; run the pass 'decompose'")
    result, lanes = View.whole(group.result), context.target.lanes()
    if result.type.channel_block != lanes:
        raise CompileError(f"{group.anchor.describe()} must write channel blocks of {lanes}; run the pass 'layout'")
    is_blocked = bool(source.type.channel_block)
    data = source if is_blocked else context.contiguous(group.operand(0))
    epilogue = FusedEpilogue(group, context, result, bias=group.anchor_operand(2))
    return data, context.constant(weight), "blocked" if is_blocked else "plain", epilogue


def _spread(weight: torch.Tensor, steps: Sequence[int]) -> torch.Tensor:
    """The weight with its taps ``steps`` apart, and zeros between them."""
    height, width = (step * (extent - 1) + 1 for step, extent in zip(steps, weight.shape[2:], strict=True))
    spread = weight.new_zeros(*weight.shape[:2], height, width)
    spread[:, :, :: steps[0], :: steps[1]] = weight
    return spread
