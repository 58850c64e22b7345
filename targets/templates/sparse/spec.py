"""What a product with a block-sparse weight computes, and the knobs of its kernel.

A weight [outputs, inputs] is cut into blocks of a few inputs times a few vectors of outputs. Blocks that hold a number
other than zero are stored one behind the other, with the place of their inputs; all others are neither stored nor
multiplied. Linear layers and convolutions with 1x1 windows differ only in where they read and write.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from ...machines.target import Cpu
from ..base import Index, VectorAt


@dataclass(frozen=True)
class BlockSparseSpec(ABC):
    """Base of the specs: a product for each of ``rows * columns`` positions of each of ``images``.

    Attributes
    ----------
    outputs, inputs
        Extents of the weight.
    block_outputs, block_inputs
        Extents of a block. The last blocks of outputs may be partly padding.
    kept
        Blocks that are stored: at least as many as hold a number other than zero.
    """

    outputs: int
    inputs: int
    block_outputs: int
    block_inputs: int
    kept: int

    def __post_init__(self) -> None:
        if min(self.outputs, self.inputs, self.block_outputs, self.block_inputs) < 1 or self.kept < 0:
            raise ValueError(f"extents must be positive, and kept not negative: {self}")
        if self.inputs % self.block_inputs:
            raise ValueError(f"blocks of {self.block_inputs} inputs do not divide {self.inputs}: {self}")

    @property
    @abstractmethod
    def images(self) -> int:
        """Products are computed for the positions of each."""

    @property
    @abstractmethod
    def positions(self) -> tuple[int, int]:
        """Rows and columns of positions in one image of the result."""

    @property
    def output_blocks(self) -> int:
        """Blocks along the outputs, the last one included that is partly padding."""
        return -(-self.outputs // self.block_outputs)

    @property
    def macs(self) -> int:
        """Multiply-adds: those with stored blocks."""
        rows, columns = self.positions
        return self.images * rows * columns * self.kept * self.block_inputs * self.block_outputs

    @abstractmethod
    def input_size(self, target: Cpu) -> int:
        """Elements of the input's buffer."""

    @abstractmethod
    def output_size(self, target: Cpu) -> int:
        """Elements of the output's buffer."""

    @abstractmethod
    def steps(self, target: Cpu) -> tuple[int, int, int]:
        """Elements of the input between neighbouring images, rows and columns of positions."""

    @abstractmethod
    def offsets(self, target: Cpu) -> torch.Tensor:
        """int32 [inputs]: where each input of the first position lies."""

    @abstractmethod
    def at(self, target: Cpu, output: Index, position: tuple[Index, Index, Index], lanes: int) -> VectorAt:
        """Where a vector of the result from ``output`` on lies, at an image, row and column."""

    def tail(self, target: Cpu) -> int:
        """Outputs of the last block of which the result has elements."""
        return self.outputs - (self.output_blocks - 1) * self.block_outputs


@dataclass(frozen=True)
class SparseLinearSpec(BlockSparseSpec):
    """``out[m, o] = sum_i a[m, i] * weight[o, i]`` on row-major matrices.

    Attributes
    ----------
    m
        Rows.
    """

    m: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.m < 1:
            raise ValueError(f"extents must be positive: {self}")

    @property
    def images(self) -> int:
        return 1

    @property
    def positions(self) -> tuple[int, int]:
        return self.m, 1

    def input_size(self, target: Cpu) -> int:
        return self.m * self.inputs

    def output_size(self, target: Cpu) -> int:
        return self.m * self.outputs

    def steps(self, target: Cpu) -> tuple[int, int, int]:
        return 0, self.inputs, 0

    def offsets(self, target: Cpu) -> torch.Tensor:
        return torch.arange(self.inputs, dtype=torch.int32)

    def at(self, target: Cpu, output: Index, position: tuple[Index, Index, Index], lanes: int) -> VectorAt:
        _, row, _ = position
        return VectorAt((row, output), 1, lanes, row * self.outputs + output)


@dataclass(frozen=True)
class SparseConv2dSpec(BlockSparseSpec):
    """A convolution with a 1x1 window and no padding, whose input and result are in channel blocks.

    Attributes
    ----------
    n, h, w
        Images, and height and width of the input.
    stride
        A (height, width) pair.
    """

    n: int = 1
    h: int = 1
    w: int = 1
    stride: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.n, self.h, self.w, *self.stride) < 1:
            raise ValueError(f"extents and strides must be positive: {self}")

    @property
    def images(self) -> int:
        return self.n

    @property
    def out(self) -> tuple[int, int]:
        """Height and width of the result."""
        return (self.h - 1) // self.stride[0] + 1, (self.w - 1) // self.stride[1] + 1

    @property
    def positions(self) -> tuple[int, int]:
        return (self.h * self.w, 1) if self._is_flat else self.out

    @property
    def _is_flat(self) -> bool:
        """Whether the result's positions are those of the input: then height and width are one axis."""
        return self.stride == (1, 1)

    def input_size(self, target: Cpu) -> int:
        return self.n * _padded(self.inputs, target) * self.h * self.w

    def output_size(self, target: Cpu) -> int:
        height, width = self.out
        return self.n * _padded(self.outputs, target) * height * width

    def steps(self, target: Cpu) -> tuple[int, int, int]:
        lanes = target.lanes()
        image = _padded(self.inputs, target) * self.h * self.w
        return image, lanes if self._is_flat else self.stride[0] * self.w * lanes, self.stride[1] * lanes

    def offsets(self, target: Cpu) -> torch.Tensor:
        channels, lanes = torch.arange(self.inputs, dtype=torch.int32), target.lanes()
        return channels // lanes * (self.h * self.w * lanes) + channels % lanes

    def at(self, target: Cpu, output: Index, position: tuple[Index, Index, Index], lanes: int) -> VectorAt:
        (image, row, column), (height, width) = position, self.out
        block = target.lanes()
        plane = image * (_padded(self.outputs, target) // block) + output // block
        y, x = (row // width, row % width) if self._is_flat else (row, column)
        flat = (plane * height * width + (row if self._is_flat else row * width + column)) * block
        return VectorAt((image, output, y, x), 1, lanes, flat)

    def tail(self, target: Cpu) -> int:
        return _padded(self.outputs, target) - (self.output_blocks - 1) * self.block_outputs


def _padded(channels: int, target: Cpu) -> int:
    return -(-channels // target.lanes()) * target.lanes()


@dataclass(frozen=True)
class SparseKnobs:
    """How the kernel is tiled.

    Attributes
    ----------
    rows, columns
        Positions in the register tile, at most; each is multiplied by one block of outputs.
    row_chunks, output_chunks
        Pieces that the rows and the blocks of outputs of an image are cut into; pieces times images is what threads
        share. Blocks of outputs are put into pieces such that all have about as many stored blocks.
    """

    rows: int
    columns: int = 1
    row_chunks: int = 1
    output_chunks: int = 1
