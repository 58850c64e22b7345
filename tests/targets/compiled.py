"""What every test of compiled code asks: the numbers of the reference interpreter, within float32 rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from tersor.ir import Graph, TensorType, Value, ops, verify
from tersor.passes import run_passes
from tersor.passes.numeric import seeded_inputs
from tersor.targets import Executable, compile_graph, resolve_target
from tersor.targets.codegen.lowering import Program, lower
from tersor.targets.machines.catalog import resolve_cpu
from tersor.targets.machines.target import Target
from tersor.tests.random_graphs import GraphBuilder

NATIVE = "x86:native"
Build = Callable[[GraphBuilder, Value], Value]
TOLERANCE = 1e-5  # of the largest finite output


def prepared(graph: Graph, pipeline: str = "layout", target: str | Target = NATIVE) -> Graph:
    """The graph after a pipeline, verified; without layout when the pipeline does not ask for it."""
    optimized = run_passes(graph, pipeline, target=resolve_target(target)) if pipeline else graph
    verify(optimized)
    return optimized


def lowered(graph: Graph, pipeline: str = "layout", target: str = NATIVE) -> Program:
    """The kernel calls that a graph becomes."""
    return lower(prepared(graph, pipeline, target), resolve_cpu(target))


def templates(program: Program) -> list[str]:
    """Names of the templates called, in order."""
    return [call.kernel.template for call in program.calls]


def compiled(graph: Graph, pipeline: str = "layout", target: str | Target = NATIVE) -> Executable:
    """The graph as machine code."""
    return compile_graph(prepared(graph, pipeline, target), resolve_target(target))


def check(
    graph: Graph,
    *inputs: torch.Tensor,
    pipeline: str = "layout",
    target: str = NATIVE,
    tolerance: float = TOLERANCE,
) -> tuple[torch.Tensor, ...]:
    """Compile and run ``graph`` on ``inputs`` (seeded random ones if omitted); compare and return every output."""
    given = inputs or seeded_inputs(graph)
    outputs = compiled(graph, pipeline, target)(*given)
    actual = outputs if isinstance(outputs, tuple) else (outputs,)
    expected = graph.evaluate(*given)
    for index, (got, wanted) in enumerate(zip(actual, expected, strict=True)):
        assert_same(got, wanted, f"output {index}", tolerance)
    return actual


def assert_same(actual: torch.Tensor, expected: torch.Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    """Equal shapes, types and non-finite elements; the others within ``tolerance`` of the largest."""
    assert actual.shape == expected.shape, what
    assert actual.dtype == expected.dtype, what
    if not expected.is_floating_point():
        assert torch.equal(actual, expected), f"{what}: {_first_difference(actual, expected)}"
        return
    finite = expected[expected.isfinite()]
    scale = finite.abs().max().item() if finite.numel() else 0.0
    same = torch.isclose(actual, expected, rtol=tolerance, atol=tolerance * min(scale, 1e3), equal_nan=True)
    assert same.all(), f"{what}: {_first_difference(actual, expected, same)}"


def _first_difference(actual: torch.Tensor, expected: torch.Tensor, same: torch.Tensor | None = None) -> str:
    same = actual == expected if same is None else same
    places: Sequence[Sequence[int]] = (~same).nonzero().tolist()
    first = tuple(places[0])
    return (
        f"{len(places)} elements differ, first at {first}: {actual[first].item()} instead of {expected[first].item()}"
    )


# Short names for building graphs ------------------------------------------------------------------------------------


def builder(**shapes: tuple[int, ...]) -> GraphBuilder:
    return GraphBuilder({name: TensorType(shape) for name, shape in shapes.items()})


def reshape(b: GraphBuilder, x: Value, *shape: int) -> Value:
    return b.op(ops.ReshapeOp, x, shape=shape)


def permute(b: GraphBuilder, x: Value, *dims: int) -> Value:
    return b.op(ops.PermuteOp, x, dims=dims)


def part(b: GraphBuilder, x: Value, axis: int, start: int, stop: int, step: int = 1) -> Value:
    return b.op(ops.SliceOp, x, axis=axis, start=start, stop=stop, step=step)


def expand(b: GraphBuilder, x: Value, *shape: int) -> Value:
    return b.op(ops.ExpandOp, x, shape=shape)
