"""Four vectors of numbers quantized at once, to one vector of bytes.

One by one, a vector of int32 becomes bytes by an instruction and a store of its own, and its numbers are clamped on
both sides before. x86 has instructions that narrow two vectors to one and saturate: int32 to int16 (``vpackssdw``) and
int16 to bytes (``vpackuswb``, ``vpacksswb``). They work in parts of 16 bytes, so that the four bytes of a part's lanes
come to lie beside those of the other three vectors: one permutation of words puts them in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...machines.target import Cpu, Target
from ..base import Expr
from .builder import constant
from .operand_types import INTEGER_RANGES
from .vectors import in_register, lanes_of, shuffle

TOGETHER = 4  # vectors: an int32 is as wide as four bytes
_PART = 16  # bytes that the instructions work in
# By lanes of a vector of int32: the feature, what narrows to int16, and what to bytes.
_INSTRUCTIONS = {
    16: ("avx512bw", "llvm.x86.avx512.packssdw.512", "llvm.x86.avx512.pack{}swb.512"),
    8: ("avx2", "llvm.x86.avx2.packssdw", "llvm.x86.avx2.pack{}swb"),
}
_SIGNS = {"uint8": "u", "int8": "s"}


def can_narrow(target: Target) -> bool:
    """Whether ``target`` has such instructions for its vectors."""
    if not isinstance(target, Cpu) or target.lanes() not in _INSTRUCTIONS:
        return False
    return target.family == "x86" and _INSTRUCTIONS[target.lanes()][0] in target.features


@dataclass(frozen=True)
class JointQuantize:
    """The same results as `tersor.targets.templates.vector.integers.quantize`, bit for bit, of `TOGETHER` vectors.

    Attributes
    ----------
    scale, zero_point, dtype
        Of the integers.
    """

    scale: float
    zero_point: int
    dtype: str

    def bytes_of(self, vectors: Sequence[Expr]) -> Expr:
        """The integers of float32 vectors, one vector behind the other."""
        steps = [self._steps(vector) for vector in vectors]
        lanes = lanes_of(steps[0])
        _, to_words, to_bytes = _INSTRUCTIONS[lanes]
        pairs = [self._moved(_call("int16", 2 * lanes, to_words, *steps[first : first + 2])) for first in (0, 2)]
        count = TOGETHER * lanes
        packed = in_register(_call("int8", count, to_bytes.format(_SIGNS[self.dtype]), *pairs))
        word = _PART // TOGETHER  # bytes of one vector in a part
        order = [
            part * _PART + vector * word + byte
            for vector in range(TOGETHER)
            for part in range(count // _PART)
            for byte in range(word)
        ]
        return tirx.reinterpret(f"{self.dtype}x{count}", shuffle([packed], order))

    def _steps(self, vector: Expr) -> Expr:
        """The nearest int32 numbers, before the zero point.

        Only what is too large for int32 has to be bounded: the conversion gives the smallest int32 for NaN and for
        numbers below, which saturate to the smallest byte, as they should. A number is kept where it is NaN.
        """
        lanes = lanes_of(vector)
        steps = vector if self.scale == 1.0 else vector * constant(1 / self.scale, lanes)
        steps = in_register(steps)
        high = constant(INTEGER_RANGES[self.dtype][1] - self.zero_point, lanes)
        bounded = tirx.Select(high < steps, high, steps)
        return in_register(T.call_llvm_pure_intrin(f"int32x{lanes}", "llvm.lrint", bounded))

    def _moved(self, words: Expr) -> Expr:
        """Numbers of 16 bits plus the zero point, which saturate too."""
        if not self.zero_point:
            return words
        lanes = lanes_of(words)
        return _call("int16", lanes, "llvm.sadd.sat", words, constant(self.zero_point, lanes, "int16"))


def _call(element: str, lanes: int, name: str, *operands: Expr) -> Expr:
    return T.call_llvm_pure_intrin(f"{element}x{lanes}", name, *operands)
