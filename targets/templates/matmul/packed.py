"""Linear layers whose weights are integers of 4 or 8 bits: they are unpacked in registers, next to where they are used.

The weight lies in words of 32 bits: eight neighbouring integers of one column, or four of 8 bits. A panel is one
stream::

    [group of k][word of the group, then the scales of the group][columns of the panel]

For each vector of words, and each of the integers in them, a register tile adds the products with one element of each
row. Behind a group the tile is multiplied by the scales, and added to the sums. Unpacking costs a shift and a look-up
in a table of 16 numbers that a register holds (``vpermps``), or two shifts and a conversion, for each vector of
weights: it is shared by the rows of the tile. So with few rows a layer takes the time that its bytes take from memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ....ir.ops.packed import GROUP_STEP, PACKED_BITS, unpack_integers
from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue, Expr, Index, offset_of
from ..vector.builder import Output, RegisterTile, bind, broadcast, constant, load, loop, make_prim_func
from ..vector.operand_types import check_weight_shape
from ..vector.vectors import in_register
from .pack import RhsPanels
from .panels import MatmulWriter, _RowTile
from .spec import MatmulKnobs, MatmulSpec
from .spec import candidates as product_candidates

WORD_BITS = 32
_BYTE = 8
_FLIPPED = 8  # is added to integers of 4 bits, so that all of them are positive in memory
_TABLE_LANES = 16
_TABLE_LOOKUP = "llvm.x86.avx512.permvar.sf.512"


@dataclass(frozen=True)
class PackedSpec:
    """``out[m, n] = sum over groups g of scale[n, g] * sum over k in g of (a[m, k] - zero_point) * weight[n, k]``.

    Attributes
    ----------
    m, n, k
        Rows and columns of the result, and the length of the sums.
    bits
        Of an integer of the weight, 4 or 8.
    group
        Inputs that share a scale; the last group may be shorter.
    a_size
        Elements of the buffer of ``a``, whose first ``m * k`` are read.
    dtype
        Element type of ``a``: ``"float32"``, ``"uint8"`` or ``"int8"``.
    zero_point
        The integer that stands for zero in ``a``.
    """

    m: int
    n: int
    k: int
    bits: int = 4
    group: int = 64
    a_size: int = 0
    dtype: str = "float32"
    zero_point: int = 0

    def __post_init__(self) -> None:
        if self.bits not in PACKED_BITS:
            raise ValueError(f"bits must be 4 or 8, not {self.bits}")
        if self.group < GROUP_STEP or self.group % GROUP_STEP or self.k % GROUP_STEP:
            raise ValueError(f"group={self.group} and k={self.k} must be multiples of {GROUP_STEP}")
        _ = self.product  # raises what is wrong with the rest

    @property
    def product(self) -> MatmulSpec:
        """The product without its groups."""
        return MatmulSpec(self.m, self.n, self.k, a_size=self.a_size, dtype=self.dtype, zero_point=self.zero_point)

    @property
    def word(self) -> int:
        """Integers in one word."""
        return WORD_BITS // self.bits

    @property
    def groups(self) -> int:
        """Groups of inputs."""
        return -(-self.k // self.group)


def supports(spec: PackedSpec, target: Cpu) -> bool:
    """Whether this template computes ``spec`` on ``target``."""
    return spec.dtype == "float32"


def candidates(spec: PackedSpec, target: Cpu) -> list[MatmulKnobs]:
    """Feasible knobs, the best analytic guess first."""
    return packed_candidates(spec, target, 2, 2)


def packed_candidates(spec: PackedSpec, target: Cpu, beside: int, spare: int) -> list[MatmulKnobs]:
    """Knobs of register tiles for which there is room, with ``beside`` more rows of vectors and ``spare`` ones."""
    ranked = product_candidates(MatmulSpec(spec.m, spec.n, spec.k), target)
    tiles = dict.fromkeys(_fitting(knobs, target.vector_registers - spare, beside) for knobs in ranked)
    return [knobs for rows, vectors in tiles for knobs in _shared(MatmulKnobs(rows, vectors), spec, target)]


def _fitting(knobs: MatmulKnobs, registers: int, beside: int) -> tuple[int, int]:
    """The rows and vectors of a tile, or fewer, such that all it needs fits into registers."""
    vectors = min(knobs.vectors, registers // (1 + beside))
    return min(knobs.rows, registers // vectors - beside), vectors


def _shared(knobs: MatmulKnobs, spec: PackedSpec, target: Cpu) -> list[MatmulKnobs]:
    """Ways to share the work of one register tile."""
    product = spec.product
    panels, row_tiles = knobs.panels(product, target), knobs.row_tiles(product)
    if row_tiles == 1:
        return [replace(knobs, column_chunks=panels)]
    weight_bytes = 4 * panels * panel_stride(spec, knobs.panel_columns(target))
    fit_l2 = -(-weight_bytes // (target.l2_bytes // 2))
    column_chunks = min(panels, -(-fit_l2 // target.cores) * target.cores)
    return [replace(knobs, column_chunks=column_chunks, row_chunks=row_tiles)]


def pack_weight(
    spec: PackedSpec, target: Cpu, knobs: MatmulKnobs, weight: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Lay integers, as `tersor.ir.ops.packed.pack_integers` makes them, and their scales out as panels.

    Returns
    -------
    torch.Tensor
        int32, one-dimensional; columns past the last are zeros, and scales are the bits of float32 numbers.
    """
    check_weight_shape(weight, (spec.n, spec.k * spec.bits // _BYTE))
    check_weight_shape(scale, (spec.n, spec.groups))
    columns, panels = knobs.panel_columns(target), knobs.panels(spec.product, target)
    words = torch.zeros(panels * columns, spec.k // spec.word, dtype=torch.int32)
    words[: spec.n] = _words(unpack_integers(weight, spec.bits), spec.bits)
    scales = torch.zeros(panels * columns, spec.groups)
    scales[: spec.n] = scale
    parts = []
    for group, part in enumerate(words.split(spec.group // spec.word, 1)):
        parts += [part, scales[:, group : group + 1].view(torch.int32)]
    stream = torch.cat(parts, 1).reshape(panels, columns, -1)
    return stream.permute(0, 2, 1).contiguous().reshape(-1)


def _words(integers: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 words [n, k / integers of one]; of 4 bits, byte j holds integer j and, in its upper half, integer j + 4."""
    if bits == _BYTE:
        return integers.contiguous().view(torch.int32)
    lower, upper = (integers + _FLIPPED).reshape(len(integers), -1, 2, 4).unbind(2)
    return (lower | (upper << 4)).reshape(len(integers), -1).contiguous().view(torch.int32)


def build(spec: PackedSpec, target: Cpu, knobs: MatmulKnobs, epilogue: Epilogue = NO_EPILOGUE) -> tirx.PrimFunc:
    """Write the PrimFunc ``(a, weight, *epilogue buffers, out)``.

    The epilogue sees coordinates ``(row, column)`` with the lanes along the columns.
    """
    return build_with(PackedWriter, "matmul_packed", spec, target, knobs, epilogue)


def build_with(
    kind: Callable[..., PackedWriter],
    name: str,
    spec: PackedSpec,
    target: Cpu,
    knobs: MatmulKnobs,
    epilogue: Epilogue,
) -> tirx.PrimFunc:
    """`build`, with the writer of a template that reads the weight as this one does."""
    panels = knobs.panels(spec.product, target)
    size = panels * panel_stride(spec, knobs.panel_columns(target))
    inputs = (BufferSpec("a", spec.product.a_size, spec.dtype), BufferSpec("weight", size, "int32"))
    output = BufferSpec("out", spec.m * spec.n, epilogue.dtype)

    def body(buffers: Sequence[Buffer], out: Output) -> None:
        kind(spec, target, knobs, buffers, out).write()

    return make_prim_func(name, inputs, output, body, epilogue)


def panel_stride(spec: PackedSpec, columns: int) -> int:
    """Words of one panel, scales included."""
    return columns * (spec.k // spec.word + spec.groups)


class PackedWriter(MatmulWriter):
    """Writes the loops of one product with a packed weight."""

    def __init__(
        self, spec: PackedSpec, target: Cpu, knobs: MatmulKnobs, inputs: Sequence[Buffer], out: Output
    ) -> None:
        super().__init__(spec.product, target, knobs, inputs, out)
        self.packed = spec
        self.target = target

    def panels_of(self, batch: Sequence[Index], column_chunk: Index) -> RhsPanels:
        """The packed weight, in words."""
        return RhsPanels(self.rhs, 0, panel_stride(self.packed, self.columns), self.columns)

    def sums(self, at: _RowTile, panel: Index) -> RegisterTile:
        """The register tile after all groups."""
        spec = self.packed
        first = offset_of(self.spec.a_offset, at.batch, self.spec.a_strides) + at.first * spec.k
        starts = [first + row * spec.k for row in range(at.rows)]
        base = panel * panel_stride(spec, self.columns)
        total = RegisterTile(at.rows * self.knobs.vectors, self.lanes)
        total.fill(0)
        words = spec.group // spec.word
        whole, rest = divmod(spec.k, spec.group)

        def group(index: Index, count: int) -> None:
            place = bind(base + index * ((words + 1) * self.columns))
            part = self.group_sums(starts, index * spec.group, place, count)
            scales = [self._scale(place + count * self.columns + v * self.lanes) for v in range(self.knobs.vectors)]
            for index in range(total.count):
                total[index] = self.scaled(total[index], part[index], scales[index % self.knobs.vectors])

        if whole:
            with loop(whole) as index:
                group(index, words)
        if rest:
            group(whole, rest // spec.word)
        return total

    def _scale(self, place: Index) -> Expr:
        return in_register(tirx.reinterpret(_typed("float32", self.lanes), load(self.rhs, place, self.lanes)))

    def group_sums(self, starts: Sequence[Index], first: Index, place: Index, words: int) -> RegisterTile:
        """Sums over one group of inputs, the first of which is ``first``, in units of their scales.

        ``starts`` are the first elements of the rows, and ``place`` is where the group's words begin.
        """
        vectors, lanes = self.knobs.vectors, self.lanes
        tile = RegisterTile(len(starts) * vectors, lanes)
        tile.fill(0)
        with loop(words) as word:
            right = [self.load_word(place, word, vector) for vector in range(vectors)]
            prepared = [self._prepared(vector) for vector in right]
            for index, shift in enumerate(_shifts(self.packed.bits)):
                weights = [in_register(self._unpacked(vector, shift)) for vector in prepared]
                for row, start in enumerate(starts):
                    left = bind(broadcast(self.a[start + first + word * self.packed.word + index], lanes))
                    for vector in range(vectors):
                        tile.multiply_add(row * vectors + vector, left, weights[vector])
        return tile

    def load_word(self, place: Index, word: Index, vector: int) -> Expr:
        """One vector of words of a group, which a register holds."""
        return in_register(load(self.rhs, place + word * self.columns + vector * self.lanes, self.lanes))

    def scaled(self, total: Expr, part: Expr, scale: Expr) -> Expr:
        """``total + part * scale``."""
        return total + part * scale

    @property
    def _has_table(self) -> bool:
        """Whether 16 numbers fit into a register from which each lane can take its own."""
        return self.target.family == "x86" and self.lanes == _TABLE_LANES and self.packed.bits < _BYTE

    def _prepared(self, words: Expr) -> Expr:
        """Words as `_unpacked` takes them: without a table, integers of 4 bits in two's complement."""
        if self._has_table or self.packed.bits == _BYTE:
            return words
        flipped = sum(_FLIPPED << shift for shift in _shifts(self.packed.bits)) - (1 << WORD_BITS)
        return in_register(words ^ constant(flipped, self.lanes, "int32"))

    def _unpacked(self, words: Expr, shift: int) -> Expr:
        """The float32 numbers of the integers that begin at bit ``shift`` of each word."""
        lanes, bits = self.lanes, self.packed.bits
        if self._has_table:
            index = words >> constant(shift, lanes, "int32") if shift else words
            return T.call_llvm_pure_intrin(f"float32x{lanes}", _TABLE_LOOKUP, _table(), index)
        above, below = WORD_BITS - bits - shift, WORD_BITS - bits
        lifted = words << constant(above, lanes, "int32") if above else words
        return tirx.Cast(_typed("float32", lanes), lifted >> constant(below, lanes, "int32"))


def _table() -> Expr:
    """The numbers of integers 0 to 15 as they are in memory."""
    numbers = tirx.Ramp(tirx.const(-_FLIPPED, "int32"), tirx.const(1, "int32"), _TABLE_LANES)
    return tirx.Cast(f"float32x{_TABLE_LANES}", numbers)


def _shifts(bits: int) -> list[int]:
    """Where the integers of a word begin, in the order of the inputs."""
    return [_BYTE * byte + half for half in range(0, _BYTE, bits) for byte in range(4)]


def _typed(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"
