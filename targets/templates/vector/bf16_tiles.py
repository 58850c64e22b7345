"""What multiplies panels of bfloat16 numbers on a target: the matrix unit, else dot products of pairs.

Both take the same operands, which is why one template serves them: rows of 32 numbers on the left, and tiles of
`tersor.targets.templates.vector.amx.pack_pairs` on the right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...machines.target import Cpu
from . import amx, dot_bf16
from .amx import TILE_COLUMNS, TILE_ROWS, TileShape
from .dot_bf16 import DotShape

Unit = Literal["amx", "dot"]
SumsShape = TileShape | DotShape

_MOST_DOT_ROWS = {1: 28, 2: 14}  # of sums, for so many vectors of columns: what 32 registers hold


@dataclass(frozen=True)
class PanelKnobs:
    """How a kernel on panels is cut up.

    Attributes
    ----------
    rows, columns
        Tiles of positions and of outputs whose sums are in registers; a tile of ``"dot"`` has a single position.
    row_units
        Pieces of the rows, every one with panels of its own.
    output_units
        Pieces of the groups of outputs; all of them gather the same panels.
    unit
        What multiplies.
    """

    rows: int
    columns: int
    row_units: int = 1
    output_units: int = 1
    unit: Unit = "amx"

    @property
    def shape(self) -> SumsShape:
        """The tiles of sums."""
        return sums_shape(self.unit, self.rows, self.columns)


def unit_of(target: Cpu) -> Unit | None:
    """What multiplies panels fastest on ``target``; None where neither exists."""
    if target.lanes() != TILE_COLUMNS:
        return None
    if amx.FEATURE in target.features:
        return "amx"
    return "dot" if dot_bf16.FEATURE in target.features else None


def needed_unit(target: Cpu) -> Unit:
    """`unit_of` a target that a template was asked to tile for; raises ValueError where neither exists."""
    unit = unit_of(target)
    if unit is None:
        raise ValueError(f"{target.name} has no instruction that multiplies bfloat16 numbers")
    return unit


def sums_shape(unit: Unit, rows: int, columns: int) -> SumsShape:
    """The shape with ``rows`` tiles, or single rows of a `DotShape`, and ``columns`` times 16 columns."""
    return TileShape(rows, columns) if unit == "amx" else DotShape(rows, columns)


def fitting_rows(unit: Unit, positions: int, columns: int) -> int:
    """The smallest number of rows with which ``positions`` need as few tiles as with the largest."""
    if unit == "amx":
        return 1 if positions <= TILE_ROWS else 2
    return -(-positions // -(-positions // _MOST_DOT_ROWS[columns]))
