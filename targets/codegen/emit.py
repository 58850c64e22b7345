"""Elementwise ops of the IR as TIR expressions on vectors, and the epilogue of a fused group made of them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection

import torch
from tvm import tirx
from tvm_ffi import structural_equal

from ...ir import DType, Op
from ...ir import ops as ir_ops
from ..templates.base import Expr
from ..templates.vector import bfloat16, integers, vector_math
from ..templates.vector.builder import constant
from ..templates.vector.lookup import ByteTable
from ..templates.vector.storage import REGISTERS, STORAGE
from ..templates.vector.vectors import cast, dtype_of, in_register, lanes_of

Emitter = Callable[..., Expr]

_FLOATING = frozenset({DType.F64, DType.F32, DType.BF16, DType.F16})

_EMITTERS: dict[type[Op], tuple[Emitter, frozenset[DType]]] = {}


def emits(*kinds: type[Op], dtypes: Collection[DType] = frozenset(DType)) -> Callable[[Emitter], Emitter]:
    """Register how ops with results of ``dtypes`` are written: ``emitter(op, *operand_vectors) -> vector``."""

    def register(emitter: Emitter) -> Emitter:
        _EMITTERS.update(dict.fromkeys(kinds, (emitter, frozenset(dtypes))))
        return emitter

    return register


def registered_emitters() -> tuple[Emitter, ...]:
    """Every function that `emits` has registered."""
    return tuple(emitter for emitter, _ in _EMITTERS.values())


def can_emit(op: Op) -> bool:
    """Whether an elementwise op has a vector form on its element types."""
    _, dtypes = _EMITTERS.get(type(op), (None, frozenset[DType]()))
    return op.result.type.dtype in dtypes


def emit(op: Op, *operands: Expr, exact: bool = False) -> Expr:
    """The result of an elementwise op on vectors of one lane count; booleans are in their stored form.

    With ``exact``, a float32 result is rounded before anything else happens to it, as in the reference evaluation.
    """
    result = as_stored(_EMITTERS[type(op)][0](op, *operands))
    return in_register(integers.rounded(result) if exact and dtype_of(result, 1) == "float32" else result)


def like(vector: Expr, value: float) -> Expr:
    """A vector of ``value`` with the lanes and element type of ``vector``."""
    return constant(value, lanes_of(vector), dtype_of(vector, 1))


def filled(op: ir_ops.FullOp, lanes: int) -> Expr:
    """A vector of the op's number, as an operand of other ops.

    TVM must not see a floating-point zero: it makes ``0 * x`` and ``0 / x`` 0 and ``x + 0`` x, which is wrong where x
    is NaN, infinite or -0, and it stops at ``x / 0``.
    """
    number = op.attrs.value
    if op.attrs.dtype in (DType.F16, DType.BF16):  # registers would hold it as it is
        number = torch.tensor(number, dtype=op.attrs.dtype.torch).item()
    vector = constant(number, lanes, REGISTERS[op.attrs.dtype])
    return integers.rounded(vector) if op.attrs.value == 0 and op.attrs.dtype.is_floating else vector


def as_condition(vector: Expr) -> Expr:
    """Where numbers or stored booleans are not zero; NaN is not."""
    if dtype_of(vector, 1).startswith("float"):
        vector = _differ(vector, like(vector, 0))
    return tirx.NE(vector, like(vector, 0))


def as_stored(vector: Expr) -> Expr:
    """A condition in the form that buffers hold."""
    return cast(vector, "uint8") if dtype_of(vector, 1) == "bool" else vector


def at_least(vector: Expr, bound: float) -> Expr:
    """``max(vector, bound)``, where NaN stays NaN; one instruction, as the bound is the first operand."""
    limit = like(vector, bound)
    return tirx.Select(limit > vector, limit, vector)


def at_most(vector: Expr, bound: float) -> Expr:
    """``min(vector, bound)``, where NaN stays NaN."""
    limit = like(vector, bound)
    return tirx.Select(limit < vector, limit, vector)


def is_boolean(op: Op) -> bool:
    """Whether the first operand is boolean, whose stored form is a byte that must stay 0 or 1."""
    return op.inputs[0].type.dtype is DType.BOOL


@emits(ir_ops.AddOp)
def _add(op: Op, a: Expr, b: Expr) -> Expr:
    return tirx.Max(a, b) if is_boolean(op) else a + b


@emits(ir_ops.SubOp)
def _sub(op: Op, a: Expr, b: Expr) -> Expr:
    if _is_same_float(a, b):  # written as a - a, TVM would make it 0, which is wrong for infinities and NaN
        a = integers.rounded(a)  # else LLVM might merge one of the two with the product that it is, and round it less
        return a + (like(a, -0.0) - a)
    return a - b


def _ordered(first: Expr, a: Expr, b: Expr) -> Expr:
    """``a`` where ``first`` holds, else ``b``; NaN where either operand is, as in PyTorch."""
    chosen = tirx.Select(first, a, b)  # b if either is NaN
    return tirx.Select(_is_number(a), chosen, a) if _is_float(a) else chosen


def _is_float(vector: Expr) -> bool:
    return dtype_of(vector, 1).startswith("float")


def _is_same_float(a: Expr, b: Expr) -> bool:
    """Whether TVM would see equal floating-point expressions, and simplify as if they were numbers, never NaN."""
    return _is_float(a) and structural_equal(a, b)


def _is_number(vector: Expr) -> Expr:
    """Where floats are not NaN; ``vector == vector`` would be simplified away."""
    return tirx.GE(vector, like(vector, -math.inf))


@emits(ir_ops.PowOp, dtypes=_FLOATING)
def _pow(op: Op, a: Expr, b: Expr) -> Expr:
    return tirx.power(a, b)


_COMPARISONS: dict[type[Op], Callable[[Expr, Expr], Expr]] = {
    ir_ops.EqOp: tirx.EQ,
    ir_ops.LtOp: tirx.LT,
    ir_ops.LeOp: tirx.LE,
    ir_ops.GtOp: tirx.GT,
    ir_ops.GeOp: tirx.GE,
}


@emits(*_COMPARISONS)
def _compare(op: Op, a: Expr, b: Expr) -> Expr:
    holds = _COMPARISONS[type(op)](a, b)
    return tirx.And(holds, _is_number(a)) if _is_same_float(a, b) else holds


def _differ(a: Expr, b: Expr) -> Expr:
    """Stored booleans: whether the operands differ; NaN differs from everything, which TVM's own comparison denies."""
    equal = in_register(as_stored(_is_number(a) if _is_same_float(a, b) else tirx.EQ(a, b)))
    return like(equal, 1) - equal


@emits(ir_ops.ReluOp)
def _relu(op: Op, a: Expr) -> Expr:
    return a if dtype_of(a, 1).startswith("uint") else at_least(a, 0)


@emits(ir_ops.ClampOp)
def _clamp(op: ir_ops.ClampOp, a: Expr) -> Expr:
    if not op.x.type.dtype.is_floating:
        low, high = op.integer_bounds
        return tirx.Min(tirx.Max(a, like(a, low)), like(a, high))
    if math.isnan(op.attrs.min) or math.isnan(op.attrs.max):
        return like(a, math.nan)
    if op.attrs.min != -math.inf:
        a = at_least(a, op.attrs.min)
    if op.attrs.max != math.inf:
        a = in_register(a) if op.attrs.min != -math.inf else a
        a = at_most(a, op.attrs.max)
    return a


@emits(ir_ops.LeakyReluOp)
def _leaky_relu(op: Op, a: Expr) -> Expr:
    return tirx.Select(tirx.GT(a, like(a, 0)), a, a * like(a, op.attrs.negative_slope))


@emits(ir_ops.HardSigmoidOp)
def _hard_sigmoid(op: Op, a: Expr) -> Expr:
    shifted = in_register(a + like(a, 3))
    return at_most(in_register(at_least(shifted, 0)), 6) * like(a, 1 / 6)


@emits(ir_ops.HardSwishOp)
def _hard_swish(op: Op, a: Expr) -> Expr:
    return a * _hard_sigmoid(op, a)


_FORMULAS: dict[type[Op], Callable[..., Expr]] = {
    ir_ops.MulOp: operator.mul,
    ir_ops.DivOp: tirx.Div,
    ir_ops.MaximumOp: lambda a, b: _ordered(tirx.GT(a, b), a, b),
    ir_ops.MinimumOp: lambda a, b: _ordered(tirx.LT(a, b), a, b),
    ir_ops.NeOp: _differ,
    ir_ops.LogicalAndOp: lambda a, b: tirx.And(as_condition(a), as_condition(b)),
    ir_ops.LogicalOrOp: lambda a, b: tirx.Or(as_condition(a), as_condition(b)),
    ir_ops.LogicalNotOp: lambda a: tirx.Not(as_condition(a)),
    ir_ops.WhereOp: lambda condition, a, b: tirx.Select(as_condition(condition), a, b),
    ir_ops.SqrtOp: tirx.sqrt,
    ir_ops.RsqrtOp: lambda a: tirx.Div(like(a, 1), tirx.sqrt(a)),
    ir_ops.ReciprocalOp: lambda a: tirx.Div(like(a, 1), a),
    ir_ops.AbsOp: tirx.abs,
    ir_ops.FloorOp: tirx.floor,
    ir_ops.CeilOp: tirx.ceil,
    ir_ops.TruncOp: tirx.trunc,
    ir_ops.RoundOp: lambda a: _intrinsic("rint", a),
    ir_ops.CopySignOp: lambda a, b: _intrinsic("copysign", a, b),
    ir_ops.BitAndOp: operator.and_,
    ir_ops.BitOrOp: operator.or_,
    ir_ops.BitXorOp: operator.xor,
    ir_ops.ObserveOp: lambda a: a,
}
_FUNCTIONS: dict[type[Op], Callable[..., Expr]] = {
    ir_ops.SigmoidOp: vector_math.sigmoid,
    ir_ops.SiluOp: vector_math.silu,
    ir_ops.TanhOp: vector_math.tanh,
    ir_ops.ExpOp: vector_math.exp,
    ir_ops.ErfOp: vector_math.erf,
    ir_ops.LogOp: vector_math.log,
    ir_ops.Log1pOp: vector_math.log1p,
    ir_ops.Expm1Op: vector_math.expm1,
    ir_ops.SinOp: tirx.sin,
    ir_ops.CosOp: tirx.cos,
    ir_ops.Exp2Op: vector_math.exp2,
}
# Functions of the C library, called number by number.
_LIBRARY: dict[type[Op], str] = {
    ir_ops.TanOp: "tan",
    ir_ops.AsinOp: "asin",
    ir_ops.AcosOp: "acos",
    ir_ops.AtanOp: "atan",
    ir_ops.SinhOp: "sinh",
    ir_ops.CoshOp: "cosh",
    ir_ops.AsinhOp: "asinh",
    ir_ops.AcoshOp: "acosh",
    ir_ops.AtanhOp: "atanh",
    ir_ops.ErfcOp: "erfc",
    ir_ops.LgammaOp: "lgamma",
    ir_ops.Atan2Op: "atan2",
    ir_ops.HypotOp: "hypot",
    ir_ops.FmodOp: "fmod",
}


@emits(*_FORMULAS)
def _formula(op: Op, *operands: Expr) -> Expr:
    return _FORMULAS[type(op)](*operands)


@emits(*_FUNCTIONS, dtypes=_FLOATING)
def _function(op: Op, *operands: Expr) -> Expr:
    return _FUNCTIONS[type(op)](*operands)


@emits(*_LIBRARY, dtypes=_FLOATING)
def _library_function(op: Op, *operands: Expr) -> Expr:
    return vector_math.library(_LIBRARY[type(op)], *operands)


@emits(ir_ops.NextAfterOp, dtypes=(DType.F32, DType.F64))
def _next_after(op: Op, a: Expr, b: Expr) -> Expr:
    return vector_math.library("nextafter", a, b)


def _intrinsic(name: str, *operands: Expr) -> Expr:
    return tirx.call_llvm_pure_intrin(dtype_of(operands[0]), f"llvm.{name}", *operands)


@emits(ir_ops.QuotientOp)
def _quotient(op: Op, a: Expr, b: Expr) -> Expr:
    """Neither a division by 0 nor that of the smallest number by -1, which processors stop at."""
    a, b = in_register(a), in_register(b)
    zero, one = like(b, 0), like(b, 1)
    if dtype_of(b, 1).startswith("uint"):
        return tirx.Select(tirx.EQ(b, zero), zero, tirx.truncdiv(a, in_register(tirx.Max(b, one))))
    is_unsafe = tirx.Or(tirx.EQ(b, zero), tirx.EQ(b, like(b, -1)))
    divided = in_register(tirx.truncdiv(a, in_register(tirx.Select(is_unsafe, one, b))))
    return tirx.Select(tirx.EQ(b, zero), zero, tirx.Select(tirx.EQ(b, like(b, -1)), zero - a, divided))


@emits(ir_ops.IntegerRemainderOp)
def _integer_remainder(op: Op, a: Expr, b: Expr) -> Expr:
    return a - in_register(_quotient(op, a, b)) * b


@emits(ir_ops.ShiftLeftOp, ir_ops.ShiftRightOp)
def _shift(op: Op, a: Expr, b: Expr) -> Expr:
    a, b = in_register(a), in_register(b)
    last = op.result.type.dtype.itemsize * 8 - 1
    inside = tirx.And(tirx.GE(b, like(b, 0)), tirx.LE(b, like(b, last)))
    count = in_register(tirx.Select(inside, b, like(b, last)))
    if isinstance(op, ir_ops.ShiftLeftOp):
        return tirx.Select(inside, a << count, like(a, 0))
    return tirx.Select(inside, a >> count, like(a, 0)) if dtype_of(a, 1).startswith("uint") else a >> count


@emits(ir_ops.GeluOp, dtypes=_FLOATING)
def _gelu(op: Op, a: Expr) -> Expr:
    return vector_math.gelu_tanh(a) if op.attrs.approximate == "tanh" else vector_math.gelu(a)


@emits(ir_ops.NegOp)
def _neg(op: ir_ops.NegOp, a: Expr) -> Expr:
    # From -0 rather than 0, so that the negative of 0 is -0.
    return like(a, -0.0) - a if op.x.type.dtype.is_floating else like(a, 0) - a


@emits(ir_ops.CastOp)
def _cast(op: ir_ops.CastOp, a: Expr) -> Expr:
    if op.attrs.dtype is DType.BOOL:
        return as_condition(a)
    if op.attrs.dtype is DType.BF16 and op.x.type.dtype is not DType.BF16:
        return bfloat16.widen(bfloat16.narrow(cast(a, "float32")))  # registers hold it as float32, but it is rounded
    if op.attrs.dtype is DType.F16 and op.x.type.dtype is not DType.F16:
        return cast(in_register(cast(a, "float16")), "float32")
    return cast(a, REGISTERS[op.attrs.dtype])


@emits(ir_ops.QuantizeOp)
def _quantize(op: Op, a: Expr) -> Expr:
    return integers.quantize(a, op.attrs.scale, op.attrs.zero_point, STORAGE[op.attrs.dtype])


@emits(ir_ops.QuantizeByOp)
def _quantize_by(op: Op, a: Expr, scale: Expr) -> Expr:
    reciprocal = integers.rounded(like(scale, 1) / scale)
    return integers.quantize(integers.rounded(a * reciprocal), 1.0, 0, STORAGE[op.result.type.dtype])


@emits(ir_ops.DequantizeOp)
def _dequantize(op: Op, a: Expr, scale: Expr) -> Expr:
    return integers.dequantize(a, scale, op.attrs.zero_point)


@emits(ir_ops.LookupOp)
def _lookup(op: ir_ops.LookupOp, a: Expr, table: ByteTable) -> Expr:
    places = cast(a, "uint8")
    return table.at(places + like(places, 128) if op.x.type.dtype is DType.I8 else places)
