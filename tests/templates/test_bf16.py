"""bfloat16 kernels, on a matrix unit and by dot products of pairs, against PyTorch on the same rounded operands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
import tvm
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tersor.targets.machines.catalog import resolve_cpu
from tersor.targets.machines.target import Cpu
from tersor.targets.templates.conv2d import bf16 as conv2d_bf16
from tersor.targets.templates.conv2d import bf16_dot as conv2d_bf16_dot
from tersor.targets.templates.conv2d import bf16_narrow as conv2d_bf16_narrow
from tersor.targets.templates.conv2d import bf16_patches as conv2d_bf16_patches
from tersor.targets.templates.conv2d.spec import Conv2dKnobs, Conv2dSpec
from tersor.targets.templates.matmul import bf16 as matmul_bf16
from tersor.targets.templates.matmul import bf16_dot as matmul_bf16_dot
from tersor.targets.templates.matmul.spec import ACTIVATION, MatmulSpec
from tersor.targets.templates.vector import amx, dot_bf16
from tersor.tests import emulated_x86

from .window_cases import bias_add_relu, bias_add_relu_reference, from_blocked, out_elements, to_blocked

AMX = resolve_cpu("x86:sapphirerapids")
# As x86:znver4, but in code for the oldest processor with the instructions: Intel's processors lack some of Zen 4's.
DOT = replace(resolve_cpu("x86:znver4"), mcpu="cooperlake")
TOLERANCE = 2e-6  # of the largest result: only the order of the sums differs


on_both = pytest.mark.parametrize("target", [pytest.param(AMX, id="amx"), pytest.param(DOT, id="dot")])

CONVOLUTIONS = {
    "3x3": Conv2dSpec(1, 64, 8, 8, 64, (3, 3), (1, 1), (1, 1, 1, 1)),
    "3x3 stride 2": Conv2dSpec(2, 48, 7, 9, 40, (3, 3), (2, 2), (1, 1, 1, 1)),
    "3x3 stride 3": Conv2dSpec(1, 32, 11, 10, 32, (3, 3), (3, 3), (1, 0, 1, 0)),
    "odd channels": Conv2dSpec(1, 17, 5, 6, 33, (3, 3), (1, 1), (1, 1, 1, 1)),
    "uneven window": Conv2dSpec(1, 20, 6, 5, 17, (5, 3), (1, 2), (2, 0, 1, 1), (2, 1)),
    "dilation": Conv2dSpec(1, 16, 9, 9, 16, (3, 3), (1, 1), (0, 0, 0, 0), (2, 2)),
    "padding wider than the image": Conv2dSpec(1, 32, 2, 3, 16, (5, 5), (1, 1), (3, 3, 3, 3)),
    "pointwise": Conv2dSpec(3, 33, 5, 6, 70),
    "pointwise stride 2": Conv2dSpec(1, 64, 7, 7, 48, (1, 1), (2, 2)),
    "pointwise with padding": Conv2dSpec(1, 32, 4, 4, 32, (1, 1), (1, 1), (1, 1, 1, 1)),
    "weights that stay in L3": Conv2dSpec(1, 600, 3, 4, 160, (3, 3), (1, 1), (1, 1, 1, 1)),
    "one position": Conv2dSpec(1, 96, 1, 1, 24),
}
PICTURES = {
    "7x7 stride 2": Conv2dSpec(1, 3, 19, 38, 48, (7, 7), (2, 2), (3, 3, 3, 3)),
    "3x3": Conv2dSpec(2, 3, 13, 19, 20, (3, 3), (1, 1), (1, 1, 1, 1)),
    "one channel": Conv2dSpec(1, 1, 9, 7, 16, (5, 5), (1, 2), (2, 2, 2, 2)),
    "all of a panel, uneven": Conv2dSpec(1, 4, 5, 33, 40, (3, 8), (3, 2), (0, 1, 2, 0), (2, 1)),
}
GROUPED = {
    "a block a group": Conv2dSpec(1, 32, 5, 6, 64, (3, 3), (1, 1), (1, 1, 1, 1), groups=2),
    "odd groups": Conv2dSpec(2, 27, 5, 6, 45, (3, 3), (2, 1), (1, 1, 1, 1), groups=3),
    "many groups": Conv2dSpec(1, 40, 4, 4, 20, groups=10),
    "fewer panels than channels": Conv2dSpec(1, 160, 4, 3, 120, (3, 3), (1, 1), (1, 1, 1, 1), groups=5),
    "uneven panels": Conv2dSpec(1, 144, 3, 3, 72, groups=3),
}
PATCHES = {
    "16x16": Conv2dSpec(2, 3, 33, 48, 40, (16, 16), (16, 16)),
    "odd": Conv2dSpec(1, 3, 22, 15, 16, (7, 5), (7, 5)),
    "one column": Conv2dSpec(1, 5, 8, 3, 70, (2, 3), (2, 3)),
}


def rounded(*shape: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator).bfloat16()


def run(prim_func, target: Cpu, *inputs: torch.Tensor, out_size: int) -> torch.Tensor:
    """Build and run on flat operands; the result is float32, NaN where nothing was written."""
    module = emulated_x86.build(prim_func, target)
    flat = [x.reshape(-1).view(torch.uint16) if x.dtype is torch.bfloat16 else x.reshape(-1) for x in inputs]
    tensors = [tvm.runtime.tensor(x.numpy()) for x in (*flat, torch.full((out_size,), torch.nan))]
    module["main"](*tensors)
    return torch.from_numpy(tensors[-1].numpy())


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


def check_conv2d(spec: Conv2dSpec, knobs: object, target: Cpu, template: ModuleType) -> None:
    lanes = target.lanes()
    generator = torch.Generator().manual_seed(0)
    x = rounded(spec.n, spec.c, spec.h, spec.w, generator=generator)
    weight = rounded(spec.o, spec.c // spec.groups, *spec.kernel, generator=generator)
    shape = (spec.n, spec.o, spec.out_h, spec.out_w)
    padded = -(-spec.o // lanes) * lanes
    bias = torch.randn(padded, generator=generator)
    other = torch.randn(spec.n * padded * spec.out_h * spec.out_w, generator=generator)
    prim_func = template.build(spec, target, knobs, bias_add_relu(shape, lanes))
    packed = template.pack_weight(spec, target, knobs, weight)
    data = to_blocked(x.float(), lanes).bfloat16() if spec.input_layout == "blocked" else x
    if template is conv2d_bf16 and spec.c % lanes:
        blocks = data.reshape(spec.n, -1, spec.h, spec.w, lanes)
        blocks[:, -1, ..., spec.c % lanes :] = torch.nan  # what lanes without a channel hold must not matter
    flat = run(prim_func, target, data, packed, bias, other, out_size=out_elements(shape, lanes))
    top, left, bottom, right = spec.padding
    padded_x = F.pad(x.double(), (left, right, top, bottom))
    result = F.conv2d(padded_x, weight.double(), stride=spec.stride, dilation=spec.dilation, groups=spec.groups)
    assert_near(from_blocked(flat, shape, lanes), bias_add_relu_reference(result.float(), bias, other, lanes))


def check_linear(template: ModuleType, spec: MatmulSpec, target: Cpu, ways: Sequence[object]) -> None:
    generator = torch.Generator().manual_seed(0)
    a, weight = rounded(spec.m, spec.k, generator=generator), rounded(spec.n, spec.k, generator=generator)
    expected = (a.double() @ weight.double().T).float()
    for knobs in ways:
        packed = template.pack_weight(spec, target, knobs, weight)
        out = run(template.build(spec, target, knobs), target, a, packed, out_size=spec.m * spec.n)
        assert_near(out.reshape(spec.m, spec.n), expected)


def bf16(spec: Conv2dSpec) -> Conv2dSpec:
    return replace(spec, dtype="bfloat16")


@pytest.mark.parametrize("spec", [*CONVOLUTIONS.values(), *GROUPED.values()], ids=[*CONVOLUTIONS, *GROUPED])
def test_conv2d(spec: Conv2dSpec):
    spec = bf16(spec)
    assert conv2d_bf16.supports(spec, AMX)
    for knobs in conv2d_bf16.candidates(spec, AMX):
        check_conv2d(spec, knobs, AMX, conv2d_bf16)


@pytest.mark.parametrize(("row_units", "output_units"), [(3, 1), (1, 2), (2, 3)])
def test_conv2d_in_units(row_units: int, output_units: int):
    knobs = conv2d_bf16.Conv2dBf16Knobs(1, 1, row_units, output_units)
    check_conv2d(bf16(CONVOLUTIONS["3x3 stride 2"]), knobs, AMX, conv2d_bf16)


@pytest.mark.parametrize("spec", [*CONVOLUTIONS.values(), *GROUPED.values()], ids=[*CONVOLUTIONS, *GROUPED])
def test_conv2d_by_pairs(spec: Conv2dSpec):
    spec = bf16(spec)
    assert conv2d_bf16_dot.supports(spec, DOT)
    best = conv2d_bf16_dot.candidates(spec, DOT)[0]
    for knobs in (best, Conv2dKnobs(1, 1, 1, block_chunk=1, order="rows")):
        check_conv2d(spec, knobs, DOT, conv2d_bf16_dot)


@on_both
@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(
    channels=st.integers(1, 40),
    outputs=st.integers(1, 40),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(*[st.integers(0, 2)] * 4),
    groups=st.integers(1, 5),
)
def test_any_conv2d(channels, outputs, size, kernel, stride, padding, groups, target):
    assume(size[0] + padding[0] + padding[2] >= kernel[0] and size[1] + padding[1] + padding[3] >= kernel[1])
    spec = Conv2dSpec(
        1, channels * groups, *size, outputs * groups, kernel, stride, padding, groups=groups, dtype="bfloat16"
    )
    template = conv2d_bf16 if conv2d_bf16.supports(spec, target) else conv2d_bf16_dot
    check_conv2d(spec, template.candidates(spec, target)[0], target, template)


def check_plain_input(template: ModuleType, spec: Conv2dSpec, target: Cpu) -> None:
    """All candidates, and units cut both ways."""
    spec = replace(bf16(spec), input_layout="plain")
    assert template.supports(spec, target)
    found = template.candidates(spec, target)
    for knobs in (*found, replace(found[0], rows=1, columns=1, row_units=2, output_units=2)):
        check_conv2d(spec, knobs, target, template)


@on_both
@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name: str, target: Cpu):
    check_plain_input(conv2d_bf16_narrow, PICTURES[name], target)


@on_both
@pytest.mark.parametrize("name", PATCHES)
def test_patches(name: str, target: Cpu):
    check_plain_input(conv2d_bf16_patches, PATCHES[name], target)


def test_patches_are_windows_that_do_not_overlap():
    spec = replace(bf16(PATCHES["16x16"]), input_layout="plain")
    assert not conv2d_bf16_patches.supports(replace(spec, stride=(8, 16)), AMX)
    assert not conv2d_bf16_patches.supports(replace(spec, padding=(1, 0, 0, 0)), AMX)
    assert not conv2d_bf16_patches.supports(replace(spec, input_layout="blocked"), AMX)
    assert not conv2d_bf16_patches.supports(spec, resolve_cpu("x86:icelake-server"))


def test_pictures_have_few_channels_and_small_steps():
    spec = replace(bf16(PICTURES["3x3"]), input_layout="plain")
    assert not conv2d_bf16_narrow.supports(replace(spec, c=9), AMX)
    assert not conv2d_bf16_narrow.supports(replace(spec, stride=(4, 4)), AMX)
    assert not conv2d_bf16_narrow.supports(replace(spec, dilation=(2, 2)), AMX)


def test_conv2d_is_for_blocked_bfloat16():
    spec = CONVOLUTIONS["3x3"]
    plain = Conv2dSpec(1, 3, 8, 8, 64, input_layout="plain", dtype="bfloat16")
    assert not conv2d_bf16.supports(spec, AMX)
    assert not conv2d_bf16.supports(bf16(spec), DOT)
    assert not conv2d_bf16.supports(plain, AMX)
    assert not conv2d_bf16_dot.supports(spec, DOT)
    assert not conv2d_bf16_dot.supports(plain, DOT)
    assert not conv2d_bf16_dot.supports(bf16(spec), AMX)
    assert not conv2d_bf16_dot.supports(bf16(spec), resolve_cpu("x86:icelake-server"))


def test_large_convolutions_are_cut_so_that_panels_stay_in_l2():
    spec = Conv2dSpec(1, 256, 112, 112, 64, (3, 3), (1, 1), (1, 1, 1, 1), dtype="bfloat16")
    knobs = conv2d_bf16.candidates(spec, AMX)[0]
    assert knobs.row_units >= 256 * 112 * 112 * 2 // AMX.l2_bytes


def test_tiles_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="3 x 2 tiles of sums and their operands do not fit 8"):
        amx.TileShape(3, 2)
    with pytest.raises(ValueError, match="15 x 2 vectors of sums and their operands do not fit 32"):
        dot_bf16.DotShape(15, 2)


def test_targets_without_the_instructions_have_no_candidates():
    with pytest.raises(ValueError, match="x86:avx2 has no instruction that multiplies bfloat16 numbers"):
        matmul_bf16.candidates(MatmulSpec(8, 8, 8, dtype="bfloat16"), resolve_cpu("x86:avx2"))


@on_both
@pytest.mark.parametrize("size", [(128, 384, 384), (197, 48, 192), (5, 70, 33), (33, 7, 31), (16, 32, 64)], ids=str)
def test_matmul(size: tuple[int, int, int], target: Cpu):
    spec = MatmulSpec(*size, dtype="bfloat16")
    assert matmul_bf16.supports(spec, target)
    found = matmul_bf16.candidates(spec, target)
    other = replace(found[0], rows=1, columns=1, row_units=3, output_units=2)
    check_linear(matmul_bf16, spec, target, (*found, other))


@pytest.mark.parametrize("size", [(128, 384, 384), (197, 48, 192), (5, 70, 33), (33, 7, 31), (16, 32, 64)], ids=str)
def test_matmul_of_rows_where_they_are(size: tuple[int, int, int]):
    """Rows of odd length begin in the middle of a pair; what lies behind the last one is not read."""
    spec = MatmulSpec(*size, dtype="bfloat16")
    assert matmul_bf16_dot.supports(spec, DOT)
    found = matmul_bf16_dot.candidates(spec, DOT)
    other = replace(found[0], rows=3, vectors=1, row_chunks=2)
    check_linear(matmul_bf16_dot, spec, DOT, (found[0], found[-1], other))


@on_both
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("size", [(3, 50, 40, 70), (2, 9, 33, 31), (1, 35, 5, 1)], ids=str)
def test_product_of_activations(size: tuple[int, ...], transposed: bool, target: Cpu):
    """Slices of wider rows; the right-hand side is stored by rows or by columns."""
    batch, m, n, k = size
    generator = torch.Generator().manual_seed(0)
    a = rounded(batch, m, k + 3, generator=generator)
    right = rounded(batch, *((n, k) if transposed else (k, n)), generator=generator)
    spec = MatmulSpec(
        m,
        n,
        k,
        ACTIVATION,
        (batch,),
        a_strides=(m * (k + 3), k + 3, 1),
        rhs_strides=(n * k, 1, k) if transposed else (n * k, n, 1),
        a_offset=2,
        a_size=a.numel(),
        dtype="bfloat16",
    )
    assert matmul_bf16.supports(spec, target)
    left = a.reshape(-1)[2:].as_strided((batch, m, k), spec.a_strides).double()
    expected = left @ (right.transpose(1, 2) if transposed else right).double()
    found = matmul_bf16.candidates(spec, target)
    for knobs in (*found, replace(found[0], rows=1, columns=1, row_units=3)):
        out = run(matmul_bf16.build(spec, target, knobs), target, a, right, out_size=math.prod(expected.shape))
        assert_near(out.reshape(expected.shape), expected.float())


def test_few_rows_are_left_to_the_vector_kernel():
    assert not matmul_bf16_dot.supports(MatmulSpec(1, 1000, 512, dtype="bfloat16"), DOT)
    assert not matmul_bf16_dot.supports(MatmulSpec(16, 1000, 512, dtype="bfloat16"), AMX)  # its unit is faster
    assert not matmul_bf16.supports(MatmulSpec(1, 1000, 512, dtype="bfloat16"), AMX)
    assert not matmul_bf16.supports(MatmulSpec(7, 64, 64, ACTIVATION, dtype="bfloat16"), AMX)


def test_operands_must_be_contiguous_along_one_axis():
    spec = MatmulSpec(16, 16, 16, ACTIVATION, rhs_strides=(32, 2), dtype="bfloat16")
    assert not matmul_bf16.supports(spec, AMX)
    assert not matmul_bf16.supports(MatmulSpec(16, 16, 16, a_strides=(1, 16), dtype="bfloat16"), AMX)
