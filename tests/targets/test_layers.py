"""Layers as machine code, several in one program: layouts around them, epilogues, narrow numbers."""

from __future__ import annotations

import torch

from tersor.ir import Graph
from tersor.ir.ops import AddOp, ConvTranspose2dOp, ReluOp, SigmoidOp
from tersor.passes import run_passes

from .compiled import builder, check, lowered, templates


def transposed() -> Graph:
    b = builder(x=(2, 24, 5, 6), picture=(1, 3, 4, 4))
    x, picture = b.graph.inputs
    up = b.op(ConvTranspose2dOp, x, b.weight(20, 24, 4, 4), b.weight(20), stride=(2, 2), padding=(1, 1))
    residual = b.op(ReluOp, b.op(AddOp, up, b.op(SigmoidOp, up)))
    spread = b.op(ConvTranspose2dOp, x, b.weight(17, 24, 2, 3), None, stride=(2, 1), dilation=(3, 2))
    grouped = b.op(ConvTranspose2dOp, residual, b.weight(10, 10, 3, 3), None, stride=(3, 3), groups=2)
    first = b.op(ConvTranspose2dOp, picture, b.weight(16, 3, 3, 3), b.weight(16), stride=(2, 2), output_padding=(1, 1))
    few = b.op(
        ConvTranspose2dOp, b.op(ReluOp, first), b.weight(2, 16, 4, 4), b.weight(2), stride=(4, 4), padding=(1, 0)
    )
    return b.done(residual, spread, b.op(SigmoidOp, grouped), b.op(SigmoidOp, few))


def test_transposed_convolutions():
    graph = transposed()
    called = templates(lowered(graph, "O3,layout"))
    assert called.count("conv2d_transposed") == 4
    assert "elementwise" not in called[:3]  # what follows is in the epilogue
    check(graph, pipeline="O3,layout")


def test_transposed_convolutions_in_bf16():
    narrow = run_passes(transposed(), "O3,to-bf16")
    assert "bf16" in str(next(op for op in narrow.ops if op.name == "fused").result.type)
    results = zip(check(narrow, pipeline="layout", tolerance=2e-2), narrow.outputs, strict=True)
    assert all(torch.isfinite(result).all() and result.shape == value.shape for result, value in results)
