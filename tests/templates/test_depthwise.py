"""Depthwise convolution against ``torch.nn.functional.conv2d``."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tersor.targets.templates.conv2d.depthwise import build, candidates, pack_weight

from .window_cases import (
    AVX512,
    TARGETS,
    bias_add_relu,
    bias_add_relu_reference,
    depthwise_spec,
    from_blocked,
    out_elements,
    run,
    to_blocked,
)

SPECS = {
    "3x3": depthwise_spec(1, 32, 9, 13, (3, 3), (1, 1), (1, 1, 1, 1)),
    "3x3 stride 2": depthwise_spec(2, 24, 14, 14, (3, 3), (2, 2), (1, 1, 1, 1)),
    "wide": depthwise_spec(1, 16, 3, 57, (3, 3), (1, 1), (1, 1, 1, 1)),
    "5x5": depthwise_spec(1, 17, 7, 7, (5, 5), (1, 1), (2, 2, 2, 2)),
    "5x5 stride 2, padded after": depthwise_spec(1, 40, 14, 14, (5, 5), (2, 2), (1, 1, 2, 2)),
    "7x7": depthwise_spec(1, 16, 12, 12, (7, 7), (1, 1), (3, 3, 3, 3)),
    "dilation 2": depthwise_spec(1, 16, 9, 9, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2)),
    "1x5": depthwise_spec(1, 16, 3, 9, (1, 5), (1, 1), (0, 2, 0, 2)),
    "no padding": depthwise_spec(1, 3, 5, 5, (3, 3)),
}


def compare(spec, target, knobs):
    """Build, run and compare one convolution with a bias, an addition and a ReLU."""
    generator = torch.Generator().manual_seed(0)
    lanes = target.lanes()
    shape = (spec.n, spec.c, spec.out_h, spec.out_w)
    padded = -(-spec.c // lanes) * lanes
    x = torch.randn(spec.n, spec.c, spec.h, spec.w, generator=generator)
    weight = torch.randn(spec.c, 1, *spec.kernel, generator=generator)
    bias = torch.randn(padded, generator=generator)
    other = torch.randn(spec.n * padded * spec.out_h * spec.out_w, generator=generator)

    prim_func = build(spec, target, knobs, bias_add_relu(shape, lanes))
    packed = pack_weight(spec, target, knobs, weight)
    flat = run(prim_func, target, to_blocked(x, lanes), packed, bias, other, out_elements=out_elements(shape, lanes))

    top, left, bottom, right = spec.padding
    padded_x = F.pad(x, (left, right, top, bottom))
    reference = F.conv2d(padded_x, weight, stride=spec.stride, dilation=spec.dilation, groups=spec.c)
    expected = bias_add_relu_reference(reference, bias, other, lanes)
    torch.testing.assert_close(from_blocked(flat, shape, lanes), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("name", SPECS)
def test_default_knobs(name, target):
    compare(SPECS[name], target, candidates(SPECS[name], target)[0])


@pytest.mark.parametrize("name", ["wide", "5x5"])
def test_every_candidate(name):
    for knobs in candidates(SPECS[name], AVX512):
        compare(SPECS[name], AVX512, knobs)


def test_macs():
    assert SPECS["3x3 stride 2"].macs == 2 * 24 * 7 * 7 * 9


def test_pack_weight_refuses_a_wrong_shape():
    spec = SPECS["3x3"]
    with pytest.raises(ValueError, match="expected \\(32, 1, 3, 3\\)"):
        pack_weight(spec, AVX512, candidates(spec, AVX512)[0], torch.zeros(32, 32, 3, 3))


def test_spec_refuses_a_window_larger_than_the_input():
    with pytest.raises(ValueError, match="larger than the padded input"):
        depthwise_spec(1, 16, 2, 2, (5, 5))
