"""Spaces of options: only feasible points, the analytic default first, every sampled one right, JSON round trips."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.ir import Graph, TensorType, ops
from tersor.ir.codec import CodecError, UnknownNameError, decode, encode
from tersor.passes import run_passes
from tersor.targets import compile_graph
from tersor.targets.codegen.options import Options
from tersor.targets.machines.catalog import resolve_cpu
from tersor.targets.templates import registry
from tersor.targets.templates.conv2d import depthwise, winograd
from tersor.targets.templates.conv2d import tiling as conv2d_tiling
from tersor.targets.templates.conv2d.spec import Conv2dSpec
from tersor.targets.templates.matmul import spec as matmul_spec
from tersor.targets.templates.matmul.spec import ACTIVATION, MatmulSpec
from tersor.targets.templates.option import Option, Workload
from tersor.targets.templates.windows import pooling, window_loops
from tersor.targets.tuning.extract import extract_tasks
from tersor.targets.tuning.task import Task, check_outputs, seeded_inputs
from tersor.tests.random_graphs import GraphBuilder

TARGETS = [resolve_cpu(name) for name in ("x86:avx2", "x86:znver4", "x86:sapphirerapids")]
NATIVE = resolve_cpu("x86:native")

sizes = st.integers(1, 30)
channels = st.integers(1, 80)


@st.composite
def convolutions(draw: st.DrawFn) -> Conv2dSpec:
    kernel = draw(st.sampled_from([1, 3, 5]))
    pad = draw(st.integers(0, kernel // 2))
    groups = draw(st.sampled_from([1, 1, 2]))
    size = kernel + draw(sizes)
    stride, c, o = draw(st.integers(1, 2)), draw(channels) * groups, draw(channels) * groups
    return Conv2dSpec(1, c, size, size, o, (kernel, kernel), (stride, stride), (pad,) * 4, (1, 1), groups)


@given(convolutions(), st.sampled_from(TARGETS))
@settings(max_examples=60, deadline=None)
def test_convolutions_never_spill(spec, target):
    options = Options(Workload("conv2d", spec), target)
    assert len(set(options)) == len(options) <= 600
    for option in options:
        knobs = option.knobs
        if option.template == "conv2d":
            assert knobs.vectors * (knobs.rows * knobs.columns + 1) + 1 <= target.vector_registers
            assert knobs.vectors <= spec.output_blocks(target)
            assert 1 <= knobs.spatial_units <= spec.out_h * spec.out_w
            assert knobs.block_chunk < spec.input_blocks(target)
        elif option.template == "winograd":
            assert knobs.vectors * (knobs.rows + 1) + 1 <= target.vector_registers
        else:
            assert option.template == "depthwise"


@given(convolutions(), st.sampled_from(TARGETS))
@settings(max_examples=40, deadline=None)
def test_the_default_is_the_analytic_choice(spec, target):
    options = Options(Workload("conv2d", spec), target)
    assert options[0] == options.default
    if options.default.template == "conv2d":
        assert options.default.knobs == conv2d_tiling.candidates(spec, target)[0]
    transformable = winograd.supports(spec) is None and options.default.template != "depthwise"
    assert {option.template for option in options} >= ({"conv2d", "winograd"} if transformable else set())


@given(st.integers(1, 300), st.integers(1, 300), st.booleans(), st.sampled_from(TARGETS))
@settings(max_examples=60, deadline=None)
def test_products_never_spill(m, n, packed, target):
    spec = MatmulSpec(m, n, 64) if packed else MatmulSpec(m, n, 64, ACTIVATION)
    options = Options(Workload("matmul", spec), target)
    assert len(set(options)) == len(options) <= 600
    assert options[0] == options.default == Option("matmul", matmul_spec.candidates(spec, target)[0])
    for option in options:
        knobs = option.knobs
        assert knobs.rows * knobs.vectors * knobs.chains + knobs.vectors + 1 <= target.vector_registers
        assert knobs.column_chunks <= knobs.panels(spec, target)
        assert knobs.row_chunks <= knobs.row_tiles(spec)


@given(st.integers(4, 60), st.integers(1, 100), st.sampled_from([1, 2]), st.sampled_from(TARGETS))
@settings(max_examples=40, deadline=None)
def test_depthwise_and_pooling_tiles_fit(size, planes, stride, target):
    spec = Conv2dSpec(1, planes, size, size, planes, (3, 3), (stride, stride), (1, 1, 1, 1), groups=planes)
    pool = pooling.PoolSpec(1, planes, size, size, "max", (3, 3), (stride, stride), (1, 1, 1, 1))
    for knobs in depthwise.candidates(spec, target):
        assert knobs.columns + 3 + window_loops.RESERVED_REGISTERS <= target.vector_registers
        assert 1 <= knobs.pieces <= spec.out_h
    for knobs in pooling.candidates(pool, target):
        assert knobs.columns + window_loops.RESERVED_REGISTERS <= target.vector_registers
        assert 1 <= knobs.pieces <= pool.out_h


# Networks of one kernel each ----------------------------------------------------------------------------------------


def convolution(c: int, o: int, size: int, kernel: int, *, stride: int = 1, groups: int = 1) -> Graph:
    b = GraphBuilder({"x": TensorType((1, c, size, size))})
    weight = b.weight(o, c // groups, kernel, kernel)
    pad = (kernel // 2,) * 2
    y = b.op(ops.Conv2dOp, b.graph.inputs[0], weight, stride=(stride, stride), padding=(*pad, *pad), groups=groups)
    return b.done(b.op(ops.ReluOp, y))


def linear(rows: int, inputs: int, outputs: int) -> Graph:
    b = GraphBuilder({"x": TensorType((rows, inputs))})
    return b.done(b.op(ops.LinearOp, b.graph.inputs[0], b.weight(outputs, inputs)))


def pool(c: int, size: int) -> Graph:
    b = GraphBuilder({"x": TensorType((1, c, size, size))})
    conv = b.op(ops.Conv2dOp, b.graph.inputs[0], b.weight(c, c, 1, 1))
    return b.done(b.op(ops.MaxPool2dOp, conv, kernel=(3, 3), stride=(2, 2), padding=(1, 1)))


def block_sparse(kind: type[ops.LayerOp], *shape: int) -> Graph:
    b = GraphBuilder({"x": TensorType(shape)})
    weight = torch.zeros(70, shape[1], *[1] * (len(shape) - 2))
    weight[:32, :28] = 1.0
    return b.done(b.op(ops.ReluOp, b.op(kind, b.graph.inputs[0], b.constant(weight), blocks=(4, 16, 14))))


NETWORKS = {
    "block-sparse": block_sparse(ops.LinearOp, 20, 48),
    "block-sparse 1x1": block_sparse(ops.Conv2dOp, 1, 48, 9, 9),
    "3x3": convolution(32, 40, 11, 3),
    "1x1": convolution(48, 36, 9, 1),
    "first layer": convolution(3, 32, 17, 3, stride=2),
    "grouped": convolution(32, 64, 8, 3, groups=2),
    "depthwise": convolution(40, 40, 12, 3, groups=40),
    "linear": linear(20, 48, 70),
    "one row": linear(1, 64, 100),
    "pooling": pool(32, 13),
}


def tasks_of(graph: Graph) -> list[Task]:
    return extract_tasks(run_passes(graph, "fuse,layout", target=NATIVE), NATIVE)


def main_task(name: str) -> Task:
    return max(tasks_of(NETWORKS[name]), key=lambda task: len(Options(task.workload, task.target)))


def check_option(task: Task, option: Option) -> None:
    graph = task.graph()
    used = []

    def choose(workload: Workload, options: Options) -> Option | None:
        if workload != task.workload:
            return None
        used.append(option)
        return option

    executable = compile_graph(graph, task.target, choose=choose)
    assert used, "the task's graph does not lower to its workload"
    inputs = seeded_inputs(graph)
    outputs = executable(*inputs)
    actual = outputs if isinstance(outputs, tuple) else (outputs,)
    assert check_outputs(graph, graph.evaluate(*inputs), actual) == "", option


@pytest.mark.parametrize("name", NETWORKS)
def test_sampled_options_are_right(name):
    task = main_task(name)
    options = Options(task.workload, task.target)
    picked = torch.randperm(len(options), generator=torch.Generator().manual_seed(0))[:2].tolist()
    for index in {len(options) - 1, *picked}:
        check_option(task, options[index])


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_many_options_are_right(name, data):
    task = main_task(name)
    check_option(task, data.draw(st.sampled_from(list(Options(task.workload, task.target)))))


@pytest.mark.parametrize("name", NETWORKS)
def test_options_and_tasks_go_through_json(name):
    for task in tasks_of(NETWORKS[name]):
        assert decode(Task, encode(task), "task") == task
        assert Workload.from_json(encode(task.workload)) == task.workload
        for option in Options(task.workload, task.target):
            assert Option.from_json(encode(option)) == option
            assert option.template in registry.TEMPLATES


def test_a_foreign_option_is_refused():
    valid = encode(Options(Workload("conv2d", Conv2dSpec(1, 16, 8, 8, 16)), NATIVE).default)
    with pytest.raises(UnknownNameError, match="unknown template 'conv2e'; did you mean 'conv2d'"):
        Option.from_json({**valid, "template": "conv2e"})
    with pytest.raises(UnknownNameError, match="unknown field 'depth'"):
        Option.from_json({**valid, "knobs": {**valid["knobs"], "depth": 1}})
    with pytest.raises(CodecError, match=r"knobs\.order must be one of .*'weights'"):
        Option.from_json({**valid, "knobs": {**valid["knobs"], "order": "sideways"}})
    with pytest.raises(CodecError, match=r"knobs\.rows must be a whole number"):
        Option.from_json({**valid, "knobs": {**valid["knobs"], "rows": 1.5}})
    with pytest.raises(CodecError, match="must be an object with 'template'"):
        Option.from_json(["conv2d"])
    with pytest.raises(CodecError, match="groups=5 must divide"):
        spec = encode(Workload("conv2d", Conv2dSpec(1, 16, 8, 8, 16)))
        Workload.from_json({**spec, "spec": {**spec["spec"], "groups": 5}})
