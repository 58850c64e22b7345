"""Maps over an output tensor, in each of the three walks."""

from __future__ import annotations

import pytest
import torch

from tersor.targets.templates.base import NO_EPILOGUE, BufferSpec, Epilogue
from tersor.targets.templates.elementwise import ElementwiseKnobs, ElementwiseSpec, build, candidates
from tersor.targets.templates.vector.builder import constant, load
from tersor.targets.templates.vector.vectors import load_strided

from .window_cases import AVX512, TARGETS, from_blocked, run, to_blocked


def evaluate(spec: ElementwiseSpec, target, compute, *inputs: torch.Tensor, epilogue=NO_EPILOGUE) -> torch.Tensor:
    """Run with the best knobs, and check that another unrolling gives the same."""
    best, other = (
        run(build(spec, target, knobs, compute, epilogue), target, *inputs, out_elements=spec.size)
        for knobs in (candidates(spec, target)[0], ElementwiseKnobs(3))
    )
    torch.testing.assert_close(other, best, rtol=0, atol=0)
    return best


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("size", [1, 3, 16, 17, 63, 64, 300, 40_001])
def test_flat(size, target):
    generator = torch.Generator().manual_seed(size)
    a, b = torch.randn(2, size, generator=generator)
    spec = ElementwiseSpec((size,), (BufferSpec("a", size), BufferSpec("b", size)))

    def compute(at, buffers):
        return load(buffers[0], at.flat, at.lanes) * load(buffers[1], at.flat, at.lanes)

    torch.testing.assert_close(evaluate(spec, target, compute, a, b), a * b, rtol=0, atol=0)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 16), (5, 50), (2, 3, 70), (1, 333), (64, 3, 100)], ids=str)
def test_broadcast_of_rows_and_columns(shape, target):
    generator = torch.Generator().manual_seed(sum(shape))
    columns = torch.randn(shape[-1], generator=generator)
    rows = torch.randn(*shape[:-1], 1, generator=generator)
    inputs = (BufferSpec("columns", columns.numel()), BufferSpec("rows", rows.numel()))
    spec = ElementwiseSpec(shape, inputs, "coordinates")

    def compute(at, buffers):
        row = 0
        for index, extent in zip(at.coords[:-1], shape[:-1], strict=True):
            row = row * extent + index
        of_column = load_strided(buffers[0], at.coords[-1], 1, at.lanes)
        return of_column + load_strided(buffers[1], row, 0, at.lanes)

    result = evaluate(spec, target, compute, columns, rows).reshape(shape)
    torch.testing.assert_close(result, columns + rows, rtol=0, atol=0)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_permuted_operand(target):
    x = torch.randn(6, 21, 5, generator=torch.Generator().manual_seed(0))
    spec = ElementwiseSpec((5, 6, 21), (BufferSpec("x", x.numel()),), "coordinates")

    def compute(at, buffers):
        last, first, middle = at.coords
        return load_strided(buffers[0], (first * 21 + middle) * 5 + last, 5, at.lanes)

    result = evaluate(spec, target, compute, x).reshape(5, 6, 21)
    torch.testing.assert_close(result, x.permute(2, 0, 1), rtol=0, atol=0)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("shape", [(1, 16, 4, 4), (2, 5, 3, 3), (1, 40, 1, 1), (1, 24, 64, 32)], ids=str)
def test_blocked(shape, target):
    n, c, h, w = shape
    block = target.lanes()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(c))
    blocks = -(-c // block)
    factors = torch.randn(blocks * block, generator=torch.Generator().manual_seed(1))
    offsets = torch.randn(n, h, w, generator=torch.Generator().manual_seed(2))
    blocked = to_blocked(x, block)
    sizes = {"x": blocked.numel(), "factors": factors.numel(), "offsets": offsets.numel()}
    inputs = tuple(BufferSpec(name, size) for name, size in sizes.items())
    spec = ElementwiseSpec(shape, inputs, "blocked", block)
    assert spec.size == blocked.numel()

    def compute(at, buffers):
        image, channel, y, x = at.coords
        offset = load_strided(buffers[2], (image * h + y) * w + x, 0, at.lanes)
        return load(buffers[0], at.flat, at.lanes) * load(buffers[1], channel, at.lanes) + offset

    result = evaluate(spec, target, compute, blocked, factors, offsets)
    assert result.isfinite().all()
    expected = x * factors[:c].reshape(1, -1, 1, 1) + offsets[:, None]
    torch.testing.assert_close(from_blocked(result, shape, block), expected, rtol=1e-5, atol=1e-6)


def test_gather_of_table_rows():
    table = torch.randn(11, 24, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([3.0, 0.0, 10.0, 3.0])
    spec = ElementwiseSpec((4, 24), (BufferSpec("table", 264), BufferSpec("rows", 4)), "coordinates")

    def compute(at, buffers):
        token, column = at.coords
        return load(buffers[0], buffers[1][token].astype("int32") * 24 + column, at.lanes)

    result = evaluate(spec, AVX512, compute, table, rows).reshape(4, 24)
    torch.testing.assert_close(result, table[rows.long()], rtol=0, atol=0)


def test_epilogue_is_applied():
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))
    spec = ElementwiseSpec((50,), (BufferSpec("x", 50),))
    epilogue = Epilogue(apply=lambda value, at, buffers: value + constant(1.0, at.lanes))
    result = evaluate(spec, AVX512, lambda at, b: load(b[0], at.flat, at.lanes), x, epilogue=epilogue)
    torch.testing.assert_close(result, x + 1, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (((4,), (), "diagonal"), "walk must be"),
        (((4, 0), ()), "must be positive"),
        (((4, 4), (), "flat", 8), "only with that"),
        (((4, 4), (), "blocked"), "only with that"),
        (((4,), (), "blocked", 8), "at least the dimensions"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        ElementwiseSpec(*arguments)
