"""Programs that PyTorch's PT2E flow quantized."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

import tersor
from tersor import TersorError, from_torch
from tersor.ir import DType, Graph, verify
from tersor.ir.ops import DequantizeOp, QuantizeOp

from ..quantized_modules import Residual, Rounded, RoundedLayer, ops

LIMITS = (0, 255, torch.uint8)


def imported(module: nn.Module, *inputs: torch.Tensor) -> Graph:
    """The graph, after its numbers were compared with PyTorch's."""
    module = module.eval()
    graph = from_torch(torch.export.export(module, inputs))
    verify(graph)
    with torch.no_grad():
        torch.testing.assert_close(graph.evaluate(*inputs)[0], module(*inputs), rtol=0, atol=1e-6)
    return graph


@pytest.mark.parametrize("integer_biases", [True, False])
def test_same_numbers(integer_biases):
    torch.manual_seed(0)
    module = Residual(integer_biases=integer_biases)
    graph = imported(module, torch.randn(2, 3, 8, 8))
    weights = [op for op in graph.ops if isinstance(op, DequantizeOp) and op.x.type.dtype is DType.I8]
    assert [op.x.op.attrs.id for op in weights] == [f"{name}.integers" for name in ("first", "second", "head")]
    assert next(op.attrs.zero_point for op in graph.ops if isinstance(op, QuantizeOp)) == 120


def test_narrow_range():
    """Numbers beyond it saturate, whatever the element type could hold."""
    x = torch.linspace(-20, 20, 64)
    for rounded in (Rounded(0.1, 3, bits=7), Rounded(0.1, -3, torch.int8, bits=6)):
        graph = imported(rounded, x)
        assert "clamp" in str(graph)


class Call(nn.Module):
    def __init__(self, function, **buffers: torch.Tensor) -> None:
        super().__init__()
        self.function = function
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


def test_other_forms():
    """Scales in tensors; several zero points, which only constants may have; a weight quantized in the program."""
    scale, zero = torch.tensor([0.05]), torch.tensor([7])
    limits = (-128, 127, torch.int8)
    table = torch.randint(-128, 127, (4, 3), dtype=torch.int8)

    def by_tensors(self, x):
        return ops.dequantize_per_tensor.tensor(
            ops.quantize_per_tensor.tensor(x, self.s, self.z, *LIMITS), self.s, self.z, *LIMITS
        )

    def several(self, x):
        return x @ ops.dequantize_per_channel(self.table, self.s, self.z, 0, *limits)

    def in_program(self, x):
        integers = ops.quantize_per_channel(self.weight, self.s, self.z, 0, *limits)
        return x @ ops.dequantize_per_channel(integers, self.s, self.z, 0, *limits)

    x = torch.randn(2, 4)
    imported(Call(by_tensors, s=scale, z=zero), x)
    scales, zeros = torch.rand(4) + 0.1, torch.tensor([0, 5, -3, 0])
    imported(Call(several, table=table, s=scales, z=zeros), x)
    imported(Call(in_program, weight=torch.randn(4, 3), s=scales, z=zeros), x)


def refused(function, x: torch.Tensor | None = None, **buffers: torch.Tensor) -> str:
    x = torch.randn(2, 4) if x is None else x
    with pytest.raises(TersorError) as caught:
        from_torch(torch.export.export(Call(function, **buffers), (x,)))
    return str(caught.value)


def test_refusals():
    """Each is one line that names the operator and the reason."""
    ones, zeros = torch.ones(4), torch.zeros(4, dtype=torch.int64)
    sixteen = (-(2**15), 2**15 - 1, torch.int16)
    cases = {
        "quantized numbers are u8 or i8, not int16": lambda self, x: ops.quantize_per_tensor(x, 0.1, 0, *sixteen),
        "a scale is 0;": lambda self, x: ops.quantize_per_tensor(x, 0.0, 0, *LIMITS),
        "zero point 300 is no u8 number": lambda self, x: ops.quantize_per_tensor(x, 0.1, 300, *LIMITS),
        "a step for each index of axis 1": lambda self, x: ops.quantize_per_channel(x, self.s, self.z, 1, *LIMITS),
        "its scale is computed at run time": lambda self, x: ops.quantize_per_tensor.tensor(
            x, x.abs().amax().reshape(1) / 255, self.z[:1], *LIMITS
        ),
    }
    for reason, function in cases.items():
        message = refused(lambda self, x, call=function: call(self, x) * 1, s=ones, z=zeros)
        assert "quantized_decomposed.quantize_per" in message
        assert reason in message


@pytest.mark.parametrize("number", [0.0, -0.1, float("nan"), float("inf")])
def test_every_scale_and_zero_point_of_a_weight_is_checked(number):
    """Not the smallest one only; nor are zero points taken that the type does not have, or NaN."""
    weight, scales, zeros = torch.randn(4, 3), torch.full((4,), 0.1), torch.zeros(4, dtype=torch.int64)
    limits = (-128, 127, torch.int8)

    def stored(self, x):
        return x @ ops.dequantize_per_channel(self.integers, self.s, self.z, 0, *limits)

    def rounded(self, x):
        return x @ ops.quantize_per_channel(self.weight, self.s, self.z, 0, *limits).float()

    wrong = scales.clone()
    wrong[2] = number
    assert f"a scale is {number:g}" in refused(stored, integers=weight.to(torch.int8), s=wrong, z=zeros)
    assert f"a scale is {number:g}" in refused(rounded, weight=weight, s=wrong, z=zeros)
    assert "zero point 1000 is no i8 number" in refused(rounded, weight=weight, s=scales, z=zeros + 1000)
    weight[0, 0] = torch.nan
    assert "a constant with NaN" in refused(rounded, weight=weight, s=scales, z=zeros)


def test_dynamic_quantization_is_named():
    def choose(self, x):
        scale, zero = ops.choose_qparams.tensor(x, 0, 255, 1e-6, torch.uint8)
        return ops.quantize_per_tensor.tensor(x, scale, zero, *LIMITS) * 1

    assert "quantized_decomposed.choose_qparams.tensor" in refused(choose)


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.ConvTranspose2d(3, 4, 2, stride=2)])
def test_compiled(layer):
    torch.manual_seed(1)
    x = torch.randn(2, 6) if isinstance(layer, nn.Linear) else torch.randn(1, 3, 5, 5)
    module = nn.Sequential(Rounded(0.03, 100), RoundedLayer(copy.deepcopy(layer)), Rounded(0.02, 128)).eval()
    executable = tersor.compile(torch.export.export(module, (x,)))
    assert executable.report.agreement.difference < 0.02
    with torch.no_grad():
        off = (executable(x) - module(x)).abs()
    assert off.max() < 0.02 * 1.01
    assert (off > 1e-6).float().mean() < 0.002


def test_file(tmp_path):
    """A .pt2 file may call these operators, though no package has defined them yet."""
    torch.export.save(torch.export.export(Residual().eval(), (torch.randn(1, 3, 8, 8),)), tmp_path / "net.pt2")
    code = "import sys; from tersor.frontend import load_model; print(len(load_model(sys.argv[1]).to_graph().ops))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "net.pt2")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
