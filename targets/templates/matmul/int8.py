"""Dense layer of integers: the product of `tersor.targets.templates.matmul.panels`, four columns of ``a`` at a time.

Rows of ``a`` are read as words of four bytes wherever they begin. The weight is packed as panels
``[panel][four of k][columns of the panel][one of the four]``, so that a vector of it goes with one word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from tvm import tirx

from ...machines.target import Target
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue, Expr, Index, offset_of
from ..vector.builder import Output, RegisterTile, load, make_prim_func
from ..vector.compensation import append_table, packed_bytes, uniform_table, view_as, view_table
from ..vector.dot_product import WORD, DotProduct, dot_product
from ..vector.operand_types import check_weight_shape, is_integer
from . import panels as matmul
from .pack import RhsPanels
from .panels import MatmulWriter
from .spec import PACKED, MatmulKnobs, MatmulSpec
from .tile import accumulate


def supports(spec: MatmulSpec, target: Target) -> bool:
    """Whether this template computes ``spec`` on ``target``."""
    return is_integer(spec.dtype) and spec.rhs == PACKED and spec.a_strides[-1] == 1


def candidates(spec: MatmulSpec, target: Target) -> list[MatmulKnobs]:
    """Feasible knobs, the best analytic guess first: a word costs what one column does in float32."""
    spare = replace(target, vector_registers=target.vector_registers - dot_product(target, spec.dtype).extra_registers)
    return matmul.candidates(MatmulSpec(spec.m, spec.n, _words(spec), batch=spec.batch), spare)


def _words(spec: MatmulSpec) -> int:
    return -(-spec.k // WORD)


def pack_weight(spec: MatmulSpec, target: Target, knobs: MatmulKnobs, weight: torch.Tensor) -> torch.Tensor:
    """Lay an int8 weight ``[n, k]`` out as panels, padded with zeros, and append what corrects the zero point; flat."""
    check_weight_shape(weight, (spec.n, spec.k))
    columns, panels = knobs.panel_columns(target), knobs.panels(spec, target)
    padded = weight.new_zeros(panels * columns, _words(spec) * WORD)
    padded[: spec.n, : spec.k] = weight
    packed = padded.reshape(panels, columns, _words(spec), WORD).permute(0, 2, 1, 3).reshape(-1)
    zero = spec.zero_point + dot_product(target, spec.dtype).offset
    return append_table(packed, uniform_table(weight, zero, panels * columns)) if zero else packed


def build(spec: MatmulSpec, target: Target, knobs: MatmulKnobs, epilogue: Epilogue = NO_EPILOGUE) -> tirx.PrimFunc:
    """Write the PrimFunc ``(a, weight, *epilogue buffers, out)``.

    The epilogue sees logical coordinates ``(*batch, row, column)`` with the lanes along the columns.
    """
    products = dot_product(target, spec.dtype)
    outputs = knobs.panels(spec, target) * knobs.panel_columns(target)
    table = outputs if spec.zero_point + products.offset else 0
    words = outputs * _words(spec)
    weight = BufferSpec("weight", packed_bytes(words * WORD, table), "int8")
    output = BufferSpec("out", spec.out_size, epilogue.dtype)

    def body(buffers: Sequence[Buffer], out: Output) -> None:
        a, packed = buffers
        writer = _Writer(spec, target, knobs, (a, view_as(packed, "int32", words)), out)
        writer.products = products
        writer.table = view_table(packed, words * WORD, table) if table else None
        writer.write()

    return make_prim_func("matmul_int8", (BufferSpec("a", spec.a_size, spec.dtype), weight), output, body, epilogue)


class _Writer(MatmulWriter):
    """Sums products of words."""

    sum_type = "int32"
    products: DotProduct
    table: Buffer | None

    def panels_of(self, batch: Sequence[Index], column_chunk: Index) -> RhsPanels:
        """The packed weight, in words."""
        return RhsPanels(self.rhs, 0, _words(self.spec) * self.columns, self.columns)

    def sums(
        self, batch: Sequence[Index], rows: int, first_row: Index, panels: RhsPanels, panel: Index
    ) -> RegisterTile:
        """The register tile after all words, the zero point corrected."""
        spec, knobs, lanes, products = self.spec, self.knobs, self.lanes, self.products
        whole, rest = divmod(spec.k, WORD)
        row_stride = spec.a_strides[-2]
        a_base = offset_of(spec.a_offset, batch, spec.a_strides) + first_row * row_stride
        rhs_base = panels.base + panel * panels.panel_stride

        def weights(step: Index, vector: int) -> Expr:
            return load(panels.buffer, rhs_base + step * panels.k_stride + vector * lanes, lanes)

        tile = accumulate(
            rows,
            knobs.vectors,
            lanes,
            whole,
            lambda row, step: tirx.reinterpret("int32", load(self.a, a_base + row * row_stride + step * WORD, WORD)),
            weights,
            unroll=knobs.unroll,
            chains=knobs.chains,
            before_step=self.prefetching(panels, rhs_base),
            arithmetic=products,
        )
        right = [products.right(weights(whole, vector)) for vector in range(knobs.vectors)] if rest else []
        for row in range(rows):
            for index, vector in enumerate(right, row * knobs.vectors):
                left = products.left(self._last_word(a_base + row * row_stride + whole * WORD, rest), lanes)
                products.multiply_add(tile, index, left, vector)
        if self.table is not None:
            for index in range(rows * knobs.vectors):
                at = panel * self.columns + index % knobs.vectors * lanes
                tile[index] = tile[index] + load(self.table, at, lanes)
        return tile

    def _last_word(self, at: Index, count: int) -> Expr:
        """A word of fewer than four bytes: nothing past the end of ``a`` is read."""
        word = tirx.const(0, "uint32")
        for byte in range(count):
            value = tirx.Cast("uint32", tirx.reinterpret("uint8", self.a[at + byte]))
            word = word | (value << tirx.const(8 * byte, "uint32"))
        return tirx.reinterpret("int32", word)
