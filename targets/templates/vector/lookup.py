"""Look-ups in a table of 256 bytes, by vectors of bytes.

AVX512_VBMI permutes two vectors of 64 bytes by indices of 7 bits (``vpermi2b``): two permutations, and the highest bit
of the index chooses between them. NEON looks up in four vectors of 16 bytes at a time, and leaves the lanes alone whose
index is beyond them (``tbl``, ``tbx``). Other x86 processors look up in 16 bytes at a time (``vpshufb``), which pays
for vectors of 16 bytes or more. Anything else is loaded one byte after another.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...machines.target import Cpu
from ..base import Buffer, Expr
from .builder import constant, load
from .vector_math import per_lane
from .vectors import cast, dtype_of, in_register, lane_slice, lanes_of, shuffle

_ENTRIES = 256
_FEATURE = "avx512vbmi"
_PERMUTE, _PERMUTED = "llvm.x86.avx512.vpermi2var.qi.512", 64  # bytes of a vector
_NEON_LOOKUP, _NEON_KEEPING, _NEON_BYTES = "llvm.aarch64.neon.tbl4.v16i8", "llvm.aarch64.neon.tbx4.v16i8", 16
_NEON_VECTORS = 4  # that one instruction looks up in
_ROW = 16  # bytes of the table that one shuffle looks up in
_X86_SHUFFLES = {16: "llvm.x86.ssse3.pshuf.b.128", 32: "llvm.x86.avx2.pshuf.b"}  # by bytes of a vector


@dataclass(frozen=True)
class ByteTable:
    """A buffer of 256 numbers of 8 bits, and how ``target`` looks them up."""

    buffer: Buffer
    target: Cpu

    def at(self, places: Expr) -> Expr:
        """The entries at ``places``, a vector of uint8."""
        lanes, element = lanes_of(places), dtype_of(self.buffer[0])
        if self.target.family == "x86" and _FEATURE in self.target.features and 1 < lanes <= _PERMUTED:
            found = self._by_permutation(places)
        elif self.target.family == "x86" and lanes in _X86_SHUFFLES:
            found = self._by_shuffles(places)
        elif self.target.family == "arm" and 1 < lanes <= _NEON_BYTES:
            found = self._in_neon(places)
        else:
            found = per_lane(lambda place: tirx.reinterpret("uint8", self.buffer[cast(place, "int32")]), places)
        return tirx.reinterpret(element if lanes == 1 else f"{element}x{lanes}", found)

    def _by_permutation(self, places: Expr) -> Expr:
        index = in_register(_widened(places, _PERMUTED))
        vectors = [self._bytes(first, _PERMUTED) for first in range(0, _ENTRIES, _PERMUTED)]
        low, high = (
            T.call_llvm_pure_intrin(f"int8x{_PERMUTED}", _PERMUTE, vectors[half], index, vectors[half + 1])
            for half in (0, 2)
        )
        chosen = tirx.Select(index < constant(0, _PERMUTED, "int8"), high, low)
        return lane_slice(in_register(chosen), 0, lanes_of(places))

    def _by_shuffles(self, places: Expr) -> Expr:
        """A shuffle takes the lowest four bits of an index, and gives 0 where the highest one is set."""
        lanes = lanes_of(places)
        index = in_register(tirx.reinterpret(f"int8x{lanes}", places))
        found = constant(0, lanes, "int8")
        for first in range(0, _ENTRIES, _ROW):
            row = shuffle([self._bytes(first, _ROW)] * (lanes // _ROW), range(lanes))
            from_row = index ^ constant(_as_int8(first), lanes, "int8")  # less than 16 where the entry is in this row
            marked = T.call_llvm_pure_intrin(f"int8x{lanes}", "llvm.uadd.sat", from_row, constant(0x70, lanes, "int8"))
            entries = T.call_llvm_pure_intrin(f"int8x{lanes}", _X86_SHUFFLES[lanes], row, marked)
            found = in_register(found | entries)
        return found

    def _in_neon(self, places: Expr) -> Expr:
        index = in_register(_widened(places, _NEON_BYTES))
        step = _NEON_VECTORS * _NEON_BYTES
        found = None
        for first in range(0, _ENTRIES, step):
            vectors = [self._bytes(first + part, _NEON_BYTES) for part in range(0, step, _NEON_BYTES)]
            shifted = index - constant(_as_int8(first), _NEON_BYTES, "int8")
            name, kept = (_NEON_LOOKUP, ()) if found is None else (_NEON_KEEPING, (found,))
            found = T.call_llvm_pure_intrin(f"int8x{_NEON_BYTES}", name, *kept, *vectors, shifted)
        return lane_slice(in_register(found), 0, lanes_of(places))

    def _bytes(self, first: int, lanes: int) -> Expr:
        return tirx.reinterpret(f"int8x{lanes}", load(self.buffer, first, lanes))


def _as_int8(byte: int) -> int:
    """The int8 number with the bits of a byte."""
    return byte - _ENTRIES if byte > 127 else byte


def _widened(places: Expr, lanes: int) -> Expr:
    """The same bytes as int8, and zeros behind them up to so many lanes."""
    count = lanes_of(places)
    signed = tirx.reinterpret(f"int8x{count}", places)
    if count == lanes:
        return signed
    first = tirx.const(0, "int64")
    return T.call_llvm_pure_intrin(f"int8x{lanes}", "llvm.vector.insert", constant(0, lanes, "int8"), signed, first)
