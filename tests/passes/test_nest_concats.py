from __future__ import annotations

import torch
from torch import nn

import tersor
from tersor.ir import TensorType, Value
from tersor.ir.ops import ConcatOp, ReluOp
from tersor.tests.checks import kinds, rules, run_checked
from tersor.tests.random_graphs import GraphBuilder


def builder(count: int, *shape: int) -> tuple[GraphBuilder, tuple[Value, ...]]:
    b = GraphBuilder({f"x{index}": TensorType(shape) for index in range(count)})
    return b, tuple(b.graph.inputs)


def parts_of(graph) -> list[int]:
    return [len(op.parts) for op in graph.ops if isinstance(op, ConcatOp)]


def test_each_list_begins_with_the_one_before_it():
    b, x = builder(5, 1, 4)
    lists = [b.op(ReluOp, b.op(ConcatOp, *x[:count], axis=1)) for count in range(2, 6)]
    outcome = run_checked(b.done(*lists), "nest-concats")
    assert parts_of(outcome.graph) == [2, 2, 2, 2]
    assert rules(outcome) == ["nest-concats"] * 3


def test_the_longest_one_is_taken_wherever_it_stands():
    b, (x, y, z, v, w) = builder(5, 2, 3)
    short, long = b.op(ConcatOp, y, z, axis=0), b.op(ConcatOp, y, z, v, axis=0)
    outcome = run_checked(b.done(short, long, b.op(ConcatOp, x, y, z, v, w, y, z, axis=0)), "nest-concats")
    assert parts_of(outcome.graph) == [2, 2, 4]
    *_, last = outcome.graph.ops
    assert [part.op is not None for part in last.inputs] == [False, True, False, True]


def test_what_is_not_the_same_stays():
    b, (x, y, z) = builder(3, 2, 2)
    values = (
        b.op(ConcatOp, x, y, axis=0),
        b.op(ConcatOp, x, y, z, axis=1),  # along another axis
        b.op(ConcatOp, y, x, z, axis=0),  # in another order
        b.op(ConcatOp, x, z, y, axis=0),  # not next to each other
        b.op(ConcatOp, x, y, axis=0),  # whole: `cse` is for that
    )
    assert rules(run_checked(b.done(*values), "nest-concats")) == []


class Lists(nn.Module):
    """Joins all that came before in each layer, as torchvision's DenseNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(16 * (index + 1), 16, 1) for index in range(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = [x]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)))
        return torch.cat(found, 1)


def test_growing_lists_share_one_buffer():
    torch.manual_seed(0)
    module, x = Lists().eval(), torch.randn(1, 16, 4, 4)
    program = tersor.compile(module, (x,), target="x86:avx2")
    copies = [kernel for kernel in program.info.kernels if kernel.template == "copy"]
    assert len(copies) <= 1  # the input may have to be copied into the buffer
    graph = tersor.run_passes(tersor.from_torch(module, (x,)), "O3")
    assert "concat" in kinds(graph) and max(parts_of(graph)) == 2
