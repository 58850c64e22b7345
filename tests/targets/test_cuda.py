"""Targets with a GPU: what is built for them, looked into where there is none, and run where there is one."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tersor
from tersor.benchmarks import models
from tersor.ir import Graph, TensorType
from tersor.ir.ops import FloorOp, ReluOp
from tersor.passes import run_passes
from tersor.targets import Executable, resolve_target
from tersor.targets.codegen.kernel import CompileError
from tersor.targets.cuda.backend import obstacle_here
from tersor.targets.cuda.codegen import build, cuda_source
from tersor.targets.cuda.embedded import binary_object, read_binary
from tersor.targets.cuda.lowering import lower
from tersor.targets.cuda.templates import TILES, BlockTile, Extents, choose_cut, conv2d
from tersor.targets.cuda.toolkit import compile_cuda
from tersor.targets.machines.toolchain import find_toolchain
from tersor.tests.random_graphs import GraphBuilder

from .cuda_reference import gpu
from .forged import read_manifest
from .test_cuda_graphs import convolutions

TARGETS = ["cuda:sm_80", "cuda:sm_90"]
HALF = "O3,to-fp16"
SM_90 = gpu("cuda:sm_90")
NO_GPU = obstacle_here(SM_90)

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
needs_gpu = pytest.mark.skipif(bool(NO_GPU), reason=NO_GPU)
needs_no_gpu = pytest.mark.skipif(not NO_GPU, reason="there is a GPU here")


def generated(graph: Graph, target: str, pipeline: str = HALF) -> tuple[str, str]:
    """The CUDA source and the instructions of TVM's virtual machine of a graph."""
    record = gpu(target)
    executable = build(lower(run_passes(graph, f"{pipeline},fold-batchnorm,layout", target=record), record), record)
    return cuda_source(executable), executable.as_text()


def kernel_source(source: str, name: str) -> str:
    """What is specific to a kernel of ours."""
    start = source.index(f"struct {name}_epilogue")
    return source[start : source.index("\n}\n", source.index(f"void {name}_body"))]


# Code --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_convolutions_are_written_for_tensor_cores(target: str):
    source, instructions = generated(convolutions(), target)
    assert "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32" in source
    assert "tersor::conv2d_gemm<" in kernel_source(source, "conv2d_gemm_0")
    assert all(f"call  {name}" in instructions for name in ("conv2d_gemm_0", "depthwise_1", "grouped_conv2d_2"))


def test_a_float32_network_has_no_tensor_cores():
    source, _ = generated(convolutions(), "cuda:sm_90", "O3")
    assert "__global__" in source
    assert "mma.sync" not in source


def test_what_does_not_depend_on_the_input_buffer_is_one_cuda_graph():
    _, instructions = generated(convolutions(), "cuda:sm_90")
    entry, _, captured = instructions.partition("@main_cuda_graph_capture:")
    assert "vm.builtin.cuda_graph.run_or_capture" in entry
    assert "call  conv2d_gemm_0" not in entry  # the input is read before, into a buffer of the graph's
    assert "call  conv2d_gemm_0" in captured


def test_everything_stays_row_major():
    graph = run_passes(convolutions(), f"{HALF},layout", target=SM_90)
    assert not any(value.type.channel_block for op in graph.ops for value in op.results)


@needs_nvcc
@pytest.mark.parametrize("target", TARGETS)
def test_kernels_compile_to_matrix_instructions_without_spills(target: str):
    source, _ = generated(convolutions(), target)
    resources = compile_cuda(source, target.partition(":")[2]).resources
    products = {name: one for name, one in resources.items() if name.startswith("conv2d_gemm")}
    assert products
    for name, one in products.items():
        assert one.matrix_instructions >= 8, name
        assert one.spilled_bytes == 0, name
        assert one.shared_bytes <= 48 * 1024, name
        assert one.registers <= 128, name
    assert all(one.matrix_instructions == 0 for name, one in resources.items() if name.startswith("depthwise"))


@needs_nvcc
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_no_tile_spills(tile: BlockTile):
    window = Extents(56, 56, 64, 56, 56, 3, 3, 1, 1, 1, 1, 1, 1)
    from tersor.targets.cuda.epilogue import scaled
    from tersor.targets.cuda.kernel import library
    from tersor.targets.cuda.templates import Cut

    kernel = conv2d(SM_90, 8, 128, window, scaled("float16", 1.0), Cut(tile))
    entry = (
        'extern "C" __global__ void __launch_bounds__(%d) k(half* o, const half* a, const half* b) { k_body(o, a, b); }'
    )
    source = f"{library()}{kernel.source('k')}{entry % kernel.threads}"
    one = compile_cuda(source, "sm_90").resources["k"]
    assert one.spilled_bytes == 0
    assert one.registers * kernel.threads <= SM_90.registers // 2  # two blocks fit on a multiprocessor


@pytest.mark.slow
@needs_nvcc
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("model", ["resnet18", "mobilenetv2", "vit_tiny"])
def test_models_compile(model: str, target: str):
    module, inputs = models.MODELS[model]()
    executable = tersor.compile(module, inputs, target=target, pipeline=HALF)
    templates = {kernel.template for kernel in executable.info.kernels}
    assert templates & {"conv2d_gemm", "matmul_rows", "matmul_split"}


def test_small_products_use_small_tiles_or_split_sums():
    assert choose_cut(SM_90, 1, 25088, 512, 4608, split=True).tile == TILES[0]
    assert choose_cut(SM_90, 1, 49, 512, 4608, split=True).splits > 1
    assert choose_cut(SM_90, 1, 49, 512, 4608, split=False).splits == 1
    assert choose_cut(SM_90, 1, 49, 512, 64, split=True).splits == 1


# Executables and files ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def executable() -> Executable:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    return tersor.compile(convolutions(), target="cuda:sm_90", pipeline=HALF)


@pytest.fixture(scope="module")
def artifact(executable: Executable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return executable.save(tmp_path_factory.mktemp("cuda") / "model.tersor")


def message(action: Callable[[], object]) -> str:
    with pytest.raises(tersor.TersorError) as caught:
        action()
    return str(caught.value)


@needs_no_gpu
def test_calling_without_a_gpu_says_so(executable: Executable):
    assert "was compiled for cuda:sm_90, no NVIDIA GPU with a driver was found here" in message(
        lambda: executable(*executable.random_inputs())
    )


@needs_no_gpu
def test_loading_without_a_gpu_says_so(artifact: Path):
    said = message(lambda: tersor.load(artifact))
    assert said.startswith(f"{artifact}: compiled for cuda:sm_90, no NVIDIA GPU with a driver was found here")
    assert "--target x86:native" in said


def test_the_graph_in_the_file_compiles_for_a_processor(artifact: Path):
    from tersor.targets.packaging.artifact import load_graph

    assert len(load_graph(artifact).outputs) == 2


def test_its_manifest_fits_its_graph(artifact: Path):
    from tersor.targets.packaging.artifact import load_graph
    from tersor.targets.packaging.checks import check_graph, check_target

    check_target(read_manifest(artifact).target)
    check_graph(read_manifest(artifact).programs[0].model, load_graph(artifact))


def test_the_kernels_are_in_the_file_as_a_binary(artifact: Path, tmp_path: Path):
    with zipfile.ZipFile(artifact) as archive:
        library = Path(archive.extract("model.so", tmp_path))
    _, binary = read_binary(library)
    assert binary[:4] == b"\x50\xed\x55\xba"  # of a fat binary, little-endian


def test_a_binary_comes_back_from_a_shared_object(tmp_path: Path):
    toolchain = find_toolchain(resolve_target("x86:native"))
    made = binary_object(tmp_path, "source", b"binary" * 1000, toolchain.command[0])
    toolchain.link_shared(str(tmp_path / "a.so"), [str(made)])
    digest, binary = read_binary(tmp_path / "a.so")
    assert binary == b"binary" * 1000
    assert len(digest) == 32


def test_the_record_of_a_kernel_names_template_and_tile(executable: Executable):
    found = {kernel.template: kernel.knobs for kernel in executable.info.kernels}
    assert found["conv2d_gemm"] == str(TILES[-1])
    assert {"depthwise", "grouped_conv2d", "dlight"} <= found.keys()


# Refusals ----------------------------------------------------------------------------------------------------------


def test_ops_without_a_kernel_are_all_named():
    b = GraphBuilder({"x": TensorType((1, 16, 6, 6), tersor.ir.DType.F64)})
    graph = b.done(b.op(FloorOp, b.op(ReluOp, b.graph.inputs[0])))
    with pytest.raises(CompileError, match="no CUDA kernel computes relu; no CUDA kernel computes floor"):
        lower(graph, SM_90)


def test_without_nvcc_the_toolkit_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    said = message(lambda: tersor.compile(convolutions(), target="cuda:sm_90"))
    assert said.startswith("nvcc is not installed: compiling for a GPU needs NVIDIA's CUDA toolkit")


@needs_nvcc
def test_what_nvcc_says_is_passed_on():
    assert "nvcc failed" in message(lambda: compile_cuda("int main() { return x; }", "sm_90"))


# On a GPU ----------------------------------------------------------------------------------------------------------


@needs_gpu
@pytest.mark.parametrize("pipeline", ["O3", HALF])
def test_numbers_on_a_gpu(pipeline: str):
    graph = convolutions()
    executable = tersor.compile(graph, target="cuda:sm_80", pipeline=pipeline)
    inputs = executable.random_inputs()
    for actual, expected in zip(executable(*inputs), tersor.ir.evaluate(graph, inputs), strict=True):
        torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)


@needs_gpu
def test_a_file_runs_on_a_gpu(executable: Executable, artifact: Path):
    inputs = executable.random_inputs()
    for actual, expected in zip(tersor.load(artifact)(*inputs), executable(*inputs), strict=True):
        assert torch.equal(actual, expected)
