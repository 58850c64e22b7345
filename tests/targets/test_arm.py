"""Kernels for NEON, run on an emulated processor: the interpreter's numbers, bit for bit where they are integers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import tvm
from torch import nn

import tersor
from tersor.ir import DType, TensorType, TersorError
from tersor.passes.numeric import seeded_inputs
from tersor.targets import Executable, resolve_target
from tersor.targets.machines import toolchain
from tersor.targets.machines.features import obstacle_here, required_features
from tersor.targets.packaging.artifact import load_graph
from tersor.targets.templates.base import BufferSpec, Epilogue
from tersor.targets.templates.conv2d import direct as conv2d
from tersor.targets.templates.conv2d import int8 as conv2d_int8
from tersor.targets.templates.conv2d.spec import Conv2dSpec
from tersor.targets.templates.vector.builder import Output, load, make_prim_func, store
from tersor.targets.templates.vector.lookup import ByteTable
from tersor.tests.integer_graphs import IntegerBuilder, small_resnet

from .compiled import assert_same, compiled
from .emulated import Board, require_emulator, require_toolchain
from .forged import read_manifest
from .test_integers import KERNELS, PIPELINE, SHAPE, random_bytes
from .wide_graphs import wide_graph

A72, A76 = "arm:cortex-a72", "arm:cortex-a76"
TOLERANCE = 1e-4


@pytest.fixture(scope="session")
def board(tmp_path_factory: pytest.TempPathFactory) -> Board:
    require_emulator()
    return Board(tmp_path_factory.mktemp("board"))


# Floating point -----------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Self-attention between layer norms, as in a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(48)
        self.projections = nn.Linear(48, 144)
        self.output = nn.Linear(48, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (one.view(1, 19, 4, 12).transpose(1, 2) for one in self.projections(self.norm(x)).chunk(3, -1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return torch.softmax(x + self.output(mixed.transpose(1, 2).reshape(1, 19, 48)), -1)


class Activations(nn.Module):
    """All functions that kernels compute by polynomials, and what goes around them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        f = nn.functional
        parts = (f.gelu(x), f.silu(x), torch.tanh(x), torch.sigmoid(x), torch.exp(x), f.hardswish(x), f.softplus(x))
        joined = torch.cat(parts, 1)
        return joined - joined.mean(1, keepdim=True) * joined.amax((2, 3), keepdim=True)


def pools() -> nn.Module:
    return nn.Sequential(
        nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 1, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(88, 10)
    )


def separable() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(22, 22, 5, 2, 2, groups=22), nn.BatchNorm2d(22), nn.ReLU6(), nn.Conv2d(22, 40, 1), nn.Sigmoid()
    )


# A module, the shape of its input, and a template that its code must contain.
NETWORKS = {
    "stem": (lambda: nn.Sequential(nn.Conv2d(3, 20, 7, 2, 3), nn.ReLU()), (1, 3, 30, 26), "conv2d"),
    "direct": (lambda: nn.Conv2d(22, 33, 3, padding=2, dilation=2), (1, 22, 11, 9), "conv2d"),
    "grouped": (lambda: nn.Conv2d(24, 36, 3, groups=3), (2, 24, 7, 8), "conv2d"),
    "winograd": (lambda: nn.Conv2d(64, 64, 3, padding=1), (1, 64, 28, 28), "winograd"),
    "depthwise": (separable, (1, 22, 13, 15), "depthwise"),
    "matmul": (lambda: nn.Sequential(nn.Linear(50, 70), nn.GELU(), nn.Linear(70, 9)), (5, 50), "matmul"),
    "attention": (Attention, (1, 19, 48), "attention"),
    "pooling": (pools, (1, 22, 9, 11), "pool2d"),
    "softmax": (lambda: nn.Softmax(1), (3, 1001), "softmax"),
    "activations": (Activations, (2, 5, 6, 7), "elementwise"),
}


@pytest.mark.parametrize("target", [A72, A76])
@pytest.mark.parametrize("name", NETWORKS)
def test_templates(name: str, target: str, board: Board):
    make, shape, template = NETWORKS[name]
    torch.manual_seed(0)
    module, x = make().eval(), torch.randn(shape)
    executable = tersor.compile(module, (x,), target=target)
    assert template in {kernel.template for kernel in executable.info.kernels}
    (actual,) = board.run(executable, (x,))
    with torch.no_grad():
        assert_same(actual, module(x), name, TOLERANCE)
    (expected,) = executable.graph.evaluate(x)
    assert_same(actual, expected, name, TOLERANCE)


def test_boards_may_have_more_cores_than_this_machine():
    require_toolchain()
    executable = tersor.compile(nn.Linear(8, 8), (torch.ones(2, 8),), target=A76, threads=1000)
    assert (executable.info.target.cores, executable.threads) == (1000, 1000)


@pytest.mark.parametrize("seed", range(4))
def test_random_graphs(seed: int, board: Board):
    graph = wide_graph(seed, 14)
    inputs = seeded_inputs(graph)
    actual = board.run(compiled(graph, "O3,layout", (A72, A76)[seed % 2]), inputs)
    for index, (got, wanted) in enumerate(zip(actual, graph.evaluate(*inputs), strict=True)):
        assert_same(got, wanted, f"output {index}", TOLERANCE)


def test_bfloat16(board: Board):
    """No instruction of these processors computes with it: memory holds 16 bits a number, registers float32."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 24, 3, 2), nn.ReLU(), nn.Conv2d(24, 16, 1), nn.Flatten(), nn.Linear(784, 7))
    x = torch.randn(2, 3, 16, 16)
    executable = tersor.compile(module.eval(), (x,), target=A72, pipeline="O3,to-bf16")
    (actual,) = board.run(executable, (x,))
    assert_same(actual, executable.graph.evaluate(x)[0], "output", 2e-2)


# Integers -----------------------------------------------------------------------------------------------------------


def assert_exact(actual: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    """Every element is the same."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), what
    wrong = (actual != expected).nonzero().tolist()
    assert not wrong, f"{what}: {len(wrong)} elements differ, first at {wrong[0]}"


@pytest.mark.parametrize("dtype", [DType.U8, DType.I8])
@pytest.mark.parametrize("target", [A72, A76])
def test_integer_kernels(target: str, dtype: DType, board: Board):
    b = IntegerBuilder({"x": TensorType(SHAPE, dtype)})
    q = b.graph.inputs[0]
    b.meaning[q] = (0.05, 77)
    graph = b.done(*(kernel(b, q) for kernel in KERNELS.values()))
    x = random_bytes(dtype, *SHAPE)
    actual = board.run(compiled(graph, PIPELINE, target), (x,))
    for name, got, wanted in zip(KERNELS, actual, graph.evaluate(x), strict=True):
        assert_exact(got, wanted, name)


@pytest.mark.parametrize("target", [A72, A76])
@pytest.mark.parametrize("pipeline", [PIPELINE, "O3,layout"])
def test_integer_network(pipeline: str, target: str, board: Board):
    x = torch.randn(1, 3, 22, 18, generator=torch.Generator().manual_seed(0))
    (actual,) = board.run(compiled(small_resnet(), pipeline, target), (x,))
    (expected,) = small_resnet().evaluate(x)
    assert_exact(actual, expected, pipeline)


# Instructions -------------------------------------------------------------------------------------------------------


def convolution(dtype: str) -> Conv2dSpec:
    return Conv2dSpec(1, 32, 14, 14, 32, (3, 3), (1, 1), (1, 1, 1, 1), dtype=dtype, zero_point=0)


@pytest.mark.parametrize(
    ("target", "template", "dtype", "instruction", "others"),
    [
        (A72, conv2d, "float32", "fmla", {"fadd", "fmul"}),
        (A76, conv2d, "float32", "fmla", {"fadd", "fmul"}),
        (A72, conv2d_int8, "uint8", "smlal", {"sdot", "udot", "mla"}),
        (A76, conv2d_int8, "uint8", "sdot", {"smlal", "mla"}),
        (A76, conv2d_int8, "int8", "sdot", {"smlal", "mla"}),
    ],
)
def test_instructions(target: str, template: ModuleType, dtype: str, instruction: str, others: set[str]):
    """The sums of a convolution are computed by this instruction and no other."""
    record, spec = resolve_target(target), convolution(dtype)
    epilogue = Epilogue() if dtype == "float32" else Epilogue(dtype="int32")
    function = template.build(spec, record, template.candidates(spec, record)[0], epilogue)
    module = tvm.tirx.build(tvm.IRModule({"main": function}), target=tvm.target.Target(record.tvm_target()))
    found = Counter(line.split()[0] for line in module.inspect_source("asm").splitlines() if line.startswith("\t"))
    assert found[instruction] >= 50
    assert others.isdisjoint(found)


def test_bytes_are_looked_up_sixty_four_at_a_time():
    """One look-up that fills lanes with zero, and three that leave those alone that are found."""
    record = resolve_target(A72)

    def body(buffers: Sequence[Any], out: Output) -> None:
        for lanes, at in ((16, 0), (4, 16)):
            store(out.buffer, at, ByteTable(buffers[1], record).at(load(buffers[0], at, lanes)), lanes)

    inputs = (BufferSpec("x", 20, "uint8"), BufferSpec("table", 256, "uint8"))
    function = make_prim_func("main", inputs, BufferSpec("out", 20, "uint8"), body, Epilogue())
    module = tvm.tirx.build(tvm.IRModule({"main": function}), target=tvm.target.Target(record.tvm_target()))
    found = Counter(line.split()[0] for line in module.inspect_source("asm").splitlines() if line.startswith("\t"))
    assert (found["tbl"], found["tbx"]) == (2, 6)


# What a user may do wrong -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def executable() -> Executable:
    require_emulator()
    torch.manual_seed(0)
    return tersor.compile(nn.Linear(8, 4), (torch.randn(2, 8),), target=A76)


def test_code_does_not_run_on_another_architecture(executable: Executable):
    assert "aarch64" in obstacle_here(resolve_target(A76))
    for use in (executable, executable.benchmark):
        with pytest.raises(
            TersorError, match="compiled for arm:cortex-a76, an aarch64 processor, and this machine is x86"
        ):
            use(torch.zeros(2, 8))


def test_artifact_of_another_architecture_is_refused(executable: Executable, tmp_path: Path):
    path = executable.save(tmp_path / "model.tersor")
    assert read_manifest(path).machine == "aarch64"
    with pytest.raises(TersorError, match=r"compiled for Linux on aarch64, this machine is Linux on .*x86:native"):
        tersor.load(path)
    again = tersor.compile(load_graph(path))
    x = torch.randn(2, 8)
    assert_same(again(x), executable.graph.evaluate(x)[0], "compiled again")


def test_missing_cross_compiler_names_both_remedies(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TersorError, match="apt-get install g\\+\\+-aarch64-linux-gnu, or pip install ziglang"):
        tersor.compile(nn.Linear(8, 4), (torch.randn(2, 8),), target=A72)


def test_debians_compiler_comes_before_ziglang(monkeypatch: pytest.MonkeyPatch):
    target = resolve_target(A72)
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: f"/bin/{name}" if "aarch64" in name else None)
    assert toolchain.find_toolchain(target).command == ("/bin/aarch64-linux-gnu-g++",)
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    command = toolchain.find_toolchain(target).command
    assert command[1:] == ("-m", "ziglang", "c++", "-target", "aarch64-linux-gnu.2.28")


def test_failing_linker_is_quoted(tmp_path: Path):
    compiler = toolchain.Toolchain(("sh", "-c", "echo 'ld: error: no space' >&2; exit 1"))
    with pytest.raises(TersorError, match="failed to link: ld: error: no space"):
        compiler.link_shared(str(tmp_path / "model.so"), [])


@pytest.mark.parametrize(
    ("name", "nearest"), [("arm:cortex-a73", "arm:cortex-a7"), ("arm:cortexa76", "arm:cortex-a76")]
)
def test_unknown_names(name: str, nearest: str):
    with pytest.raises(TersorError, match=f"unknown target '{name}'.*{nearest}"):
        resolve_target(name)


def test_features_are_named_as_linux_does():
    assert required_features(resolve_target(A72)) == ("asimd", "fp")
    assert {"asimd", "asimddp"} < set(required_features(resolve_target(A76)))
