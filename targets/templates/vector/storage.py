"""How elements of the IR's types lie in memory, and which vectors stand for them in registers."""

from __future__ import annotations

from ....ir import DType
from .bfloat16 import BFLOAT16, HALF

# TIR has no addressable booleans, a byte of 0 or 1 stands for one, and no bfloat16 buffers.
STORAGE = {
    DType.F64: "float64",
    DType.F32: "float32",
    DType.F16: "float16",
    DType.BF16: "uint16",
    DType.I64: "int64",
    DType.I32: "int32",
    DType.I16: "int16",
    DType.I8: "int8",
    DType.U8: "uint8",
    DType.BOOL: "uint8",
}

# The same for kernels that compute: numbers that are read and written as float32, see
# tersor.targets.templates.vector.bfloat16.
NUMBERS = {**STORAGE, DType.BF16: BFLOAT16, DType.F16: HALF}
# Element types of vectors in registers.
REGISTERS = {**STORAGE, DType.BF16: "float32", DType.F16: "float32"}
