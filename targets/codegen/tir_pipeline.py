"""The TVM passes that turn our PrimFuncs into what its LLVM code generator takes.

TVM's default pipeline also lowers schedules, GPU thread bindings and shared memory. Our templates write flat loops over
flat buffers for one CPU thread and ``T.parallel``, so these passes only cost time: they took three quarters of a
compilation. The ones below are all that the code needs, in TVM's own order; measured on GoogLeNet, they produce equally
fast code in a quarter of the time.
"""

from __future__ import annotations

import tvm
from tvm import s_tir, tirx

PIPELINE = "tersor"  # its name in TVM's registry, from which `tvm.tirx.build` and `tvm.relax.build` take it
_INDEX_BITS = 32


def _lower() -> tvm.transform.Pass:
    transform = tirx.transform
    return tvm.transform.Sequential(
        [
            s_tir.transform.CanonicalizeLoop(),  # loops from 0, which the passes below expect
            transform.FlattenBuffer(),
            transform.BF16ComputeLegalize(),  # bf16 arithmetic in float32, where a target has none
            transform.NarrowDataType(_INDEX_BITS),
            transform.VectorizeLoop(True),
            transform.StorageRewrite(),  # work space that is no longer read is used again
            transform.UnrollLoop(),
            transform.StmtSimplify(),  # constant offsets, without which LLVM keeps no register tile in registers
            s_tir.transform.RewriteUnsafeSelect(),  # both sides of a select are read
            transform.AnnotateEntryFunc(),
            transform.SplitHostDevice(),
            transform.MakePackedAPI(),
            transform.BF16StorageLegalize(),
        ]
    )


def _finalize() -> tvm.transform.Pass:
    return tvm.transform.Sequential([tirx.transform.LowerTVMBuiltin(), tirx.transform.LowerIntrin()])


tirx.register_tir_pipeline(PIPELINE, lambda: (_lower(), _finalize, _finalize))
