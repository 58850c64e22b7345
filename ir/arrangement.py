"""How the numbers of a tensor lie in another one: packed weights hold the weights that they were made of.

A kernel reads weights in an order of its own, padded with zeros. Where that order is a permutation of axes, the weight
need not be kept beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # to compare, by bytes of an element
_BYTES_AT_A_TIME = 4 << 20


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

    @classmethod
    def plain(cls, shape: tuple[int, ...]) -> Arrangement:
        """Of a tensor with elements that has the weight's own order."""
        return cls(shape, tuple(range(len(shape))), shape)

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

    def is_exact(self, packed: torch.Tensor, weight: torch.Tensor) -> bool:
        """Whether ``packed``, of `size` elements, holds ``weight`` bit for bit.

        A few rows are unpacked at a time, since weights may be a large part of the memory that there is.
        """
        if not self.holds(tuple(weight.shape)) or packed.element_size() != weight.element_size():
            return False
        bits = _BITS[weight.element_size()]
        expected, pieces = weight.contiguous().view(bits), packed.view(bits).reshape(self.axes).permute(self.order)
        count = pieces.shape[0] if self.extents[0] % pieces.shape[0] == 0 else 1  # else no piece is a number of rows
        rows = self.extents[0] // count  # of the weight in each piece
        first, several = 0, 1  # one piece tells other weights of the same shape apart
        while first * rows < len(expected):
            part = pieces[first : first + several] if count > 1 else pieces
            part = part.reshape(-1, *self.extents[1:])[:, *(slice(extent) for extent in expected.shape[1:])]
            known = expected[first * rows : (first + several) * rows]
            if not torch.equal(part[: len(known)], known):
                return False
            first, several = first + several, max(1, count * _BYTES_AT_A_TIME // (self.size * packed.element_size()))
        return True


@dataclass(frozen=True, eq=False)
class HeldWeight:
    """A weight that another tensor holds in another order.

    Attributes
    ----------
    packed
        The other tensor, flat, of elements as wide as the weight's.
    arrangement
        How it holds the weight.
    dtype, shape
        Of the weight.
    """

    packed: torch.Tensor
    arrangement: Arrangement
    dtype: torch.dtype
    shape: tuple[int, ...]

    def restored(self) -> torch.Tensor:
        """The weight; on the same memory where the other tensor has its order."""
        if self.arrangement == Arrangement.plain(self.shape):
            return self.packed.view(self.dtype).reshape(self.shape)
        return self.arrangement.unpacked(self.packed, self.shape).view(self.dtype)
