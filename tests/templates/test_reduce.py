"""Reductions against PyTorch."""

from __future__ import annotations

import pytest
import torch

from tersor.targets.templates.base import BufferSpec, Epilogue
from tersor.targets.templates.rows.reduce import ReduceSpec, build, candidates
from tersor.targets.templates.rows.row_vectors import RowKnobs
from tersor.targets.templates.vector.builder import load

from .window_cases import AVX512, TARGETS, run

REFERENCES = {"sum": torch.sum, "mean": torch.mean, "max": torch.amax, "min": torch.amin}
CASES = [
    ("sum", (1,), (0,)),
    ("max", (100,), (0,)),
    ("mean", (5, 3), (0,)),
    ("min", (5, 3), (1,)),
    ("mean", (1, 40, 7, 7), (2, 3)),
    ("max", (2, 12, 33), (1,)),
    ("sum", (3, 10, 150), (1,)),
    ("min", (4, 5, 6, 7), (0, 2)),
    ("mean", (4, 5, 6, 7), (3, 1)),
    ("max", (2, 3, 4, 40), (0, 2)),
    ("min", (3, 4, 5), (0, 1, 2)),
    ("sum", (6, 1, 9), (1,)),
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize(("kind", "shape", "axes"), CASES, ids=str)
def test_reduce(kind, shape, axes, target):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    spec = ReduceSpec(kind, shape, axes)
    result = run(build(spec, target, candidates(spec, target)[0]), target, x, out_elements=spec.out_size)
    expected = REFERENCES[kind](x.double(), axes).reshape(-1)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("unroll", [1, 3, 8])
@pytest.mark.parametrize("axes", [(1,), (2,)])
def test_every_unrolling_with_enough_work_for_several_threads(axes, unroll):
    shape = (9, 70, 301)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    spec = ReduceSpec("sum", shape, axes)
    result = run(build(spec, AVX512, RowKnobs(unroll)), AVX512, x, out_elements=spec.out_size)
    torch.testing.assert_close(result.double(), x.double().sum(axes).reshape(-1), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("axes", [(0,), (1,)])
def test_epilogue(axes):
    x = torch.randn(20, 37, generator=torch.Generator().manual_seed(0))
    spec = ReduceSpec("mean", (20, 37), axes)
    other = torch.randn(spec.out_size, generator=torch.Generator().manual_seed(1))
    epilogue = Epilogue(
        (BufferSpec("other", spec.out_size),),
        lambda value, at, buffers: value * load(buffers[0], at.coords[0], at.lanes),
    )
    prim_func = build(spec, AVX512, candidates(spec, AVX512)[0], epilogue)
    result = run(prim_func, AVX512, x, other, out_elements=spec.out_size)
    torch.testing.assert_close(result, x.mean(axes) * other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("product", (4,), (0,)), "kind must be one of"),
        (("sum", (4, 0), (0,)), "must be positive"),
        (("sum", (4, 4), ()), "each once"),
        (("sum", (4, 4), (1, 1)), "each once"),
        (("sum", (4, 4), (-1,)), "are not all axes"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        ReduceSpec(*arguments)


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("kind", ["max", "min"])
def test_nan_and_infinities_survive(kind, axes):
    x = torch.randn(11, 53, generator=torch.Generator().manual_seed(0))
    x[0, 3], x[4, 52], x[7, 17] = torch.nan, torch.nan, torch.inf
    x[:, 20] = -torch.inf
    spec = ReduceSpec(kind, (11, 53), axes)
    result = run(build(spec, AVX512, candidates(spec, AVX512)[0]), AVX512, x, out_elements=spec.out_size)
    torch.testing.assert_close(result, REFERENCES[kind](x, axes).reshape(-1), rtol=0, atol=0, equal_nan=True)
