"""Look-ups in a table of 256 entries, as the interpreter defines them."""

from __future__ import annotations

import pytest
import torch

from tersor.ir import DType, Graph, IRError, TensorType, ops, parse, structurally_equal
from tersor.tests.random_graphs import GraphBuilder


def lookup(kind: DType, table: torch.Tensor, *shape: int) -> Graph:
    b = GraphBuilder({"x": TensorType(shape, kind)})
    return b.done(b.op(ops.LookupOp, b.graph.inputs[0], b.constant(table)))


@pytest.mark.parametrize("kind", [DType.U8, DType.I8])
@pytest.mark.parametrize("of", [torch.uint8, torch.int8])
def test_entries_are_in_ascending_order(kind: DType, of: torch.dtype):
    info = torch.iinfo(kind.torch)
    every = torch.arange(info.min, info.max + 1).to(kind.torch).flip(0).reshape(2, 128)
    table = torch.randint(-128, 128, (256,), generator=torch.Generator().manual_seed(0)).to(torch.int8).view(of)
    graph = lookup(kind, table, 2, 128)
    (found,) = graph.evaluate(every)
    assert torch.equal(found, table.flip(0).reshape(2, 128)) and found.dtype is of
    assert structurally_equal(parse(str(graph), graph.weights), graph)


def test_what_is_refused():
    table = torch.zeros(256, dtype=torch.uint8)
    with pytest.raises(IRError, match=r"needs a u8 or i8 operand and a table of u8 or i8, got f32\[4\]"):
        lookup(DType.F32, table, 4)
    with pytest.raises(IRError, match=r"needs a u8 or i8 operand and a table of u8 or i8, got u8\[4\] and i32\[256\]"):
        lookup(DType.U8, table.int(), 4)
    with pytest.raises(IRError, match=r"the table must be \[256\], an entry for each integer of 8 bits, got u8\[255\]"):
        lookup(DType.U8, table[:255], 4)


def test_slices_of_the_operand_stay_apart_and_the_table_does_not():
    op = lookup(DType.U8, torch.zeros(256, dtype=torch.uint8), 3, 5).outputs[0].op
    assert op is not None
    assert [op.apart(0, 0), op.apart(0, 1), op.apart(1, 0)] == [0, 1, None]
