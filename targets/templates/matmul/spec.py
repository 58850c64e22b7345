"""What a matrix product is (:class:`MatmulSpec`) and how it may be tiled (:class:`MatmulKnobs`)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ....ir.ops.integers import WEIGHT_BITS
from ...machines.target import Cpu
from ..base import row_major_strides
from ..machine_model import panel_cycles
from ..parallelism import balance, imbalance
from ..vector.operand_types import check_operands

PACKED = "packed"
ACTIVATION = "activation"


@dataclass(frozen=True)
class MatmulSpec:
    """``out[b, m, n] = sum_k a[b, m, k] * rhs[b, k, n]``, every operand read and written in place through strides.

    Attributes
    ----------
    m, n, k
        Rows and columns of one result, and the length of the sums.
    rhs
        ``"packed"``: a constant weight ``[n, k]`` (as ``torch.nn.Linear`` keeps it), packed at compile time, shared by
        the batch. ``"activation"``: computed at run time.
    batch
        Extents of the batch dimensions, ``()`` for none.
    a_strides, rhs_strides, out_strides
        Elements between neighbours: ``(*batch, m, k)``, ``(*batch, k, n)`` and ``(*batch, m, n)``; by default those of
        plain row-major tensors. ``rhs_strides`` is for activations only. The last of ``out_strides`` must be 1.
    a_offset, rhs_offset, out_offset
        Where the first element lies in its buffer: operands may be slices of a larger one (fused query, key and value).
    a_size, rhs_size, out_size
        Element counts of the buffers; by default just large enough.
    dtype
        Element type of the operands, a packed weight included, and sums are float32; or ``"uint8"`` or ``"int8"``: that
        of ``a`` and of an activation on the right, with weights in int8 and sums in int32.
    zero_point, rhs_zero_point
        The integers that stand for zero in ``a`` and in an activation on the right: sums are over
        ``(a - zero_point) * (rhs - rhs_zero_point)``.
    weight_bits
        Bits that all integers of a packed weight fit, 7 or 8; see `tersor.targets.templates.vector.dot_product`.
    """

    m: int
    n: int
    k: int
    rhs: str = PACKED
    batch: tuple[int, ...] = ()
    a_strides: tuple[int, ...] = ()
    rhs_strides: tuple[int, ...] = ()
    out_strides: tuple[int, ...] = ()
    a_offset: int = 0
    rhs_offset: int = 0
    out_offset: int = 0
    a_size: int = 0
    rhs_size: int = 0
    out_size: int = 0
    dtype: str = "float32"
    zero_point: int = 0
    rhs_zero_point: int = 0
    weight_bits: int = WEIGHT_BITS

    def __post_init__(self) -> None:
        if self.rhs not in (PACKED, ACTIVATION):
            raise ValueError(f"rhs must be {PACKED!r} or {ACTIVATION!r}, not {self.rhs!r}")
        if min(self.m, self.n, self.k, *self.batch) < 1:
            raise ValueError(f"every extent must be positive: {self}")
        check_operands(self.dtype, self.zero_point, self.weight_bits)
        check_operands(self.dtype, self.rhs_zero_point)
        if self.rhs == PACKED and (self.rhs_strides or self.rhs_offset or self.rhs_size or self.rhs_zero_point):
            raise ValueError("a packed right-hand side has no strides, offset, size or zero point of its own")
        self._fill("a", (*self.batch, self.m, self.k))
        self._fill("out", (*self.batch, self.m, self.n))
        if self.rhs == ACTIVATION:
            self._fill("rhs", (*self.batch, self.k, self.n))
        if self.out_strides[-1] != 1 and self.n > 1:
            raise ValueError("columns of the result must be contiguous: the last of out_strides is not 1")

    def _fill(self, operand: str, shape: tuple[int, ...]) -> None:
        """Set the default strides and size of an operand, and check those that were given."""
        strides = getattr(self, f"{operand}_strides") or row_major_strides(shape)
        if len(strides) != len(shape):
            raise ValueError(f"{operand}_strides {strides} must have one entry for each extent of {shape}")
        extents = zip(shape, strides, strict=True)
        last = getattr(self, f"{operand}_offset") + sum((extent - 1) * stride for extent, stride in extents)
        size = getattr(self, f"{operand}_size") or last + 1
        if last >= size:
            raise ValueError(f"{operand} has {size} elements but element {last} is accessed")
        object.__setattr__(self, f"{operand}_strides", strides)
        object.__setattr__(self, f"{operand}_size", size)

    @property
    def batch_size(self) -> int:
        """Number of matrix products."""
        return math.prod(self.batch)

    @property
    def macs(self) -> int:
        """Multiply-adds of all products."""
        return self.batch_size * self.m * self.n * self.k


@dataclass(frozen=True)
class MatmulKnobs:
    """How a product is cut up.

    Attributes
    ----------
    rows, vectors
        Register tile: ``rows`` rows of ``a`` times ``vectors`` vectors of columns. The rows are cut into tiles of
        ``rows`` or one fewer, so that no small rest remains.
    column_chunks, row_chunks
        Pieces that the columns and the rows of one product are cut into; pieces times batch is what threads share.
    pack_rhs
        Whether a piece first copies its columns of an activation into panels (contiguous, in L1/L2).
    unroll
        Steps of ``k`` written out in the inner loop.
    chains
        Independent sums for each result when a tile has few accumulators: hides the latency of fused multiply-add.
    prefetch_bytes
        How far ahead of its use a packed weight is prefetched; 0 for not at all.
    """

    rows: int
    vectors: int
    column_chunks: int = 1
    row_chunks: int = 1
    pack_rhs: bool = False
    unroll: int = 1
    chains: int = 1
    prefetch_bytes: int = 0

    def panel_columns(self, target: Cpu) -> int:
        """Columns of one packed panel."""
        return self.vectors * target.lanes()

    def panels(self, spec: MatmulSpec, target: Cpu) -> int:
        """Number of panels; the last one may be partly padding."""
        return -(-spec.n // self.panel_columns(target))

    def packed_size(self, spec: MatmulSpec, target: Cpu) -> int:
        """Elements of the packed weight, padding included."""
        return self.panels(spec, target) * spec.k * self.panel_columns(target)

    def row_tiles(self, spec: MatmulSpec) -> int:
        """Number of register tiles down the rows."""
        return -(-spec.m // self.rows)


def candidates(spec: MatmulSpec, target: Cpu, fewest_vectors: int = 1) -> list[MatmulKnobs]:
    """Feasible knobs with panels of ``fewest_vectors`` or more, best analytic guess first.

    Every register tile leaves room for the vectors of one step of the right-hand side and one broadcast element of
    ``a``.
    """
    tiles = [
        (rows, vectors)
        for vectors in range(fewest_vectors, 9)
        for rows in range(1, target.vector_registers)
        if rows * vectors + vectors + 1 <= target.vector_registers
    ]
    ranked = sorted({_fit(tile, spec, target): None for tile in tiles}, key=lambda t: _cost(t, spec, target))
    return [knobs for tile in ranked[:8] for knobs in _variants(tile, spec, target)]


def reads_rhs_in_place(spec: MatmulSpec, panel_columns: int) -> bool:
    """Whether whole vectors of an activation on the right can be loaded where they are."""
    return spec.rhs_strides[-1] == 1 and spec.n % panel_columns == 0


def _fit(tile: tuple[int, int], spec: MatmulSpec, target: Cpu) -> tuple[int, int]:
    """The smallest tile that needs as many steps as ``tile`` does."""
    rows, vectors = tile
    all_vectors = -(-spec.n // target.lanes())
    rows = -(-spec.m // -(-spec.m // rows))
    vectors = min(vectors, all_vectors)
    return rows, vectors


def _cost(tile: tuple[int, int], spec: MatmulSpec, target: Cpu) -> float:
    """Estimated cycles for one step of ``k`` over the whole result."""
    rows, vectors = tile
    panels = -(-spec.n // (vectors * target.lanes()))
    row_tiles = -(-spec.m // rows)
    idle = imbalance(panels, target.cores) if row_tiles == 1 else 1  # the panels are what threads share
    return panels * idle * panel_cycles(spec.m, row_tiles, vectors)


def _variants(tile: tuple[int, int], spec: MatmulSpec, target: Cpu) -> list[MatmulKnobs]:
    rows, vectors = tile
    row_tiles = -(-spec.m // rows)
    panels = -(-spec.n // (vectors * target.lanes()))
    if spec.rhs == ACTIVATION:
        column_chunks, row_chunks = balance(spec.batch_size, (panels, row_tiles), target.cores)
        in_place = reads_rhs_in_place(spec, vectors * target.lanes())
        packing = (row_tiles > 4, row_tiles <= 4) if in_place else (True,)
        return [MatmulKnobs(rows, vectors, column_chunks, row_chunks, pack_rhs=pack, unroll=2) for pack in packing]
    if row_tiles == 1:
        return [
            MatmulKnobs(rows, vectors, panels, 1, unroll=unroll, chains=chains, prefetch_bytes=ahead)
            for unroll, chains in ((4, max(1, 8 // (rows * vectors))),)
            for ahead in (0, 2048)
        ]
    weight_bytes = 4 * spec.k * panels * vectors * target.lanes()
    fit_l2 = -(-weight_bytes // (target.l2_bytes // 2))
    column_chunks = min(panels, -(-fit_l2 // target.cores) * target.cores)
    return [MatmulKnobs(rows, vectors, column_chunks, row_tiles, unroll=2)]
