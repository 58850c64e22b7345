"""Graphs of several outputs cut into segments: each op in one of them, and the numbers of the whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tersor
from tersor.ir import Graph, IRError, verify
from tersor.ir.segments import cut_into_segments
from tersor.passes import run_passes


class Three(nn.Module):
    """Exits at three depths; the last one also reads the input, what the first part made, and a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = (nn.Linear(6, 6) for _ in range(3))
        self.heads = nn.ModuleList(nn.Linear(6, 4) for _ in range(3))
        self.heads[2].weight = self.heads[0].weight

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        a = self.first(x).relu()
        b = self.second(a).relu()
        c = self.third(b).relu() + a + x
        return tuple(head(one) for head, one in zip(self.heads, (a, b, c), strict=True))


def graph(pipeline: str = "O0") -> Graph:
    return run_passes(tersor.from_torch(Three().eval(), torch.zeros(2, 6)), pipeline)


def run_segments(whole: Graph, x: Tensor) -> tuple[Tensor, ...]:
    known, outputs = [x], []
    for segment in cut_into_segments(whole):
        verify(segment.graph)
        output, *handed = segment.graph.evaluate(*(known[index] for index in segment.takes))
        outputs.append(output)
        known += handed
    return tuple(outputs)


@pytest.mark.parametrize("pipeline", ["O0", "O3"])
def test_numbers_are_those_of_the_whole(pipeline: str):
    whole, x = graph(pipeline), torch.randn(2, 6)
    for one, other in zip(run_segments(whole, x), whole.evaluate(x), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("pipeline", ["O0", "O3"])
def test_each_op_is_in_one_segment(pipeline: str):
    whole = graph(pipeline)
    segments = cut_into_segments(whole)
    computing = [sorted(op.describe() for op in one.graph.ops if op.inputs) for one in segments]
    assert sorted(name for names in computing for name in names) == sorted(
        op.describe() for op in whole.ops if op.inputs
    )
    assert [one.takes for one in segments] == [(0,), (1,), (0, 1, 2)]
    assert [len(one.graph.outputs) for one in segments] == [2, 2, 1]
    assert set(segments[1].graph.weights) < set(whole.weights)
    assert len(set(segments[0].graph.weights) & set(segments[2].graph.weights)) == 1, "the tied weight"


def test_an_exit_that_is_also_read():
    class Chained(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            first = x.exp()
            return first, first.sin()

    whole, x = tersor.from_torch(Chained(), torch.zeros(3)), torch.randn(3)
    first, second = cut_into_segments(whole)
    assert (len(first.graph.outputs), second.takes) == (2, (1,))
    for one, other in zip(run_segments(whole, x), whole.evaluate(x), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_exits_must_become_deeper():
    class Reversed(Three):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            a = self.first(x).exp()
            return self.second(a).sin(), a

    with pytest.raises(IRError, match="output 1 needs no layer that the outputs before it do not need: return exits"):
        cut_into_segments(tersor.from_torch(Reversed().eval(), torch.zeros(2, 6)))
