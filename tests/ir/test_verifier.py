from __future__ import annotations

import pytest
import torch

from tersor.ir import DType, Graph, IRError, TensorType, verify
from tersor.ir.ops import AddOp, FusedOp, ReluOp
from tersor.tests.random_graphs import GraphBuilder


@pytest.fixture
def graph() -> Graph:
    b = GraphBuilder({"x": TensorType((2, 3))})
    hidden = b.op(AddOp, b.graph.inputs[0], b.weight(3), location="sum")
    return b.done(b.op(ReluOp, hidden, location="act"))


def broken(graph: Graph, message: str, **options: bool) -> None:
    with pytest.raises(IRError, match=message):
        verify(graph, **options)


def test_well_formed_graph_passes(graph):
    verify(graph)


def test_use_before_definition(graph):
    graph.reorder(graph.ops[::-1])
    broken(graph, "relu at 'act': operand 0 is the result of add at 'sum', which is not defined before it")


def test_operand_of_another_graph(graph):
    other = Graph("other", [("y", TensorType((2, 3)))])
    graph.ops[-1].set_operand(0, other.inputs[0])
    broken(graph, "relu at 'act': operand 0 is input 'y', which is not defined before it")


def test_op_of_another_graph(graph):
    graph.ops[-1].graph = Graph("other")
    broken(graph, "relu at 'act': is listed in a graph that it does not belong to")


def test_operand_without_its_use(graph):
    graph.ops[1].result._uses.clear()
    broken(graph, "relu at 'act': operand 0 does not list this op among its uses")


def test_use_without_its_operand(graph):
    graph.inputs[0]._add_use(graph.ops[-1], 0)
    broken(graph, "the use list of .* names operand 0 of .*, which is another value")


def test_reader_outside_of_the_graph(graph):
    ReluOp((graph.inputs[0],), location="stray")
    broken(graph, "is read by relu at 'stray', which is not in graph 'test'")


def test_result_type(graph):
    graph.ops[-1].result.type = TensorType((2, 4))
    broken(graph, r"relu at 'act': results are f32\[2,4\], but its type rule gives f32\[2,3\]")


def test_layout_is_free(graph):
    graph.ops[-1].result.type = TensorType((2, 3), DType.F32, 8)
    verify(graph)


def test_result_that_points_elsewhere(graph):
    graph.ops[-1].result.index = 1
    broken(graph, "relu at 'act': a result does not point back to it")


def test_missing_weight(graph):
    graph.weights.keep([])
    broken(graph, "weight 'w' is not in the graph's weight store")
    verify(graph, weights=False)


def test_weight_of_another_type(graph):
    graph.weights._tensors["w"] = torch.zeros(4)
    broken(graph, r"weight 'w' is f32\[4\], declared as f32\[3\]")


def test_output_that_is_not_defined(graph):
    graph.outputs = (Graph("other", [("y", TensorType((2, 3)))]).inputs[0],)
    broken(graph, "output 0 of graph 'test' is not defined in it")


def test_output_without_its_use(graph):
    graph.outputs[0]._uses.clear()
    broken(graph, "output 0 of graph 'test' is missing in the use list of its value")


def test_body_is_verified():
    inner = GraphBuilder({"a": TensorType((2, 3))}, name="inner")
    body = inner.done(inner.op(ReluOp, inner.op(ReluOp, inner.graph.inputs[0]), location="last"))
    graph = Graph("outer", [("x", TensorType((2, 3)))])
    graph.outputs = (graph.append(FusedOp(graph.inputs, body=body)).result,)
    verify(graph)
    body.reorder(body.ops[::-1])
    broken(graph, "relu at 'last': operand 0 is the result of relu, which is not defined before it")
