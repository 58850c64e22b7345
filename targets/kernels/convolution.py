"""Convolutions in blocked layout: direct, Winograd, on a matrix unit, or depthwise."""

from __future__ import annotations

from types import ModuleType

from ...ir import is_constant
from ...ir.ops import Conv2dOp
from ..group import Group
from ..kernel import CompileError, FusedEpilogue, Kernel, KernelContext, anchor_type, selects
from ..record import Target
from ..templates import conv2d, conv2d_bf16, conv2d_bf16_narrow, conv2d_tiling, depthwise, winograd
from ..views import View

WINOGRAD_GAIN = 1.2  # estimated speed-up below which direct convolution is used, which is more accurate


@selects(Conv2dOp)
def select_conv2d(group: Group, context: KernelContext) -> Kernel:
    """``conv2d``, ``winograd``, ``conv2d_bf16`` or ``depthwise``, bias and epilogue fused; the result is blocked."""
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
        template = _dense_template(spec, context.target)
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


def _dense_template(spec: conv2d.Conv2dSpec, target: Target) -> ModuleType:
    for on_matrix_unit in (conv2d_bf16, conv2d_bf16_narrow):
        if on_matrix_unit.supports(spec, target):
            return on_matrix_unit
    if spec.dtype == "float32" and winograd_pays(spec, target):
        return winograd
    return conv2d


def winograd_pays(spec: conv2d.Conv2dSpec, target: Target) -> bool:
    """Whether Winograd's algorithm applies and is estimated to be clearly faster than direct convolution."""
    if winograd.supports(spec) is not None:
        return False
    direct = conv2d_tiling.estimate_cycles(spec, target, conv2d.candidates(spec, target)[0])
    transformed = winograd.estimate_cycles(spec, target, winograd.candidates(spec, target)[0])
    return transformed * WINOGRAD_GAIN < direct
