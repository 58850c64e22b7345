"""Transposed convolution against ``torch.nn.functional.conv_transpose2d``, in float64 for the reference."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tersor.ir.ops.convolution import swap_channels
from tersor.targets.templates.conv2d.transposed import Conv2dKnobs, TransposedSpec, build, candidates, pack_weight

from .window_cases import (
    AVX2,
    AVX512,
    NEON,
    bias_add_relu,
    bias_add_relu_reference,
    from_blocked,
    out_elements,
    run,
    to_blocked,
)

SPECS = {
    "2x2 stride 2": TransposedSpec(1, 16, 5, 6, 24, (10, 12)),
    "4x4 stride 2, batch 2": TransposedSpec(2, 9, 4, 7, 16, (8, 14), (4, 4), padding=(1, 1)),
    "3x3 stride 2, output padding": TransposedSpec(1, 8, 5, 5, 17, (10, 10), (3, 3), padding=(1, 1)),
    "9x9 stride 3": TransposedSpec(1, 8, 4, 4, 3, (14, 14), (9, 9), (3, 3), (4, 4)),
    "stride 1, dilated": TransposedSpec(1, 8, 5, 4, 8, (9, 6), (3, 2), (1, 1), dilation=(2, 2)),
    "kernel below the stride": TransposedSpec(1, 8, 3, 3, 8, (7, 7), (1, 2), (3, 3)),
    "more cut off than the kernel": TransposedSpec(1, 8, 9, 9, 8, (9, 9), (3, 3), padding=(5, 5)),
    "fewer results than the stride": TransposedSpec(1, 8, 1, 2, 8, (3, 1), (4, 4), (4, 5), (1, 4)),
    "groups": TransposedSpec(1, 12, 4, 4, 18, (8, 8), (4, 4), padding=(1, 1), groups=3),
    "depthwise": TransposedSpec(1, 20, 4, 4, 20, (8, 8), (4, 4), padding=(1, 1), groups=20),
    "plain input": TransposedSpec(2, 3, 4, 5, 16, (8, 10), (4, 4), padding=(1, 1), input_layout="plain"),
}


def compare(spec: TransposedSpec, target, knobs: Conv2dKnobs, seed: int = 0) -> None:
    """Build, run and compare one transposed convolution with a bias, an addition and a ReLU."""
    generator = torch.Generator().manual_seed(seed)
    lanes = target.lanes()
    shape = (spec.n, spec.o, *spec.out)
    padded = -(-spec.o // lanes) * lanes
    x = torch.randn(spec.n, spec.c, spec.h, spec.w, generator=generator)
    weight = torch.randn(spec.o, spec.c // spec.groups, *spec.kernel, generator=generator)
    bias = torch.randn(padded, generator=generator)
    other = torch.randn(spec.n * padded * spec.out_h * spec.out_w, generator=generator)

    data = to_blocked(x, lanes) if spec.input_layout == "blocked" else x
    packed = pack_weight(spec, target, knobs, weight)
    prim_func = build(spec, target, knobs, bias_add_relu(shape, lanes))
    flat = run(prim_func, target, data, packed, bias, other, out_elements=out_elements(shape, lanes))

    filters = swap_channels(weight.double(), spec.groups)
    window: dict[str, Any] = {"stride": spec.stride, "groups": spec.groups, "dilation": spec.dilation}
    whole = F.conv_transpose2d(F.pad(x.double(), (0, 1, 0, 1)), filters, **window)  # a row more: output padding
    (top, left), (height, width) = spec.padding, spec.out
    reference = whole[:, :, top : top + height, left : left + width]
    assert reference.shape == shape
    expected = bias_add_relu_reference(reference, bias, other, lanes)
    torch.testing.assert_close(
        from_blocked(flat, (spec.n, spec.o, *spec.out), lanes).double(), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", SPECS)
def test_default_knobs(name):
    compare(SPECS[name], AVX2, candidates(SPECS[name], AVX2)[0])


@pytest.mark.parametrize("target", [AVX512, NEON], ids=lambda target: target.name)
@pytest.mark.parametrize("name", ["3x3 stride 2, output padding", "plain input"])
def test_other_vector_widths(name, target):
    compare(SPECS[name], target, candidates(SPECS[name], target)[0])


@pytest.mark.parametrize(
    "knobs",
    [
        Conv2dKnobs(vectors=2, rows=2, columns=3, spatial_units=2),
        Conv2dKnobs(vectors=1, rows=1, columns=4, order="rows", spatial_units=9, block_chunk=1, unroll=2, prefetch=8),
    ],
    ids=str,
)
def test_blocking(knobs):
    compare(SPECS["4x4 stride 2, batch 2"], AVX2, knobs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 3}, "must divide"),
        ({"stride": (0, 1)}, "must be positive"),
        ({"padding": (0, -1)}, "padding not negative"),
        ({"dilation": (1, 2)}, "a stride or a dilation"),
    ],
)
def test_spec_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SPECS["2x2 stride 2"], **change)
