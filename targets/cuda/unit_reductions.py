"""Sums of one term become plain expressions, before TVM schedules them.

::

    init: y[i] = 0                                    y[i] = 0 + x[i] * w[i]
    y[i] = y[i] + x[i] * w[i]     over one tap   ─▶

TVM's scheduler drops loops of extent 1, and then takes such a sum for an elementwise block, but keeps its first value.
What follows is inlined into both, so that a depthwise convolution with one tap adds its bias twice.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import s_tir, tirx


@tvm.transform.module_pass(opt_level=0, name="DropUnitReductions")
class DropUnitReductions:
    """Rewrite each block that reduces over loops of extent 1 only."""

    def transform_module(self, module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        functions = {name: _rewritten(function) for name, function in module.functions.items()}
        return tvm.IRModule(functions, attrs=module.attrs)


def _rewritten(function: tvm.ir.BaseFunc) -> tvm.ir.BaseFunc:
    if not isinstance(function, tirx.PrimFunc):
        return function
    return function.with_body(tvm_ffi.structural_map(function.body, (s_tir.SBlock, _without_reduction)))


def _without_reduction(block: s_tir.SBlock) -> s_tir.SBlock:
    reduced = [one for one in block.iter_vars if one.iter_type == tirx.IterVar.CommReduce]
    stores = isinstance(block.init, tirx.BufferStore) and isinstance(block.body, tirx.BufferStore)
    if not stores or not all(_is_one(one.dom.extent) for one in reduced):
        return block

    def first(load: tvm.ir.TensorLoad) -> tvm.ir.Expr:
        return block.init.value if load.source.same_as(block.body.buffer) else load

    value = tvm_ffi.structural_map(block.body.value, (tvm.ir.TensorLoad, first))
    body = tirx.BufferStore(block.body.buffer, value, block.body.indices)
    axes = [tirx.IterVar(one.dom, one.var, tirx.IterVar.DataPar) for one in block.iter_vars]
    return s_tir.SBlock(axes, block.reads, block.writes, block.name_hint, body, annotations=block.annotations)


def _is_one(extent: tvm.ir.Expr) -> bool:
    return isinstance(extent, tirx.IntImm) and extent.value == 1
