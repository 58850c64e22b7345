"""Which convolutions Winograd's algorithm computes, the knobs of its kernel, and how its weights are packed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from tvm import tirx

from ...machines.target import Cpu
from ..base import Index
from ..vector.bfloat16 import BFLOAT16
from ..vector.operand_types import check_weight_shape
from .spec import Conv2dSpec
from .winograd_transforms import FILTER, as_tensor, transforms

Order = Literal["tiles", "outputs", "slices"]


@dataclass(frozen=True)
class WinogradKnobs:
    """How the kernel is tiled.

    Attributes
    ----------
    m
        Output positions of a tile along each axis: F(m x m, 3 x 3).
    vectors, rows
        Register tile of the matrix products: output channel blocks, and tiles at most.
    blocks
        Pieces that the tiles of all images are divided into; the transformed input of one piece is kept in cache.
    slices
        Pieces that the output channel blocks are divided into; the products of one piece of both are kept in cache.
    order
        What threads share: ``"tiles"``, or output channels, so that each reads only its part of the weights. They have
        transformed the input together (``"outputs"``), or each for itself (``"slices"``): then none waits for another,
        nor reads what another core has in its cache.
    """

    m: int
    vectors: int
    rows: int
    blocks: int = 1
    slices: int = 1
    order: Order = "tiles"

    @property
    def alpha(self) -> int:
        """Input positions of a tile along each axis."""
        return self.m + FILTER - 1

    @property
    def positions(self) -> int:
        """Independent matrix products."""
        return self.alpha**2


@dataclass(frozen=True)
class TileGrid:
    """How output tiles are numbered and gathered into the rows of register tiles.

    Attributes
    ----------
    height, width
        Tiles of one image along each axis; those at the end may stick out.
    tiles
        Tiles of all images, numbered image by image, row by row.
    groups, longer, rows
        Register tiles that they are gathered into: the first ``longer`` have ``rows`` of them, the others one fewer.
    """

    height: int
    width: int
    tiles: int
    groups: int
    longer: int
    rows: int

    @classmethod
    def of(cls, spec: Conv2dSpec, knobs: WinogradKnobs) -> TileGrid:
        """The grid of one convolution."""
        height, width = -(-spec.out_h // knobs.m), -(-spec.out_w // knobs.m)
        tiles = spec.n * height * width
        groups = -(-tiles // knobs.rows)
        shorter, longer = divmod(tiles, groups)
        return cls(height, width, tiles, groups, longer or groups, shorter + bool(longer))

    def first_tile(self, group: Index) -> Index:
        """Number of the first tile of a group."""
        if self.longer == self.groups:
            return group * self.rows
        return group * (self.rows - 1) + tirx.min(group, self.longer)


def supports(spec: Conv2dSpec) -> str | None:
    """Why Winograd's algorithm does not compute this convolution; None if it does."""
    if spec.kernel != (FILTER, FILTER):
        return f"kernel {spec.kernel} is not 3 x 3"
    if spec.stride != (1, 1) or spec.dilation != (1, 1):
        return f"stride {spec.stride} and dilation {spec.dilation} must be 1"
    if spec.groups != 1:
        return f"{spec.groups} groups"
    if spec.dtype not in ("float32", BFLOAT16):
        return f"{spec.dtype} has too few digits for the transforms"
    if spec.input_layout != "blocked":
        return f"the input is {spec.input_layout}, not blocked"
    return None


def slice_bounds(spec: Conv2dSpec, target: Cpu, knobs: WinogradKnobs) -> list[int]:
    """First output channel block of every slice, and one past the last."""
    blocks = spec.output_blocks(target)
    units = -(-blocks // knobs.vectors)
    slices = min(knobs.slices, units)
    return [min(index * units // slices * knobs.vectors, blocks) for index in range(slices + 1)]


def packed_size(spec: Conv2dSpec, target: Cpu, knobs: WinogradKnobs) -> int:
    """Elements of the packed weight."""
    return knobs.positions * spec.c * spec.output_blocks(target) * target.lanes()


def pack_weight(spec: Conv2dSpec, target: Cpu, knobs: WinogradKnobs, weight: torch.Tensor) -> torch.Tensor:
    """Transform a weight of shape (o, c, 3, 3), in float64, and reorder it the way the kernel reads it.

    Returns
    -------
    torch.Tensor
        Flat float32: [slice, position in the tile, group of output channel blocks, input channel, output channel].
    """
    check_weight_shape(weight, (spec.o, spec.c, *spec.kernel))
    lanes = target.lanes()
    filter_matrix = as_tensor(transforms(knobs.m).filter)
    # U = G g Gt as one matrix product with the Kronecker square of G: (positions, 9) @ (9, c * o).
    taps = weight.to(torch.float64).permute(2, 3, 1, 0).reshape(FILTER**2, -1)
    transformed = (torch.kron(filter_matrix, filter_matrix) @ taps).float().reshape(knobs.positions, spec.c, spec.o)
    padded = torch.nn.functional.pad(transformed, (0, spec.output_blocks(target) * lanes - spec.o))
    pieces = []
    for first, behind in itertools.pairwise(slice_bounds(spec, target, knobs)):
        panels = padded[:, :, first * lanes : behind * lanes].split(knobs.vectors * lanes, dim=2)
        pieces.append(torch.cat([panel.flatten(1) for panel in panels], dim=1).flatten())
    return torch.cat(pieces)
