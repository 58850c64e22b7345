"""Recurrent layers: the loop over time, whatever is fused behind them as a second kernel."""

from __future__ import annotations

from functools import partial

from ....ir import is_constant
from ....ir.ops import GruOp, LstmOp, RecurrentOp, ReluRnnOp, TanhRnnOp
from ...templates import recurrent
from ...templates.recurrent import RecurrentSpec
from ..group import Group
from ..kernel import CompileError, Kernel, KernelContext, Operand, anchor_type, chosen_kernel, selects
from ..views import View
from .fallback import last_kernel


@selects(LstmOp, GruOp, TanhRnnOp, ReluRnnOp)
def select_recurrent(group: Group, context: KernelContext) -> Kernel:
    """``recurrent``, in float32, with the weight packed."""
    op = group.anchor
    assert isinstance(op, RecurrentOp)
    weight = group.outer(op.weight)
    if not is_constant(weight):
        raise CompileError(f"{op.describe()}: its weight is computed at run time; kernels take constant ones")
    if anchor_type(group) != "float32":
        raise CompileError(f"{op.describe()} on {op.gates.type}: kernels take f32 operands; cast the model first")
    steps, batch, _ = op.gates.shape
    spec = RecurrentSpec(op.name, steps, batch, op.units, op.attrs.reverse)
    choice = context.choose("recurrent", spec)
    packed = recurrent.pack_weight(spec, context.target, choice.knobs, context.constant(weight))
    gates, _, *states = (group.outer(value) for value in op.inputs)
    operands: list[Operand] = [context.contiguous(gates), packed, *(context.contiguous(value) for value in states)]

    def kernel(result: View) -> Kernel:
        build = partial(recurrent.build, spec, context.target, choice.knobs)
        return chosen_kernel(choice, operands=operands, result=result, build=build)

    return last_kernel(group, context, kernel)
