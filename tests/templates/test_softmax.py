"""Softmax against PyTorch."""

from __future__ import annotations

import pytest
import torch

from tersor.targets.templates.base import BufferSpec, Epilogue
from tersor.targets.templates.rows.row_vectors import RowKnobs
from tersor.targets.templates.rows.softmax import SoftmaxSpec, build, candidates
from tersor.targets.templates.vector.builder import constant, load

from .window_cases import AVX512, TARGETS, run


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (3, 2), (2, 16), (5, 33), (7, 15), (3, 197), (300, 128), (1, 1000)])
def test_softmax(rows, cols, target):
    x = torch.randn(rows, cols, generator=torch.Generator().manual_seed(cols)) * 10
    spec = SoftmaxSpec(rows, cols)
    for knobs in (candidates(spec, target)[0], RowKnobs(3)):
        result = run(build(spec, target, knobs), target, x, out_elements=x.numel()).reshape(rows, cols)
        torch.testing.assert_close(result.double(), x.double().softmax(-1), rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("cols", [8, 40])
def test_extreme_logits(cols):
    x = torch.zeros(4, cols)
    x[0, 3] = 1e30
    x[1, :] = -1e30
    x[2, ::2] = float("-inf")
    x[3, 1] = 88.0
    spec = SoftmaxSpec(4, cols)
    result = run(build(spec, AVX512, candidates(spec, AVX512)[0]), AVX512, x, out_elements=x.numel())
    torch.testing.assert_close(result.reshape(4, cols), x.softmax(-1), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("cols", [7, 24, 35])
def test_prologue_and_epilogue_see_logical_coordinates(cols):
    """Scaled attention scores with an additive mask over the columns, dropped-out by a factor for each head."""
    batch, heads, rows = 2, 3, 4
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, heads, rows, cols, generator=generator)
    mask = torch.randn(batch, cols, generator=generator)
    factors = torch.randn(heads, cols, generator=generator)

    def scale_and_mask(value, at, buffers):
        image, _, _, column = at.coords
        return value * constant(0.125, at.lanes) + load(buffers[0], image * cols + column, at.lanes)

    def multiply(value, at, buffers):
        return value * load(buffers[0], at.coords[1] * cols + at.coords[3], at.lanes)

    spec = SoftmaxSpec(batch * heads * rows, cols, (batch, heads, rows, cols))
    prim_func = build(
        spec,
        AVX512,
        candidates(spec, AVX512)[0],
        Epilogue((BufferSpec("factors", factors.numel()),), multiply),
        prologue=Epilogue((BufferSpec("mask", mask.numel()),), scale_and_mask),
    )
    result = run(prim_func, AVX512, x, mask, factors, out_elements=x.numel()).reshape(x.shape)
    expected = (x * 0.125 + mask[:, None, None]).softmax(-1) * factors[:, None]
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((0, 4), "must be positive"),
        ((4, 4, (4, 5)), "is not 4 rows of 4"),
        ((4, 4, (), "int8"), "int8 is not supported"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        SoftmaxSpec(*arguments)
