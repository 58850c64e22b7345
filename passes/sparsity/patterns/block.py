"""``block:4``, ``block:4x16``: four neighbouring inputs of 16 neighbouring outputs are zero together, or none.

Kernels leave such blocks out (docs/kernels.md), of linear layers and of convolutions with 1x1 windows. Without a second
number a block has as many outputs as a vector of the target; 16 where there is no target.

Method: Elsen et al., "Fast Sparse ConvNets", CVPR 2020; Narang et al., "Block-Sparse Recurrent Neural Networks", 2017.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch

from ....ir.blocks import cut_blocks, join_blocks
from ....ir.ops import Conv2dOp, LayerOp, LinearOp
from .registry import ZeroPattern, register_pattern


@register_pattern("block")
@dataclass(frozen=True)
class BlockZeros(ZeroPattern):
    """Blocks of inputs times outputs.

    Attributes
    ----------
    shape
        Inputs and outputs of a block, ``"4x16"``, or its inputs alone.
    """

    shape: str = "4"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9]+(x[0-9]+)?", self.shape) or "0" in self.shape.split("x"):
            raise ValueError(f"say inputs and outputs of a block, such as block:4x16 or block:4, not {self.shape!r}")

    def for_lanes(self, lanes: int) -> BlockZeros:
        return self if "x" in self.shape else replace(self, shape=f"{self.shape}x{lanes}")

    @property
    def blocks(self) -> tuple[int, int]:
        inputs, _, outputs = self.shape.partition("x")
        return int(inputs), int(outputs or 1)

    def refusal(self, op: LayerOp) -> str:
        inputs, _ = self.blocks
        if isinstance(op, Conv2dOp):
            window = op.weight.shape[2:]
            if window != (1, 1) or any(op.attrs.padding):
                return f"kernels leave out blocks of 1x1 windows without padding, not of {window[0]}x{window[1]}"
            if op.attrs.groups > 1:
                return f"it has {op.attrs.groups} groups"
        elif not isinstance(op, LinearOp):
            return "kernels leave out blocks of linear layers and 1x1 convolutions only"
        if op.weight.shape[1] % inputs:
            return f"blocks of {inputs} inputs do not divide its {op.weight.shape[1]}"
        return ""

    def units(self, scores: torch.Tensor) -> torch.Tensor:
        cut, there = (cut_blocks(one.flatten(1), *self.blocks) for one in (scores, torch.ones_like(scores)))
        return (cut.sum((2, 3)) / there.sum((2, 3))).flatten()

    def spread(self, units: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        inputs, outputs = self.blocks
        blocks = units.reshape(-1, shape[1] // inputs, 1, 1).expand(-1, -1, inputs, outputs)
        return join_blocks(blocks, (shape[0], shape[1])).reshape(shape)
