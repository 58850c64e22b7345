"""The two ends of Winograd convolution: a patch of the input into the transformed domain, and products back out of it.

Both work on one tile and one block of channels. A matrix is applied to columns first, into a small staging buffer, then
to rows. Patches that stick out of the input read zeros there, tiles that stick out of the output are cut: nothing is
padded in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..base import Buffer, Expr, VectorAt
from ..vector.builder import RegisterTile, bind, load, loop, store, when
from ..vector.vectors import in_register
from .spec import Conv2dSpec
from .winograd_spec import TileGrid, WinogradKnobs
from .winograd_transforms import apply_transform, transforms


@dataclass(frozen=True)
class Patches:
    """Writes the transforms of one convolution.

    Attributes
    ----------
    spec, knobs, grid
        The convolution and its tiles.
    lanes
        Channels of one block.
    """

    spec: Conv2dSpec
    knobs: WinogradKnobs
    grid: TileGrid
    lanes: int

    def allocate_staging(self) -> Buffer:
        """Room for one patch of one channel block."""
        return T.alloc_buffer((self.knobs.positions * self.lanes,), "float32")

    def transform_input(
        self, data: Buffer, channels: Expr, tile: Expr, staging: Buffer, out: Buffer, place: Expr, stride: int
    ) -> None:
        """Transform the patch of ``tile`` in channel block ``channels`` into ``out[place + position * stride]``."""
        alpha, lanes = self.knobs.alpha, self.lanes
        matrix = transforms(self.knobs.m).input
        self._stage_input(data, channels, tile, staging)
        with loop(alpha) as row:
            values = self._staged_row(staging, row)
            start = bind(place + row * (alpha * stride))
            for column, value in enumerate(apply_transform(matrix, values)):
                store(out, start + column * stride, value, lanes)

    def transform_output(
        self,
        products: Buffer,
        place: Expr,
        stride: int,
        tile: Expr,
        staging: Buffer,
        block: Expr,
        finish: Callable[[Expr, VectorAt], None],
    ) -> None:
        """Transform ``products[place + position * stride]`` and call ``finish`` for each output vector."""
        spec, alpha, m, lanes = self.spec, self.knobs.alpha, self.knobs.m, self.lanes
        matrix = transforms(m).output
        image, y, x = self._first_output(tile)
        with loop(alpha) as column:
            start = bind(place + column * stride)
            values = [in_register(load(products, start + row * (alpha * stride), lanes)) for row in range(alpha)]
            self._stage_column(staging, column, apply_transform(matrix, values))
        plane = bind((image * -(-spec.o // lanes) + block) * spec.out_h)
        with loop(m if spec.out_h % m == 0 else bind(tirx.min(spec.out_h - y, m))) as row:
            out_y = bind(y + row)
            start = bind(((plane + out_y) * spec.out_w + x) * lanes)
            for column, value in enumerate(apply_transform(matrix, self._staged_row(staging, row))):
                at = VectorAt((image, block * lanes, out_y, x + column), 1, lanes, start + column * lanes)
                in_width = True if spec.out_w % m == 0 else x + column < spec.out_w
                when(in_width, partial(finish, value, at))

    def _first_output(self, tile: Expr) -> tuple[Expr, Expr, Expr]:
        """Image, and output row and column of the first position, of a tile."""
        grid, m = self.grid, self.knobs.m
        row = tile // grid.width
        image = 0 if self.spec.n == 1 else bind(row // grid.height)
        return image, bind((row if self.spec.n == 1 else row % grid.height) * m), bind(tile % grid.width * m)

    def _stage_input(self, data: Buffer, channels: Expr, tile: Expr, staging: Buffer) -> None:
        """Transform the columns of the patch of a tile."""
        spec, alpha, lanes = self.spec, self.knobs.alpha, self.lanes
        matrix = transforms(self.knobs.m).input
        image, y, x = self._first_output(tile)
        top, left = bind(y - spec.padding[0]), bind(x - spec.padding[1])
        plane = (image * -(-spec.c // lanes) + channels) * spec.h
        corner = bind(((plane + top) * spec.w + left) * lanes)

        rows_inside = tirx.all(top >= 0, top + alpha <= spec.h)
        with loop(alpha) as column:
            values = RegisterTile(alpha, lanes)
            start = bind(corner + column * lanes)
            column_inside = tirx.all(left + column >= 0, left + column < spec.w)

            def load_row(row: int) -> None:
                values[row] = load(data, start + row * (spec.w * lanes), lanes)

            def load_column() -> None:
                for row in range(alpha):
                    load_row(row)

            def load_cut_column() -> None:
                for row in range(alpha):
                    when(tirx.all(top + row >= 0, top + row < spec.h), partial(load_row, row))

            def load_border() -> None:
                values.fill(0.0)
                when(column_inside, load_cut_column)

            when(tirx.all(rows_inside, column_inside), load_column, load_border)
            self._stage_column(staging, column, apply_transform(matrix, [values[row] for row in range(alpha)]))

    def _stage_column(self, staging: Buffer, column: Expr, values: list[Expr]) -> None:
        for row, value in enumerate(values):
            store(staging, (row * self.knobs.alpha + column) * self.lanes, value, self.lanes)

    def _staged_row(self, staging: Buffer, row: Expr) -> list[Expr]:
        alpha, lanes = self.knobs.alpha, self.lanes
        return [in_register(load(staging, (row * alpha + column) * lanes, lanes)) for column in range(alpha)]
