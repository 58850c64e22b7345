"""Products with weights of which blocks are zero, against PyTorch with the whole weight."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import tvm

from tersor.ir.blocks import cut_blocks, filled_blocks, join_blocks
from tersor.targets.templates.base import NO_EPILOGUE, BufferSpec, Epilogue
from tersor.targets.templates.sparse.blocks import (
    SparseConv2dSpec,
    SparseKnobs,
    SparseLinearSpec,
    build,
    candidates,
    pack_weight,
    stored_blocks,
    supports,
)
from tersor.targets.templates.vector.builder import constant, load
from tersor.tests import emulated_x86

from .window_cases import AVX2, AVX512, NEON, TARGETS, bias_add_relu, bias_add_relu_reference, from_blocked, to_blocked


def sparse_weight(outputs: int, inputs: int, block: tuple[int, int], share: float, seed: int = 0) -> torch.Tensor:
    """Random numbers in about a share of the blocks, inputs x outputs; zeros elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    blocks = cut_blocks(torch.randn(outputs, inputs, generator=generator), *block)
    blocks = blocks * (torch.rand(blocks.shape[:2], generator=generator) < share)[:, :, None, None]
    return join_blocks(blocks, (outputs, inputs))


def kept_of(weight: torch.Tensor, block: tuple[int, int]) -> int:
    return int(filled_blocks(weight, *block).sum())


def run(prim_func, target, *inputs: torch.Tensor, out_elements: int) -> torch.Tensor:
    module = emulated_x86.build(prim_func, target)
    out = tvm.runtime.tensor(torch.full((out_elements,), torch.nan).numpy())
    module["main"](*(tvm.runtime.tensor(one.contiguous().reshape(-1).numpy()) for one in inputs), out)
    return torch.from_numpy(out.numpy())


def check_linear(m, outputs, inputs, block, target, knobs=None, fused=True, share=0.3, spare=0) -> None:
    weight = sparse_weight(outputs, inputs, block, share)
    generator = torch.Generator().manual_seed(1)
    x, bias = torch.randn(m, inputs, generator=generator), torch.randn(outputs, generator=generator)
    other = torch.randn(m, outputs, generator=generator)
    spec = SparseLinearSpec(outputs, inputs, block[1], block[0], kept_of(weight, block) + spare, m=m)
    assert supports(spec, target)
    knobs = knobs or candidates(spec, target)[0]

    def apply(value, at, buffers):
        row, column = at.coords
        total = value + load(buffers[0], column, at.lanes) + load(buffers[1], row * outputs + column, at.lanes)
        return tvm.tirx.max(total, constant(0.0, at.lanes))

    epilogue = (
        Epilogue((BufferSpec("bias", outputs), BufferSpec("other", m * outputs)), apply) if fused else NO_EPILOGUE
    )
    extra = (bias, other) if fused else ()
    packed = pack_weight(spec, target, knobs, weight)
    found = run(build(spec, target, knobs, epilogue), target, x, *packed, *extra, out_elements=m * outputs)
    expected = x.double() @ weight.double().T
    if fused:
        expected = torch.relu(expected + bias + other)
    torch.testing.assert_close(found.reshape(m, outputs).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize(
    ("m", "outputs", "inputs", "block"),
    [(1, 16, 4, (4, 16)), (1, 100, 33, (1, 16)), (5, 17, 36, (4, 16)), (61, 72, 96, (2, 16)), (40, 64, 20, (4, 32))],
)
def test_linear_with_an_epilogue(m, outputs, inputs, block, target):
    check_linear(m, outputs, inputs, block, target)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_or_nothing(share):
    check_linear(30, 40, 24, (1, 16), AVX512, share=share)
    check_linear(30, 40, 24, (1, 16), AVX2, share=share, fused=False)


def test_without_an_epilogue_and_with_room_for_more_blocks():
    check_linear(30, 40, 24, (4, 16), AVX512, fused=False, spare=5)


@pytest.mark.parametrize("knobs", [SparseKnobs(1), SparseKnobs(7, 1, 2, 3), SparseKnobs(28, 1, 1, 5)])
def test_pieces_for_threads(knobs):
    check_linear(50, 80, 32, (1, 16), AVX512, knobs)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize(
    ("image", "outputs", "block", "stride"),
    [((2, 36, 5, 7), 40, (4, 16), (1, 1)), ((1, 24, 9, 6), 70, (1, 16), (2, 2)), ((2, 16, 7, 9), 32, (2, 32), (1, 3))],
)
def test_convolution(image, outputs, block, stride, target):
    n, c, h, w = image
    weight = sparse_weight(outputs, c, block, 0.4)
    x = torch.randn(image, generator=torch.Generator().manual_seed(2))
    spec = SparseConv2dSpec(outputs, c, block[1], block[0], kept_of(weight, block), n=n, h=h, w=w, stride=stride)
    expected = F.conv2d(x, weight[:, :, None, None], stride=stride)
    shape, lanes = tuple(expected.shape), target.lanes()
    padded = -(-outputs // lanes) * lanes
    bias, other = torch.randn(padded), torch.randn(n, padded, *shape[2:])
    for knobs in candidates(spec, target)[:3]:
        packed = pack_weight(spec, target, knobs, weight)
        function = build(spec, target, knobs, bias_add_relu(shape, lanes))
        flat = run(
            function, target, to_blocked(x, lanes), *packed, bias, other, out_elements=n * padded * shape[2] * shape[3]
        )
        wanted = bias_add_relu_reference(expected, bias, other, lanes)
        torch.testing.assert_close(from_blocked(flat, shape, lanes), wanted, rtol=1e-4, atol=1e-4)


def test_what_is_supported():
    assert not supports(SparseLinearSpec(32, 16, 8, 1, 3), AVX512)  # half a vector of outputs
    assert supports(SparseLinearSpec(32, 16, 8, 1, 3), AVX2)
    assert not supports(SparseConv2dSpec(32, 16, 16, 8, 3), NEON)  # inputs of a block lie in two channel blocks
    assert supports(SparseLinearSpec(32, 16, 16, 8, 3), NEON)
    assert not supports(SparseLinearSpec(4096, 16, 512, 1, 3), AVX512)  # more vectors than registers
    with pytest.raises(ValueError, match="blocks of 3 inputs do not divide 16"):
        SparseLinearSpec(32, 16, 16, 3, 3)


def test_registers_are_enough():
    for target in TARGETS:
        for block in ((1, 16), (4, 32)):
            spec = SparseConv2dSpec(64, 32, block[1], block[0], 40, n=1, h=20, w=30, stride=(2, 1))
            vectors = block[1] // target.lanes()
            found = candidates(spec, target)
            assert len(set(found)) == len(found) > 1
            assert all(one.rows * one.columns * vectors + vectors + 1 <= target.vector_registers for one in found)


@pytest.mark.parametrize(("inputs", "most"), [(1024, 8), (1536, 16), (384, 29)])
def test_rows_of_a_tile_fit_the_cache_together(inputs, most):
    """Of L1 with 64 sets of 8 lines, rows of 4096 bytes share one set."""
    spec = SparseLinearSpec(384, inputs, 16, 4, 1000, m=128)
    assert most / 2 < candidates(spec, AVX512)[0].rows <= most


def test_pieces_have_as_many_blocks():
    weight = torch.zeros(16 * 8, 64)
    for block, count in enumerate((64, 1, 1, 1, 30, 30, 2, 1)):  # in order, one piece would have half as much again
        weight[block * 16 : block * 16 + 16, :count] = 1.0
    spec = SparseLinearSpec(128, 64, 16, 1, kept_of(weight, (1, 16)), m=64)
    _, table = pack_weight(spec, AVX512, SparseKnobs(8, output_chunks=2), weight)
    starts, order = table[:9].tolist(), table[9:17].tolist()
    assert sorted(order) == list(range(8))
    assert starts[-1] == 130 and abs(starts[4] - 65) <= 2


def test_what_does_not_hold_is_not_packed():
    weight = sparse_weight(32, 16, (4, 16), 1.0)
    with pytest.raises(ValueError, match="8 blocks of the weight are not zero, more than the 7"):
        pack_weight(SparseLinearSpec(32, 16, 16, 4, 7), AVX512, SparseKnobs(1), weight)
    assert stored_blocks(weight, (4, 16, 8)) == (16, 4, 8)
    assert stored_blocks(weight, (4, 16, 7)) is None
    assert stored_blocks(weight, (3, 16, 8)) is None
    assert stored_blocks(weight, ()) is None
    assert stored_blocks(weight.to("meta"), (4, 16, 7)) == (16, 4, 7)
