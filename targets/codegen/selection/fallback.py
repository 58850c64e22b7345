"""Groups whose anchor has no template of its own: plain loops, and what was fused behind them as a second kernel."""

from __future__ import annotations

from ....ir import TensorType, Value
from ...templates import loops
from ..group import Group
from ..kernel import Kernel, KernelContext, chosen_kernel
from ..views import View
from .elementwise import select_elementwise


def loop_kernel(kind: str, spec: loops.LoopSpec, group: Group, context: KernelContext, operand: View) -> Kernel:
    """The last kernel of the group.

    Parameters
    ----------
    kind
        What ``spec`` is looked up by.
    operand
        The anchor's operand, as a whole buffer.
    """
    assert group.anchor is not None
    choice = context.choose(kind, spec)
    type = group.anchor.result.type
    computed = TensorType(type.shape, type.dtype, group.result.type.channel_block)
    result = Value(computed) if group.epilogue else group.result
    kernel = chosen_kernel(
        choice,
        operands=(operand,),
        result=View.whole(result),
        build=lambda: loops.build(spec, context.target, choice.knobs),
    )
    if not group.epilogue:
        return kernel
    context.compute(kernel, result)
    rest = Group(group.op, None, group.epilogue, {**group.bindings, group.anchor.result: result})
    return select_elementwise(rest, context)
