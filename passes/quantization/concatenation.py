"""``equalize-concat``: the parts of a concatenation get one size, which the weights of its readers take back.

Before::

    %3 = relu(%1)                                  numbers up to 100
    %4 = relu(%2)                                  up to 1
    %5 = concat(%3, %4) {axis=1}
    %6 = conv2d(%5, %w)

After, where conv2d made %2::

    %4 = relu(%2.equalized)                        up to 100: the weights that make it are 100 times as large
    %5 = concat(%3, %4) {axis=1}
    %6 = conv2d(%5, %w.equalized)                  the weights that read it a hundredth

A concatenation and its parts have one scale, so that it only copies; a part that is small beside another one has few
steps. So each part is divided by its largest magnitude, as a share of the largest of all parts, on the calibration
data. The division goes into the weights of the layer that makes the part, where only equivariant ops (``relu``,
``clamp``, poolings) are between; elsewhere it is a multiplication in the kernel that rounds.

Runs before ``quantize-annotate``; ``quantize`` puts it there. Refused, with the reason in the report: concatenations
that something other than a layer reads, and parts that are read elsewhere too. Parts of one size, up to a factor of
two, are left alone, so a second run changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ...ir import DType, Graph, Op, Rewriter, TensorType, Value
from ...ir.ops import ClampOp, ConcatOp, LayerOp, MulOp
from ..base import Exactness, Pass, PassContext, Result
from ..fuse import Fuse
from ..matching import numbers, place_before, prune, tensor, weight_name
from ..registry import register_pass
from ..unfuse import take_apart
from .channels import axis_behind, input_axis, is_equivariant, multiply_inputs
from .placement import float_layers, refuse_notes
from .streaming import watch

_RULE = "equalize-concat"
_LEAST = 2.0  # between the largest and the smallest part, where it is worth it


@register_pass(_RULE, purpose="quantize")
class EqualizeConcat(Pass):
    """Give the parts of a concatenation one size, and take it back in the weights of the layers that read it."""

    exactness = Exactness.CLOSE
    before_notes = True

    def run(self, graph: Graph, context: PassContext) -> Result:
        has_concat = any(isinstance(op, ConcatOp) for part in graph.parts for op in part.ops)
        if not has_concat or not any(float_layers(part) for part in graph.parts):
            return Result(False)
        refuse_notes(graph, _RULE)
        rewriter = context.rewriter(graph)
        then = (Fuse(),) if take_apart(graph, rewriter, _RULE) else ()
        found = _concatenations(graph, rewriter)
        if not found:
            return Result(rewriter.changed, (), then)
        largest: dict[Value, float] = {}

        def see(value: Value, batch: torch.Tensor) -> None:
            largest[value] = max(largest.get(value, 0.0), batch.abs().max().item())

        watch(graph, {part for one in found for part in one.op.inputs}, context, see)
        done = sum(_equalize(one, largest, rewriter) for one in found)
        note = f"{done} of {len(found)} concatenations have parts of different sizes"
        return Result(rewriter.changed, (note,), then)


@dataclass(frozen=True)
class _Concatenation:
    """One whose readers can take factors of its parts."""

    op: ConcatOp
    readers: tuple[LayerOp, ...]


def _concatenations(graph: Graph, rewriter: Rewriter) -> list[_Concatenation]:
    known = set(float_layers(graph))
    found = []
    for op in graph.ops:
        if not isinstance(op, ConcatOp) or op.result.type.dtype is not DType.F32:
            continue
        readers = _readers(op.result, op.attrs.axis - op.result.type.rank, known)
        if readers is None:
            rewriter.refuse(_RULE, op, "something other than a layer with constant weights reads it")
        elif not all(part.has_one_use for part in op.inputs):
            rewriter.refuse(_RULE, op, "a part of it is read elsewhere too")
        elif readers:
            found.append(_Concatenation(op, tuple(readers)))
    return found


def _readers(value: Value, axis: int, layers: set[LayerOp]) -> list[LayerOp] | None:
    """All layers that read ``value``, through equivariant ops; None if something else does."""
    if value.is_output:
        return None
    found: list[LayerOp] = []
    for op in value.users:
        if isinstance(op, LayerOp):
            fits = op in layers and op.x is value and input_axis(op) == axis and tensor(op.weight) is not None
            more = [op] if fits else None
        else:
            more = _readers(op.result, axis_behind(op, axis), layers) if is_equivariant(op, axis) else None
        if more is None:
            return None
        found += more
    return found


def _equalize(one: _Concatenation, largest: dict[Value, float], rewriter: Rewriter) -> bool:
    parts = one.op.inputs
    most = max(largest[part] for part in parts)
    shares = [largest[part] / most if largest[part] > 0 else 1.0 for part in parts]
    shares = [share if share * _LEAST < 1 else 1.0 for share in shares]
    if min(shares) == 1:
        return False
    order = {op: index for index, op in enumerate(rewriter.graph.ops)}
    paths = [_path(part, one.op.attrs.axis - part.type.rank) for part in parts]
    first = min((one.op, *(path.maker for path in paths if path.maker is not None)), key=order.__getitem__)
    if not rewriter.commit(_RULE, first):
        return False
    for index, (path, share) in enumerate(zip(paths, shares, strict=True)):
        if share != 1:
            _divide(one.op, index, path, share, rewriter)
    axis = one.op.attrs.axis
    factors = torch.cat([torch.full((part.shape[axis],), s) for part, s in zip(parts, shares, strict=True)])
    for op in dict.fromkeys(one.readers):
        old = op.weight
        fresh = rewriter.weight(multiply_inputs(op, numbers(old), factors), weight_name(old, _RULE))
        rewriter.set_operand(op, 1, fresh)
        prune(rewriter, (old,))
    return True


@dataclass(frozen=True)
class _Path:
    """From the layer that makes a part, if its weights can take a factor, through equivariant ops to the part."""

    maker: LayerOp | None
    clamps: tuple[ClampOp, ...] = ()


def _path(value: Value, axis: int) -> _Path:
    clamps: list[ClampOp] = []
    while value.has_one_use and value.op is not None:
        op: Op = value.op
        if isinstance(op, LayerOp):
            fits = tensor(op.weight) is not None and (op.bias is None or tensor(op.bias) is not None)
            return _Path(op, tuple(clamps)) if fits and op.result.type.dtype is DType.F32 else _Path(None)
        if isinstance(op, ClampOp):
            clamps.append(op)
        elif not is_equivariant(op, axis) or op.inputs[0].type.rank != op.result.type.rank:
            break
        value = op.inputs[0]
    return _Path(None)


def _divide(concat: ConcatOp, index: int, path: _Path, share: float, rewriter: Rewriter) -> None:
    """Divide a part by ``share``: in the weights that make it, or behind what makes it."""
    op = path.maker
    if op is None:
        inverse = rewriter.full(1 / share, TensorType(()))
        place_before(rewriter, inverse.op, concat)
        scaled = rewriter.create(MulOp, (concat.inputs[index], inverse), location=concat.location)
        place_before(rewriter, scaled, concat)
        rewriter.set_operand(concat, index, scaled.result)
        return
    for operand in (1, 2):
        old = op.operands[operand]
        if old is not None:
            fresh = rewriter.weight(numbers(old) / share, weight_name(old, _RULE))
            rewriter.set_operand(op, operand, fresh)
            prune(rewriter, (old,))
    for clamp in path.clamps:
        rewriter.update(clamp, replace(clamp.attrs, min=clamp.attrs.min / share, max=clamp.attrs.max / share))
