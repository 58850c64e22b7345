"""From a network to tuning problems that stand alone: the same workloads, nothing lost, right numbers."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch

from tersor.ir import DType, Graph, TensorType, Value, ops
from tersor.ir.codec import decode, encode
from tersor.passes import run_passes
from tersor.targets import compile_graph
from tersor.targets.codegen.lowering import lower
from tersor.targets.machines.catalog import resolve_cpu
from tersor.targets.templates.option import Workload
from tersor.targets.tuning.extract import extract_tasks
from tersor.targets.tuning.task import Task, check_outputs, seeded_graph, seeded_inputs
from tersor.tests.random_graphs import GraphBuilder, random_graph

NATIVE = resolve_cpu("x86:native")


def prepared(graph: Graph) -> Graph:
    return run_passes(graph, "O3,fold-batchnorm,layout", target=NATIVE)


def residual_network() -> Graph:
    b = GraphBuilder({"x": TensorType((1, 3, 20, 20))})
    x = b.op(ops.ReluOp, b.conv(b.graph.inputs[0], 32, location="stem"))
    for index in range(3):
        branch = b.op(ops.ReluOp, b.conv(x, 32, location=f"block{index}.a"))
        x = b.op(ops.ReluOp, b.op(ops.AddOp, x, b.conv(branch, 32, location=f"block{index}.b")))
    return b.done(b.linear(b.op(ops.MeanOp, x, axes=(2, 3)), 10))


def attention_network() -> Graph:
    """Heads split and merged by permutes, and one operand of a product that is a slice."""
    b = GraphBuilder({"x": TensorType((1, 12, 48))})
    (x,) = b.graph.inputs

    def heads(weight_of: str) -> Value:
        y = b.op(ops.ReshapeOp, b.linear(x, 48, bias=weight_of == "q"), shape=(1, 12, 3, 16))
        return b.op(ops.PermuteOp, y, dims=(0, 2, 1, 3))

    q, k, v = heads("q"), heads("k"), heads("v")
    scores = b.op(ops.SoftmaxOp, b.op(ops.MatmulOp, q, k, transpose_rhs=True), axis=3)
    y = b.op(ops.PermuteOp, b.op(ops.MatmulOp, scores, v), dims=(0, 2, 1, 3))
    y = b.op(ops.ReshapeOp, y, shape=(1, 12, 48))
    half = b.op(ops.SliceOp, y, axis=2, start=0, stop=24, step=1)
    return b.done(b.op(ops.MatmulOp, half, b.op(ops.SliceOp, y, axis=2, start=24, stop=48, step=1), transpose_rhs=True))


def check_tasks(graph: Graph) -> list[Task]:
    """Every choice of the network is a task, and every task's graph makes the same choice."""
    calls = [call.kernel.choice for call in lower(graph, NATIVE).calls if call.op is not None and call.kernel.choice]
    tasks = extract_tasks(graph, NATIVE)
    assert {task.workload: task.weight for task in tasks} == Counter(choice.workload for choice in calls)
    for task in tasks:
        program = lower(task.graph(), task.target)
        assert task.workload in {call.kernel.choice.workload for call in program.calls if call.kernel.choice}
        assert not any(value.type.channel_block for value in (*program.graph.inputs, *program.graph.outputs))
        assert decode(Task, encode(task), "task") == task
    return tasks


def test_a_residual_network():
    tasks = check_tasks(prepared(residual_network()))
    kinds = Counter(task.workload.kind for task in tasks)
    assert kinds["conv2d"] == 2
    assert kinds["matmul"] == 1
    inner = next(task for task in tasks if task.weight == 6)
    assert (inner.location, inner.macs) == ("block0.a", 32 * 32 * 9 * 400)
    assert inner.threads == NATIVE.cores


def test_views_come_along():
    kinds = Counter(task.workload.kind for task in check_tasks(prepared(attention_network())))
    assert kinds["matmul"] + kinds["attention"] >= 3


@pytest.mark.parametrize("seed", range(6))
def test_random_networks(seed):
    check_tasks(prepared(random_graph(seed, 14)))


def test_threads_belong_to_the_task():
    graph = prepared(residual_network())
    assert {task.threads for task in extract_tasks(graph, NATIVE, threads=1)} == {1}


def test_seeded_numbers_are_the_same_every_time():
    text = check_tasks(prepared(residual_network()))[0].ir
    first, second = seeded_graph(text), seeded_graph(text)
    assert all(torch.equal(first.weights[id], second.weights[id]) for id in first.weights)
    for left, right in zip(seeded_inputs(first), seeded_inputs(second), strict=True):
        assert torch.equal(left, right)


def test_a_task_computes_the_numbers_of_the_interpreter():
    for task in check_tasks(prepared(attention_network())):
        graph = task.graph()
        inputs = seeded_inputs(graph)
        outputs = compile_graph(graph, task.target)(*inputs)
        actual = outputs if isinstance(outputs, tuple) else (outputs,)
        assert check_outputs(graph, graph.evaluate(*inputs), actual) == ""


@pytest.mark.parametrize(
    ("dtype", "spoil", "message"),
    [
        (DType.F32, lambda y: y * 2, "differs by 1 of its scale, more than 0.0001"),
        (DType.F32, lambda y: y + 3e-4 * y.abs().max(), "differs by 0.0003 of its scale"),
        (DType.F32, lambda y: y.index_fill(0, torch.tensor(0), torch.nan), "differs by inf of its scale"),
        (DType.F32, lambda y: y[:1], r"is torch.float32 \[1, 8\], not torch.float32 \[4, 8\]"),
        (DType.BF16, lambda y: y * 1.1, "differs by 0.1 of its scale, more than 0.02"),
        (DType.U8, lambda y: y + 1, "differs in 32 of 32 integers"),
    ],
)
def test_wrong_numbers_are_found(dtype, spoil, message):
    b = GraphBuilder({"x": TensorType((4, 8), dtype)})
    graph = b.done(b.op(ops.ReluOp, b.graph.inputs[0]))
    expected = graph.evaluate(*seeded_inputs(graph))
    assert check_outputs(graph, expected, expected) == ""
    found = check_outputs(graph, expected, [spoil(one) for one in expected])
    assert re.search(message, found), found


def test_unknown_kinds_are_named():
    with pytest.raises(ValueError, match="unknown kind of kernel 'convolution2d'"):
        Workload.from_json({"kind": "convolution2d", "spec": {}})
