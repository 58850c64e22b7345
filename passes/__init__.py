"""Passes over the graph IR: what a pass is, how passes are named, put into pipelines, run, checked and bisected.

One pass a file, families in folders. Importing this package registers all of them. See docs/passes.md.
"""

from . import (  # registers passes
    canonicalize,
    channel_shuffle,
    cse,
    dce,
    decompose,
    fold_batchnorm,
    fold_constants,
    fold_empty,
    fuse,
    fuse_elementwise,
    fuse_epilogue,
    fuse_parallel,
    instruments,
    layout,
    lowrank,
    nest_concats,
    pruning,
    quantization,
    reassociate_matmul,
    sparsity,
    to_bf16,
    to_fp16,
)
from .base import Exactness, Latency, Pass, PassContext, PassError, Result, TimedPair
from .bisect import Culprit, bisect
from .manager import PassManager, PassOutcome, run_passes
from .numeric import Agreement
from .pipeline import PRESETS, Pipeline, PipelineError, Preset, as_pipeline, parse_pipeline, print_pass
from .registry import PassInfo, PassOption, find_pass, list_passes, register_pass
from .report import PassRecord, Report
