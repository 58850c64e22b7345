"""``nest-concats``: a concatenation reads an earlier one in the place of the parts that both have.

Before::

    %3 = concat(%a, %b) {axis=1}
    %4 = concat(%a, %b, %c) {axis=1}

After::

    %3 = concat(%a, %b) {axis=1}
    %4 = concat(%3, %c) {axis=1}

DenseNet as torchvision writes it joins the list of all earlier layers anew in each layer. A value can lie inside one
buffer only (`targets/codegen/places.py`), so all but one of these lists were copied. Nested, each list is the beginning
of the next one's buffer, and nothing is copied.

The parts that are taken together stand next to each other, in the same order, in both. Of several earlier
concatenations the one with the most parts is taken. Elements are only moved, so results are the same bit for bit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..ir import Graph, Value
from ..ir.ops import ConcatOp
from .base import Pass, PassContext, Result
from .registry import register_pass

_RULE = "nest-concats"


class _Joined(NamedTuple):
    """What a concatenation joined before it was nested, and its result."""

    parts: tuple[Value, ...]
    result: Value


@register_pass(_RULE, purpose="simplify")
class NestConcats(Pass):
    """Build long concatenations from shorter ones that are there already."""

    def run(self, graph: Graph, context: PassContext) -> Result:
        rewriter = context.rewriter(graph)
        earlier: defaultdict[tuple[Value, int], list[_Joined]] = defaultdict(list)  # by first part and axis
        for op in graph.ops:
            if not isinstance(op, ConcatOp):
                continue
            parts, result, axis = op.parts, op.result, op.attrs.axis
            nested = _nested(parts, axis, earlier)
            if nested != parts and rewriter.commit(_RULE, op):
                result = rewriter.create(ConcatOp, nested, op.attrs).result
                rewriter.replace(op, result)
            earlier[parts[0], axis].append(_Joined(parts, result))
        return Result(rewriter.changed)


def _nested(
    parts: Sequence[Value], axis: int, earlier: Mapping[tuple[Value, int], Sequence[_Joined]]
) -> tuple[Value, ...]:
    """``parts``, with what earlier concatenations joined already as one part; a list that is there whole stays."""
    nested: list[Value] = []
    start = 0
    while start < len(parts):
        found = [
            one
            for one in earlier.get((parts[start], axis), ())
            if 1 < len(one.parts) < len(parts) and one.parts == tuple(parts[start : start + len(one.parts)])
        ]
        longest = max(found, key=lambda one: len(one.parts), default=_Joined((parts[start],), parts[start]))
        nested.append(longest.result)
        start += len(longest.parts)
    return tuple(nested)
