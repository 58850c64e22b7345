"""The cheapest assignment of layouts to a whole graph, as a minimum cut.

Each op has one label, *blocked* or *plain*: how its results are stored, and its operands unless `Read` says otherwise.
Its trait `Op.storage` says which labels it may take: convolutions and poolings are blocked, elementwise ops, joins and
slices of channels may be either, all others are plain, as are ops on anything but images. The total to minimise is

- for each op, the traffic of its operands and results in its layout: a last block of 3 channels in 16 lanes is moved
  whole;
- for each value that anyone reads in another layout than its producer writes, one relayout: **one for all readers**.

Two labels and costs that grow with disagreement make this a minimum s-t cut: ops on the source's side are blocked,
those on the sink's side plain (Greig, Porteous, Seheult 1989, "Exact maximum a posteriori estimation for binary
images"; Boykov, Kolmogorov 2004). That a relayout is paid once takes two helper nodes for a value made by ``p`` and
read by ``u1, u2, …``, whose arcs without capacity are never cut (Kohli, Ladicky, Torr 2009, "Robust higher order
potentials")::

    u1, u2, … --inf--> b --cost--> p     b is blocked if any reader is: then a plain p pays
    p --cost--> q --inf--> u1, u2, …     q is plain if any reader is: then a blocked p pays

Relayouts that are in the graph already are looked through, so that a second run finds the same minimum. Of several
minima the one with the most blocked ops is taken.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from enum import Enum

import networkx

from ..ir import Graph, Op, Storage, Value, is_constant
from ..ir.ops import FusedOp, RelayoutOp
from .base import LayoutCosts

_BLOCKED, _PLAIN = "blocked", "plain"  # source and sink
_IMAGES = (4, 5)  # ranks of images [N,C,H,W] and volumes [N,C,D,H,W]


class Read(Enum):
    """In which layout an op reads an operand."""

    LIKE_RESULT = "like the result"
    PLAIN = "plain"
    AS_STORED = "as stored"

    def layout(self, block: int, source: Value) -> int:
        """The channel block in which an op whose result is stored in ``block`` reads ``source``."""
        if self is Read.AS_STORED:
            return source.type.channel_block
        return block if self is Read.LIKE_RESULT else 0


def reads(op: Op, block: int) -> Iterator[tuple[int, Value, Read]]:
    """Index, value and layout of each operand; constants, which are packed at compile time, are left out."""
    anchor = op.anchor if isinstance(op, FusedOp) else op
    for index, value in enumerate(op.operands):
        if value is None or is_constant(value):
            continue
        if value.type.rank < op.results[0].type.rank:
            yield index, value, Read.PLAIN
        elif index == 0 and anchor is not None and anchor.reads_narrow_plain and value.shape[1] < block:
            yield index, value, Read.AS_STORED
        else:
            yield index, value, Read.LIKE_RESULT


def origin(value: Value) -> Value:
    """The value that ``value`` is, relayouts apart."""
    while isinstance(value.op, RelayoutOp):
        value = value.op.x
    return value


def cheapest_blocked_ops(graph: Graph, block: int, costs: LayoutCosts) -> frozenset[Op]:
    """The ops that store their results in channel blocks in an assignment of least total cost.

    Parameters
    ----------
    block
        Channels of a block.
    costs
        What traffic and relayouts cost.
    """
    problem = networkx.DiGraph()
    problem.add_nodes_from((_BLOCKED, _PLAIN))
    ops = [op for op in graph.ops if op.inputs and not isinstance(op, RelayoutOp)]
    readers: dict[Value, dict[Hashable, None]] = {origin(value): {_PLAIN: None} for value in graph.outputs}
    for op in ops:
        for _, value, read in reads(op, block):
            if read is not Read.AS_STORED:
                reader = _PLAIN if read is Read.PLAIN else _node(op)
                readers.setdefault(origin(value), {})[reader] = None
        if _node(op) is op:
            _add_traffic(problem, op, block, costs)
    for value, nodes in readers.items():
        if _has_channels(value):
            _add_relayouts(problem, value, list(nodes), block, costs)
    _, (blocked, _) = networkx.minimum_cut(problem, _BLOCKED, _PLAIN)
    return frozenset(op for op in ops if _node(op) in blocked)


def _node(op: Op | None) -> Hashable:
    """The node that carries the op's label: its own if it has a choice. Graph inputs, made by None, are plain."""
    if op is None:
        return _PLAIN
    members = op.body.ops if isinstance(op, FusedOp) and op.body is not None else (op,)
    storages = {member.storage for member in members if member.inputs}
    images = any(value.type.rank in _IMAGES for value in (*op.inputs, *op.results))
    if Storage.PLAIN in storages or not images or not all(map(_has_channels, op.results)):
        return _PLAIN
    return _BLOCKED if Storage.BLOCKED in storages else op


def _has_channels(value: Value) -> bool:
    """Whether dimension 1 holds channels that can be blocked: images, and their means [N,C]."""
    return value.type.rank in (2, *_IMAGES)


def _add_traffic(problem: networkx.DiGraph, op: Op, block: int, costs: LayoutCosts) -> None:
    moved = [value.type for _, value, read in reads(op, block) if read is Read.LIKE_RESULT]
    moved += [result.type for result in op.results]
    problem.add_edge(_BLOCKED, op, capacity=sum(costs.access(type.logical) for type in moved))
    problem.add_edge(op, _PLAIN, capacity=sum(costs.access(type.with_layout(block)) for type in moved))


def _add_relayouts(
    problem: networkx.DiGraph, value: Value, readers: list[Hashable], block: int, costs: LayoutCosts
) -> None:
    producer = _node(value.op)
    logical = value.type.logical
    to_blocked, to_plain = (value, _BLOCKED), (value, _PLAIN)
    problem.add_edge(to_blocked, producer, capacity=costs.relayout(logical, block))
    problem.add_edge(producer, to_plain, capacity=costs.relayout(logical.with_layout(block), 0))
    for reader in readers:
        problem.add_edge(reader, to_blocked)
        problem.add_edge(to_plain, reader)
