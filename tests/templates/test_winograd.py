"""Winograd convolution against ``torch.nn.functional.conv2d`` in float64: values, error bound, refusals, estimates."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from tersor.targets.codegen.options import Options, winograd_pays
from tersor.targets.machines.catalog import resolve_cpu
from tersor.targets.templates.base import NO_EPILOGUE
from tersor.targets.templates.conv2d.direct import Conv2dSpec
from tersor.targets.templates.conv2d.tiling import feasible_positions
from tersor.targets.templates.conv2d.winograd import (
    WinogradKnobs,
    build,
    candidates,
    estimate_cycles,
    pack_weight,
    supports,
)
from tersor.targets.templates.conv2d.winograd_spec import TileGrid
from tersor.targets.templates.conv2d.winograd_transforms import TILES, as_tensor, relative_error, transforms
from tersor.targets.templates.option import Workload
from tersor.targets.templates.vector.bfloat16 import BFLOAT16

from .window_cases import (
    AVX2,
    AVX512,
    TARGETS,
    bias_add_relu,
    bias_add_relu_reference,
    from_blocked,
    out_elements,
    run,
    to_blocked,
)

SPECS = {
    "one tile": Conv2dSpec(1, 16, 3, 3, 16, (3, 3)),
    "7x7": Conv2dSpec(1, 24, 7, 7, 40, (3, 3), padding=(1, 1, 1, 1)),
    "batch 2, no padding": Conv2dSpec(2, 40, 13, 14, 24, (3, 3)),
    "asymmetric padding": Conv2dSpec(1, 17, 14, 9, 33, (3, 3), padding=(0, 1, 1, 0)),
    "wide padding": Conv2dSpec(1, 16, 6, 5, 16, (3, 3), padding=(2, 3, 3, 2)),
    "57 wide": Conv2dSpec(1, 32, 5, 57, 64, (3, 3), padding=(1, 1, 1, 1)),
}

# Two standard deviations of an output of `random_case`. The largest of a few outputs may be smaller by chance, but the
# rounding of the tile that they are taken from is not.
LARGE = 2 * 2**0.5
MARGIN = 2  # over the error to expect: that of one or two channels has nothing to average with


def random_case(spec: Conv2dSpec, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Input, weight (scaled as He et al. do) and the result in float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(spec.n, spec.c, spec.h, spec.w, generator=generator)
    x = x.bfloat16().float() if spec.dtype == BFLOAT16 else x
    weight = torch.randn(spec.o, spec.c, 3, 3, generator=generator) * (2 / (9 * spec.c)) ** 0.5
    top, left, bottom, right = spec.padding
    return x, weight, F.conv2d(F.pad(x.double(), (left, right, top, bottom)), weight.double())


def compare(spec: Conv2dSpec, target, knobs: WinogradKnobs) -> None:
    """Build, run and compare one convolution with a bias, an addition and a ReLU."""
    lanes = target.lanes()
    shape = (spec.n, spec.o, spec.out_h, spec.out_w)
    padded = -(-spec.o // lanes) * lanes
    x, weight, reference = random_case(spec)
    generator = torch.Generator().manual_seed(1)
    bias = torch.randn(padded, generator=generator)
    other = torch.randn(spec.n * padded * spec.out_h * spec.out_w, generator=generator)

    prim_func = build(spec, target, knobs, bias_add_relu(shape, lanes))
    packed = pack_weight(spec, target, knobs, weight)
    data = to_blocked(x, lanes)
    if spec.dtype == BFLOAT16:
        data = data.bfloat16().reshape(-1).view(torch.uint16)  # exact: `random_case` has rounded it
    flat = run(prim_func, target, data, packed, bias, other, out_elements=out_elements(shape, lanes))

    expected = bias_add_relu_reference(reference, bias, other, lanes)
    assert flat.isfinite().all()
    scale = max(reference.abs().max().item(), LARGE)
    tolerance = MARGIN * relative_error(knobs.m, spec.c) * scale + 1e-6
    torch.testing.assert_close(from_blocked(flat, shape, lanes).double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("m", TILES)
def test_transforms_compute_the_convolution(m):
    generator = torch.Generator().manual_seed(0)
    patch = torch.randn(m + 2, m + 2, generator=generator, dtype=torch.float64)
    taps = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    matrices = transforms(m)
    b, g, a = as_tensor(matrices.input), as_tensor(matrices.filter), as_tensor(matrices.output)
    result = a @ ((g @ taps @ g.T) * (b @ patch @ b.T)) @ a.T
    torch.testing.assert_close(result, F.conv2d(patch[None, None], taps[None, None])[0, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("m", TILES)
@pytest.mark.parametrize("name", SPECS)
def test_every_tile_size(name, m):
    compare(SPECS[name], AVX2, WinogradKnobs(m, vectors=2, rows=3))


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_bf16_is_widened_and_computed_in_float32(target):
    spec = dataclasses.replace(SPECS["7x7"], dtype=BFLOAT16)
    compare(spec, target, candidates(spec, target)[0])


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_default_knobs(target):
    spec = SPECS["7x7"]
    compare(spec, target, candidates(spec, target)[0])


@pytest.mark.parametrize(
    "knobs",
    [
        WinogradKnobs(4, vectors=1, rows=3, blocks=3, slices=2, order="tiles"),
        WinogradKnobs(4, vectors=2, rows=2, blocks=2, slices=2, order="outputs"),
        WinogradKnobs(2, vectors=3, rows=4, blocks=99, slices=99, order="outputs"),
        WinogradKnobs(4, vectors=4, rows=6, blocks=1, slices=1, order="outputs"),
        WinogradKnobs(5, vectors=1, rows=3, blocks=3, slices=2, order="slices"),
        WinogradKnobs(3, vectors=2, rows=4, blocks=1, slices=99, order="slices"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["batch 2, no padding", "57 wide"])
def test_every_kind_of_blocking(name, knobs):
    compare(SPECS[name], AVX512, knobs)


@pytest.mark.parametrize("channels", [64, 512])
@pytest.mark.parametrize("m", TILES)
def test_error_is_bounded(m, channels):
    spec = Conv2dSpec(1, channels, 14, 14, 32, (3, 3), padding=(1, 1, 1, 1))
    knobs = WinogradKnobs(m, vectors=2, rows=4)
    x, weight, expected = random_case(spec)
    flat = run(
        build(spec, AVX2, knobs, NO_EPILOGUE),
        AVX2,
        to_blocked(x, 8),
        pack_weight(spec, AVX2, knobs, weight),
        out_elements=out_elements((1, 32, 14, 14), 8),
    )
    error = (from_blocked(flat, (1, 32, 14, 14), 8) - expected).abs().max() / expected.abs().max()
    assert error < relative_error(m, channels) < 1e-4


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("name", SPECS)
def test_candidates_fit_the_registers(name, target):
    spec = SPECS[name]
    knobs = candidates(spec, target)
    assert len(set(knobs)) == len(knobs) > 0
    estimates = [estimate_cycles(spec, target, each) for each in knobs if each.m == knobs[0].m]
    assert estimates == sorted(estimates)
    for each in knobs:
        assert each.rows <= feasible_positions(target, each.vectors)


def test_wide_tiles_are_left_out_where_they_are_inaccurate():
    spec = Conv2dSpec(1, 512, 56, 56, 512, (3, 3), padding=(1, 1, 1, 1))
    assert max(knobs.m for knobs in candidates(spec, AVX512)) == 5
    assert relative_error(6, 512) > 2e-5


@pytest.mark.parametrize(("tiles", "rows"), [(49, 14), (14, 14), (15, 14), (1, 6), (196, 14)])
def test_tiles_are_gathered_into_groups_of_nearly_equal_length(tiles, rows):
    grid = TileGrid.of(Conv2dSpec(1, 16, 4, 2 + 4 * tiles, 16, (3, 3)), WinogradKnobs(4, 2, rows))
    assert grid.tiles == tiles
    assert grid.longer * grid.rows + (grid.groups - grid.longer) * (grid.rows - 1) == tiles
    assert grid.rows <= rows


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kernel": (5, 3)}, "not 3 x 3"),
        ({"stride": (2, 1)}, "stride"),
        ({"dilation": (2, 2)}, "dilation"),
        ({"groups": 2}, "2 groups"),
        ({"input_layout": "plain"}, "not blocked"),
    ],
)
def test_refuses_other_convolutions(change, reason):
    spec = dataclasses.replace(Conv2dSpec(1, 16, 9, 9, 16, (3, 3)), **change)
    assert reason in (supports(spec) or "")
    with pytest.raises(ValueError, match=reason):
        build(spec, AVX512, WinogradKnobs(4, 1, 4))


def test_refuses_unknown_tiles_and_weights_of_a_wrong_shape():
    spec = SPECS["7x7"]
    with pytest.raises(ValueError, match="no Winograd transform F\\(7, 3\\); m is one of 2, 3, 4, 5, 6"):
        transforms(7)
    with pytest.raises(ValueError, match="expected \\(40, 24, 3, 3\\)"):
        pack_weight(spec, AVX512, WinogradKnobs(4, 1, 4), torch.zeros(40, 24, 3, 1))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (Conv2dSpec(1, 128, 28, 28, 128, (3, 3), padding=(1, 1, 1, 1)), True),
        (Conv2dSpec(1, 512, 7, 7, 512, (3, 3), padding=(1, 1, 1, 1)), False),
        (Conv2dSpec(1, 128, 28, 28, 128, (3, 3), stride=(2, 2), padding=(1, 1, 1, 1)), False),
    ],
    ids=["many positions", "few positions, many weights", "stride 2"],
)
def test_is_chosen_where_it_pays(spec, expected):
    assert winograd_pays(spec, AVX512) is expected


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("x86:znver4", 56, True),  # twice as many products in a cycle, but four times as many for the same outputs
        ("x86:znver4", 7, False),
        ("x86:sapphirerapids", 56, False),  # a matrix unit does sixteen times as many
        ("x86:avx2", 56, True),  # it has nothing for bf16, and computes in float32
    ],
)
def test_bf16_is_transformed_where_products_of_pairs_are_slower(name, size, expected):
    spec = Conv2dSpec(1, 256, size, size, 256, (3, 3), padding=(1, 1, 1, 1), dtype=BFLOAT16)
    target = resolve_cpu(name)
    assert winograd_pays(spec, target) is expected
    assert (Options(Workload("conv2d", spec), target).default.template == "winograd") is expected
