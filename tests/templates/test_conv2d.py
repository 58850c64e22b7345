"""Direct convolution against ``torch.nn.functional.conv2d``, in float64 for the reference."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from tersor.targets.templates.conv2d.direct import Conv2dKnobs, Conv2dSpec, build, candidates, pack_weight
from tersor.targets.templates.conv2d.tiling import feasible_positions

from .window_cases import (
    AVX2,
    AVX512,
    NEON,
    TARGETS,
    bias_add_relu,
    bias_add_relu_reference,
    from_blocked,
    out_elements,
    run,
    to_blocked,
)

SPECS = {
    "3x3": Conv2dSpec(1, 32, 9, 13, 48, (3, 3), (1, 1), (1, 1, 1, 1)),
    "3x3 stride 2, batch 2": Conv2dSpec(2, 16, 13, 13, 33, (3, 3), (2, 2), (1, 1, 1, 1)),
    "asymmetric padding": Conv2dSpec(1, 17, 8, 9, 24, (3, 3), (2, 2), (0, 0, 1, 1)),
    "no padding": Conv2dSpec(1, 16, 9, 9, 16, (3, 3)),
    "dilation 2": Conv2dSpec(1, 16, 11, 11, 16, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2)),
    "more padding than kernel": Conv2dSpec(1, 16, 4, 4, 16, (3, 3), (1, 1), (4, 4, 4, 4)),
    "5x3, uneven strides": Conv2dSpec(1, 24, 9, 10, 40, (5, 3), (1, 2), (2, 1, 2, 1)),
    "1x1": Conv2dSpec(1, 24, 7, 7, 112, (1, 1)),
    "1x1 batch 2": Conv2dSpec(2, 40, 5, 3, 24, (1, 1)),
    "1x1 stride 2": Conv2dSpec(1, 32, 14, 14, 64, (1, 1), (2, 2)),
    "1x1 on one pixel": Conv2dSpec(1, 48, 1, 1, 40, (1, 1)),
    "first layer 3x3": Conv2dSpec(1, 3, 21, 19, 32, (3, 3), (2, 2), (1, 1, 1, 1), input_layout="plain"),
    "first layer 7x7": Conv2dSpec(1, 3, 23, 29, 24, (7, 7), (2, 2), (3, 3, 3, 3), input_layout="plain"),
    "grayscale": Conv2dSpec(2, 1, 28, 28, 6, (5, 5), input_layout="plain"),
    "aligned groups": Conv2dSpec(1, 64, 6, 7, 64, (3, 3), (1, 1), (1, 1, 1, 1), groups=2),
    "narrow groups": Conv2dSpec(1, 32, 6, 7, 64, (3, 3), (1, 1), (1, 1, 1, 1), groups=8),
    "unaligned groups": Conv2dSpec(1, 36, 5, 5, 30, (3, 3), (1, 1), (1, 1, 1, 1), groups=3),
    "plain input, groups": Conv2dSpec(1, 6, 9, 9, 40, (3, 3), groups=2, input_layout="plain"),
    "depthwise with multiplier": Conv2dSpec(1, 20, 6, 6, 40, (3, 3), (1, 1), (1, 1, 1, 1), groups=20),
}


def compare(spec: Conv2dSpec, target, knobs: Conv2dKnobs, seed: int = 0) -> None:
    """Build, run and compare one convolution with a bias, an addition and a ReLU."""
    generator = torch.Generator().manual_seed(seed)
    lanes = target.lanes()
    shape = (spec.n, spec.o, spec.out_h, spec.out_w)
    padded = -(-spec.o // lanes) * lanes
    x = torch.randn(spec.n, spec.c, spec.h, spec.w, generator=generator)
    weight = torch.randn(spec.o, spec.c // spec.groups, *spec.kernel, generator=generator)
    bias = torch.randn(padded, generator=generator)
    other = torch.randn(spec.n * padded * spec.out_h * spec.out_w, generator=generator)

    data = to_blocked(x, lanes) if spec.input_layout == "blocked" else x
    packed = pack_weight(spec, target, knobs, weight)
    prim_func = build(spec, target, knobs, bias_add_relu(shape, lanes))
    flat = run(prim_func, target, data, packed, bias, other, out_elements=out_elements(shape, lanes))

    top, left, bottom, right = spec.padding
    reference = F.conv2d(
        F.pad(x.double(), (left, right, top, bottom)),
        weight.double(),
        stride=spec.stride,
        dilation=spec.dilation,
        groups=spec.groups,
    )
    expected = bias_add_relu_reference(reference, bias, other, lanes)
    assert flat.isfinite().all()
    torch.testing.assert_close(from_blocked(flat, shape, lanes).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SPECS)
def test_default_knobs(name):
    spec = SPECS[name]
    compare(spec, AVX2, candidates(spec, AVX2)[0])


@pytest.mark.parametrize("target", [AVX512, NEON], ids=lambda target: target.name)
@pytest.mark.parametrize("name", ["asymmetric padding", "1x1", "first layer 3x3", "unaligned groups"])
def test_other_vector_widths(name, target):
    spec = SPECS[name]
    compare(spec, target, candidates(spec, target)[0])


@pytest.mark.parametrize(
    "knobs",
    [
        Conv2dKnobs(vectors=2, rows=2, columns=3, spatial_units=2),
        Conv2dKnobs(vectors=3, rows=1, columns=4, order="rows", spatial_units=9),
        Conv2dKnobs(vectors=1, rows=3, columns=2, block_chunk=1, spatial_units=2),
        Conv2dKnobs(vectors=1, rows=1, columns=13, block_chunk=2, order="rows", unroll=2, prefetch=8),
        Conv2dKnobs(vectors=1, rows=9, columns=1, unroll=4),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["3x3", "unaligned groups"])
def test_every_kind_of_blocking(name, knobs):
    compare(SPECS[name], AVX2, knobs)


def test_chunked_pointwise():
    knobs = Conv2dKnobs(vectors=2, rows=5, columns=1, block_chunk=1, spatial_units=3)
    compare(SPECS["1x1"], AVX512, knobs)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("name", SPECS)
def test_candidates_fit_the_registers(name, target):
    knobs = candidates(SPECS[name], target)
    assert len(set(knobs)) == len(knobs) > 0
    for each in knobs:
        assert each.rows * each.columns <= feasible_positions(target, each.vectors)
        registers = each.vectors * (each.rows * each.columns + 1) + 1
        assert registers <= target.vector_registers


def test_second_best_candidates_are_right_too():
    spec = SPECS["asymmetric padding"]
    for knobs in candidates(spec, AVX2)[1:3]:
        compare(spec, AVX2, knobs)


def test_spec_reports_sizes():
    spec = Conv2dSpec(1, 64, 56, 56, 128, (3, 3), (2, 2), (1, 1, 1, 1))
    assert (spec.out_h, spec.out_w) == (28, 28)
    assert spec.macs == 128 * 28 * 28 * 64 * 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 3}, "must divide"),
        ({"kernel": (9, 3)}, "larger than the padded input"),
        ({"stride": (0, 1)}, "must be positive"),
        ({"padding": (0, -1, 0, 0)}, "padding not negative"),
        ({"input_layout": "NHWC"}, "unknown input layout"),
    ],
)
def test_spec_refuses(change, message):
    spec = Conv2dSpec(1, 16, 4, 4, 16, (3, 3), (1, 1), (1, 1, 1, 1))
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(spec, **change)


def test_pack_weight_refuses_a_wrong_shape():
    spec = SPECS["3x3"]
    with pytest.raises(ValueError, match="expected \\(48, 32, 3, 3\\)"):
        pack_weight(spec, AVX512, candidates(spec, AVX512)[0], torch.zeros(48, 16, 3, 3))
