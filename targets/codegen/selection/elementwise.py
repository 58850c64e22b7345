"""Groups without an anchor: maps over the result, in whichever layout it has."""

from __future__ import annotations

from collections.abc import Sequence

from ...templates import elementwise
from ...templates.base import Buffer, PrimFunc, VectorAt
from ...templates.vector.storage import STORAGE
from ..group import Group
from ..kernel import FusedEpilogue, Kernel, KernelContext, chosen_kernel, selects
from ..views import View


@selects(None)
def select_elementwise(group: Group, context: KernelContext) -> Kernel:
    """``elementwise``: the whole group is the epilogue of nothing."""
    result = View.whole(group.result)
    epilogue = FusedEpilogue(group, context, result)
    block = result.type.channel_block
    walk = elementwise.BLOCKED if block else elementwise.COORDINATES
    if not block and epilogue.is_flat:
        walk = elementwise.FLAT
    spec = elementwise.ElementwiseSpec(
        result.type.shape or (1,), (), walk, block, STORAGE[result.type.dtype], operations=4 * len(group.epilogue)
    )
    choice = context.choose("elementwise", spec)

    def nothing(at: VectorAt, buffers: Sequence[Buffer]) -> None:
        return None

    def build() -> PrimFunc:
        return elementwise.build(spec, context.target, choice.knobs, nothing, epilogue.build())

    return chosen_kernel(choice, operands=epilogue.operands, result=result, build=build, variant=epilogue.variant)
