"""Convolutions: direct in blocked layout, depthwise where each channel has its own filter."""

from __future__ import annotations

from ...ir import is_constant
from ...ir.ops import Conv2dOp
from ..group import Group
from ..kernel import CompileError, FusedEpilogue, Kernel, KernelContext, anchor_type, selects
from ..templates import conv2d, depthwise
from ..views import View


@selects(Conv2dOp)
def select_conv2d(group: Group, context: KernelContext) -> Kernel:
    """``conv2d`` or ``depthwise`` with bias and epilogue fused; the result is blocked."""
    op = group.anchor
    assert isinstance(op, Conv2dOp)
    dtype = anchor_type(group)
    data, weight, bias = group.anchor_operand(0), group.anchor_operand(1), group.anchor_operand(2)
    assert data is not None and weight is not None
    if not is_constant(weight):
        raise CompileError(f"{op.describe()}: the weight is computed at run time; only constant weights are supported")
    result = View.whole(group.result)
    lanes = context.target.lanes()
    if result.type.channel_block != lanes:
        raise CompileError(f"{op.describe()} must write channel blocks of {lanes}; run the pass 'layout'")
    batch, channels, height, width = data.shape
    source = context.view(data)
    plain = not source.type.channel_block
    attrs, (outputs, _, *kernel) = op.attrs, weight.shape
    if op.is_depthwise and not plain and outputs == channels:
        template = depthwise
        spec = depthwise.DepthwiseSpec(
            batch, channels, height, width, tuple(kernel), attrs.stride, attrs.padding, attrs.dilation, dtype
        )
    else:
        template = conv2d
        spec = conv2d.Conv2dSpec(
            batch,
            channels,
            height,
            width,
            outputs,
            tuple(kernel),
            attrs.stride,
            attrs.padding,
            attrs.dilation,
            attrs.groups,
            "plain" if plain else "blocked",
            dtype,
        )
    name = template.__name__.rpartition(".")[2]
    knobs = context.knobs(name, spec, template.candidates(spec, context.target))
    packed = template.pack_weight(spec, context.target, knobs, context.constant(weight))
    epilogue = FusedEpilogue(group, context, result, bias=bias)
    return Kernel(
        template=name,
        spec=spec,
        knobs=knobs,
        variant=epilogue.variant,
        operands=(context.contiguous(data) if plain else source, packed, *epilogue.operands),
        result=result,
        build=lambda function: template.build(spec, context.target, knobs, epilogue.build(), function),
    )
