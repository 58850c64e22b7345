"""TVM's default GPU schedules of loop nests, kept from those that they get wrong.

Its rules take what follows a reduction for a map of everything that was reduced. Where only a part of that is read, as
of a layer norm before the token that is classified, they fail on an assertion of theirs, or let the threads of the rows
that nobody reads write over the others. Such a nest is left to the fallback, which computes one block after another.
"""

from __future__ import annotations

import math

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.s_tir import dlight

from .unit_reductions import DropUnitReductions

_RULES = (dlight.gpu.Matmul, dlight.gpu.GEMV, dlight.gpu.Reduction, dlight.gpu.GeneralReduction)


def schedule_passes() -> list[tvm.transform.Pass]:
    """The default schedule of each loop nest: the first of TVM's rules that knows it."""
    rules = (*(_WhereAllIsRead(rule()) for rule in _RULES), dlight.gpu.Fallback())
    return [DropUnitReductions(), dlight.ApplyDefaultSchedule(*rules)]


class _WhereAllIsRead(dlight.base.ScheduleRule):
    """A rule of TVM's, for loop nests that read all that they reduce; one that fails leaves the nest to the next."""

    def __init__(self, rule: dlight.base.ScheduleRule) -> None:
        super().__init__()
        self._rule = rule

    def apply(
        self, func: tirx.PrimFunc, target: tvm.target.Target, tunable: bool
    ) -> s_tir.Schedule | list[s_tir.Schedule] | None:
        if not reads_all_that_it_reduces(func):
            return None
        try:
            return self._rule.apply(func, target, tunable)
        except (AssertionError, s_tir.ScheduleError, tvm.error.InternalError):  # TVM's own assertions
            return None


def reads_all_that_it_reduces(function: tirx.PrimFunc) -> bool:
    """Whether every element of what a reduction makes, and of what is made of that, is read by whatever reads it."""
    behind_reductions: list[tirx.Buffer] = []
    for block in _blocks(function):
        read = [one for one in block.reads if any(one.source.same_as(known) for known in behind_reductions)]
        if not all(_is_whole(one, block) for one in read):
            return False
        if read or block.init is not None:
            behind_reductions += [one.source for one in block.writes]
    return True


def _blocks(function: tirx.PrimFunc) -> list[s_tir.SBlock]:
    """Those that compute something, in the order of execution."""
    found: list[s_tir.SBlock] = []
    tvm_ffi.structural_walk(function.body, (s_tir.SBlock, found.append))
    return [block for block in found if block.iter_vars]


def _is_whole(region: tvm.ir.expr.TensorRegion, block: s_tir.SBlock) -> bool:
    """Whether a block's iterations read a buffer from end to end along each dimension."""
    domains = {one.var: one.dom for one in block.iter_vars}
    starts = tvm.sym.detect_iter_map([one.min for one in region.region], domains).indices
    if len(starts) != len(region.region):
        return False
    lengths = (
        math.prod(int(split.extent) for split in start.args) * int(one.extent)
        for start, one in zip(starts, region.region, strict=True)
    )
    return all(
        int(start.base) == 0 and length == int(extent)
        for start, length, extent in zip(starts, lengths, region.source.shape, strict=True)
    )
