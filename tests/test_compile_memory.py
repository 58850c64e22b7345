"""How much memory a compilation takes, and whose it is: weights are copied once, as kernels read them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import tersor
from tersor.compiler import as_graph
from tersor.ir import TersorError
from tersor.targets import Executable


def peak_of(run: Callable[[], Executable]) -> int:
    """Most bytes of tensors that were alive at the same time, beyond those that were before.

    PyTorch's profiler sees what its allocator gives and takes back: the same on every machine.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        kept = run()
    assert found.profiler is not None and kept is not None
    alive = peak = 0
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak


class Layers(nn.Module):
    """Weights that kernels read as they are, in another order, transformed, and with others in between."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(300, 256)
        self.wide = nn.Conv2d(256, 320, 1)
        self.square = nn.Conv2d(320, 64, 3, padding=1)
        self.norm = nn.BatchNorm2d(64)
        self.scale = nn.Parameter(torch.randn(64, 1, 1))
        self.linear = nn.Linear(64 * 36, 160)
        self.recurrent = nn.LSTM(160, 64, batch_first=True)
        self.register_buffer("offset", torch.randn(64))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        picture = self.table(rows).transpose(1, 2).reshape(-1, 256, 6, 6)
        picture = self.norm(self.square(self.wide(picture))).relu() * self.scale
        return self.recurrent(self.linear(picture.flatten(1))[:, None])[0] + self.offset


def layers() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return Layers().eval(), torch.randint(0, 300, (1, 36))


def test_a_weight_is_copied_once():
    """As the kernel reads it; the graph has no copy of its own, nor has it one while code is made."""
    module, x = nn.Linear(2048, 2048), torch.randn(1, 2048)
    weight = module.weight.nbytes
    assert peak_of(lambda: tersor.compile(module, x, check=False)) < 1.5 * weight
    assert peak_of(lambda: tersor.compile(module, x)) < 1.5 * weight


@pytest.mark.parametrize("pipeline", ["O0", "O3", "O3,to-bf16"])
@pytest.mark.parametrize("target", ["x86:avx2", "x86:native", "arm:cortex-a72"])
def test_nothing_of_the_module_is_kept(pipeline: str, target: str):
    module, x = layers()
    try:
        executable = tersor.compile(module, x, pipeline=pipeline, target=target)
    except TersorError as error:
        pytest.skip(str(error))
    lent = {one.untyped_storage().data_ptr() for one in module.state_dict().values()}
    kept = [*executable.model.constants, *executable.graph.weights.values()]
    assert not [one.shape for one in kept if one.untyped_storage().data_ptr() in lent]


def test_a_graph_keeps_its_numbers_when_the_module_is_trained():
    module, x = layers()
    executable = tersor.compile(module, x)
    expected = module(x).detach()
    with torch.no_grad():
        for one in module.state_dict().values():
            one.zero_()
    torch.testing.assert_close(executable(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(executable.graph.evaluate(x)[0], expected, rtol=1e-4, atol=1e-5)
    again = tersor.compile(executable.graph)
    torch.testing.assert_close(again(x), expected, rtol=1e-4, atol=1e-5)


def test_programs_of_several_shapes_keep_nothing_of_the_module():
    module, x = nn.Sequential(nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 300)), torch.randn(2, 300)
    executable = tersor.compile(module, x, dynamic_shapes=({0: "batch"},))
    expected = module(torch.cat([x, x, x])).detach()
    with torch.no_grad():
        for one in module.parameters():
            one.zero_()
    torch.testing.assert_close(executable(torch.cat([x, x, x])), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(executable.graph.evaluate(x)[0], expected[:2], rtol=1e-4, atol=1e-5)


def test_exits_keep_nothing_of_the_module():
    class Exits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(300, 300), nn.Linear(300, 300)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            early = self.first(x)
            return early, self.second(early.relu())

    module, x = Exits(), torch.randn(1, 300)
    executable = tersor.compile(module, x, exits=(None,))
    expected = module(x)[1].detach()
    with torch.no_grad():
        for one in module.parameters():
            one.zero_()
    torch.testing.assert_close(executable.graph.evaluate(x)[1], expected, rtol=1e-4, atol=1e-5)


def test_a_graph_on_the_memory_of_a_module():
    module, x = nn.Linear(20, 10), torch.randn(1, 20)
    shared, own = (as_graph(module, x, copy_weights=copies) for copies in (False, True))
    with torch.no_grad():
        module.weight.zero_()
    assert not shared.weights["weight"].any() and bool(own.weights["weight"].any())
    assert own.weights.lent == frozenset()
    assert shared.clone().weights.lent == shared.weights.lent != frozenset()


def test_state_is_not_lent():
    """Calls of the module change it."""

    class Counter(nn.Module):
        count: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count += 1
            return x + self.count

    module, x = Counter(), torch.zeros(4)
    graph = as_graph(module, x, copy_weights=False)
    module(x)
    assert not graph.weights["count"].any()


def test_what_only_tuning_and_compression_need_is_not_imported():
    code = "import sys, tersor.compiler; print(*(name for name in ('scipy', 'xgboost', 'onnx') if name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
