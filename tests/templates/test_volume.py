"""Convolution of volumes against ``torch.nn.functional.conv3d``, in float64 for the reference."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from tersor.targets.templates.conv2d.volume import Conv2dKnobs, VolumeSpec, build, candidates, pack_weight

from .window_cases import AVX2, AVX512, NEON, run

SPECS = {
    "3x3x3": VolumeSpec(2, 12, 5, 6, 20, (3, 3), padding=(1,) * 4, d=4, depth_kernel=3, depth_padding=(1, 1)),
    "strides, dilation": VolumeSpec(
        1, 8, 7, 6, 9, (3, 2), (2, 1), (1, 0, 0, 1), d=9, depth_kernel=2, depth_stride=2, depth_dilation=3
    ),
    "more padding than kernel": VolumeSpec(1, 8, 3, 3, 8, d=2, depth_kernel=2, depth_padding=(3, 2)),
    "pointwise": VolumeSpec(2, 17, 3, 4, 24, d=3),
    "groups": VolumeSpec(1, 12, 3, 4, 18, (3, 3), groups=3, d=3, depth_kernel=3, depth_padding=(0, 1)),
    "clip": VolumeSpec(1, 3, 9, 8, 16, (3, 5), (2, 2), (1, 2, 1, 2), input_layout="plain", d=5, depth_kernel=3),
}


def blocked(x: torch.Tensor, lanes: int) -> torch.Tensor:
    """Flat, in channel blocks, with numbers in the lanes of channels that do not exist."""
    n, c, *extents = x.shape
    blocks = -(-c // lanes)
    padded = torch.full((n, blocks * lanes, *extents), 7.0)
    padded[:, :c] = x
    return padded.reshape(n, blocks, lanes, -1).transpose(2, 3).reshape(-1)


def compare(spec: VolumeSpec, target, knobs: Conv2dKnobs) -> None:
    generator = torch.Generator().manual_seed(0)
    lanes = target.lanes()
    x = torch.randn(spec.n, spec.c, spec.d, spec.h, spec.w, generator=generator)
    weight = torch.randn(spec.o, spec.c // spec.groups, spec.depth_kernel, *spec.kernel, generator=generator)
    top, left, bottom, right = spec.padding
    padded = F.pad(x.double(), (left, right, top, bottom, *spec.depth_padding))
    stride, dilation = (spec.depth_stride, *spec.stride), (spec.depth_dilation, *spec.dilation)
    expected = F.conv3d(padded, weight.double(), None, stride, 0, dilation, spec.groups)
    data = blocked(x, lanes) if spec.input_layout == "blocked" else x
    size = spec.n * spec.output_blocks(target) * lanes * math.prod(expected.shape[2:])
    packed = pack_weight(spec, target, knobs, weight)
    flat = run(build(spec, target, knobs), target, data, packed, out_elements=size)
    made = flat.reshape(spec.n, -1, math.prod(expected.shape[2:]), lanes).transpose(2, 3)
    made = made.reshape(spec.n, -1, *expected.shape[2:])[:, : spec.o]
    assert spec.macs == expected.numel() * weight[0].numel()
    torch.testing.assert_close(made.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SPECS)
def test_default_knobs(name):
    compare(SPECS[name], AVX2, candidates(SPECS[name], AVX2)[0])


@pytest.mark.parametrize("target", [AVX512, NEON], ids=lambda target: target.name)
@pytest.mark.parametrize("name", ["3x3x3", "clip"])
def test_other_vector_widths(name, target):
    compare(SPECS[name], target, candidates(SPECS[name], target)[0])


@pytest.mark.parametrize(
    "knobs",
    [
        Conv2dKnobs(vectors=2, rows=2, columns=3, spatial_units=2, block_chunk=1),
        Conv2dKnobs(vectors=1, rows=1, columns=4, order="rows", spatial_units=5, unroll=2, prefetch=8),
    ],
    ids=str,
)
def test_blocking(knobs):
    compare(SPECS["3x3x3"], AVX2, knobs)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"depth_kernel": 0}, "must be positive"), ({"depth_kernel": 9}, "deeper than"), ({"groups": 5}, "must divide")],
)
def test_spec_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SPECS["3x3x3"], **change)
