"""Ops without a template of their own, by their formulas: the numbers of the reference interpreter, on every type."""

from __future__ import annotations

import math

import pytest
import torch

from tersor.ir import DType, Graph, TensorType, ops
from tersor.ir.codec import encode
from tersor.targets.machines.catalog import resolve_cpu
from tersor.targets.templates.loops.formula import OpSpec, build_op
from tersor.tests.random_graphs import GraphBuilder

from .compiled import NATIVE, check, lowered, templates

FLOATING = (DType.F32, DType.F64, DType.F16, DType.BF16)
INTEGERS = (DType.I64, DType.I32, DType.I16, DType.I8, DType.U8, DType.BOOL)


def numbers(type: TensorType, seed: int = 0) -> torch.Tensor:
    """Few different ones, so that some are equal; a NaN, and rows of them."""
    values = torch.randint(0, 5, type.shape, generator=torch.Generator().manual_seed(seed)).to(type.dtype.torch)
    if type.dtype in (DType.I64, DType.I32, DType.I16, DType.I8):
        values -= 2
    if type.dtype.is_floating:
        values = values / 2 - 1
        values[..., 0, 1:4] = math.nan
        values[0, ..., -1] = math.nan
        values[values == 0.5] = -0.0
    return values


def check_on_all_types(build, dtypes, widths=(3, 21, 19), tolerance=1e-5) -> None:
    """One program for all element types: ``build(builder, value)`` gives the results of one input."""
    b = GraphBuilder({dtype.value: TensorType(widths, dtype) for dtype in dtypes})
    graph = b.done(*(result for value in b.graph.inputs for result in build(b, value)))
    check(graph, *(numbers(value.type) for value in graph.inputs), tolerance=tolerance)


def test_arguments():
    def build(b, x):
        kinds = (ops.ArgMaxOp, ops.ArgMinOp)
        return [b.op(kind, x, axis=axis, keepdim=bool(axis)) for axis in range(3) for kind in kinds]

    check_on_all_types(build, (*FLOATING, *INTEGERS))


def test_products():
    def build(b, x):
        return [b.op(ops.ProdOp, x, axes=axes, keepdim=len(axes) == 1) for axes in ((0,), (2,), (0, 2), (0, 1, 2))]

    check_on_all_types(build, (DType.F32, *INTEGERS[:-1]))


def test_scans():
    def build(b, x):
        kinds = [ops.CumMaxOp, ops.CumMinOp, ops.ArgCumMaxOp, ops.ArgCumMinOp]
        kinds += [ops.CumSumOp, ops.CumProdOp] if x.type.dtype is not DType.BOOL else []
        kinds += [ops.LogCumSumExpOp] if x.type.dtype.is_floating else []
        return [b.op(kind, x, axis=axis) for axis in range(3) for kind in kinds]

    check_on_all_types(build, (DType.F32, DType.F64, *INTEGERS), widths=(3, 5, 19))
    check_on_all_types(build, (DType.F16, DType.BF16), widths=(2, 3, 9), tolerance=1e-2)


@pytest.mark.parametrize(("extent", "count"), [(5, 5), (37, 9), (70, 3), (90, 40), (700, 30), (300, 300)])
def test_sorting(extent: int, count: int):
    def build(b, x):
        kinds = (ops.SortOp, ops.ArgSortOp)
        axes = [axis for axis in range(3) if x.shape[axis] == extent]
        directions = [(axis, down) for axis in axes for down in (False, True)]
        return [b.op(k, x, axis=axis, count=count, descending=down) for axis, down in directions for k in kinds]

    some = (DType.F32, DType.I32) if count > 32 else (*FLOATING, *INTEGERS)
    check_on_all_types(build, some, widths=(3, extent, 4))
    check_on_all_types(build, (DType.F64, DType.I8), widths=(2, 2, extent))


def test_searching():
    b = GraphBuilder({"rows": TensorType((3, 9)), "row": TensorType((9,)), "numbers": TensorType((3, 7))})
    rows, row, x = b.graph.inputs
    graph = b.done(*(b.op(ops.SearchOp, one, x, right=right) for one in (rows, row) for right in (False, True)))
    sorted_rows = numbers(rows.type).sort().values
    given = numbers(x.type, 1)
    given[1, 2] = math.inf
    check(graph, sorted_rows, sorted_rows[1], given)


@pytest.mark.parametrize("dtype", [DType.F32, DType.F64])
def test_distances(dtype: DType):
    b = GraphBuilder({"x": TensorType((2, 5, 7), dtype), "y": TensorType((2, 4, 7), dtype)})
    x, y = b.graph.inputs
    powers = (0.0, 0.5, 1.0, 2.0, 3.0, math.inf)
    check(b.done(*(b.op(ops.DistanceOp, x, y, p=p) for p in powers), b.op(ops.DistanceOp, x, x)))


@pytest.mark.parametrize("dtype", [DType.F32, DType.F64])
def test_functions_in_steps(dtype: DType):
    special = torch.tensor([math.nan, math.inf, -math.inf, 0, -0.0, 1e-40, 1, -1, -2.5, 3e38, 30, 11, 0.5])
    drawn = torch.rand(400, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([12, 4])
    n, x = torch.cat([torch.cartesian_prod(special, special), drawn]).to(dtype.torch).unbind(1)
    large = n.abs() * 3000
    b = GraphBuilder({name: TensorType(n.shape, dtype) for name in ("n", "x", "large", "near")})
    values = dict(zip("nxlz", b.graph.inputs, strict=True))
    polynomials = [b.op(ops.PolynomialOp, values["x"], values["n"], family=family) for family in ops.POLYNOMIALS]
    pairs = [(values[first], values[second]) for first, second in ("nx", "xn", "lz")]
    integrals = [b.op(ops.IncompleteGammaOp, *pair, upper=upper) for pair in pairs for upper in (False, True)]
    graph = b.done(*polynomials, *integrals, b.op(ops.ZetaOp, *pairs[0]))
    check(graph, n, x - 2, large, large * (1 + (x - 2) / 500), tolerance=3e-6)


def graph_of_argmax(location: str) -> Graph:
    b = GraphBuilder({location: TensorType((4, 5))})
    return b.done(b.op(ops.ArgMaxOp, b.graph.inputs[0], axis=1))


def test_ops_at_two_places_share_a_kernel():
    first, second = (OpSpec.of(graph_of_argmax(name).ops[0]) for name in "ab")
    assert first == second and first.op.attrs.axis == 1
    assert OpSpec(encode(first)["text"]) == first
    assert templates(lowered(graph_of_argmax("x"))) == ["argmax"]
    assert build_op(first, resolve_cpu(NATIVE)).attrs["global_symbol"] == "argmax"


def test_operands_are_copied_out_of_views():
    b = GraphBuilder({"x": TensorType((6, 5))})
    turned = b.op(ops.PermuteOp, b.graph.inputs[0], dims=(1, 0))
    check(b.done(b.op(ops.ArgMinOp, turned, axis=1)))


@pytest.mark.parametrize(
    "text", ["", "graph @g(%x: f32[4]) {\n  return %x\n}", "graph @g(%x: f32[4]) {\n  %0 = relu(%x)\n  return %0\n}"]
)
def test_specs_are_graphs_of_one_op(text: str):
    with pytest.raises(ValueError, match=r"graph of one op|has no formula"):
        OpSpec(text)
