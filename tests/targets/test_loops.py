"""Kernels without a template of their own: integer reductions and adaptive pooling, as plain loops."""

from __future__ import annotations

import pytest
import torch

from tersor.ir import DType, TensorType, ops
from tersor.ir.codec import encode
from tersor.targets.codegen.options import Options
from tersor.targets.machines.catalog import resolve_cpu
from tersor.targets.templates.loops import AdaptivePoolSpec, IntegerReduceSpec, LoopKnobs
from tersor.targets.templates.option import Option, Workload
from tersor.tests.random_graphs import GraphBuilder

from .compiled import NATIVE, check, lowered, templates

SHAPE = (3, 5, 4, 6)


@pytest.mark.parametrize("dtype", [DType.I32, DType.I64, DType.I8, DType.I16], ids=lambda dtype: dtype.value)
@pytest.mark.parametrize("axes", [(0,), (3,), (1, 2), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("kind", [ops.SumOp, ops.MaxOp, ops.MinOp], ids=lambda kind: kind.name)
def test_integer_reductions(kind: type, axes: tuple[int, ...], dtype: DType) -> None:
    b = GraphBuilder({"x": TensorType(SHAPE, dtype)})
    graph = b.done(b.op(kind, b.graph.inputs[0], axes=axes))
    values = torch.randint(-100, 100, SHAPE, generator=torch.Generator().manual_seed(0)).to(dtype.torch)
    check(graph, values)
    assert "loops" in templates(lowered(graph))


def test_integer_reductions_with_something_fused_behind() -> None:
    b = GraphBuilder({"x": TensorType(SHAPE, DType.I32), "y": TensorType((3, 4, 6), DType.I32)})
    x, y = b.graph.inputs
    graph = b.done(b.op(ops.AddOp, b.op(ops.SumOp, x, axes=(1,)), y))
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randint(-100, 100, value.shape, generator=generator, dtype=torch.int32) for value in (x, y)]
    check(graph, *inputs, pipeline="fuse,layout")


def test_schedules_that_a_search_finds_are_options() -> None:
    workload = Workload("adaptive_pool2d", AdaptivePoolSpec(1, 16, 7, 7, 3, 2, 16))
    options = Options(workload, resolve_cpu(NATIVE))
    found = Option("loops", LoopKnobs("[[], []]"))
    assert list(options) == [Option("loops", LoopKnobs())]
    assert found in options
    assert Option("reduce", LoopKnobs("[[], []]")) not in options
    assert "loops" not in options
    assert Option.from_json(encode(found)) == found
    assert Workload.from_json(encode(workload)) == workload


def test_knobs_are_told_apart_in_few_letters() -> None:
    names = {str(LoopKnobs(trace)) for trace in ("", "a" * 1000, "b" * 1000)}
    assert len(names) == 3
    assert max(map(len, names)) < 40


@pytest.mark.parametrize(
    "make",
    [
        lambda: AdaptivePoolSpec(1, 16, 0, 7, 3, 2, 16),
        lambda: AdaptivePoolSpec(1, 16, 7, 7, 3, 2, 16, "bfloat16"),
        lambda: IntegerReduceSpec("mean", (3, 4), (1,), "int32"),
        lambda: IntegerReduceSpec("sum", (3, 4), (2,), "int32"),
        lambda: IntegerReduceSpec("sum", (3, 4), (), "int32"),
        lambda: IntegerReduceSpec("sum", (3, 4), (1,), "float32"),
    ],
)
def test_specs_are_checked(make: object) -> None:
    with pytest.raises(ValueError, match=r"must be|are not"):
        make()  # type: ignore[operator]
