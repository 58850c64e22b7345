"""Dense layers and products of two activations against PyTorch, in float64 for the reference."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import tvm

from tersor.targets.templates.base import NO_EPILOGUE, BufferSpec, Epilogue
from tersor.targets.templates.matmul.panels import MatmulKnobs, MatmulSpec, build, candidates, pack_weight
from tersor.targets.templates.vector.builder import constant, load

from .window_cases import AVX2, AVX512, TARGETS, run


def bias_add_relu(m: int, n: int) -> Epilogue:
    """``relu(result + bias[column] + other[row, column])``."""

    def apply(value, at, buffers):
        bias, other = buffers
        row, column = at.coords
        total = value + load(bias, column, at.lanes) + load(other, row * n + column, at.lanes)
        return tvm.tirx.max(total, constant(0.0, at.lanes))

    return Epilogue((BufferSpec("bias", n), BufferSpec("other", m * n)), apply)


def check_dense(m: int, n: int, k: int, target, knobs: MatmulKnobs | None = None, fused: bool = True) -> None:
    generator = torch.Generator().manual_seed(m * 31 + n * 7 + k)
    x = torch.randn(m, k, generator=generator)
    weight = torch.randn(n, k, generator=generator)
    extra = (torch.randn(n, generator=generator), torch.randn(m, n, generator=generator)) if fused else ()
    spec = MatmulSpec(m, n, k)
    knobs = knobs or candidates(spec, target)[0]
    packed = pack_weight(spec, target, knobs, weight)
    assert packed.shape == (knobs.packed_size(spec, target),)
    prim_func = build(spec, target, knobs, bias_add_relu(m, n) if fused else NO_EPILOGUE)
    result = run(prim_func, target, x, packed, *extra, out_elements=m * n).reshape(m, n)
    expected = x.double() @ weight.double().T
    if fused:
        expected = torch.relu(sum(extra, expected))
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(1, 1, 1), (1, 10, 33), (1, 1000, 64), (2, 1, 7), (5, 17, 33), (29, 48, 20), (47, 72, 96), (128, 96, 64)],
)
def test_dense_with_an_epilogue(m, n, k, target):
    check_dense(m, n, k, target)


@pytest.mark.parametrize(("m", "n", "k"), [(1, 10, 33), (5, 17, 33), (29, 48, 20)])
def test_dense_without_an_epilogue(m, n, k):
    check_dense(m, n, k, AVX512, fused=False)


@pytest.mark.parametrize(
    "knobs",
    [
        MatmulKnobs(rows=1, vectors=1),
        MatmulKnobs(rows=7, vectors=3, column_chunks=2, row_chunks=3, unroll=4),
        MatmulKnobs(rows=4, vectors=2, column_chunks=5, row_chunks=2, unroll=3),
        MatmulKnobs(rows=3, vectors=1, unroll=2, chains=4, prefetch_bytes=512),
    ],
    ids=str,
)
def test_every_kind_of_tiling(knobs):
    check_dense(23, 150, 37, AVX512, knobs)


def test_enough_work_for_several_threads():
    check_dense(64, 200, 128, AVX512)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("m", [1, 3, 64, 197])
def test_candidates_fit_the_registers(m, target):
    for spec in (MatmulSpec(m, 1000, 64), MatmulSpec(m, 64, 64, "activation")):
        knobs = candidates(spec, target)
        assert len(set(knobs)) == len(knobs) > 0
        for each in knobs:
            assert each.rows * each.vectors * each.chains + each.vectors + 1 <= target.vector_registers


def test_second_best_candidates_are_right_too():
    spec = MatmulSpec(30, 80, 24)
    for knobs in candidates(spec, AVX2)[1:6]:
        check_dense(30, 80, 24, AVX2, knobs)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize(("tokens", "heads", "width"), [(19, 3, 20), (32, 2, 32), (5, 1, 8)])
def test_attention_reads_heads_in_place(tokens, heads, width, target):
    """Query, key and value are slices of one buffer [tokens, 3, heads, width]; the result is [tokens, heads, width]."""
    generator = torch.Generator().manual_seed(tokens)
    fused = torch.randn(tokens, 3, heads, width, generator=generator)
    token_stride = 3 * heads * width
    query, key, value = (fused[:, part].permute(1, 0, 2).double() for part in range(3))
    scores_spec = MatmulSpec(
        tokens,
        tokens,
        width,
        "activation",
        (heads,),
        a_strides=(width, token_stride, 1),
        a_size=fused.numel(),
        rhs_strides=(width, 1, token_stride),
        rhs_offset=heads * width,
        rhs_size=fused.numel(),
    )
    context_spec = MatmulSpec(
        tokens,
        width,
        tokens,
        "activation",
        (heads,),
        rhs_strides=(width, token_stride, 1),
        rhs_offset=2 * heads * width,
        rhs_size=fused.numel(),
        out_strides=(width, heads * width, 1),
    )
    for knobs in candidates(scores_spec, target)[:2]:
        prim_func = build(scores_spec, target, knobs)
        scores = run(prim_func, target, fused, fused, out_elements=heads * tokens * tokens)
        expected = query @ key.transpose(1, 2)
        torch.testing.assert_close(scores.reshape(expected.shape).double(), expected, rtol=1e-4, atol=1e-4)
    weights = torch.softmax(scores.reshape(expected.shape), -1)
    for knobs in candidates(context_spec, target)[:2]:
        prim_func = build(context_spec, target, knobs)
        context = run(prim_func, target, weights, fused, out_elements=tokens * heads * width)
        expected = (weights.double() @ value).permute(1, 0, 2)
        torch.testing.assert_close(context.reshape(expected.shape).double(), expected, rtol=1e-4, atol=1e-4)


def test_batch_of_two_dimensions_with_an_epilogue():
    batch, m, n, k = (2, 3), 6, 18, 10
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(*batch, m, k, generator=generator)
    b = torch.randn(*batch, k, n, generator=generator)
    mask = torch.randn(batch[0], n, generator=generator)

    def apply(value, at, buffers):
        outer, _, _, column = at.coords
        return value + load(buffers[0], outer * n + column, at.lanes)

    spec = MatmulSpec(m, n, k, "activation", batch)
    for row_chunks, column_chunks in ((1, 1), (2, 1), (1, 2)):
        knobs = MatmulKnobs(3, 1, column_chunks, row_chunks, pack_rhs=True)
        prim_func = build(spec, AVX512, knobs, Epilogue((BufferSpec("mask", mask.numel()),), apply))
        result = run(prim_func, AVX512, a, b, mask, out_elements=2 * 3 * m * n)
        expected = a.double() @ b.double() + mask[:, None, None]
        torch.testing.assert_close(result.reshape(expected.shape).double(), expected, rtol=1e-4, atol=1e-4)


def test_transposed_left_operand():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(40, 21, generator=generator), torch.randn(40, 32, generator=generator)
    spec = MatmulSpec(21, 32, 40, "activation", a_strides=(1, 21))
    for knobs in candidates(spec, AVX512)[:3]:
        result = run(build(spec, AVX512, knobs), AVX512, a, b, out_elements=21 * 32)
        expected = a.double().T @ b.double()
        torch.testing.assert_close(result.reshape(21, 32).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rhs": "sparse"}, "must be 'packed' or 'activation'"),
        ({"m": 0}, "must be positive"),
        ({"dtype": "float16"}, "float16 is not supported"),
        ({"rhs": "packed", "rhs_strides": (1, 4)}, "no strides"),
        ({"out_strides": (1, 4)}, "columns of the result must be contiguous"),
        ({"a_strides": (5, 1, 1)}, "one entry for each extent"),
        ({"a_size": 3}, "element 31 is accessed"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(change, reason):
    with pytest.raises(ValueError, match=reason):
        dataclasses.replace(MatmulSpec(4, 4, 8, "activation"), **{"rhs_strides": (), "rhs_size": 0} | change)


def test_a_weight_of_another_shape_is_refused():
    spec = MatmulSpec(4, 5, 8)
    with pytest.raises(ValueError, match=r"expected \(5, 8\)"):
        pack_weight(spec, AVX512, candidates(spec, AVX512)[0], torch.zeros(8, 5))


def test_columns_that_are_not_contiguous_cannot_be_read_in_place():
    spec = MatmulSpec(4, 16, 8, "activation", rhs_strides=(1, 8))
    with pytest.raises(ValueError, match="cannot be read in place"):
        build(spec, AVX512, MatmulKnobs(4, 1))
