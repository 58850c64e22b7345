"""Distances between all rows of two tables."""

from __future__ import annotations

import math

from tvm import te, tirx

from ....ir.ops import DistanceOp
from ..base import Expr
from .formula import expresses


@expresses(DistanceOp)
def distance(op: DistanceOp, x: te.Tensor, y: te.Tensor) -> te.Tensor:
    """Sums of powers of differences, and their roots; a count or an extremum where the power is 0 or infinite."""
    p, dtype = op.attrs.p, x.dtype
    k = te.reduce_axis((0, op.x.shape[-1]), "k")

    def term(*at: Expr) -> Expr:
        *batch, row, column = at
        difference = tirx.abs(x(*batch, row, k) - y(*batch, column, k))
        if p == 0:
            return te.sum(tirx.Cast(dtype, tirx.NE(difference, tirx.const(0, dtype))), k)
        if p == math.inf:
            return te.max(difference, k)
        power = {1: difference, 2: difference * difference}.get(p)
        return te.sum(_power(difference, p) if power is None else power, k)

    total = te.compute(op.result.shape, term, "total")
    if p in (0, 1, math.inf):
        return total
    if p == 2:
        return te.compute(op.result.shape, lambda *at: tirx.sqrt(total(*at)), "norm")
    return te.compute(op.result.shape, lambda *at: _power(total(*at), 1 / p), "norm")


def _power(base: Expr, exponent: float) -> Expr:
    """By the C library: TVM's own ``power`` makes products of some exponents, and warns of it."""
    dtype = base.ty.dtype
    return tirx.call_intrin(dtype, "tirx.pow", base, tirx.const(exponent, dtype))
