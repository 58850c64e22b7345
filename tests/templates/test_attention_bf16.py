"""Attention in bfloat16, on a matrix unit and by dot products of pairs, against PyTorch in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tersor.targets.machines.target import Cpu
from tersor.targets.templates.attention.bf16 import build, candidates, supports
from tersor.targets.templates.attention.spec import AttentionSpec

from .attention_cases import fused_heads, mask_of_keys, reference, residual_of_heads
from .test_bf16 import AMX, DOT, assert_near, on_both, rounded, run

ROUNDING = 2.0**-8  # of the exponentials


@on_both
@pytest.mark.parametrize(
    ("batch", "queries", "keys", "width", "value_width"),
    [
        ((1, 3), 37, 37, 64, 64),
        ((2,), 5, 7, 3, 9),
        ((2, 2), 33, 50, 48, 40),
        ((), 70, 100, 20, 17),
        ((3,), 16, 1, 1, 1),
    ],
    ids=str,
)
def test_plain_operands(batch, queries, keys, width, value_width, target: Cpu):
    generator = torch.Generator().manual_seed(0)
    query = rounded(*batch, queries, width, generator=generator)
    key = rounded(*batch, keys, width, generator=generator)
    value = rounded(*batch, keys, value_width, generator=generator)
    spec = AttentionSpec(batch, queries, keys, width, value_width, width**-0.5, dtype="bfloat16")
    assert supports(spec, target)
    expected = reference(query, key, value, width**-0.5).float()
    found = candidates(spec, target)
    for knobs in (*found, replace(found[0], rows=1, columns=1, row_chunks=3)):
        out = run(build(spec, target, knobs), target, query, key, value, out_size=spec.out_size)
        assert_near(out.reshape(expected.shape), expected, ROUNDING)


@on_both
def test_heads_are_split_and_merged_in_place(target: Cpu):
    fused = rounded(37, 3, 3, 24, generator=torch.Generator().manual_seed(0))
    spec, expected = fused_heads(fused, 0.2, "bfloat16")
    prim_func = build(spec, target, candidates(spec, target)[0])
    out = run(prim_func, target, fused, fused, fused, out_size=spec.out_size)
    assert_near(out.reshape(expected.shape), expected.float(), ROUNDING)


@on_both
@pytest.mark.parametrize("keys", [9, 40])
def test_mask_and_epilogue(keys: int, target: Cpu):
    batch, heads, queries, width = 2, 2, 10, 12
    generator = torch.Generator().manual_seed(0)
    query, value = (rounded(batch, heads, count, width, generator=generator) for count in (queries, keys))
    key = rounded(batch, heads, keys, width, generator=generator)
    mask = torch.zeros(batch, keys)
    mask[0, 5:] = float("-inf")
    residual = torch.randn(heads, width, generator=generator)

    spec = AttentionSpec((batch, heads), queries, keys, width, width, 0.25, dtype="bfloat16")
    knobs = candidates(spec, target)[0]
    prim_func = build(spec, target, knobs, residual_of_heads(residual), mask=mask_of_keys(mask))
    out = run(prim_func, target, query, key, value, mask, residual, out_size=spec.out_size)
    expected = reference(query, key, value, 0.25, mask[:, None, None].double()) + residual[:, None]
    assert_near(out.reshape(expected.shape), expected.float(), ROUNDING)


def test_a_few_queries_and_scattered_elements_are_left_to_the_vector_kernel():
    spec = AttentionSpec((2,), 16, 16, 8, 8, 1.0, dtype="bfloat16")
    assert supports(spec, AMX)
    assert supports(spec, DOT)
    assert not supports(replace(spec, queries=2, query_size=0, out_size=0, query_strides=(), out_strides=()), AMX)
    assert not supports(replace(spec, query_strides=(128, 1, 16)), AMX)
    assert not supports(replace(spec, dtype="float32"), AMX)
