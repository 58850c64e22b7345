"""Which layers compute on integers, and which values are therefore stored as integers.

A layer that computes integer sums wants its operand as integers, and a product of computed operands, such as attention,
all its factors. Such an operand is best rounded where it is made, in the
epilogue of the kernel before, so the wish travels backwards: through ops that move integers (pooling, concatenation,
reshaping) to their operands, through means to what they average, and through elementwise ops, which stay in floating
point in registers, to concatenations and poolings that are stored before them. Where an elementwise op joins two
layers, an addition of a shortcut for example, one of them is stored in memory: the earlier one, as integers, unless
something else reads it that only knows floating point.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import cast

from ...ir import DType, Graph, OnIntegers, Op, TersorError, Value, is_constant
from ...ir.ops import BatchNormOp, LayerOp, ObserveOp, ProductOp
from ..matching import tensor
from .scheme import MOST_PRODUCT_TERMS, MOST_TERMS, WEIGHT_BITS


def find_notes(graph: Graph) -> list[ObserveOp]:
    """All notes about values that are to be stored as integers, in execution order."""
    return [op for op in graph.ops if isinstance(op, ObserveOp)]


def underlying(value: Value) -> Value:
    """What ``value`` is a note about; ``value`` itself if it is none."""
    while isinstance(value.op, ObserveOp):
        value = value.op.x
    return value


def name_of(value: Value) -> str:
    """What makes ``value``, for messages."""
    value = underlying(value)
    if value.op is None:
        return f"input {value.name!r}"
    return value.op.location or value.op.describe()


def weight_bits(op: LayerOp) -> int:
    """Bits of a layer's weight as integers, which the note about its operand says."""
    note = op.x.op
    return note.attrs.weight_bits if isinstance(note, ObserveOp) else WEIGHT_BITS


def float_layers(graph: Graph) -> list[LayerOp]:
    """Layers that could compute integer sums, and compute in float32."""
    layers = (cast(LayerOp, op) for op in graph.ops if op.on_integers is OnIntegers.SUMS)
    return [op for op in layers if op.result.type.dtype is DType.F32]


def float_products(graph: Graph) -> list[ProductOp]:
    """Products of computed operands that could be of integers, and are of float32 numbers."""
    products = (cast(ProductOp, op) for op in graph.ops if op.on_integers is OnIntegers.PRODUCTS)
    return [op for op in products if op.result.type.dtype is DType.F32 and op.factors[0].type.dtype is DType.F32]


def in_order(graph: Graph, *ops: Sequence[Op]) -> list[Op]:
    """Ops of a graph in execution order."""
    wanted = {op for some in ops for op in some}
    return [op for op in graph.ops if op in wanted]


def is_skipped(op: Op, skip: Sequence[str]) -> bool:
    """Whether a pattern names the layer."""
    return any(fnmatchcase(op.location, pattern) for pattern in skip)


def refusal(op: LayerOp, skip: Sequence[str]) -> str:
    """Why a layer stays in floating point; empty if it need not."""
    if is_skipped(op, skip):
        return "it is to be skipped"
    if is_constant(underlying(op.x)):
        return "its operand is a constant"
    numbers = [tensor(value) for value in (op.weight, op.bias) if value is not None]
    if any(one is None for one in numbers):
        return "its weight or bias is computed at run time, or not loaded"
    if not all(bool(one.isfinite().all()) for one in numbers if one is not None):
        return "its weight or bias has numbers that are not finite"
    terms = op.weight.type.size // max(1, op.weight.shape[0])
    if not terms:
        return "it has no operand"
    return f"sums of {terms} products may not fit into i32" if terms > MOST_TERMS else ""


def product_refusal(op: ProductOp, skip: Sequence[str]) -> str:
    """Why a product stays in floating point; empty if it need not."""
    if is_skipped(op, skip):
        return "it is to be skipped"
    if any(is_constant(underlying(value)) for value in op.factors):
        return "an operand is a constant"
    if not op.terms:
        return "it has no operand"
    return f"sums of {op.terms} products may not fit into i32" if op.terms > MOST_PRODUCT_TERMS else ""


def noted_layers(graph: Graph) -> list[LayerOp]:
    """Layers whose operand is noted to be stored as integers, and that can sum these."""
    return [op for op in float_layers(graph) if isinstance(op.x.op, ObserveOp) and not refusal(op, ())]


def noted_products(graph: Graph) -> list[ProductOp]:
    """Products all of whose factors are noted to be stored as integers, and that can multiply these."""
    return [
        op
        for op in float_products(graph)
        if all(isinstance(value.op, ObserveOp) for value in op.factors) and not product_refusal(op, ())
    ]


def refuse_notes(graph: Graph, rule: str) -> None:
    """Raise TersorError if a graph has notes, which a rewrite of what they are about would make wrong."""
    if find_notes(graph):
        raise TersorError(f"values are noted to be stored as integers already; run {rule} before quantize-annotate")


def check_patterns(graph: Graph, skip: Sequence[str]) -> None:
    """Raise TersorError for a pattern that is no layer's name, and no product's."""
    names = [op.location for op in in_order(graph, float_layers(graph), float_products(graph))]
    for pattern in skip:
        if names and not any(fnmatchcase(name, pattern) for name in names):
            some = ", ".join(name for name in names[:3] if name)
            raise TersorError(f"skip={pattern} matches no layer; layers have names such as {some or '(none)'}")


def stored_as_integers(graph: Graph, layers: Iterable[Op]) -> dict[Value, None]:
    """Values to be stored as integers when ``layers`` compute on integers, in the order in which they were found.

    Products count as layers. Notes that are in the graph already (`ObserveOp`) are seen through.
    """
    return _Placement(graph, layers).stored


class _Placement:
    def __init__(self, graph: Graph, layers: Iterable[Op]) -> None:
        self.layers: set[Op | None] = set(layers)
        self.stored: dict[Value, None] = {}
        self.position = {op: index for index, op in enumerate(graph.ops)}
        for op in graph.ops:
            if op in self.layers:
                for value in _data(op):
                    self.want(value)
        for op in reversed(graph.ops):
            if op.on_integers is OnIntegers.MEANS:
                self.want_if_made_of_integers(op.inputs[0])
        for op in graph.ops:
            if _is_elementwise(op) and not isinstance(op, ObserveOp):
                self._join(op)

    def want(self, value: Value) -> None:
        """Store ``value`` as integers, and what should be then."""
        if value in self.stored or value.type.dtype is not DType.F32 or is_constant(value):
            return
        self.stored[value] = None
        op = value.op
        if op is None:
            return
        if op.on_integers in (OnIntegers.MOVES, OnIntegers.MEANS):
            for operand in _data(op):
                self.want(operand)
        elif _is_elementwise(op):
            for source in self._sources(value):
                if source.op is not None and source.op.on_integers is OnIntegers.MOVES and not source.op.view:
                    self.want(source)

    def want_if_made_of_integers(self, value: Value) -> None:
        """Store ``value`` as integers where all that makes and reads it can do so."""
        value = underlying(value)
        if self._is_integer_made(value) and _reads_integers(value):
            self.want(value)

    def _sources(self, value: Value) -> list[Value]:
        """What ``value`` is computed from by elementwise ops, up to values that are stored as integers."""
        found: dict[Value, None] = {}
        seen = {value}
        pending = [value]
        while pending:
            op = pending.pop().op
            for operand in () if op is None else _data(op):
                if operand in seen:
                    continue
                seen.add(operand)
                if operand.op is not None and _is_elementwise(operand.op) and operand not in self.stored:
                    pending.append(operand)
                else:
                    found[operand] = None
        return list(found)

    def _origins(self, value: Value) -> list[Value]:
        is_computed = value.op is not None and _is_elementwise(value.op) and value not in self.stored
        return self._sources(value) if is_computed else [value]

    def _is_integer_made(self, value: Value) -> bool:
        """Whether integers are what makes ``value``, by any of the ops that pass integers on."""
        seen: set[Value] = set()
        pending = [value]
        while pending:
            one = pending.pop()
            if one in self.stored or one.op in self.layers:
                return True
            if one in seen or one.op is None:
                continue
            seen.add(one)
            if _is_elementwise(one.op) or one.op.on_integers in (OnIntegers.MOVES, OnIntegers.MEANS):
                pending.extend(_data(one.op))
        return False

    def _join(self, op: Op) -> None:
        """Of two layers that meet in an elementwise op, store the earlier one."""
        full = [value for value in _data(op) if value.shape == op.result.shape]
        latest = {value: max((self._made_at(one) for one in self._origins(value)), default=-1) for value in full}
        last = max(latest.values(), default=-1)
        for value, made_at in latest.items():
            if 0 <= made_at < last:
                self.want_if_made_of_integers(value)

    def _made_at(self, value: Value) -> int:
        """Position of what makes ``value``; -1 if it is read from memory anyway."""
        return -1 if value.op is None or value in self.stored else self.position[value.op]


def _data(op: Op) -> list[Value]:
    """What an op reads besides constants, a layer's weight, and what a product does not multiply."""
    values = op.inputs[:1] if op.on_integers is OnIntegers.SUMS else op.inputs
    if isinstance(op, ProductOp):
        values = op.factors
    return [underlying(value) for value in values if not is_constant(value)]


def _is_elementwise(op: Op) -> bool:
    """Whether an op can be computed in registers; batch normalisations become multiplications, or are gone, at last."""
    return op.elementwise or isinstance(op, BatchNormOp)


def _reads_integers(value: Value) -> bool:
    """Whether all readers of ``value`` can take integers, or floating-point numbers made of these in registers."""
    readers = [user for op in value.users for user in (op.result.users if isinstance(op, ObserveOp) else (op,))]
    return all(_is_elementwise(op) or op.on_integers is not OnIntegers.NOTHING for op in readers)
