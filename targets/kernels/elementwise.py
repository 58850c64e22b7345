"""Groups without an anchor: maps over the result, in whichever layout it has."""

from __future__ import annotations

from typing import Any

from ..emit import STORAGE
from ..group import Group
from ..kernel import FusedEpilogue, Kernel, KernelContext, selects
from ..templates import elementwise
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
    knobs = context.knobs("elementwise", spec, elementwise.candidates(spec, context.target))

    def nothing(at: Any, buffers: Any) -> None:
        return None

    return Kernel(
        template="elementwise",
        spec=spec,
        knobs=knobs,
        variant=epilogue.variant,
        operands=epilogue.operands,
        result=result,
        build=lambda function: elementwise.build(spec, context.target, knobs, nothing, epilogue.build(), function),
    )
