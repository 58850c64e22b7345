"""Dense layer of integers: the product of `tersor.targets.templates.matmul.panels`, four columns of ``a`` at a time.

Rows of ``a`` are read as words of four bytes wherever they begin. The weight is packed as panels
``[panel][four of k][columns of the panel][one of the four]``, so that a vector of it goes with one word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from tvm import tirx

from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue, Expr, Index
from ..vector.builder import Output, RegisterTile, load, make_prim_func
from ..vector.compensation import append_table, packed_bytes, uniform_table, view_as, view_table
from ..vector.dot_product import WORD, DotProduct, layer_product
from ..vector.operand_types import check_weight_shape, is_integer
from . import panels as matmul
from .pack import RhsPanels
from .panels import MatmulWriter, Weights
from .spec import PACKED, MatmulKnobs, MatmulSpec
from .word_panels import partial_word


def supports(spec: MatmulSpec, target: Cpu) -> bool:
    """Whether this template computes ``spec`` on ``target``."""
    return is_integer(spec.dtype) and spec.rhs == PACKED and spec.a_strides[-1] == 1


def candidates(spec: MatmulSpec, target: Cpu) -> list[MatmulKnobs]:
    """Feasible knobs, the best analytic guess first: a word costs what one column does in float32."""
    spare = replace(target, vector_registers=target.vector_registers - layer_product(target, spec).extra_registers)
    return matmul.candidates(MatmulSpec(spec.m, spec.n, _words(spec), batch=spec.batch), spare)


def _words(spec: MatmulSpec) -> int:
    return -(-spec.k // WORD)


def pack_weight(spec: MatmulSpec, target: Cpu, knobs: MatmulKnobs, weight: torch.Tensor) -> torch.Tensor:
    """Lay an int8 weight ``[n, k]`` out as panels, padded with zeros, and append what corrects the zero point; flat."""
    check_weight_shape(weight, (spec.n, spec.k))
    columns, panels = knobs.panel_columns(target), knobs.panels(spec, target)
    padded = weight.new_zeros(panels * columns, _words(spec) * WORD)
    padded[: spec.n, : spec.k] = weight
    packed = padded.reshape(panels, columns, _words(spec), WORD).permute(0, 2, 1, 3).reshape(-1)
    zero = spec.zero_point + layer_product(target, spec).offset
    return append_table(packed, uniform_table(weight, zero, panels * columns)) if zero else packed


def build(spec: MatmulSpec, target: Cpu, knobs: MatmulKnobs, epilogue: Epilogue = NO_EPILOGUE) -> tirx.PrimFunc:
    """Write the PrimFunc ``(a, weight, *epilogue buffers, out)``.

    The epilogue sees logical coordinates ``(*batch, row, column)`` with the lanes along the columns.
    """
    products = layer_product(target, spec)
    outputs = knobs.panels(spec, target) * knobs.panel_columns(target)
    table = outputs if spec.zero_point + products.offset else 0
    words = outputs * _words(spec)
    weight = BufferSpec("weight", packed_bytes(words * WORD, table), "int8")
    output = BufferSpec("out", spec.out_size, epilogue.dtype)

    def body(buffers: Sequence[Buffer], out: Output) -> None:
        a, packed = buffers
        writer = _Writer(spec, target, knobs, (a, view_as(packed, "int32", words)), out)
        writer.arithmetic = products
        writer.steps = spec.k // WORD
        writer.table = view_table(packed, words * WORD, table) if table else None
        writer.write()

    return make_prim_func("matmul_int8", (BufferSpec("a", spec.a_size, spec.dtype), weight), output, body, epilogue)


class _Writer(MatmulWriter):
    """Sums products of words."""

    arithmetic: DotProduct
    table: Buffer | None

    def panels_of(self, batch: Sequence[Index], column_chunk: Index) -> RhsPanels:
        """The packed weight, in words."""
        return RhsPanels(self.rhs, 0, _words(self.spec) * self.columns, self.columns)

    def element(self, start: Index, step: Index) -> Expr:
        """Four bytes of a row."""
        return tirx.reinterpret("int32", load(self.a, start + step * WORD, WORD))

    def complete(self, tile: RegisterTile, starts: Sequence[Index], weights: Weights, panel: Index) -> None:
        """Add the products of the last, incomplete word, and what corrects the zero point."""
        lanes, products, vectors = self.lanes, self.arithmetic, self.knobs.vectors
        whole, rest = divmod(self.spec.k, WORD)
        right = [products.right(weights(whole, vector)) for vector in range(vectors)] if rest else []
        for row, start in enumerate(starts):
            for index, vector in enumerate(right, row * vectors):
                left = products.left(partial_word(self.a, start + whole * WORD, rest), lanes)
                products.multiply_add(tile, index, left, vector)
        if self.table is not None:
            for index in range(len(starts) * vectors):
                at = panel * self.columns + index % vectors * lanes
                tile[index] = tile[index] + load(self.table, at, lanes)
