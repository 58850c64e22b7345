"""Direct convolution in bfloat16 by dot products of channel pairs, for processors that have no matrix unit.

The loops are those of `tersor.targets.templates.conv2d.direct`. What is one channel there is a pair here: pairs lie
side by side in a block of the input, and in the packed weight ``[…, pair of channels, output, channel of the pair]``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from tvm import tirx

from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue
from ..vector.bf16_tiles import unit_of
from ..vector.bfloat16 import BFLOAT16
from ..vector.builder import Output, make_prim_func
from ..vector.dot_bf16 import DOT_IR, PAIR, PAIR_PRODUCT, as_words
from . import direct as conv2d
from . import tiling as conv2d_tiling
from .direct import ConvolutionWriter
from .spec import Conv2dKnobs, Conv2dSpec, output_groups
from .tiling import candidates

__all__ = ["Conv2dKnobs", "build", "candidates", "estimate_cycles", "pack_weight", "supports"]


def supports(spec: Conv2dSpec, target: Cpu) -> bool:
    """Whether this template computes ``spec`` on ``target``, and no other does it faster."""
    return spec.dtype == BFLOAT16 and spec.input_layout == "blocked" and unit_of(target) == "dot"


def estimate_cycles(spec: Conv2dSpec, target: Cpu, knobs: Conv2dKnobs) -> float:
    """Estimated cycles of the whole convolution on one thread: those of float32 with half of the channels."""
    return conv2d_tiling.estimate_cycles(replace(spec, c=-(-spec.c // PAIR)), target, knobs)


def pack_weight(spec: Conv2dSpec, target: Cpu, knobs: Conv2dKnobs, weight: torch.Tensor) -> torch.Tensor:
    """Reorder a weight of shape (o, c / groups, kh, kw) the way the kernel reads it, flat and zero padded."""
    packed = conv2d.pack_weight(spec, target, knobs, weight.to(torch.bfloat16))
    outputs = [group.vectors * target.lanes() for group in output_groups(spec, target, knobs.vectors)]
    parts = packed.split(_weight_sizes(spec, target, knobs))
    paired = (part.reshape(-1, PAIR, width).transpose(1, 2) for part, width in zip(parts, outputs, strict=True))
    return torch.cat([part.reshape(-1) for part in paired])


def _weight_sizes(spec: Conv2dSpec, target: Cpu, knobs: Conv2dKnobs) -> list[int]:
    """Packed weights of each run of groups of outputs."""
    per_vector = math.prod(spec.kernel) * spec.input_block(target) * target.lanes()
    return [g.count * g.vectors * g.span * per_vector for g in output_groups(spec, target, knobs.vectors)]


def build(spec: Conv2dSpec, target: Cpu, knobs: Conv2dKnobs, epilogue: Epilogue = NO_EPILOGUE) -> tirx.PrimFunc:
    """Write the convolution as a PrimFunc ``(input, packed_weight, *epilogue.buffers, output)``; blocked in and out."""
    inputs = (
        BufferSpec("data", spec.input_size(target), BFLOAT16),
        BufferSpec("weight", sum(_weight_sizes(spec, target, knobs)), BFLOAT16),
    )
    output = BufferSpec("output", spec.output_size(target), epilogue.dtype)

    def body(main: Sequence[Buffer], out: Output) -> None:
        data, weight = (as_words(buffer, one.size) for buffer, one in zip(main, inputs, strict=True))
        ConvolutionWriter(spec, target, knobs, data, weight, out, PAIR_PRODUCT).write()

    importing = replace(epilogue, llvm_ir=epilogue.llvm_ir + DOT_IR)
    return make_prim_func("conv2d_bf16_dot", inputs, output, body, importing)
