"""Algebra of elementwise ops: neutral operands, bounds, casts, gates.

==================================  ==========================================================
add-zero, mul-one                   x + 0, x - 0, x * 1, x / 1, x ** 1 -> x
scalar-right                        2 * x -> x * 2 for commutative ops, so that other rules look at one side only
bound-to-clamp                      maximum(x, a), minimum(x, b) -> clamp(x)
clamp-of-clamp                      clamp(clamp(x)) -> clamp(x); ReLU counts as a clamp, so ReLU of ReLU is one ReLU
clamp-to-relu                       clamp(x, 0, inf) -> relu(x); clamp without bounds -> x
cast-chain                          cast(x) to its own type -> x; a lossless cast before another -> the latter alone
double-negation                     -(-x) -> x
gate                                x * sigmoid(x) -> silu(x); x * hardsigmoid(x) -> hardswish(x)
==================================  ==========================================================
"""

from __future__ import annotations

import math

from ...ir import DType, Op, Rewriter, Value, is_constant
from ...ir.ops import (
    AddOp,
    BinaryOp,
    CastOp,
    ClampOp,
    DivOp,
    HardSigmoidOp,
    HardSwishOp,
    LogicalNotOp,
    MaximumOp,
    MinimumOp,
    MulOp,
    NegOp,
    PowOp,
    ReluOp,
    SigmoidOp,
    SiluOp,
    SubOp,
)
from ..matching import become, rewrite, scalar

_NEUTRAL_RIGHT: dict[type[Op], int] = {AddOp: 0, SubOp: 0, MulOp: 1, DivOp: 1, PowOp: 1}
_GATES = {SigmoidOp: SiluOp, HardSigmoidOp: HardSwishOp}

# Significant bits and largest exponent of floating types, value bits of integer types: what a type can hold exactly.
_FLOATS = {DType.F16: (11, 15), DType.BF16: (8, 127), DType.F32: (24, 127), DType.F64: (53, 1023)}
_INTEGERS = {DType.BOOL: 1, DType.U8: 8, DType.I8: 7, DType.I16: 15, DType.I32: 31, DType.I64: 63}
_UNSIGNED = (DType.BOOL, DType.U8)


def neutral_operand(op: Op, rewriter: Rewriter) -> bool:
    """x + 0, x * 1 and their like -> x."""
    neutral = _NEUTRAL_RIGHT.get(type(op))
    if neutral is None or not isinstance(op, BinaryOp) or scalar(op.rhs) != neutral:
        return False
    if op.result.type.logical != op.lhs.type.logical:
        return False
    return rewrite("mul-one" if neutral else "add-zero", op, rewriter, lambda: op.lhs)


def scalar_right(op: Op, rewriter: Rewriter) -> bool:
    """Constants of commutative ops go to the right."""
    if not isinstance(op, BinaryOp) or not op.commutative or not is_constant(op.lhs) or is_constant(op.rhs):
        return False
    return become("scalar-right", op, rewriter, type(op), (op.rhs, op.lhs))


def bound_to_clamp(op: Op, rewriter: Rewriter) -> bool:
    """maximum(x, a) -> clamp(x, a, inf); minimum(x, b) -> clamp(x, -inf, b)."""
    if not isinstance(op, MaximumOp | MinimumOp) or not op.lhs.type.dtype.is_floating:
        return False
    bound = scalar(op.rhs)
    if bound is None or math.isnan(bound) or op.result.type.logical != op.lhs.type.logical:
        return False
    side = {"min": float(bound)} if isinstance(op, MaximumOp) else {"max": float(bound)}
    return become("bound-to-clamp", op, rewriter, ClampOp, (op.lhs,), ClampOp.attrs_type(**side))


def clamp_of_clamp(op: Op, rewriter: Rewriter) -> bool:
    """Two clamps in a row are one: bounds of the first are clamped by the second (both are monotonic)."""
    if not isinstance(op, ReluOp | ClampOp) or not isinstance(op.x.op, ReluOp | ClampOp):
        return False
    if not op.x.type.dtype.is_floating:
        return False
    outer, inner = _bounds(op), _bounds(op.x.op)
    if not (outer[0] <= outer[1] and inner[0] <= inner[1]):
        return rewriter.refuse("clamp-of-clamp", op, "a lower bound is above the upper one, or NaN")
    low, high = (min(max(bound, outer[0]), outer[1]) for bound in inner)
    if (low, high) == (0, math.inf):
        return become("clamp-of-clamp", op, rewriter, ReluOp, (op.x.op.x,))
    return become("clamp-of-clamp", op, rewriter, ClampOp, (op.x.op.x,), ClampOp.attrs_type(min=low, max=high))


def clamp_to_relu(op: Op, rewriter: Rewriter) -> bool:
    """clamp(x, 0, inf) -> relu(x); a clamp without bounds -> x."""
    if not isinstance(op, ClampOp):
        return False
    bounds = (op.attrs.min, op.attrs.max)
    if bounds == (0, math.inf):
        return become("clamp-to-relu", op, rewriter, ReluOp, (op.x,))
    return bounds == (-math.inf, math.inf) and rewrite("clamp-to-relu", op, rewriter, lambda: op.x)


def cast_chain(op: Op, rewriter: Rewriter) -> bool:
    """A cast to the same type -> x; a lossless cast before a cast is skipped."""
    if not isinstance(op, CastOp):
        return False
    source: Value = op.x
    if source.type.dtype is op.attrs.dtype:
        return rewrite("cast-chain", op, rewriter, lambda: source)
    inner = source.op
    if not isinstance(inner, CastOp):
        return False
    if not _lossless(inner.x.type.dtype, inner.attrs.dtype):
        return rewriter.refuse("cast-chain", op, f"the cast to {inner.attrs.dtype.value} before it rounds")
    return become("cast-chain", op, rewriter, CastOp, (inner.x,), op.attrs)


def double_negation(op: Op, rewriter: Rewriter) -> bool:
    """-(-x) -> x, and not(not x) -> x for booleans."""
    if not isinstance(op, NegOp | LogicalNotOp) or type(op.x.op) is not type(op):
        return False
    source = op.x.op.x
    if source.type.dtype is not op.result.type.dtype:
        return False
    return rewrite("double-negation", op, rewriter, lambda: source)


def gate(op: Op, rewriter: Rewriter) -> bool:
    """x * sigmoid(x) -> silu(x) (Elfwing et al. 2018); x * hardsigmoid(x) -> hardswish(x) (Howard et al. 2019)."""
    if not isinstance(op, MulOp):
        return False
    for x, activation in ((op.lhs, op.rhs), (op.rhs, op.lhs)):
        kind = _GATES.get(type(activation.op))
        if kind is None or activation.op.x is not x:
            continue
        return become("gate", op, rewriter, kind, (x,))
    return False


def _bounds(op: ReluOp | ClampOp) -> tuple[float, float]:
    return (0.0, math.inf) if isinstance(op, ReluOp) else (op.attrs.min, op.attrs.max)


def _lossless(source: DType, target: DType) -> bool:
    """Whether every number of type ``source`` is one of type ``target``."""
    if source in _FLOATS:
        return target in _FLOATS and all(a <= b for a, b in zip(_FLOATS[source], _FLOATS[target], strict=True))
    bits = _INTEGERS[source]
    if target in _FLOATS:
        return bits <= _FLOATS[target][0]
    return bits <= _INTEGERS[target] and (source in _UNSIGNED or target not in _UNSIGNED)


RULES = (
    neutral_operand,
    scalar_right,
    bound_to_clamp,
    clamp_of_clamp,
    clamp_to_relu,
    cast_chain,
    double_negation,
    gate,
)
