"""Graphs as ONNX files, which ONNX Runtime runs without its optimizations: as the standard says, on any processor."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from tersor import TersorError, from_onnx, from_torch, ir, run_passes
from tersor.ir import Graph
from tersor.passes.numeric import seeded_inputs

from ..integer_graphs import IntegerBuilder
from ..quantized_modules import Residual
from ..random_graphs import GraphBuilder
from .test_onnx import saved
from .test_onnx_quantized import network

TOLERANCE = 1e-5  # of an output's scale


def run(path: Path, inputs: tuple[torch.Tensor, ...]) -> list[np.ndarray]:
    """What ONNX Runtime computes."""
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})


def check(graph: Graph, folder: Path, *, tolerance: float = TOLERANCE, apart: float = 0.0) -> onnx.ModelProto:
    """Write a graph and run it; ``apart`` is the share of elements that may differ by more than ``tolerance``."""
    path = folder / "net.onnx"
    graph.to_onnx(path)
    inputs = seeded_inputs(graph)
    expected = graph.evaluate(*inputs)
    for results in (map(torch.from_numpy, run(path, inputs)), from_onnx(path).evaluate(*inputs)):
        for ours, theirs in zip(expected, results, strict=True):
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
            off = (ours.double() - theirs.double()).abs()
            limit = tolerance * max(ours.double().abs().max().item(), 1e-3)
            assert (off > limit).double().mean().item() <= apart, (off.max().item(), limit)
    return onnx.load(path)


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


class Apply(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def test_elementwise(tmp_path):
    """Every op of the tables, in one graph."""

    def all_of_them(x, y):
        positive = x.abs() + 0.5
        yield from (torch.relu(x), torch.sigmoid(x), functional.hardswish(x), torch.tanh(x), torch.exp(x))
        yield from (torch.log(positive), torch.sqrt(positive), torch.rsqrt(positive), torch.reciprocal(positive))
        yield from (torch.erf(x), torch.sin(x), torch.cos(x), -x, x.floor(), x.ceil(), torch.round(x * 2))
        yield from (x + y, x - y, x * y, x / positive, positive**y, torch.maximum(x, y), torch.minimum(x, y))
        yield from (x == y, x != y, x < y, x <= y, x > y, x >= y, (x < y) & (x > 0), (x < y) | ~(x > 0))
        yield from (torch.where(x > y, x, y), x.clamp(-0.5, 0.5), x.clamp(min=0.1), (x * 3).to(torch.int32).clamp(0, 2))
        yield from (functional.leaky_relu(x, 0.2), functional.gelu(x), functional.gelu(x, approximate="tanh"))
        yield from (functional.hardsigmoid(x * 3), functional.silu(x))

    graph = from_torch(Apply(lambda x, y: tuple(all_of_them(x, y))), (torch.randn(3, 4), torch.randn(3, 4)))
    check(graph, tmp_path)


def test_movement_and_reduction(tmp_path):
    def all_of_them(x, table, indices):
        yield from (x.reshape(2, -1), x.permute(0, 2, 3, 1), x[:, 1:3, ::2], torch.cat([x, x + 1], 1))
        yield from (x[:, :1].expand(2, 3, 6, 6), functional.pad(x, (1, 2, 0, 1), value=0.5), table[indices])
        yield from (x.mean((2, 3)), x.sum(1, keepdim=True), x.amax((1, 3)), x.amin(2), x.prod(3))
        yield from (torch.softmax(x, 1), torch.log_softmax(x, 3), functional.layer_norm(x, (6, 6)))
        yield from (functional.max_pool2d(x, 3, 2, 1), functional.max_pool2d(x, 2, 4, ceil_mode=True))
        yield from (functional.avg_pool2d(x, 3, 2, 1), functional.avg_pool2d(x, 2, count_include_pad=False))
        for mode, align in itertools.product(("bilinear", "bicubic"), (False, True)):
            for size in ({"size": (4, 11)}, {"scale_factor": (1.7, 0.6)}, {"scale_factor": 2}):
                yield functional.interpolate(x, **size, mode=mode, align_corners=align)
        yield from (functional.adaptive_avg_pool2d(x, 1), functional.layer_norm(x, (6,), torch.ones(6), torch.ones(6)))

    inputs = torch.randn(2, 4, 6, 6), torch.randn(5, 3), torch.tensor([[0, 1], [1, 0]])
    check(from_torch(Apply(lambda *args: tuple(all_of_them(*args))), inputs), tmp_path)


@pytest.mark.parametrize("pipeline", ["", "O3"])
def test_layers(pipeline, tmp_path):
    """Before and after passes: groups are written op by op."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6())
            self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
            self.project = nn.Linear(8, 8)
            self.head = nn.Linear(8, 5)

        def forward(self, x):
            x = self.first(x)
            x = (x + self.depthwise(x)).flatten(2).transpose(1, 2)
            x = functional.scaled_dot_product_attention(x, self.project(x), x) @ x.transpose(1, 2)
            return {"classes": self.head(x.mean(1)[:, :8]), "scores": x}

    graph = run_passes(from_torch(Net().eval(), (torch.randn(2, 3, 9, 9),)), pipeline)
    model = check(graph, tmp_path)
    assert [one.name for one in model.graph.output] == ["classes", "scores"]
    assert {"Conv", "Gemm", "MatMul", "Softmax"} <= set(kinds(model))


@pytest.mark.parametrize("pipeline", ["", "integer-layers", "O3"])
def test_quantized(pipeline, tmp_path):
    """As it was imported, and after layers sum integers: these are written between the nodes that runtimes look for."""
    torch.manual_seed(0)
    program = torch.export.export(Residual().eval(), (torch.randn(2, 3, 8, 8),))
    graph = run_passes(from_torch(program), pipeline)
    model = check(graph, tmp_path, tolerance=1e-2)
    stored = {one.name: one.data_type for one in model.graph.initializer}
    assert sum(code == onnx.TensorProto.INT8 for code in stored.values()) >= 3
    assert {"QuantizeLinear", "DequantizeLinear", "Conv", "Gemm"} <= set(kinds(model))
    back = run_passes(from_onnx(tmp_path / "net.onnx"), "integer-layers")
    assert str(back).count(": i32[2,") == 3  # they are sums of integers again


class Attention(nn.Module):
    """One with a mask of either kind, or a causal one, or none."""

    mask: torch.Tensor | None

    def __init__(self, mask: torch.Tensor | None, causal: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
        self.causal = causal
        self.register_buffer("mask", mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (layer(x).unflatten(2, (2, 16)).transpose(1, 2) for layer in self.layers[:3])
        mixed = functional.scaled_dot_product_attention(query, key, value, self.mask, is_causal=self.causal)
        return self.layers[3](mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("activations", ["u8", "i8"])
@pytest.mark.parametrize("mask", ["none", "causal", "bool", "added"])
def test_attention_on_integers(mask, activations, tmp_path):
    """The rounded weights of its softmax are the same, so the numbers are."""
    torch.manual_seed(0)
    drawn = {"bool": torch.rand(20, 20) < 0.6, "added": torch.randn(20, 20)}.get(mask)
    graph = from_torch(Attention(drawn, mask == "causal").eval(), (torch.randn(2, 20, 32),))
    batches = [torch.randn(2, 20, 32) * 2 for _ in range(4)]
    quantized = run_passes(graph, f"O3,quantize{{keep=all,activations={activations}}}", calibration=batches)
    ops = [one for part in quantized.parts for one in part.ops if isinstance(one, ir.ops.AttentionOp)]
    assert [op.query.type.dtype.value for op in ops] == [activations]
    check(quantized, tmp_path, tolerance=2e-6)


def test_integers_that_are_looked_up_and_resized(tmp_path):
    b = IntegerBuilder({"x": ir.TensorType((1, 3, 4, 5))})
    outputs = []
    for kind in (ir.DType.U8, ir.DType.I8):
        q = b.quantize(b.graph.inputs[0], kind, scale=0.02)
        table = b.constant(b.bytes(256).view(torch.uint8))
        outputs += [b.op(ir.ops.LookupOp, q, table), b.op(ir.ops.ResizeOp, q, size=(8, 10))]
    model = check(b.done(*outputs), tmp_path)
    assert kinds(model).count("Gather") == kinds(model).count("Resize") == 2


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("affine", [True, False])
def test_norms_that_count_absent_zeros(dims, affine, tmp_path):
    b = GraphBuilder({"x": ir.TensorType((2, 3, 20))})
    shape = (3, 20)[-dims:]
    parameters = (b.weight(*shape), b.weight(*shape)) if affine else ()
    model = check(b.done(b.op(ir.ops.LayerNormOp, *b.graph.inputs, *parameters, dims=dims, absent=12)), tmp_path)
    assert "LayerNormalization" in kinds(model)


def test_round_trip_of_a_file(tmp_path):
    """An imported QDQ file, written again, has the same numbers."""
    source = saved(network().proto(21), tmp_path).rename(tmp_path / "in.onnx")
    graph = from_onnx(source)
    check(run_passes(graph, "integer-layers,dce"), tmp_path, tolerance=1e-2)
    written = run(tmp_path / "net.onnx", seeded_inputs(graph))
    for ours, theirs in zip(written, run(tmp_path / "in.onnx", seeded_inputs(graph)), strict=True):
        assert np.abs(ours - theirs).max() <= 0.01 * max(np.abs(theirs).max(), 1)


def test_what_cannot_be_written(tmp_path):
    """All of it in one line."""

    def net(x, y):
        return torch.sort(x).values + torch.cumsum(x, 0) + torch.lgamma(x) + torch.erfc(y)

    graph = from_torch(Apply(net), (torch.randn(3, 4), torch.randn(3, 4)))
    with pytest.raises(TersorError) as caught:
        graph.to_onnx(tmp_path / "net.onnx")
    message = str(caught.value)
    assert "\n" not in message
    assert message == (
        "apply cannot be written as ONNX: it has ops without a writer, sort, argsort, cumsum, lgamma, erfc"
    )
    assert not (tmp_path / "net.onnx").exists()
    pooled = from_torch(Apply(lambda x: functional.avg_pool2d(x, 2, ceil_mode=True)), (torch.randn(1, 2, 5, 5),))
    with pytest.raises(TersorError, match="avg_pool2d: a window over the end of the data"):
        pooled.to_onnx(tmp_path / "net.onnx")


def test_weights_must_be_loaded(tmp_path):
    graph = from_torch(nn.Linear(3, 3), (torch.randn(1, 3),))
    with pytest.raises(TersorError, match="weights are not loaded"):
        ir.parse(str(graph)).to_onnx(tmp_path / "net.onnx")


def test_state_is_an_input_and_an_output(tmp_path):
    class Count(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.zeros(3))

        def forward(self, x):
            self.total.add_(x)
            return self.total * 2

    from_torch(Count(), (torch.ones(3),)).to_onnx(tmp_path / "net.onnx")
    graph = onnx.load(tmp_path / "net.onnx").graph
    assert [one.name for one in graph.input] == ["x", "total"]
    assert [one.name for one in graph.output] == ["output0", "total.next"]
