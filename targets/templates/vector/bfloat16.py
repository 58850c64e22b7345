"""Numbers of 16 bits in memory, bfloat16 or float16, float32 in registers.

TVM legalises bfloat16 buffers away before code generation, so their elements are stored as the 16 bits that they are. A
buffer of numbers of 16 bits is a `NarrowBuffer`: reading it widens, `tersor.targets.templates.vector.builder.store`
rounds, and a template written for float32 works on it unchanged. Kernels that only move data take the elements as they
are stored.
"""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...machines.target import Cpu
from ..base import Buffer, Expr, Index

BFLOAT16 = "bfloat16"  # element type of a buffer whose numbers are computed with
HALF = "half"  # the same for float16
NUMBER_TYPES = ("float32", BFLOAT16, HALF)  # what templates that compute take
BITS = "uint16"  # how bfloat16 numbers lie in memory
STORED = {BFLOAT16: BITS, HALF: "float16"}
_FEATURE = "avx512_bf16"
_ROUNDING = "tersor_round_bfloat16_"
_ROUNDED_LANES = (1, 2, 4, 8, 16, 32)
_SHIFT = 16  # a bfloat16 is the upper half of a float32
_HALF = 0x7FFF  # half a unit in the last place of a bfloat16, less one unit of a float32
_MAGNITUDE = 0x7FFFFFFF  # all bits of a float32 but the sign
_INFINITY = 0x7F800000  # larger magnitudes are NaN
_QUIET = 0x00400000  # set in a NaN, so that what is cut off never leaves an infinity


class NarrowBuffer:
    """A buffer of numbers of 16 bits that is read as float32.

    Parameters
    ----------
    bits
        The TIR buffer that holds the numbers.
    dtype
        ``"bfloat16"`` or ``"half"``.
    """

    def __init__(self, bits: Buffer, dtype: str) -> None:
        self.bits = bits
        self._is_half = dtype == HALF

    def __getitem__(self, index: Index) -> Expr:
        bits = self.bits[index]
        return tirx.Cast(_typed("float32", bits.ty.dtype.lanes), bits) if self._is_half else widen(bits)

    def rounded(self, value: Expr) -> Expr:
        """float32 numbers in the form that the buffer holds."""
        if self._is_half:
            return tirx.Cast(_typed("float16", value.ty.dtype.lanes), value)
        return narrow(value)


def check_numbers(dtype: str) -> None:
    """Refuse element types that templates do not compute with; raises ValueError."""
    if dtype not in NUMBER_TYPES:
        raise ValueError(f"dtype {dtype} is not supported; {' and '.join(NUMBER_TYPES)} are")


def bits_of(buffer: Buffer) -> Buffer:
    """The TIR buffer behind any buffer."""
    return buffer.bits if isinstance(buffer, NarrowBuffer) else buffer


def widen(bits: Expr) -> Expr:
    """float32 numbers from the bits of bfloat16 numbers, exactly."""
    lanes = bits.ty.dtype.lanes
    word = tirx.Cast(_typed("uint32", lanes), bits)
    return tirx.reinterpret(_typed("float32", lanes), word << _word(_SHIFT, lanes))


def narrow(value: Expr) -> Expr:
    """Bits of the nearest bfloat16 numbers of float32 numbers; ties go to the even one, NaN stays NaN.

    Emits a statement: the value is computed once.
    """
    lanes = value.ty.dtype.lanes
    register = T.alloc_buffer((lanes,), "float32", layout=None)
    index = 0 if lanes == 1 else tirx.Ramp(0, 1, lanes)
    T.buffer_store(register, value, [index])
    return nearest(register[index])


def nearest(value: Expr) -> Expr:
    """What `narrow` computes, as an expression that has the value in it several times."""
    lanes = value.ty.dtype.lanes
    word = tirx.reinterpret(_typed("uint32", lanes), value)
    last_kept = (word >> _word(_SHIFT, lanes)) & _word(1, lanes)
    rounded = word + _word(_HALF, lanes) + last_kept
    is_nan = tirx.GT(word & _word(_MAGNITUDE, lanes), _word(_INFINITY, lanes))
    kept = tirx.Select(is_nan, word | _word(_QUIET, lanes), rounded)
    return tirx.Cast(_typed(BITS, lanes), kept >> _word(_SHIFT, lanes))


def has_rounding_instruction(target: Cpu) -> bool:
    """Whether `round_in_hardware` works on ``target``."""
    return _FEATURE in target.features


def round_in_hardware(value: Expr) -> Expr:
    """What `narrow` computes, in one instruction, but numbers too small for a normal one become zero.

    The kernel must import `ROUNDING_IR`. TVM has no vectors of bfloat16 in generated code, but LLVM does.
    """
    lanes = value.ty.dtype.lanes
    return tirx.call_pure_extern(_typed(BITS, lanes), f"{_ROUNDING}{lanes}", value)


def _rounding_function(lanes: int) -> str:
    floats, numbers, bits = (f"<{lanes} x {one}>" if lanes > 1 else one for one in ("float", "bfloat", "i16"))
    return f"""
define linkonce_odr {bits} @{_ROUNDING}{lanes}({floats} %value) alwaysinline {{
  %rounded = fptrunc {floats} %value to {numbers}
  %bits = bitcast {numbers} %rounded to {bits}
  ret {bits} %bits
}}
"""


ROUNDING_IR = "".join(_rounding_function(lanes) for lanes in _ROUNDED_LANES)


def _typed(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def _word(value: int, lanes: int) -> Expr:
    scalar = tirx.const(value, "uint32")
    return scalar if lanes == 1 else tirx.Broadcast(scalar, lanes)
