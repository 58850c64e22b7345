"""Layer normalization against PyTorch."""

from __future__ import annotations

import pytest
import torch

from tersor.targets.templates.base import BufferSpec, Epilogue
from tersor.targets.templates.rows.layer_norm import LayerNormSpec, build, candidates
from tersor.targets.templates.rows.row_vectors import RowKnobs
from tersor.targets.templates.vector.builder import load

from .window_cases import AVX512, TARGETS, run


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize(
    ("rows", "cols", "affine"),
    [
        (1, 1, (True, True)),
        (3, 7, (True, False)),
        (2, 16, (False, True)),
        (5, 33, (True, True)),
        (5, 40, (False, False)),
        (128, 384, (True, True)),
    ],
    ids=str,
)
def test_layer_norm(rows, cols, affine, target):
    generator = torch.Generator().manual_seed(cols)
    x = torch.randn(rows, cols, generator=generator) * 3 + 50
    scale = torch.randn(cols, generator=generator) if affine[0] else None
    shift = torch.randn(cols, generator=generator) if affine[1] else None
    spec = LayerNormSpec(rows, cols, 1e-5, *affine)
    arguments = [operand for operand in (x, scale, shift) if operand is not None]
    expected = torch.nn.functional.layer_norm(
        x.double(),
        (cols,),
        scale.double() if affine[0] else None,
        shift.double() if affine[1] else None,
    )
    for knobs in (candidates(spec, target)[0], RowKnobs(3)):
        result = run(build(spec, target, knobs), target, *arguments, out_elements=x.numel())
        torch.testing.assert_close(result.reshape(rows, cols).double(), expected, rtol=1e-4, atol=1e-4)


def test_a_large_mean_does_not_drown_the_variance():
    x = torch.randn(4, 96, generator=torch.Generator().manual_seed(0)) + 1e4
    spec = LayerNormSpec(4, 96, has_scale=False, has_shift=False)
    result = run(build(spec, AVX512, candidates(spec, AVX512)[0]), AVX512, x, out_elements=x.numel())
    expected = torch.nn.functional.layer_norm(x.double(), (96,))
    torch.testing.assert_close(result.reshape(4, 96).double(), expected, rtol=0, atol=5e-3)


@pytest.mark.parametrize("cols", [5, 24, 48])
def test_epilogue_sees_logical_coordinates(cols):
    batch, tokens = 2, 3
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, tokens, cols, generator=generator)
    residual = torch.randn(tokens, cols, generator=generator)

    def add(value, at, buffers):
        _, token, column = at.coords
        return value + load(buffers[0], token * cols + column, at.lanes)

    spec = LayerNormSpec(batch * tokens, cols, has_scale=False, has_shift=False, shape=(batch, tokens, cols))
    epilogue = Epilogue((BufferSpec("residual", residual.numel()),), add)
    prim_func = build(spec, AVX512, candidates(spec, AVX512)[0], epilogue)
    result = run(prim_func, AVX512, x, residual, out_elements=x.numel()).reshape(x.shape)
    expected = torch.nn.functional.layer_norm(x, (cols,)) + residual
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cols", [1, 7, 40, 384])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_absent_zeros_count(cols, offset):
    x = torch.randn(3, cols, generator=torch.Generator().manual_seed(cols)) + offset
    spec = LayerNormSpec(3, cols, has_scale=False, has_shift=False, absent=9)
    result = run(build(spec, AVX512, candidates(spec, AVX512)[0]), AVX512, x, out_elements=x.numel())
    whole = torch.nn.functional.pad(x.double(), (0, 9))
    expected = torch.nn.functional.layer_norm(whole, (cols + 9,))[:, :cols]
    torch.testing.assert_close(result.reshape(3, cols).double(), expected, rtol=1e-4, atol=1e-4)


def test_a_negative_number_of_zeros_is_refused():
    with pytest.raises(ValueError, match="absent must not be negative"):
        LayerNormSpec(4, 4, absent=-1)


def test_a_negative_epsilon_is_refused():
    with pytest.raises(ValueError, match="epsilon must not be negative"):
        LayerNormSpec(4, 4, -1.0)
