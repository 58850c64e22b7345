"""Convolutions in blocked layout; `tersor.targets.codegen.options` lists the templates that compute them."""

from __future__ import annotations

from ....ir import is_constant
from ....ir.ops import Conv2dOp
from ...templates.conv2d.spec import Conv2dSpec
from ..group import Group
from ..kernel import CompileError, FusedEpilogue, Kernel, KernelContext, anchor_type, fused_kernel, selects
from ..views import View


@selects(Conv2dOp)
def select_conv2d(group: Group, context: KernelContext) -> Kernel:
    """One of the templates for convolutions, bias and epilogue fused; the result is blocked."""
    op = group.anchor
    assert isinstance(op, Conv2dOp)
    dtype = anchor_type(group, integers=True)
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
        "plain" if plain else "blocked",
        dtype,
        attrs.zero_point,
    )
    choice = context.choose("conv2d", spec)
    packed = choice.template.pack_weight(choice.spec, context.target, choice.knobs, context.constant(weight))
    epilogue = FusedEpilogue(group, context, result, bias=bias)
    return fused_kernel(choice, context, (context.contiguous(data) if plain else source, packed), epilogue)
