"""Integer kernels against exact sums, on every instruction path of x86; NEON's by their assembly."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.targets.codegen.options import Options
from tersor.targets.machines.catalog import list_targets, resolve_cpu
from tersor.targets.machines.target import Cpu
from tersor.targets.templates.base import Epilogue
from tersor.targets.templates.conv2d import depthwise_int8
from tersor.targets.templates.conv2d import int8 as conv2d_int8
from tersor.targets.templates.conv2d import int8_amx as conv2d_int8_amx
from tersor.targets.templates.conv2d import int8_amx_narrow as conv2d_int8_amx_narrow
from tersor.targets.templates.conv2d import int8_narrow as conv2d_int8_narrow
from tersor.targets.templates.conv2d.spec import Conv2dKnobs, Conv2dSpec
from tersor.targets.templates.matmul import int8 as matmul_int8
from tersor.targets.templates.matmul import int8_amx as matmul_int8_amx
from tersor.targets.templates.matmul.spec import MatmulKnobs, MatmulSpec
from tersor.targets.templates.option import Workload
from tersor.targets.templates.vector import amx
from tersor.targets.templates.vector.dot_product import (
    BytePairProduct,
    DotProduct,
    PairwiseProduct,
    PlainProduct,
    dot_product,
    useful_bits,
)
from tersor.tests import emulated_x86

from .window_cases import depthwise_spec

AMX = resolve_cpu("x86:sapphirerapids")
VNNI = resolve_cpu("x86:icelake-server")
AVX512 = resolve_cpu("x86:skylake-avx512")
AVX2 = resolve_cpu("x86:avx2")
SSE = Cpu("x86:test16", "x86", "haswell", 16, 32, 32 << 10, 1 << 20, 32 << 20, 2)  # no dot products, blocks of four
AVX_VNNI = resolve_cpu("x86:alderlake")
PATHS = {  # ways to multiply: a target, and the bits of the weights
    "vpdpbusd": (VNNI, 8),
    "vpdpbusd, 256 bits": (AVX_VNNI, 8),
    "vpmaddubsw": (AVX512, 7),
    "vpmaddubsw, 256 bits": (AVX2, 7),
    "vpmaddwd": (AVX512, 8),
    "vpmaddwd, 256 bits": (AVX2, 8),
    "plain": (SSE, 8),
}
RANGES = {"uint8": (0, 255), "int8": (-128, 127)}
WEIGHT_RANGES = {7: (-64, 63), 8: (-128, 127)}
EXACT_SUMS = Epilogue(dtype="int32")
GARBAGE = 77  # what channels that do not exist hold
UNWRITTEN = -123456789
DRAWN = settings(max_examples=8, deadline=None, derandomize=True)

CONVOLUTIONS = {
    "3x3": Conv2dSpec(1, 64, 8, 8, 64, (3, 3), (1, 1), (1, 1, 1, 1)),
    "3x3 stride 2": Conv2dSpec(2, 48, 7, 9, 40, (3, 3), (2, 2), (1, 1, 1, 1)),
    "odd channels": Conv2dSpec(1, 17, 5, 6, 33, (3, 3), (1, 1), (1, 1, 1, 1)),
    "uneven window": Conv2dSpec(1, 20, 6, 5, 17, (5, 3), (1, 2), (2, 0, 1, 1), (2, 1)),
    "padding wider than the image": Conv2dSpec(1, 32, 2, 3, 16, (5, 5), (1, 1), (3, 3, 3, 3)),
    "pointwise": Conv2dSpec(3, 33, 5, 6, 70),
    "pointwise stride 2": Conv2dSpec(1, 64, 7, 7, 48, (1, 1), (2, 2)),
    "pointwise with padding": Conv2dSpec(1, 32, 4, 4, 32, (1, 1), (1, 1), (1, 1, 1, 1)),
}
GROUPED = Conv2dSpec(1, 24, 7, 7, 12, (3, 3), (1, 1), (1, 1, 1, 1), groups=4)
PICTURES = {
    "7x7 stride 2": Conv2dSpec(1, 3, 19, 38, 48, (7, 7), (2, 2), (3, 3, 3, 3), input_layout="plain"),
    "3x3": Conv2dSpec(2, 3, 13, 19, 20, (3, 3), (1, 1), (1, 1, 1, 1), input_layout="plain"),
    "dilation": Conv2dSpec(1, 3, 9, 9, 20, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), input_layout="plain"),
    "pointwise": Conv2dSpec(1, 5, 9, 9, 20, input_layout="plain"),
}
DEPTHWISE = {
    "3x3": depthwise_spec(1, 32, 9, 13, (3, 3), (1, 1), (1, 1, 1, 1)),
    "3x3 stride 2": depthwise_spec(2, 24, 14, 14, (3, 3), (2, 2), (1, 1, 1, 1)),
    "5x5 stride 2, padded after": depthwise_spec(1, 40, 14, 14, (5, 5), (2, 2), (1, 1, 2, 2)),
    "5x5": depthwise_spec(1, 16, 9, 7, (5, 5), (1, 1), (2, 2, 2, 2)),
    "7x7": depthwise_spec(1, 16, 12, 12, (7, 7), (1, 1), (3, 3, 3, 3)),
    "11x11": depthwise_spec(1, 16, 12, 13, (11, 11), (1, 1), (5, 5, 5, 5)),
    "stride 3": depthwise_spec(1, 16, 12, 13, (2, 2), (3, 3)),
    "dilation 2": depthwise_spec(1, 16, 9, 9, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2)),
    "no padding": depthwise_spec(1, 3, 5, 5, (3, 3)),
}


def integers(dtype: str, *shape: int, extreme: bool = False) -> torch.Tensor:
    """Random numbers of the whole range of a type, or its largest and smallest number only."""
    return _numbers(RANGES[dtype], shape, extreme, larger=dtype == "uint8").to(getattr(torch, dtype))


def weights(bits: int, *shape: int, extreme: bool = False) -> torch.Tensor:
    """The same for int8 weights of so many bits."""
    return _numbers(WEIGHT_RANGES[bits], shape, extreme, larger=False).to(torch.int8)


def _numbers(limits: tuple[int, int], shape: tuple[int, ...], extreme: bool, *, larger: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    low, high = limits
    if extreme:
        return torch.where(torch.rand(shape, generator=generator) < 0.9, high if larger else low, low)
    return torch.randint(low, high + 1, shape, generator=generator)


def to_blocked(x: torch.Tensor, lanes: int) -> torch.Tensor:
    n, c, h, w = x.shape
    blocks = -(-c // lanes)
    padded = torch.full((n, blocks * lanes, h, w), GARBAGE, dtype=x.dtype)
    padded[:, :c] = x
    return padded.reshape(n, blocks, lanes, h, w).permute(0, 1, 3, 4, 2).reshape(-1)


def from_blocked(flat: torch.Tensor, shape: tuple[int, int, int, int], lanes: int) -> torch.Tensor:
    n, c, h, w = shape
    return flat.reshape(n, -1, h, w, lanes).permute(0, 1, 4, 2, 3).reshape(n, -1, h, w)[:, :c]


def run(prim_func: Any, target: Cpu, *inputs: torch.Tensor, size: int) -> torch.Tensor:
    """Build and run on flat operands; the result is int32."""
    module = emulated_x86.build(prim_func, target)
    out = tvm.runtime.tensor(np.full(size, UNWRITTEN, "int32"))
    module["main"](*(tvm.runtime.tensor(x.contiguous().reshape(-1).numpy()) for x in inputs), out)
    return torch.from_numpy(out.numpy())


def check_convolution(template: ModuleType, spec: Conv2dSpec, target: Cpu, knobs: Any = None, *, extreme: bool = False):
    """Compare one kernel with exact sums: float64 holds all of them."""
    knobs = knobs or template.candidates(spec, target)[0]
    outputs, groups, plain = spec.o, spec.groups, spec.input_layout == "plain"
    x = integers(spec.dtype, spec.n, spec.c, spec.h, spec.w, extreme=extreme)
    weight = weights(spec.weight_bits, outputs, spec.c // groups, *spec.kernel, extreme=extreme)
    lanes, shape = target.lanes(), (spec.n, outputs, spec.out_h, spec.out_w)
    size = spec.n * -(-outputs // lanes) * lanes * spec.out_h * spec.out_w
    prim_func = template.build(spec, target, knobs, EXACT_SUMS)
    packed = template.pack_weight(spec, target, knobs, weight)
    flat = run(prim_func, target, x if plain else to_blocked(x, lanes), packed, size=size)
    top, left, bottom, right = spec.padding
    padded = F.pad(x.double() - spec.zero_point, (left, right, top, bottom))
    expected = F.conv2d(padded, weight.double(), stride=spec.stride, dilation=spec.dilation, groups=groups)
    assert torch.equal(from_blocked(flat, shape, lanes), expected.to(torch.int32))


def check_matmul(template: ModuleType, spec: MatmulSpec, target: Cpu, knobs: Any = None, *, extreme: bool = False):
    knobs = knobs or template.candidates(spec, target)[0]
    a = integers(spec.dtype, spec.m, spec.k, extreme=extreme)
    weight = weights(spec.weight_bits, spec.n, spec.k, extreme=extreme)
    prim_func = template.build(spec, target, knobs, EXACT_SUMS)
    out = run(prim_func, target, a, template.pack_weight(spec, target, knobs, weight), size=spec.m * spec.n)
    expected = (a.double() - spec.zero_point) @ weight.double().T
    assert torch.equal(out.reshape(spec.m, spec.n), expected.to(torch.int32))


@st.composite
def operands(draw: st.DrawFn) -> dict[str, Any]:
    dtype = draw(st.sampled_from(["uint8", "int8"]))
    return {"dtype": dtype, "zero_point": draw(st.sampled_from([0, RANGES[dtype][0], RANGES[dtype][1], 3]))}


@st.composite
def convolutions(draw: st.DrawFn, *, groups: bool = False, plain: bool = False, depthwise: bool = False) -> Conv2dSpec:
    kernel, stride, dilation = (
        (draw(st.integers(1, most)), draw(st.integers(1, most))) for most in (3 if not plain else 5, 2, 2)
    )
    padding = tuple(draw(st.integers(0, 2)) for _ in range(4))
    height, width = (draw(st.integers(max(1, (k - 1) * d + 1), 9)) for k, d in zip(kernel, dilation, strict=True))
    window: dict[str, Any] = {
        "kernel": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        **draw(operands()),
    }
    if depthwise:
        return depthwise_spec(draw(st.integers(1, 2)), draw(st.integers(1, 35)), height, width, **window)
    count = draw(st.integers(1, 4)) if groups else 1
    channels = count * draw(st.integers(1, 5 if plain else 70 // count))
    outputs = count * draw(st.integers(1, 40 // count))
    window |= {"groups": count, "input_layout": "plain" if plain else "blocked"}
    return Conv2dSpec(draw(st.integers(1, 2)), channels, height, width, outputs, **window)


@st.composite
def products(draw: st.DrawFn) -> MatmulSpec:
    return MatmulSpec(draw(st.integers(4, 40)), draw(st.integers(1, 70)), draw(st.integers(1, 150)), **draw(operands()))


DRAWN_CONVOLUTIONS = {
    "direct": (conv2d_int8, VNNI, convolutions(groups=True)),
    "matrix unit": (conv2d_int8_amx, AMX, convolutions()),
    "picture": (conv2d_int8_narrow, VNNI, convolutions(plain=True)),
    "picture, matrix unit": (
        conv2d_int8_amx_narrow,
        AMX,
        convolutions(plain=True).filter(lambda spec: conv2d_int8_amx_narrow.supports(spec, AMX)),
    ),
    "depthwise": (depthwise_int8, VNNI, convolutions(depthwise=True)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_direct_convolution(name: str):
    for dtype, zero_point in (("uint8", 131), ("int8", -100)):
        spec = replace(CONVOLUTIONS[name], dtype=dtype, zero_point=zero_point)
        assert conv2d_int8.supports(spec, VNNI)
        check_convolution(conv2d_int8, spec, VNNI)


@pytest.mark.parametrize("path", [path for path in PATHS if path != "vpdpbusd"])
@pytest.mark.parametrize(("name", "dtype", "zero_point"), [("3x3 stride 2", "uint8", 131), ("pointwise", "int8", -100)])
def test_direct_convolution_paths(name: str, dtype: str, zero_point: int, path: str):
    target, bits = PATHS[path]
    spec = replace(CONVOLUTIONS[name], dtype=dtype, zero_point=zero_point, weight_bits=bits)
    check_convolution(conv2d_int8, spec, target)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_on_the_matrix_unit(name: str):
    for dtype, zero_point in (("uint8", 131), ("int8", -128), ("uint8", 0)):
        spec = replace(CONVOLUTIONS[name], dtype=dtype, zero_point=zero_point)
        assert conv2d_int8_amx.supports(spec, AMX)
        for knobs in conv2d_int8_amx.candidates(spec, AMX)[: 3 if zero_point == 131 else 1]:
            check_convolution(conv2d_int8_amx, spec, AMX, knobs)


@pytest.mark.parametrize(("row_units", "output_units"), [(3, 1), (2, 3)])
def test_convolution_on_the_matrix_unit_in_units(row_units: int, output_units: int):
    spec = replace(CONVOLUTIONS["3x3 stride 2"], dtype="uint8", zero_point=7)
    knobs = conv2d_int8_amx.Conv2dInt8AmxKnobs(1, 1, row_units, output_units)
    check_convolution(conv2d_int8_amx, spec, AMX, knobs)


@pytest.mark.parametrize("kind", DRAWN_CONVOLUTIONS)
@DRAWN
@given(data=st.data())
def test_drawn_convolutions(kind: str, data: st.DataObject):
    template, target, specs = DRAWN_CONVOLUTIONS[kind]
    check_convolution(template, data.draw(specs), target)


@DRAWN
@given(spec=products())
def test_drawn_products(spec: MatmulSpec):
    check_matmul(matmul_int8, spec, VNNI)
    check_matmul(matmul_int8_amx, spec, AMX)


@pytest.mark.parametrize("path", PATHS)
def test_grouped_convolution(path: str):
    target, bits = PATHS[path]
    check_convolution(conv2d_int8, replace(GROUPED, dtype="uint8", zero_point=9, weight_bits=bits), target)


def test_chunks_of_input_blocks():
    spec = replace(CONVOLUTIONS["3x3"], dtype="uint8", zero_point=9)
    check_convolution(conv2d_int8, spec, VNNI, Conv2dKnobs(2, 1, 8, block_chunk=3, spatial_units=2))


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name: str):
    for target in (VNNI, AVX2):
        spec = replace(PICTURES[name], dtype="uint8", zero_point=131)
        assert conv2d_int8_narrow.supports(spec, target)
        check_convolution(conv2d_int8_narrow, spec, target)


@pytest.mark.parametrize("name", [name for name in PICTURES if name != "pointwise"])
def test_pictures_on_the_matrix_unit(name: str):
    for dtype, zero_point in (("uint8", 131), ("int8", -128), ("uint8", 0)):
        spec = replace(PICTURES[name], dtype=dtype, zero_point=zero_point)
        assert conv2d_int8_amx_narrow.supports(spec, AMX)
        for knobs in conv2d_int8_amx_narrow.candidates(spec, AMX):
            check_convolution(conv2d_int8_amx_narrow, spec, AMX, knobs)


def test_pictures_that_the_matrix_unit_leaves_to_the_vector_unit():
    picture = replace(PICTURES["7x7 stride 2"], dtype="uint8")
    assert not conv2d_int8_amx_narrow.supports(picture, VNNI)
    assert not conv2d_int8_amx_narrow.supports(replace(picture, c=5), AMX)
    assert not conv2d_int8_amx_narrow.supports(replace(picture, kernel=(11, 11), w=60, h=60), AMX)  # rows of one parity
    assert not conv2d_int8_amx_narrow.supports(replace(picture, kernel=(1, 17)), AMX)


def test_blocks_past_the_last_output_are_dropped():
    spec = replace(PICTURES["3x3"], dtype="int8", zero_point=-3)
    check_convolution(conv2d_int8_narrow, spec, VNNI, conv2d_int8_narrow.Conv2dInt8NarrowKnobs(3, 5, 2))


@pytest.mark.parametrize("name", DEPTHWISE)
def test_depthwise(name: str):
    for dtype, zero_point in (("uint8", 131), ("int8", -100)):
        spec = replace(DEPTHWISE[name], dtype=dtype, zero_point=zero_point)
        check_convolution(depthwise_int8, spec, VNNI)
    check_convolution(depthwise_int8, spec, VNNI, depthwise_int8.DepthwiseInt8Knobs(2, 3, 2))


@pytest.mark.parametrize("name", ["3x3", "5x5"])
def test_every_tile_of_a_depthwise_convolution(name: str):
    spec = replace(DEPTHWISE[name], dtype="uint8", zero_point=131)
    for knobs in depthwise_int8.candidates(spec, VNNI):
        check_convolution(depthwise_int8, spec, VNNI, knobs)


@pytest.mark.parametrize("path", PATHS)
def test_depthwise_paths(path: str):
    target, bits = PATHS[path]
    spec = replace(DEPTHWISE["3x3 stride 2"], dtype="uint8", zero_point=200, weight_bits=bits)
    check_convolution(depthwise_int8, spec, target)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("size", [(1, 33, 70), (5, 70, 33), (3, 16, 3)], ids=str)
def test_matmul(size: tuple[int, int, int], path: str):
    target, bits = PATHS[path]
    spec = MatmulSpec(*size, dtype="uint8", zero_point=131, weight_bits=bits)
    check_matmul(matmul_int8, spec, target)
    check_matmul(matmul_int8, replace(spec, dtype="int8", zero_point=-7), target, MatmulKnobs(2, 1, 2, 1))


@pytest.mark.parametrize("size", [(33, 7, 31), (16, 32, 64), (37, 100, 129)], ids=str)
def test_matmul_on_the_matrix_unit(size: tuple[int, int, int]):
    for dtype in RANGES:
        spec = MatmulSpec(*size, dtype=dtype, zero_point=5)
        for knobs in (*matmul_int8_amx.candidates(spec, AMX), matmul_int8_amx.MatmulInt8AmxKnobs(1, 1, 3, 2)):
            check_matmul(matmul_int8_amx, spec, AMX, knobs)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("dtype", "zero_point"), [("uint8", 0), ("int8", 127)])
def test_largest_sums(path: str, dtype: str, zero_point: int):
    """255 times -128 and -128 times -128 everywhere, or -64: nothing saturates on the way."""
    target, bits = PATHS[path]
    operands: dict[str, Any] = {"dtype": dtype, "zero_point": zero_point, "weight_bits": bits}
    conv = Conv2dSpec(1, 512, 4, 5, 32, **operands)
    check_convolution(conv2d_int8, conv, target, extreme=True)
    check_convolution(depthwise_int8, replace(DEPTHWISE["3x3"], **operands), target, extreme=True)
    check_matmul(matmul_int8, MatmulSpec(2, 32, 512, **operands), target, extreme=True)


@pytest.mark.parametrize(("dtype", "zero_point"), [("uint8", 0), ("int8", 127)])
def test_largest_sums_on_the_matrix_unit(dtype: str, zero_point: int):
    conv = replace(CONVOLUTIONS["3x3"], dtype=dtype, zero_point=zero_point)
    check_convolution(conv2d_int8_amx, conv, AMX, extreme=True)
    check_matmul(matmul_int8_amx, MatmulSpec(16, 32, 512, dtype=dtype, zero_point=zero_point), AMX, extreme=True)


def test_instructions_of_targets():
    assert dot_product(VNNI, "uint8") == DotProduct("uint8", "uint8", 16, "llvm.x86.avx512.vpdpbusd.512")
    assert dot_product(VNNI, "int8").offset == 128
    assert dot_product(AVX_VNNI, "uint8").intrinsic == "llvm.x86.avx512.vpdpbusd.256"
    assert isinstance(dot_product(AVX2, "uint8"), PairwiseProduct)
    assert isinstance(dot_product(AVX2, "uint8", 7), BytePairProduct)
    assert dot_product(AVX_VNNI, "uint8", 7) == dot_product(AVX_VNNI, "uint8")
    assert isinstance(dot_product(SSE, "uint8"), PlainProduct)


@pytest.mark.parametrize(
    ("target", "dtype", "said", "numbers", "bits"),
    [
        (AVX2, "uint8", 7, (-64, 63), 7),
        (AVX512, "int8", 7, (-64, 63), 7),
        (AVX2, "uint8", 8, (-64, 63), 8),
        (AVX2, "uint8", 7, (-64, 64), 8),
        (AVX2, "uint8", 7, (-65, 0), 8),
        (AVX2, "float32", 7, (0, 0), 8),
        (VNNI, "uint8", 7, (-64, 63), 8),
        (AVX_VNNI, "uint8", 7, (-64, 63), 8),
        (SSE, "uint8", 7, (-64, 63), 8),
    ],
)
def test_bits_that_a_kernel_counts_on(target: Cpu, dtype: str, said: int, numbers: tuple[int, int], bits: int):
    """Seven only where that is said, true and faster."""
    assert useful_bits(target, dtype, said, torch.tensor(numbers, dtype=torch.int8)) == bits


def test_bits_of_weights_without_numbers():
    assert useful_bits(AVX2, "uint8", 7, torch.empty(2, 2, dtype=torch.int8, device="meta")) == 7


def test_targets_know_which_bits_are_fast():
    """`Cpu.weight_bits`, which passes ask, and `dot_product`, which kernels ask, agree."""
    for target in list_targets():
        if isinstance(target, Cpu):
            is_faster = dot_product(target, "uint8", 7) != dot_product(target, "uint8")
            assert target.weight_bits == (7 if is_faster else 8), target.name


def arm(name: str, *features: str) -> Cpu:
    return Cpu(f"arm:{name}", "arm", name, 16, 32, 64 << 10, 512 << 10, 2 << 20, 4, features)


@pytest.mark.parametrize(
    ("target", "instruction"),
    [
        (arm("cortex-a76", "asimddp"), "sdot"),
        (arm("neoverse-v1", "asimddp", "i8mm"), "usdot"),
        (arm("cortex-a72"), "smlal"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_neon_code(target: Cpu, instruction: str):
    """It cannot run here: the instructions are looked for in the assembly."""
    json = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": target.mcpu}
    conv = replace(CONVOLUTIONS["3x3"], dtype="uint8", zero_point=3)
    depthwise = replace(DEPTHWISE["3x3"], dtype="uint8", zero_point=3)
    product = MatmulSpec(3, 32, 64, dtype="uint8", zero_point=3)
    for template, spec in ((conv2d_int8, conv), (depthwise_int8, depthwise), (matmul_int8, product)):
        prim_func = template.build(spec, target, template.candidates(spec, target)[0], EXACT_SUMS)
        module = tvm.tirx.build(tvm.IRModule({"main": prim_func}), target=tvm.target.Target(json))
        assert f"\t{instruction}\t" in module.inspect_source("asm")


def test_avx_vnni_code():
    """The instruction of 256 bits as processors without AVX-512 have it."""
    spec = MatmulSpec(3, 32, 64, dtype="uint8", zero_point=3)
    prim_func = matmul_int8.build(spec, AVX_VNNI, matmul_int8.candidates(spec, AVX_VNNI)[0], EXACT_SUMS)
    target = tvm.target.Target(AVX_VNNI.tvm_target())
    text = tvm.tirx.build(tvm.IRModule({"main": prim_func}), target=target).inspect_source("asm")
    assert "{vex}\tvpdpbusd" in text
    assert "zmm" not in text


def test_what_templates_support():
    conv = CONVOLUTIONS["3x3"]
    integer = replace(conv, dtype="uint8")
    assert not conv2d_int8.supports(conv, VNNI)
    assert not conv2d_int8.supports(replace(integer, input_layout="plain"), VNNI)
    assert not conv2d_int8_amx.supports(integer, VNNI)
    assert not conv2d_int8_amx.supports(replace(integer, groups=2), AMX)
    assert not conv2d_int8_narrow.supports(integer, VNNI)
    assert not matmul_int8_amx.supports(MatmulSpec(1, 8, 8, dtype="uint8"), AMX)
    assert not matmul_int8.supports(MatmulSpec(1, 8, 8, rhs="activation", dtype="uint8"), AMX)
    assert not depthwise_int8.supports(DEPTHWISE["3x3"], VNNI)


@pytest.mark.parametrize(
    ("channels", "kernel", "template"),
    [(32, (1, 1), "conv2d_int8"), (33, (1, 1), "conv2d_int8_amx"), (32, (3, 3), "conv2d_int8_amx")],
)
def test_short_sums_are_left_to_the_vector_unit(channels: int, kernel: tuple[int, int], template: str):
    spec = Conv2dSpec(1, channels, 14, 14, 64, kernel, dtype="uint8")
    assert Options(Workload("conv2d", spec), AMX).default.template == template


def test_zero_points_are_checked():
    with pytest.raises(ValueError, match="zero_point=-1 of uint8 must be in 0 … 255"):
        Conv2dSpec(1, 16, 8, 8, 16, dtype="uint8", zero_point=-1)
    with pytest.raises(ValueError, match="zero_point=3 of float32 must be in 0 … 0"):
        MatmulSpec(1, 1, 1, zero_point=3)
    with pytest.raises(ValueError, match="dtype int64 is not supported"):
        depthwise_spec(1, 16, 8, 8, dtype="int64")


@pytest.mark.parametrize("template", [conv2d_int8, conv2d_int8_amx, conv2d_int8_narrow])
def test_pack_weight_refuses_a_wrong_shape(template: ModuleType):
    layout: Literal["plain", "blocked"] = "plain" if template is conv2d_int8_narrow else "blocked"
    spec = replace(CONVOLUTIONS["3x3"], dtype="uint8", input_layout=layout)
    with pytest.raises(ValueError, match="expected \\(64, 64, 3, 3\\)"):
        template.pack_weight(spec, AMX, template.candidates(spec, AMX)[0], torch.zeros(64, 3, 3, 3, dtype=torch.int8))


def test_tiles_of_integers_are_packed_in_quads():
    matrix = torch.arange(64 * 16, dtype=torch.int32).reshape(64, 16)
    tile = amx.pack_quads(matrix).reshape(16, 16, 4)
    assert torch.equal(tile[5, 7], matrix[20:24, 7])
