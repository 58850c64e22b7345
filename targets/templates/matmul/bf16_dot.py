"""Dense layer in bfloat16 by dot products of pairs, for processors that have no matrix unit.

The loops are those of `tersor.targets.templates.matmul.panels`. What is one column of ``a`` there is a pair here: rows
are read a pair at a time, wherever they begin, and the weight is packed as
``[panel][pair of k][columns of the panel][one of the pair]``. Unlike in `tersor.targets.templates.matmul.bf16`, nothing
is copied first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from tvm import tirx

from ....ir.arrangement import Arrangement
from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue, Expr, Index
from ..vector.bf16_tiles import unit_of
from ..vector.bfloat16 import BFLOAT16, bits_of
from ..vector.builder import Output, RegisterTile, load, make_prim_func
from ..vector.dot_bf16 import DOT_IR, PAIR, PAIR_PRODUCT, WORD, as_words
from ..vector.operand_types import check_weight_shape
from . import panels as matmul
from .bf16 import FEWEST_ROWS
from .pack import RhsPanels
from .panels import MatmulWriter, Weights
from .spec import PACKED, MatmulKnobs, MatmulSpec

__all__ = ["MatmulKnobs", "arrangement", "build", "candidates", "pack_weight", "supports"]


def supports(spec: MatmulSpec, target: Cpu) -> bool:
    """Whether this template computes ``spec`` on ``target``, and no other does it faster."""
    is_layer = spec.dtype == BFLOAT16 and spec.rhs == PACKED and not spec.batch
    return is_layer and spec.a_strides[-1] == 1 and spec.m >= FEWEST_ROWS[PACKED] and unit_of(target) == "dot"


def candidates(spec: MatmulSpec, target: Cpu) -> list[MatmulKnobs]:
    """Feasible knobs, the best analytic guess first: a pair costs what one column does in float32.

    Panels of one vector are left out. LLVM does not fold the broadcast of a pair into the instruction, so each product
    would have a load of its own: on Zen 4 these reach 73 % of the peak, and panels of two vectors 98 %.
    """
    return matmul.candidates(MatmulSpec(spec.m, spec.n, _pairs(spec)), target, 1 if spec.n <= target.lanes() else 2)


def _pairs(spec: MatmulSpec) -> int:
    return -(-spec.k // PAIR)


def pack_weight(spec: MatmulSpec, target: Cpu, knobs: MatmulKnobs, weight: torch.Tensor) -> torch.Tensor:
    """Lay a weight ``[n, k]`` out as panels of pairs, padded with zeros; flat bfloat16."""
    check_weight_shape(weight, (spec.n, spec.k))
    columns, panels = knobs.panel_columns(target), knobs.panels(spec, target)
    padded = weight.new_zeros((panels * columns, _pairs(spec) * PAIR), dtype=torch.bfloat16)
    padded[: spec.n, : spec.k] = weight
    return padded.reshape(panels, columns, _pairs(spec), PAIR).permute(0, 2, 1, 3).reshape(-1)


def arrangement(spec: MatmulSpec, target: Cpu, knobs: MatmulKnobs) -> Arrangement:
    """Where `pack_weight` puts the numbers of a weight."""
    panels, columns, pairs = knobs.panels(spec, target), knobs.panel_columns(target), _pairs(spec)
    return Arrangement((panels, pairs, columns, PAIR), (0, 2, 1, 3), (panels * columns, pairs * PAIR))


def build(spec: MatmulSpec, target: Cpu, knobs: MatmulKnobs, epilogue: Epilogue = NO_EPILOGUE) -> tirx.PrimFunc:
    """Write the PrimFunc ``(a, weight, *epilogue buffers, out)``.

    The epilogue sees logical coordinates ``(row, column)`` with the lanes along the columns.
    """
    size = knobs.panels(spec, target) * knobs.panel_columns(target) * _pairs(spec) * PAIR
    inputs = (BufferSpec("a", spec.a_size, BFLOAT16), BufferSpec("weight", size, BFLOAT16))
    output = BufferSpec("out", spec.out_size, epilogue.dtype)

    def body(buffers: Sequence[Buffer], out: Output) -> None:
        a, packed = buffers
        writer = _Writer(spec, target, knobs, (bits_of(a), as_words(packed, size)), out)
        writer.arithmetic = PAIR_PRODUCT
        writer.steps = spec.k // PAIR
        writer.write()

    importing = replace(epilogue, llvm_ir=epilogue.llvm_ir + DOT_IR)
    return make_prim_func("matmul_bf16_dot", inputs, output, body, importing)


class _Writer(MatmulWriter):
    """Sums products of pairs."""

    def panels_of(self, batch: Sequence[Index], column_chunk: Index) -> RhsPanels:
        """The packed weight, in pairs."""
        return RhsPanels(self.rhs, 0, _pairs(self.spec) * self.columns, self.columns)

    def element(self, start: Index, step: Index) -> Expr:
        """Two numbers of a row."""
        return tirx.reinterpret(WORD, load(self.a, start + step * PAIR, PAIR))

    def complete(self, tile: RegisterTile, starts: Sequence[Index], weights: Weights, panel: Index) -> None:
        """Add the product of the last number, where ``k`` is odd: the other one of its pair is zero."""
        if self.spec.k % PAIR == 0:
            return
        vectors, last = self.knobs.vectors, self.spec.k // PAIR
        right = [self.arithmetic.right(weights(last, vector)) for vector in range(vectors)]
        for row, start in enumerate(starts):
            left = self.arithmetic.left(tirx.Cast(WORD, self.a[start + last * PAIR]), self.lanes)
            for vector, column in enumerate(right):
                self.arithmetic.multiply_add(tile, row * vectors + vector, left, column)
