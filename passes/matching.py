"""What rewrites share: reading constants, and replacing an op together with what only it needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..ir import Attrs, IRError, Op, Rewriter, Value, changed_id, changes_of, is_symbolic, name_of
from ..ir.ops import FullOp, LayerOp, WeightOp


def scalar(value: Value | None) -> float | int | bool | None:
    """The number that fills ``value``, if it is a `FullOp` of any shape and the number is known; else None."""
    number = value.op.attrs.value if value is not None and isinstance(value.op, FullOp) else None
    return None if is_symbolic(number) else number


def tensor(value: Value | None) -> torch.Tensor | None:
    """The numbers of a constant; None if ``value`` is no constant, not known yet, or its weight is not loaded."""
    op = value.op if value is not None else None
    if isinstance(op, FullOp):
        return op.evaluate() if op.known else None
    if isinstance(op, WeightOp) and op.graph is not None and op.attrs.id in op.graph.weights:
        return op.evaluate()
    return None


def numbers(value: Value) -> torch.Tensor:
    """The numbers of a constant that is known to be loaded; raises IRError if it is not."""
    known = tensor(value)
    if known is None:
        raise IRError(f"{value!r} is no constant, or its weight is not loaded")
    return known


def weight_name(value: Value, change: str) -> str:
    """An id for a weight that takes the place of ``value``: ``"conv1.weight"`` -> ``"conv1.weight..folded"``.

    What takes the place of no weight is named after the location of the op that computes ``value``.
    """
    return changed_id(value.op.attrs.id, change) if isinstance(value.op, WeightOp) else part_name(value, change)


def part_name(value: Value, part: str) -> str:
    """An id for a weight made of ``value`` that stands for something else, such as a factor of it.

    ``"conv1.weight..pruned"`` -> ``"conv1.weight.core"``.
    """
    name = _stem(value)
    return name if name.endswith(f".{part}") or name == part else f"{name}.{part}".lstrip(".")


def was_changed(value: Value | None, change: str) -> bool:
    """Whether ``value`` is a weight of which `weight_name` or `bias_name` says so."""
    return value is not None and isinstance(value.op, WeightOp) and change in changes_of(value.op.attrs.id)


def bias_name(layer: LayerOp, change: str) -> str:
    """An id for another bias of a layer; for its first one, from the name of the weight: ``"conv1.bias..folded"``."""
    if layer.bias is not None and isinstance(layer.bias.op, WeightOp):
        return weight_name(layer.bias, change)
    path = _stem(layer.weight).split(".")
    name = ".".join([*path[: path.index("weight")], "bias"]) if "weight" in path else f"{'.'.join(path)}_bias"
    return changed_id(name, change)


def _stem(value: Value) -> str:
    """The name of a weight, or the location of what computes ``value``."""
    if isinstance(value.op, WeightOp):
        return name_of(value.op.attrs.id)
    return value.op.location if value.op is not None else value.name


def rewrite(rule: str, op: Op, rewriter: Rewriter, make: Callable[[], Value]) -> bool:
    """Announce a rewrite, and `replace` the op by what ``make`` makes; False if the rewrite is not allowed."""
    if not rewriter.commit(rule, op):
        return False
    replace(rewriter, op, make())
    return True


def become(
    rule: str, op: Op, rewriter: Rewriter, kind: type[Op], operands: Sequence[Value | None], attrs: Attrs | None = None
) -> bool:
    """`rewrite` to another op, with the operands and attributes of that."""
    return rewrite(rule, op, rewriter, lambda: rewriter.create(kind, operands, attrs).result)


def replace(rewriter: Rewriter, op: Op, value: Value) -> None:
    """Make all readers of ``op`` read ``value``, remove ``op``, and what nothing reads any more."""
    operands = op.inputs
    rewriter.replace(op, value)
    prune(rewriter, operands)


def prune(rewriter: Rewriter, values: tuple[Value, ...]) -> None:
    """Remove the ops that make ``values`` if nothing reads them, and so on through their operands."""
    pending = list(values)
    while pending:
        op = pending.pop().op
        if op is None or op.graph is not rewriter.graph or any(result.uses for result in op.results):
            continue
        pending.extend(op.inputs)
        rewriter.erase(op)


def place_before(rewriter: Rewriter, made: Op | None, reader: Op) -> None:
    """Move an op, made where the rewrite was announced, to right before ``reader``."""
    assert made is not None
    order = [op for op in rewriter.graph.ops if op is not made]
    rewriter.reorder([*order[: order.index(reader)], made, *order[order.index(reader) :]])
