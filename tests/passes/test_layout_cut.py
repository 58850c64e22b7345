"""The minimum cut behind the pass ``layout``: it is the minimum, and what a forward sweep would miss."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.ir import DType, Graph, Op, Storage, TensorType, ops
from tersor.ir.ops import RelayoutOp
from tersor.passes import run_passes
from tersor.passes.layout import TrafficCosts
from tersor.passes.layout_cut import Read, cheapest_blocked_ops, origin, reads
from tersor.targets import resolve_target
from tersor.targets.machines.layout_costs import MemoryTraffic
from tersor.tests.checks import kinds, run_checked
from tersor.tests.random_graphs import GraphBuilder

BLOCK = 8
LAYOUT = f"layout{{block={BLOCK}}}"
COSTS = TrafficCosts()


def builder(**shapes: tuple[int, ...]) -> GraphBuilder:
    return GraphBuilder({name: TensorType(shape) for name, shape in shapes.items()})


def laid_out(graph: Graph) -> Graph:
    return run_checked(graph, LAYOUT, tolerance=0.0).graph


def relayouts(graph: Graph) -> list[Op]:
    return [op for op in graph.ops if isinstance(op, RelayoutOp)]


def has_choice(op: Op) -> bool:
    """Whether an op that is not fused may be stored either way."""
    images = any(value.type.rank == 4 for value in (*op.inputs, *op.results))
    return bool(op.inputs) and op.storage is Storage.FOLLOWS and images and op.result.type.rank in (2, 4)


def total(graph: Graph, blocked: frozenset[Op], costs=COSTS) -> int:
    """What an assignment costs, added up from its definition: traffic of the ops with a choice, and relayouts."""
    cost = 0
    written = {result: BLOCK * (op in blocked) for op in graph.ops for result in op.results}
    wanted = {value: {0} for value in graph.outputs}
    for op in graph.ops:
        layout = BLOCK * (op in blocked)
        moved = [*op.results] if has_choice(op) else []
        for _, value, read in reads(op, BLOCK):
            if read is not Read.AS_STORED:
                wanted.setdefault(value, set()).add(layout if read is Read.LIKE_RESULT else 0)
            if has_choice(op) and read is Read.LIKE_RESULT:
                moved.append(value)
        cost += sum(costs.access(value.type.with_layout(layout)) for value in moved)
    for value, layouts in wanted.items():
        made = value.type.with_layout(written.get(value, 0)) if value.type.rank in (2, 4) else value.type
        cost += sum(costs.relayout(made, layout) for layout in layouts - {made.channel_block})
    return cost


def assignments(graph: Graph) -> list[frozenset[Op]]:
    """Every choice of blocked ops."""
    free = [op for op in graph.ops if has_choice(op)]
    fixed = [op for op in graph.ops if op.inputs and op.storage is Storage.BLOCKED]
    subsets = chain.from_iterable(combinations(free, count) for count in range(len(free) + 1))
    return [frozenset((*fixed, *subset)) for subset in subsets]


@st.composite
def mixed_graphs(draw: st.DrawFn) -> Graph:
    """Up to eight ops with a choice between convolutions, which are blocked, and softmaxes, which are plain."""
    b = builder(x=(1, draw(st.sampled_from([3, 8, 12])), 4, 4))
    values = [b.graph.inputs[0]]
    for kind in draw(
        st.lists(st.sampled_from(["conv", "softmax", "exp", "add", "add", "join"]), min_size=3, max_size=8)
    ):
        x = values[draw(st.integers(0, len(values) - 1))]
        same = [value for value in values if value.shape == x.shape]
        other = same[draw(st.integers(0, len(same) - 1))]
        if kind == "conv":
            values.append(b.conv(x, draw(st.sampled_from([3, 8, 12])), 1))
        elif kind == "softmax":
            values.append(b.op(ops.SoftmaxOp, x, axis=3))
        elif kind == "join":
            values.append(b.op(ops.ConcatOp, x, other, axis=1))
        else:
            values.append(b.op(ops.ExpOp, x) if kind == "exp" else b.op(ops.AddOp, x, other))
    return b.done(*[value for value in values if not value.uses])


@dataclass(frozen=True)
class Weighted:
    """Layout costs that differ by direction, so that no mistake of one cancels out against another."""

    plain: int
    blocked: int
    to_plain: int
    to_blocked: int

    def access(self, type: TensorType) -> int:
        return type.size * (self.blocked if type.channel_block else self.plain)

    def relayout(self, type: TensorType, channel_block: int) -> int:
        if type.channel_block == channel_block:
            return 0
        return type.size * (self.to_blocked if channel_block else self.to_plain)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(mixed_graphs(), st.builds(Weighted, *[st.integers(0, 5)] * 4))
def test_no_assignment_is_cheaper(graph: Graph, costs: Weighted):
    found = total(graph, cheapest_blocked_ops(graph, BLOCK, costs), costs)
    assert found == min(total(graph, blocked, costs) for blocked in assignments(graph))


@settings(deadline=None, max_examples=20, derandomize=True)
@given(mixed_graphs())
def test_mixed_graphs_keep_their_bits(graph: Graph):
    relaid = laid_out(graph)
    cost = sum(COSTS.relayout(op.inputs[0].type, op.attrs.channel_block) for op in relayouts(relaid))
    assert cost <= total(graph, cheapest_blocked_ops(graph, BLOCK, COSTS))


@pytest.mark.parametrize("readers", [1, 3, 6])
def test_one_relayout_before_elementwise_ops_replaces_one_behind_each(readers: int):
    # A forward sweep keeps every activation blocked like the convolution, and relays each before its softmax.
    b = builder(x=(1, 3, 8, 8))
    made = b.conv(b.graph.inputs[0], 32)
    graph = b.done(*(b.op(ops.SoftmaxOp, b.op(ops.ExpOp, made), axis=3) for _ in range(readers)))
    (relayout,) = relayouts(laid_out(graph))
    assert isinstance(relayout.inputs[0].op, ops.Conv2dOp) or readers == 1
    swept = frozenset(op for op in graph.ops if op.name in ("conv2d", "exp"))
    best = total(graph, cheapest_blocked_ops(graph, BLOCK, COSTS))
    assert total(graph, swept) - best == (readers - 1) * COSTS.relayout(made.type, BLOCK)


def test_a_join_of_plain_values_stays_plain_although_one_part_is_blocked():
    # A sweep would relay both wide inputs for the sake of the narrow convolution result that comes first.
    b = builder(x=(1, 3, 8, 8), y=(1, 64, 8, 8), z=(1, 64, 8, 8))
    x, y, z = b.graph.inputs
    graph = laid_out(b.done(b.op(ops.ConcatOp, b.conv(x, 16), y, z, axis=1)))
    assert kinds(graph) == ["conv2d", "relayout", "concat"]


def test_three_channels_are_not_moved_in_blocks_of_sixteen():
    b = builder(x=(1, 3, 8, 8))
    x = b.graph.inputs[0]
    shifted = b.op(ops.MulOp, b.op(ops.SubOp, x, b.number(0.5)), b.number(4.0))
    graph = laid_out(b.done(b.conv(shifted, 16), shifted))
    assert kinds(graph) == ["sub", "mul", "conv2d", "relayout"]
    assert relayouts(graph)[0].x.op.name == "conv2d"


def test_relayouts_in_the_graph_are_looked_through_and_removed():
    b = builder(x=(1, 16, 4, 4))
    first = b.conv(b.graph.inputs[0], 16)
    there = b.op(RelayoutOp, first, channel_block=4)
    back = b.op(RelayoutOp, there, channel_block=0)
    graph = run_passes(b.done(b.conv(back, 16)), LAYOUT)
    assert kinds(graph) == ["relayout", "conv2d", "conv2d", "relayout"]
    assert origin(graph.outputs[0]).op.name == "conv2d"


def test_shuffles_of_plain_inputs_are_blocked_since_their_kernels_are():
    b = builder(x=(1, 32, 4, 4))
    shuffled = b.op(ops.ChannelShuffleOp, b.graph.inputs[0], groups=2, start=0, stop=32)
    assert kinds(laid_out(b.done(shuffled))) == ["relayout", "channel_shuffle", "relayout"]


@pytest.mark.parametrize("dtype", [DType.BF16, DType.U8, DType.I32])
def test_other_element_types_follow_alike(dtype: DType):
    b = GraphBuilder({"x": TensorType((1, 32, 4, 4), dtype)})
    pooled = b.op(ops.MaxPool2dOp, b.graph.inputs[0], kernel=(2, 2), stride=(2, 2))
    graph = run_passes(b.done(b.op(ops.MaximumOp, pooled, pooled)), LAYOUT)
    assert kinds(graph) == ["relayout", "max_pool2d", "maximum", "relayout"]


def test_a_target_counts_padding_and_the_start_of_a_kernel():
    costs = resolve_target("x86:avx2").layout_costs()
    assert isinstance(costs, MemoryTraffic)
    narrow, one = TensorType((1, 3, 4, 4)), TensorType((1, 32, 1, 1))
    assert costs.access(narrow.with_layout(16)) == pytest.approx(costs.access(narrow) * 16 / 3, rel=0.01)
    moved = costs.access(narrow) + costs.access(narrow.with_layout(16))
    assert costs.relayout(narrow, 16) > moved
    assert costs.relayout(one, 16) == 0
    assert costs.relayout(narrow, 0) == 0
