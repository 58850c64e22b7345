"""How the numbers of a tensor lie in another one: packed weights hold the weights that they were made of.

A kernel reads weights in an order of its own, padded with zeros. Where that order is a permutation of axes, the weight
need not be stored beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Arrangement:
    """The axes of a packed tensor, and how they make up a weight.

    The packed elements have the shape ``axes``. Permuted by ``order`` and cut into ``extents``, they are the weight,
    with padding at the end of each dimension.

    Attributes
    ----------
    axes
        Extents of the packed tensor, the slowest first.
    order
        Which of these axes comes first, second, … in the weight.
    extents
        Of the padded weight.

    Raises
    ------
    ValueError
        When the numbers do not fit together.
    """

    axes: tuple[int, ...]
    order: tuple[int, ...]
    extents: tuple[int, ...]

    def __post_init__(self) -> None:
        if min((*self.axes, *self.extents), default=0) < 1:
            raise ValueError("an arrangement needs axes, all of them with elements")
        if sorted(self.order) != list(range(len(self.axes))):
            raise ValueError(f"{self.order} is no order of {len(self.axes)} axes")
        if math.prod(self.extents) != self.size:
            raise ValueError(f"{self.extents} has other elements than {self.axes}")

    @property
    def size(self) -> int:
        """Elements of the packed tensor."""
        return math.prod(self.axes)

    def holds(self, shape: tuple[int, ...]) -> bool:
        """Whether a weight of ``shape`` may be what is packed."""
        fits = all(0 <= extent <= padded for extent, padded in zip(shape, self.extents, strict=False))
        return len(shape) == len(self.extents) and fits

    def unpacked(self, packed: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """The weight of ``shape`` that ``packed``, of `size` elements, holds; a tensor of its own."""
        padded = packed.reshape(self.axes).permute(self.order).reshape(self.extents)
        return padded[tuple(slice(extent) for extent in shape)].clone(memory_format=torch.contiguous_format)
