"""Compilations that end: reductions of planes, cut groups, an error for too large a kernel, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import tersor
from tersor.ir import Graph, TensorType, ops, save_ir
from tersor.passes import run_passes
from tersor.targets import resolve_target
from tersor.targets.codegen import interruptible, objects
from tersor.targets.codegen.kernel import CompileError
from tersor.targets.codegen.lowering import lower
from tersor.tests.random_graphs import GraphBuilder

TARGET = resolve_target("x86:avx2")


class Reduce(nn.Module):
    """A convolution and a reduction of its planes."""

    def __init__(self, function):
        super().__init__()
        self.conv = nn.Conv2d(3, 20, 1)
        self.function = function

    def forward(self, x):
        return self.function(self.conv(x))


GLOBAL = {
    "adaptive_max_pool2d": nn.AdaptiveMaxPool2d(1),
    "max_pool2d": nn.MaxPool2d(56),
    "max_pool2d stride 1": nn.MaxPool2d(56, stride=1),
    "avg_pool2d": nn.AvgPool2d(56),
    "amax": lambda x: x.amax((2, 3)),
    "amin": lambda x: x.amin((2, 3), keepdim=True),
    "sum": lambda x: x.sum((2, 3)),
    "mean": lambda x: x.mean((2, 3)),
}


@pytest.mark.parametrize("pipeline", ["O0", "O3"])
@pytest.mark.parametrize("spelling", GLOBAL)
def test_global_pooling_is_a_reduction(spelling, pipeline):
    graph = tersor.from_torch(Reduce(GLOBAL[spelling]).eval(), (torch.randn(1, 3, 56, 56),))
    optimized = run_passes(graph, f"{pipeline},fold-batchnorm,layout", target=TARGET)
    kernels = [call.kernel for call in lower(optimized, TARGET).calls]
    assert "global_pool2d" in {kernel.template for kernel in kernels}


@pytest.mark.parametrize("function", [nn.AdaptiveMaxPool2d(1), lambda x: x.amin((2, 3))])
def test_extrema_of_planes(function):
    module, x = Reduce(function).eval(), torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    x[1, 0, 4, 4] = torch.nan
    (result,) = (tersor.compile(module, (x,), pipeline="O1")(x),)
    torch.testing.assert_close(result, module(x), rtol=1e-5, atol=1e-5, equal_nan=True)


def chain(kind: type, length: int, *, conv: bool) -> Graph:
    b = GraphBuilder({"x": TensorType((1, 16, 8, 8))})
    y = b.op(ops.Conv2dOp, b.graph.inputs[0], b.weight(16, 16, 1, 1)) if conv else b.graph.inputs[0]
    for _ in range(length):
        y = b.op(kind, y)
    return b.done(y)


@pytest.mark.parametrize("conv", [False, True])
def test_long_chains_become_several_kernels(conv):
    graph = run_passes(chain(ops.ErfOp, 60, conv=conv), "fuse,layout", target=TARGET)
    program = lower(graph, TARGET)
    assert 4 <= len(program.calls) <= 10
    assert all(objects.code_size(call.kernel.build()) <= objects.MOST_NODES for call in program.calls)


def test_too_large_a_kernel_names_its_layer(tmp_path, monkeypatch):
    monkeypatch.setattr(objects, "MOST_NODES", 1000)
    graph = tersor.from_torch(nn.Sequential(nn.ReLU(), nn.Softmax(-1)), (torch.randn(4, 99),))
    program = lower(run_passes(graph, "layout", target=TARGET), TARGET)
    with pytest.raises(CompileError, match=r"layer '1': template 'softmax' writes more code .* split this layer"):
        objects.compile_kernels([program], tmp_path)


def test_an_interrupt_ends_the_wait_for_a_native_call():
    release = threading.Event()
    timer = threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            interruptible.call_interruptibly(release.wait)
        assert interruptible.is_call_running()
    finally:
        timer.join()
        release.set()


ENDLESS = """
import os, signal, threading
from tersor.cli.main import main
from tersor.targets.codegen import relax_module

signal.signal(signal.SIGINT, signal.default_int_handler)

def build(*arguments):
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    threading.Event().wait()

relax_module.build = build
main(["compile", "model.ir", "-o", "model.tersor"])
"""


def test_an_interrupt_ends_the_command_while_llvm_goes_on(tmp_path: Path):
    b = GraphBuilder({"x": TensorType((2, 3))})
    save_ir(b.done(b.op(ops.ReluOp, b.graph.inputs[0])), tmp_path / "model.ir")
    ended = subprocess.run(  # it raises TimeoutExpired where Python waits for the call
        [sys.executable, "-c", ENDLESS], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 130
    assert ended.stderr.endswith("generate code …\n")  # no traceback
    assert {path.name for path in tmp_path.iterdir()} == {"model.ir", "model.safetensors"}


def test_a_native_calls_result_and_error_arrive():
    assert interruptible.call_interruptibly(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        interruptible.call_interruptibly(lambda: 1 // 0)
