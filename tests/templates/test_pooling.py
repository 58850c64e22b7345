"""Pooling against ``torch.nn.functional``."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tersor.targets.templates.windows.pooling import (
    GlobalPoolSpec,
    PoolSpec,
    build,
    build_global,
    candidates,
)

from .window_cases import (
    AVX512,
    TARGETS,
    bias_add_relu,
    bias_add_relu_reference,
    from_blocked,
    out_elements,
    run,
    to_blocked,
)

# Symmetric padding only: torch pads both sides alike. (size, keyword arguments of PoolSpec)
SPECS = {
    "2x2": ((1, 32, 14, 14), {}),
    "3x3 stride 2": ((2, 24, 15, 57), {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1, 1, 1)}),
    "stride 1": ((1, 16, 7, 7), {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1, 1, 1)}),
    "ceil": ((1, 16, 8, 12), {"kernel": (3, 3), "stride": (2, 2), "ceil_mode": True}),
    "ceil with padding": (
        (1, 17, 10, 7),
        {"kernel": (3, 2), "stride": (2, 2), "padding": (1, 1, 1, 1), "ceil_mode": True},
    ),
    "ceil drops a window in the padding": (
        (1, 16, 5, 5),
        {"kernel": (2, 2), "stride": (2, 2), "padding": (1, 1, 1, 1), "ceil_mode": True},
    ),
    "stride beyond the kernel": ((1, 16, 9, 9), {"kernel": (1, 1), "stride": (3, 3)}),
}


def compare(spec, target, knobs, reference):
    """Build, run and compare one pooling with an epilogue; ``reference`` maps NCHW to NCHW."""
    generator = torch.Generator().manual_seed(0)
    lanes = target.lanes()
    shape = (spec.n, spec.c, spec.out_h, spec.out_w)
    padded = -(-spec.c // lanes) * lanes
    x = torch.randn(spec.n, spec.c, spec.h, spec.w, generator=generator)
    bias = torch.randn(padded, generator=generator)
    other = torch.randn(spec.n * padded * spec.out_h * spec.out_w, generator=generator)
    prim_func = build(spec, target, knobs, bias_add_relu(shape, lanes))
    flat = run(prim_func, target, to_blocked(x, lanes), bias, other, out_elements=out_elements(shape, lanes))
    expected = bias_add_relu_reference(reference(x), bias, other, lanes)
    torch.testing.assert_close(from_blocked(flat, shape, lanes), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("name", SPECS)
def test_max(name, target):
    size, options = SPECS[name]
    spec = PoolSpec(*size, mode="max", **options)
    for knobs in candidates(spec, target)[:2]:
        compare(
            spec,
            target,
            knobs,
            lambda x: F.max_pool2d(x, spec.kernel, spec.stride, spec.padding[:2], ceil_mode=spec.ceil_mode),
        )


@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("name", SPECS)
def test_average(name, count_include_pad):
    size, options = SPECS[name]
    spec = PoolSpec(*size, mode="avg", count_include_pad=count_include_pad, **options)
    for knobs in candidates(spec, AVX512)[:2]:
        compare(
            spec,
            AVX512,
            knobs,
            lambda x: F.avg_pool2d(x, spec.kernel, spec.stride, spec.padding[:2], spec.ceil_mode, count_include_pad),
        )


def test_max_with_dilation():
    spec = PoolSpec(1, 16, 9, 9, kernel=(3, 3), stride=(1, 1), padding=(1, 1, 1, 1), dilation=(2, 2))
    compare(spec, AVX512, candidates(spec, AVX512)[0], lambda x: F.max_pool2d(x, 3, 1, 1, 2))


def test_max_of_negative_numbers_ignores_padding():
    spec = PoolSpec(1, 16, 4, 4, kernel=(3, 3), stride=(1, 1), padding=(1, 1, 1, 1))
    x = -1 - torch.rand(1, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    flat = run(build(spec, AVX512, candidates(spec, AVX512)[0]), AVX512, to_blocked(x, 16), out_elements=16 * 16)
    torch.testing.assert_close(from_blocked(flat, (1, 16, 4, 4), 16), F.max_pool2d(x, 3, 1, 1))


def test_max_keeps_nan():
    spec = PoolSpec(1, 16, 9, 9, kernel=(3, 3), stride=(2, 2), padding=(1, 1, 1, 1))
    x = torch.randn(1, 16, 9, 9, generator=torch.Generator().manual_seed(0))
    x[0, 3, 4, 4] = x[0, 7, 0, 0] = x[0, 9, 8, 7] = torch.nan
    out = out_elements((1, 16, 5, 5), 16)
    flat = run(build(spec, AVX512, candidates(spec, AVX512)[0]), AVX512, to_blocked(x, 16), out_elements=out)
    expected = F.max_pool2d(x, 3, 2, 1)
    torch.testing.assert_close(from_blocked(flat, (1, 16, 5, 5), 16), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("size", [(1, 32, 7, 7), (2, 17, 3, 5), (1, 16, 1, 1), (1, 8, 2, 4)])
def test_global_average(size, target):
    spec = GlobalPoolSpec(*size)
    lanes = target.lanes()
    x = torch.randn(size, generator=torch.Generator().manual_seed(0))
    shape = (spec.n, spec.c, 1, 1)
    flat = run(build_global(spec, target), target, to_blocked(x, lanes), out_elements=out_elements(shape, lanes))
    expected = x.mean((2, 3), keepdim=True)
    torch.testing.assert_close(from_blocked(flat, shape, lanes), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": (5, 5)}, "larger than the padded input"),
        ({"mode": "min"}, "unknown pooling mode"),
        ({"mode": "avg", "dilation": (2, 2)}, "has no dilation"),
        ({"padding": (-1, 0, 0, 0)}, "must not be negative"),
        ({"stride": (0, 2)}, "must be positive"),
    ],
)
def test_spec_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        PoolSpec(1, 16, 4, 4, **options)
