"""Fused attention against the three PyTorch operators it replaces, in float64."""

from __future__ import annotations

import pytest
import torch

from tersor.targets.templates.attention.float32 import AttentionKnobs, AttentionSpec, build, candidates

from .attention_cases import fused_heads, mask_of_keys, reference, residual_of_heads
from .window_cases import AVX512, TARGETS, run


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize(
    ("batch", "queries", "keys", "width", "value_width"),
    [((), 1, 1, 1, 1), ((3,), 7, 7, 8, 8), ((2, 2), 17, 21, 20, 12), ((2,), 32, 64, 16, 32)],
    ids=str,
)
def test_plain_operands(batch, queries, keys, width, value_width, target):
    query = random(*batch, queries, width, seed=0)
    key = random(*batch, keys, width, seed=1)
    value = random(*batch, keys, value_width, seed=2)
    spec = AttentionSpec(batch, queries, keys, width, value_width, 0.3)
    prim_func = build(spec, target, candidates(spec, target)[0])
    result = run(prim_func, target, query, key, value, out_elements=spec.out_size)
    expected = reference(query, key, value, 0.3)
    torch.testing.assert_close(result.reshape(expected.shape).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("tokens", "heads", "width"), [(37, 3, 16), (40, 2, 24)])
def test_heads_are_split_and_merged_in_place(tokens, heads, width):
    fused = random(tokens, 3, heads, width, seed=0)
    spec, expected = fused_heads(fused, width**-0.5)
    for knobs in (*candidates(spec, AVX512)[:2], AttentionKnobs(5, 1, row_chunks=3, unroll=3)):
        prim_func = build(spec, AVX512, knobs)
        result = run(prim_func, AVX512, fused, fused, fused, out_elements=tokens * heads * width)
        torch.testing.assert_close(result.reshape(expected.shape).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keys", [9, 19, 32])
def test_mask_and_epilogue(keys):
    batch, heads, queries, width = 2, 2, 10, 12
    query, value = random(batch, heads, queries, width, seed=0), random(batch, heads, keys, width, seed=2)
    key = random(batch, heads, keys, width, seed=1)
    mask = torch.zeros(batch, keys)
    mask[0, 5:] = float("-inf")
    residual = random(heads, width, seed=3)

    spec = AttentionSpec((batch, heads), queries, keys, width, width, 0.25)
    knobs = candidates(spec, AVX512)[0]
    prim_func = build(spec, AVX512, knobs, residual_of_heads(residual), mask=mask_of_keys(mask))
    result = run(prim_func, AVX512, query, key, value, mask, residual, out_elements=spec.out_size)
    expected = reference(query, key, value, 0.25, mask[:, None, None].double()) + residual[:, None]
    torch.testing.assert_close(result.reshape(expected.shape).double(), expected, rtol=1e-4, atol=1e-5)


def test_strides_for_another_number_of_dimensions_are_refused():
    with pytest.raises(ValueError, match="key_strides"):
        AttentionSpec((2,), 4, 4, 8, 8, 1.0, key_strides=(8, 1))
    with pytest.raises(ValueError, match="one entry for each extent"):
        AttentionSpec((2,), 4, 4, 8, 8, 1.0, query_strides=(8, 1))
