"""Weights that are zero in whole blocks, which kernels may leave out.

A weight [outputs, inputs] is cut into blocks of a few inputs times a few outputs. Where a layer knows of blocks of
zeros, it says so by an attribute: inputs and outputs of a block, and how many blocks at most hold a number other than
zero. The attribute changes no result. Where it is not true of a weight, or of no use to a kernel, the weight is
multiplied whole.
"""

from __future__ import annotations

import torch

Blocks = tuple[int, ...]  # inputs and outputs of a block, and how many are not zero; empty if nothing is known


def check_blocks(blocks: Blocks) -> None:
    """Raise ValueError for an attribute that does not say where a weight is zero."""
    if blocks and (len(blocks) != 3 or min(blocks[:2]) < 1 or blocks[2] < 0):
        raise ValueError(f"blocks are inputs and outputs of one, and how many are not zero: [1,16,200], not {blocks}")


def share_of_work(weight_size: int, blocks: Blocks) -> float:
    """The share of the multiply-adds with a weight that are not with blocks of zeros."""
    return min(1.0, blocks[0] * blocks[1] * blocks[2] / weight_size)


def cut_blocks(weight: torch.Tensor, inputs: int, outputs: int) -> torch.Tensor:
    """Blocks [output block, input block, inputs, outputs] of a weight [outputs, inputs], padded with zeros."""
    rows, columns = (-(-extent // step) for extent, step in zip(weight.shape, (outputs, inputs), strict=True))
    padded = weight.new_zeros(rows * outputs, columns * inputs)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    return padded.reshape(rows, outputs, columns, inputs).permute(0, 2, 3, 1)


def join_blocks(blocks: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """The weight [outputs, inputs] that `cut_blocks` cut."""
    rows, columns, inputs, outputs = blocks.shape
    return blocks.permute(0, 3, 1, 2).reshape(rows * outputs, columns * inputs)[: shape[0], : shape[1]]


def filled_blocks(weight: torch.Tensor, inputs: int, outputs: int) -> torch.Tensor:
    """Which blocks [output block, input block] of a weight [outputs, inputs] hold a number other than zero."""
    return (cut_blocks(weight, inputs, outputs) != 0).any(3).any(2)
