"""Integer products, four input channels at a time: which instruction a target has for them, and how it is written.

Activations and weights lie in memory as *words*: the four bytes of neighbouring channels (of the activation, or of the
weight of one output), handled as one int32. One step adds to each lane of a vector of int32 sums

    a[0] * w[0] + a[1] * w[1] + a[2] * w[2] + a[3] * w[3]

exactly. Instructions differ in the signs that they take. Weights are int8; activations of the other signedness than an
instruction's have their highest bit flipped, which adds or takes 128 (`DotProduct.offset`), and the sums start from the
compensation for that, together with the one for the zero point; see `tersor.targets.templates.vector.compensation`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ....ir.ops.integers import NARROW_BITS, WEIGHT_BITS, needed_bits
from ...machines.target import Cpu, Target
from ..base import Expr
from .arithmetic import Arithmetic
from .builder import RegisterTile, broadcast, constant
from .operand_types import is_integer
from .vectors import in_register, shuffle

if TYPE_CHECKING:
    import torch

WORD = 4  # bytes, channels
SIGN_BITS = -0x7F7F7F80  # 0x80808080 as an int32
_X86_VNNI = {16: ("avx512_vnni", "llvm.x86.avx512.vpdpbusd.512"), 8: ("avx_vnni", "llvm.x86.avx512.vpdpbusd.256")}
_X86_PAIRS = {16: "llvm.x86.avx512.pmaddw.d.512", 8: "llvm.x86.avx2.pmadd.wd"}
_X86_BYTE_PAIRS = {16: "llvm.x86.avx512.pmaddubs.w.512", 8: "llvm.x86.avx2.pmadd.ub.sw"}
_NEON_SDOT = "llvm.aarch64.neon.sdot.v4i32.v16i8"
_NEON_SMULL = "llvm.aarch64.neon.smull.v4i32"
_NEON_USDOT = "llvm.aarch64.neon.usdot.v4i32.v16i8"


@dataclass(frozen=True)
class DotProduct(Arithmetic):
    """One way to add products of four bytes to int32 sums.

    Attributes
    ----------
    dtype
        Element type of the activations in memory, ``"uint8"`` or ``"int8"``.
    left_type
        What the instruction takes activations as.
    lanes
        Sums in one vector.
    intrinsic
        LLVM's name of the instruction; "" for plain multiplications.
    """

    dtype: str
    left_type: str
    lanes: int
    intrinsic: str

    packing = WORD
    sum_type = "int32"

    @property
    def offset(self) -> int:
        """What is added to activations before they are multiplied, by flipping their highest bits."""
        if self.dtype == self.left_type:
            return 0
        return 128 if self.left_type == "uint8" else -128

    @property
    def extra_registers(self) -> int:
        """Vector registers that a step needs beside one for each vector of weights and one for an activation."""
        return 0

    def left(self, element: Expr, lanes: int) -> Expr:
        """A word of activations, broadcast; bits are flipped before, as LLVM 22 never ends on that in a vector."""
        flipped = element ^ tirx.const(SIGN_BITS, "int32") if self.offset else element
        return self.prepare(broadcast(flipped, lanes))

    def prepare(self, words: Expr) -> Expr:
        """A vector of words of activations, of the signs that the instruction takes."""
        return in_register(words)

    def multiply_add(self, tile: RegisterTile, index: int, left: Expr, right: Expr) -> None:
        """``tile[index] += left . right``."""
        tile[index] = self.add(tile[index], left, right)

    def add(self, sums: Expr, left: Expr, right: Expr) -> Expr:
        """``sums + left . right``, of prepared operands."""
        lanes = WORD * self.lanes
        left, right = (tirx.reinterpret(f"int8x{lanes}", operand) for operand in (left, right))
        return T.call_llvm_intrin(f"int32x{self.lanes}", self.intrinsic, sums, left, right)


@dataclass(frozen=True)
class PairwiseProduct(DotProduct):
    """Products of int16 pairs (``vpmaddwd``): bytes at even and at odd places are widened and multiplied separately."""

    @property
    def extra_registers(self) -> int:
        return 4

    def prepare(self, words: Expr) -> tuple[Expr, Expr]:
        """The bytes at even and at odd places."""
        return self._split(words, self.dtype)

    def right(self, vector: Expr) -> tuple[Expr, Expr]:
        """The bytes at even and at odd places."""
        return self._split(vector, "int8")

    def _split(self, words: Expr, dtype: str) -> tuple[Expr, Expr]:
        lanes = 2 * self.lanes
        element = "uint16" if dtype == "uint8" else "int16"
        pairs = tirx.reinterpret(f"{element}x{lanes}", words)
        byte = constant(8, lanes, element)
        halves = ((pairs << byte) >> byte, pairs >> byte)
        return tuple(in_register(tirx.reinterpret(f"int16x{lanes}", half)) for half in halves)

    def add(self, sums: Expr, left: Expr, right: Expr) -> Expr:
        for one, other in zip(left, right, strict=True):
            sums = sums + T.call_llvm_intrin(f"int32x{self.lanes}", self.intrinsic, one, other)
        return sums


@dataclass(frozen=True)
class BytePairProduct(DotProduct):
    """Sums of two products of bytes as int16 (``vpmaddubsw``), and of two of those as int32 (``vpmaddwd`` by ones).

    The first instruction saturates. With weights from -64 to 63, no sum leaves its range: ``2 * 255 * 64 = 32640``.
    """

    @property
    def extra_registers(self) -> int:
        return 2

    def add(self, sums: Expr, left: Expr, right: Expr) -> Expr:
        lanes = WORD * self.lanes
        left, right = (tirx.reinterpret(f"int8x{lanes}", operand) for operand in (left, right))
        pairs = T.call_llvm_intrin(f"int16x{lanes // 2}", self.intrinsic, left, right)
        ones = constant(1, lanes // 2, "int16")
        return sums + T.call_llvm_intrin(f"int32x{self.lanes}", _X86_PAIRS[self.lanes], pairs, ones)


@dataclass(frozen=True)
class PlainProduct(DotProduct):
    """Four multiplications of int32, for targets without an instruction for it."""

    def prepare(self, words: Expr) -> tuple[Expr, ...]:
        """The four bytes, widened."""
        return self._split(words, self.dtype)

    def right(self, vector: Expr) -> tuple[Expr, ...]:
        """The four bytes, widened."""
        return self._split(vector, "int8")

    @property
    def extra_registers(self) -> int:
        return 8

    def _split(self, words: Expr, dtype: str) -> tuple[Expr, ...]:
        element = "uint32" if dtype == "uint8" else "int32"
        words = tirx.reinterpret(f"{element}x{self.lanes}", words)
        top = constant(24, self.lanes, element)
        shifted = (words << constant(24 - 8 * byte, self.lanes, element) for byte in range(WORD))
        return tuple(in_register(tirx.reinterpret(f"int32x{self.lanes}", one >> top)) for one in shifted)

    def add(self, sums: Expr, left: Expr, right: Expr) -> Expr:
        for one, other in zip(left, right, strict=True):
            sums = sums + one * other
        return sums


@dataclass(frozen=True)
class WideningProduct(PlainProduct):
    """Four multiplications of int16 that add to int32 (``smlal``), for NEON without an instruction for four bytes."""

    def left(self, element: Expr, lanes: int) -> tuple[Expr, ...]:
        """Each byte of a word, widened and broadcast: lanes of one register, which the instruction can name."""
        signs = tirx.reinterpret(f"{self.dtype}x{WORD}", element)
        widened = in_register(tirx.Cast(f"int16x{WORD}", signs))
        return tuple(shuffle([widened], [byte] * lanes) for byte in range(WORD))

    def _split(self, words: Expr, dtype: str) -> tuple[Expr, ...]:
        return tuple(in_register(tirx.Cast(f"int16x{self.lanes}", one)) for one in super()._split(words, dtype))

    def add(self, sums: Expr, left: Expr, right: Expr) -> Expr:
        for one, other in zip(left, right, strict=True):
            sums = sums + T.call_llvm_pure_intrin(f"int32x{self.lanes}", self.intrinsic, one, other)
        return sums


def dot_product(target: Cpu, dtype: str, weight_bits: int = WEIGHT_BITS) -> DotProduct:
    """The fastest dot product of ``target`` that is exact for activations of ``dtype`` and weights of so many bits."""
    lanes, features = target.lanes(), target.features
    feature, intrinsic = _X86_VNNI.get(lanes, ("", ""))
    if target.family == "x86" and feature in features:
        return DotProduct(dtype, "uint8", lanes, intrinsic)
    if target.family == "x86" and lanes in _X86_BYTE_PAIRS and weight_bits <= NARROW_BITS:
        return BytePairProduct(dtype, "uint8", lanes, _X86_BYTE_PAIRS[lanes])
    if target.family == "x86" and lanes in _X86_PAIRS:
        return PairwiseProduct(dtype, dtype, lanes, _X86_PAIRS[lanes])
    if target.family == "arm" and "i8mm" in features and dtype == "uint8":
        return DotProduct(dtype, "uint8", lanes, _NEON_USDOT)
    if target.family == "arm" and "asimddp" in features:
        return DotProduct(dtype, "int8", lanes, _NEON_SDOT)
    if target.family == "arm":
        return WideningProduct(dtype, dtype, lanes, _NEON_SMULL)
    return PlainProduct(dtype, dtype, lanes, "")


class LayerSpec(Protocol):
    """What is computed of activations and a weight that is known.

    Attributes
    ----------
    dtype
        Element type of the activations.
    weight_bits
        Bits that all numbers of the weight fit.
    """

    @property
    def dtype(self) -> str: ...
    @property
    def weight_bits(self) -> int: ...


def layer_product(target: Cpu, spec: LayerSpec) -> DotProduct:
    """The fastest exact dot product for a layer of integers."""
    return dot_product(target, spec.dtype, spec.weight_bits)


def useful_bits(target: Target, dtype: str, bits: int, weight: torch.Tensor) -> int:
    """Bits of a weight that a kernel is to count on: fewer than 8 only where it is faster for that.

    ``bits`` are what the layer says. They do not count where they are not true of the weight, if it has numbers.
    """
    if not isinstance(target, Cpu) or not is_integer(dtype):
        return WEIGHT_BITS
    if dot_product(target, dtype, bits) == dot_product(target, dtype):
        return WEIGHT_BITS
    return bits if weight.is_meta else max(bits, needed_bits(weight))
