"""Groups whose anchor has no template of its own: plain loops, and what was fused behind them as a second kernel.

An op that has a formula (`tersor.targets.templates.loops.formula`) needs nothing here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ....ir import TensorType, Value
from ...templates import loops
from ...templates.loops.formula import OpSpec, build_op, ops_with_formulas
from ..group import Group
from ..kernel import Kernel, KernelContext, chosen_kernel, selects
from ..views import View
from .elementwise import select_elementwise


@selects(*ops_with_formulas())
def select_formula(group: Group, context: KernelContext) -> Kernel:
    """The kernel that the op's formula describes; there is one way to schedule it."""
    op = group.anchor
    assert op is not None
    spec = OpSpec.of(op)
    operands = tuple(context.contiguous(group.outer(value)) for value in dict.fromkeys(op.inputs))
    build = partial(build_op, spec, context.target)
    return last_kernel(group, context, lambda result: Kernel(op.name, spec, operands, result, build))


def loop_kernel(kind: str, spec: loops.LoopSpec, group: Group, context: KernelContext, operand: View) -> Kernel:
    """The last kernel of the group.

    Parameters
    ----------
    kind
        What ``spec`` is looked up by.
    operand
        The anchor's operand, as a whole buffer.
    """
    choice = context.choose(kind, spec)

    def kernel(result: View) -> Kernel:
        build = partial(loops.build, spec, context.target, choice.knobs)
        return chosen_kernel(choice, operands=(operand,), result=result, build=build)

    return last_kernel(group, context, kernel)


def last_kernel(group: Group, context: KernelContext, make: Callable[[View], Kernel]) -> Kernel:
    """The last kernel of a group whose anchor's kernel, ``make(result)``, takes nothing along that is fused behind."""
    if not group.epilogue:
        return make(View.whole(group.result))
    assert group.anchor is not None
    type = group.anchor.result.type
    result = Value(TensorType(type.shape, type.dtype, group.result.type.channel_block))
    context.compute(make(View.whole(result)), result)
    rest = Group(group.op, None, group.epilogue, {**group.bindings, group.anchor.result: result})
    return select_elementwise(rest, context)
