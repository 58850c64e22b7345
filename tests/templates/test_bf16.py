"""bfloat16 kernels on a matrix unit, against PyTorch in float32 on the same rounded operands."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
import tvm
from tersor.targets.catalog import host_features, resolve_target
from tersor.targets.templates import amx, conv2d_bf16, conv2d_bf16_narrow, matmul_bf16
from tersor.targets.templates.conv2d_spec import Conv2dSpec
from tersor.targets.templates.matmul_spec import MatmulSpec

from .window_cases import bias_add_relu, bias_add_relu_reference, from_blocked, out_elements, to_blocked

TARGET = resolve_target("x86:sapphirerapids")
LANES = TARGET.lanes()
TOLERANCE = 2e-6  # of the largest result: only the order of the sums differs
needs_amx = pytest.mark.skipif(amx.FEATURE not in host_features(), reason="this processor has no AMX for bfloat16")

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
    "one position": Conv2dSpec(1, 96, 1, 1, 24),
}
PICTURES = {
    "7x7 stride 2": Conv2dSpec(1, 3, 19, 38, 48, (7, 7), (2, 2), (3, 3, 3, 3)),
    "3x3": Conv2dSpec(2, 3, 13, 19, 20, (3, 3), (1, 1), (1, 1, 1, 1)),
    "one channel": Conv2dSpec(1, 1, 9, 7, 16, (5, 5), (1, 2), (2, 2, 2, 2)),
    "all of a panel, uneven": Conv2dSpec(1, 4, 5, 33, 40, (3, 8), (3, 2), (0, 1, 2, 0), (2, 1)),
}


def rounded(*shape: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator).bfloat16()


def run(prim_func, *inputs: torch.Tensor, out_size: int) -> torch.Tensor:
    """Build and run on flat operands; the result is float32, NaN where nothing was written."""
    module = tvm.tirx.build(tvm.IRModule({"main": prim_func}), target=tvm.target.Target(TARGET.tvm_target()))
    flat = [x.reshape(-1).view(torch.uint16) if x.dtype is torch.bfloat16 else x.reshape(-1) for x in inputs]
    tensors = [tvm.runtime.tensor(x.numpy()) for x in (*flat, torch.full((out_size,), torch.nan))]
    module["main"](*tensors)
    return torch.from_numpy(tensors[-1].numpy())


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE * scale)


def check_conv2d(spec: Conv2dSpec, knobs: conv2d_bf16.Conv2dBf16Knobs, template: ModuleType = conv2d_bf16) -> None:
    generator = torch.Generator().manual_seed(0)
    x = rounded(spec.n, spec.c, spec.h, spec.w, generator=generator)
    weight = rounded(spec.o, spec.c, *spec.kernel, generator=generator)
    shape = (spec.n, spec.o, spec.out_h, spec.out_w)
    padded = -(-spec.o // LANES) * LANES
    bias = torch.randn(padded, generator=generator)
    other = torch.randn(spec.n * padded * spec.out_h * spec.out_w, generator=generator)
    prim_func = template.build(spec, TARGET, knobs, bias_add_relu(shape, LANES))
    packed = template.pack_weight(spec, TARGET, knobs, weight)
    data = to_blocked(x.float(), LANES).bfloat16() if spec.input_layout == "blocked" else x
    flat = run(prim_func, data, packed, bias, other, out_size=out_elements(shape, LANES))
    top, left, bottom, right = spec.padding
    padded_x = F.pad(x.double(), (left, right, top, bottom))
    result = F.conv2d(padded_x, weight.double(), stride=spec.stride, dilation=spec.dilation).float()
    assert_near(from_blocked(flat, shape, LANES), bias_add_relu_reference(result, bias, other, LANES))


def bf16(spec: Conv2dSpec) -> Conv2dSpec:
    return replace(spec, dtype="bfloat16")


@needs_amx
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_conv2d(name: str):
    spec = bf16(CONVOLUTIONS[name])
    assert conv2d_bf16.supports(spec, TARGET)
    for knobs in conv2d_bf16.candidates(spec, TARGET):
        check_conv2d(spec, knobs)


@needs_amx
@pytest.mark.parametrize(("row_units", "output_units"), [(3, 1), (1, 2), (2, 3)])
def test_conv2d_in_units(row_units: int, output_units: int):
    check_conv2d(bf16(CONVOLUTIONS["3x3 stride 2"]), conv2d_bf16.Conv2dBf16Knobs(1, 1, row_units, output_units))


@needs_amx
@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name: str):
    spec = replace(bf16(PICTURES[name]), input_layout="plain")
    assert conv2d_bf16_narrow.supports(spec, TARGET)
    for knobs in (*conv2d_bf16_narrow.candidates(spec, TARGET), conv2d_bf16.Conv2dBf16Knobs(1, 1, 2, 2)):
        check_conv2d(spec, knobs, conv2d_bf16_narrow)


def test_pictures_have_few_channels_and_small_steps():
    spec = replace(bf16(PICTURES["3x3"]), input_layout="plain")
    assert not conv2d_bf16_narrow.supports(replace(spec, c=9), TARGET)
    assert not conv2d_bf16_narrow.supports(replace(spec, stride=(4, 4)), TARGET)
    assert not conv2d_bf16_narrow.supports(replace(spec, dilation=(2, 2)), TARGET)


def test_conv2d_is_for_dense_blocked_bfloat16_on_amx():
    spec = CONVOLUTIONS["3x3"]
    assert not conv2d_bf16.supports(spec, TARGET)
    assert not conv2d_bf16.supports(bf16(spec), resolve_target("x86:znver4"))
    assert not conv2d_bf16.supports(Conv2dSpec(1, 64, 8, 8, 64, groups=2, dtype="bfloat16"), TARGET)
    assert not conv2d_bf16.supports(Conv2dSpec(1, 3, 8, 8, 64, input_layout="plain", dtype="bfloat16"), TARGET)


def test_large_convolutions_are_cut_so_that_panels_stay_in_l2():
    spec = Conv2dSpec(1, 256, 112, 112, 64, (3, 3), (1, 1), (1, 1, 1, 1), dtype="bfloat16")
    knobs = conv2d_bf16.candidates(spec, TARGET)[0]
    assert knobs.row_units >= 256 * 112 * 112 * 2 // TARGET.l2_bytes


def test_tiles_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="3 x 2 tiles of sums and their operands do not fit 8"):
        amx.TileShape(3, 2)


@needs_amx
@pytest.mark.parametrize("size", [(128, 384, 384), (197, 48, 192), (5, 70, 33), (33, 7, 31), (16, 32, 64)], ids=str)
def test_matmul(size: tuple[int, int, int]):
    m, n, k = size
    generator = torch.Generator().manual_seed(0)
    a, weight = rounded(m, k, generator=generator), rounded(n, k, generator=generator)
    spec = MatmulSpec(m, n, k, dtype="bfloat16")
    assert matmul_bf16.supports(spec, TARGET)
    for knobs in (*matmul_bf16.candidates(spec, TARGET), matmul_bf16.MatmulBf16Knobs(1, 1, 3, 2)):
        packed = matmul_bf16.pack_weight(spec, TARGET, knobs, weight)
        out = run(matmul_bf16.build(spec, TARGET, knobs), a, packed, out_size=m * n)
        assert_near(out.reshape(m, n), (a.double() @ weight.double().T).float())


def test_few_rows_are_left_to_the_vector_kernel():
    assert not matmul_bf16.supports(MatmulSpec(1, 1000, 512, dtype="bfloat16"), TARGET)
