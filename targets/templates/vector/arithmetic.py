"""What innermost loops compute; `tersor.targets.templates.vector.dot_product` has the same for integers."""

from __future__ import annotations

from ..base import Expr
from .builder import RegisterTile, bind, broadcast


class Arithmetic:
    """float32: one input channel at a time.

    Attributes
    ----------
    packing
        Input channels in one element of the input's buffer, and in one lane of a vector of weights.
    sum_type
        Element type of the sums.
    """

    packing = 1
    sum_type = "float32"

    def left(self, element: Expr, lanes: int) -> Expr:
        """An element of the input, broadcast and prepared for all products that it takes part in."""
        return bind(broadcast(element, lanes))

    def right(self, vector: Expr) -> Expr:
        """A vector of weights, prepared for all products that it takes part in."""
        return bind(vector)

    def multiply_add(self, tile: RegisterTile, index: int, left: Expr, right: Expr) -> None:
        """``tile[index] += left * right``."""
        tile.multiply_add(index, left, right)


FLOAT32 = Arithmetic()
