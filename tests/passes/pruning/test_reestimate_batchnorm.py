"""``reestimate-batchnorm``: the statistics that PyTorch measures in training mode, and every refusal."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import tersor
from tersor.ir import Graph, TensorType, TersorError
from tersor.ir.ops import BatchNormOp, ReluOp
from tersor.passes import PassManager, as_pipeline, run_passes
from tersor.passes.instruments import CheckEach, VerifyEach
from tersor.tests.random_graphs import GraphBuilder

BATCH = 2


def network() -> nn.Sequential:
    torch.manual_seed(0)
    parts = (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4))
    return nn.Sequential(*parts).eval()


def batches(count: int) -> list[tuple[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(BATCH, 3, 8, 8, generator=generator) * 3 + 1,) for _ in range(count)]


def statistics(graph: Graph) -> list[torch.Tensor]:
    norms = [op for op in graph.ops if isinstance(op, BatchNormOp)]
    return [graph.weights[value.op.attrs.id] for op in norms for value in (op.mean, op.variance)]


def measured_by_pytorch(module: nn.Module, images: list[torch.Tensor]) -> list[torch.Tensor]:
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
    module.train()
    for image in images:
        module(image)
    return [torch.as_tensor(one) for norm in norms for one in (norm.running_mean, norm.running_var)]


@pytest.mark.parametrize(("options", "chunk"), [("", 6), ("{chunk=3}", 3), ("{chunk=1}", 1)])
def test_agrees_with_pytorch(options: str, chunk: int):
    module, data = network(), batches(6)
    graph = tersor.from_torch(module, data[0])
    before = tersor.ir.fingerprint(graph)
    manager = PassManager(as_pipeline(f"reestimate-batchnorm{options}"), (VerifyEach(), CheckEach()))
    outcome = manager.run(graph, calibration=iter(data))
    chunks = [torch.cat([image for (image,) in data[i : i + chunk]]) for i in range(0, 6, chunk)]
    expected = measured_by_pytorch(module, chunks)
    for actual, wanted in zip(statistics(outcome.graph), expected, strict=True):
        torch.testing.assert_close(actual, wanted)
    module.eval()
    torch.testing.assert_close(outcome.graph.evaluate(*data[0])[0], module(*data[0]).detach())
    assert tersor.ir.fingerprint(graph) == before
    assert outcome.report.records[0].notes == ("2 batch normalisations measured on 6 batches",)
    assert "1.running_mean..reestimated" in outcome.graph.weights and "1.running_mean" not in outcome.graph.weights


def test_chunks_of_unequal_size_count_by_their_size():
    b = GraphBuilder({"x": TensorType((1, 2, 3, 3))})
    graph = b.done(b.batch_norm(b.graph.inputs[0]))
    data = [(torch.full((1, 2, 3, 3), float(value)),) for value in (0, 1, 5)]
    mean, _ = statistics(run_passes(graph, "reestimate-batchnorm{chunk=2}", calibration=data))
    torch.testing.assert_close(mean, torch.full((2,), 2.0))


def test_shared_statistics_become_one_for_each():
    b = GraphBuilder({"x": TensorType((2, 3, 4, 4))})
    first = b.batch_norm(b.graph.inputs[0])
    norm = first.op
    second = b.op(BatchNormOp, b.op(ReluOp, first), *norm.operands[1:])
    graph = run_passes(b.done(second), "reestimate-batchnorm", calibration=[(torch.randn(2, 3, 4, 4),)])
    means = statistics(graph)[::2]
    assert not torch.equal(*means)


def test_bisection_leaves_norms_alone():
    graph = tersor.from_torch(network(), batches(1)[0])
    small = run_passes(graph, "reestimate-batchnorm", calibration=batches(2), bisect_limit=1)
    assert [id for id in small.weights if id.endswith("reestimated")] == [
        "1.running_mean..reestimated",
        "1.running_var..reestimated",
    ]


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (None, "needs calibration data"),
        ([], "yields no batch"),
        ([(torch.zeros(2, 3, 8, 9),)], r"must have shape \[2, 3, 8, 8\], got \[2, 3, 8, 9\]"),
        ([(torch.zeros(2, 3, 8, 8), torch.zeros(2), torch.zeros(2))], "takes 1 inputs"),
        ([(torch.full((2, 3, 8, 8), math.nan),)], "activations that are not finite at batch_norm at '1'"),
    ],
)
def test_bad_data(calibration: Any, message: str):
    graph = tersor.from_torch(network(), batches(1)[0])
    with pytest.raises(TersorError, match=message):
        run_passes(graph, "reestimate-batchnorm", calibration=calibration)


def test_one_number_per_channel_has_no_variance():
    b = GraphBuilder({"x": TensorType((1, 3))})
    graph = b.done(b.batch_norm(b.graph.inputs[0]))
    with pytest.raises(TersorError, match="one number per channel; give more calibration data"):
        run_passes(graph, "reestimate-batchnorm", calibration=[(torch.zeros(1, 3),)])


def test_folded_norms_cannot_be_measured():
    graph = tersor.from_torch(network(), batches(1)[0])
    with pytest.raises(TersorError, match=r"no batch normalisation is left .*before fold-batchnorm"):
        run_passes(graph, "O2,reestimate-batchnorm", calibration=batches(1))


def test_bad_chunk():
    with pytest.raises(TersorError, match="chunk is a number of batches, 1 or more, not 0"):
        as_pipeline("reestimate-batchnorm{chunk=0}")
