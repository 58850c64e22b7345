"""Whether the samples of a batch stay apart in a graph: then a batch may be computed in parts.

An op says by `Op.apart` along which axis of the result the slices of an operand along some axis stay apart. From there
it follows for the graph, or it does not: an op that says nothing is taken to mix samples. A sample may be several
slices that follow one another, as where windows of images are taken for images.
"""

from __future__ import annotations

from dataclasses import dataclass

from .core import Op, Value
from .extents import Extent
from .graph import Graph
from .ops import ExpandOp, FullOp


@dataclass(frozen=True)
class Samples:
    """Where the samples of a batch are.

    Attributes
    ----------
    symbol
        The extent that counts them.
    inputs
        Axis of each input, whose extent is a multiple of the symbol; None for one that all samples share.
    outputs
        Axis of each output.
    """

    symbol: str
    inputs: tuple[int | None, ...]
    outputs: tuple[int, ...]


def find_samples(graph: Graph) -> Samples | None:
    """Along which of a graph's symbols samples do not mix; None if they do along all of them, or may do so."""
    for symbol in graph.symbols:
        inputs = [_major_axis(value, symbol.name) for value in graph.inputs]
        if any(axis is None and _depends(value, symbol.name) for axis, value in zip(inputs, graph.inputs, strict=True)):
            continue
        outputs = _flow(graph, inputs, symbol.name)
        if outputs is not None and None not in outputs:
            return Samples(symbol.name, tuple(inputs), tuple(axis for axis in outputs if axis is not None))
    return None


def _flow(graph: Graph, inputs: list[int | None], symbol: str) -> list[int | None] | None:
    """The axis of each output; None for one that does not depend on the samples. None for all if samples may mix."""
    axes: dict[Value, int | None] = dict(zip(graph.inputs, inputs, strict=True))
    for op in graph.ops:
        known = [None if value is None else axes[value] for value in op.operands]
        if _computes_with(op, symbol):
            return None
        if op.body is not None:
            found = _flow(op.body, known, symbol)
            if found is None:
                return None
            axes.update(zip(op.results, found, strict=True))
        elif all(axis is None for axis in known):
            if any(_depends(result, symbol) for result in op.results) and not _repeats(op, symbol):
                return None
            axes.update((result, _major_axis(result, symbol)) for result in op.results)
        else:
            kept = {op.apart(index, axis) for index, axis in enumerate(known) if axis is not None}
            axis = kept.pop()
            if kept or axis is None or not all(_factor(result, axis, symbol) for result in op.results):
                return None
            axes.update(dict.fromkeys(op.results, axis))
    return [axes[value] for value in graph.outputs]


def _repeats(op: Op, symbol: str) -> bool:
    """Whether an op, none of whose operands holds samples, makes a tensor in which each sample has the same."""
    repeated = isinstance(op, FullOp) or (isinstance(op, ExpandOp) and not _depends(op.x, symbol))
    return repeated and all(_major_axis(result, symbol) is not None for result in op.results)


def _computes_with(op: Op, symbol: str) -> bool:
    """Whether an attribute, other than the result's shape, follows from how many samples there are."""
    return any(name != "shape" and isinstance(one, Extent) and symbol in one.symbols for name, one in op.attrs.items())


def _depends(value: Value, symbol: str) -> bool:
    return any(isinstance(extent, Extent) and symbol in extent.symbols for extent in value.shape)


def _major_axis(value: Value, symbol: str) -> int | None:
    """The only axis whose extent depends on a symbol, if it is a multiple of the symbol."""
    axes = [axis for axis, one in enumerate(value.shape) if isinstance(one, Extent) and symbol in one.symbols]
    return axes[0] if len(axes) == 1 and _factor(value, axes[0], symbol) else None


def _factor(value: Value, axis: int, symbol: str) -> int:
    """How many slices along an axis belong to one sample; 0 where there is no such number."""
    extent = value.shape[axis]
    terms = dict(extent.terms) if isinstance(extent, Extent) else {}
    return terms.pop((symbol,), 0) if len(terms) == 1 else 0
