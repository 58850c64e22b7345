"""Recurrent layers: a linear layer over all steps, then the loop over time, for each layer and direction."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...ir import TensorType, Value
from ...ir.ops import (
    AddOp,
    ConcatOp,
    FullOp,
    GruOp,
    LinearOp,
    LstmOp,
    MatmulOp,
    RecurrentAttrs,
    RecurrentOp,
    ReluRnnOp,
    TanhRnnOp,
)
from ..context import Context
from ..registry import Argument, Converted, Converter, converter, register_each

aten = torch.ops.aten


@converter(aten.lstm.input)
def lstm(ctx: Context, x: Value, hx: Sequence[Value], params: Sequence[Value], *options: Argument) -> Converted:
    return _layers(ctx, LstmOp, x, hx, params, *options)


def _simple(kind: type[RecurrentOp]) -> Converter:
    def convert(ctx: Context, x: Value, hx: Value, params: Sequence[Value], *options: Argument) -> Converted:
        return _layers(ctx, kind, x, [hx], params, *options)

    return convert


register_each({aten.gru.input: GruOp, aten.rnn_tanh.input: TanhRnnOp, aten.rnn_relu.input: ReluRnnOp}, _simple)


def _layers(
    ctx: Context,
    kind: type[RecurrentOp],
    x: Value,
    states: Sequence[Value],
    params: Sequence[Value],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Value, ...]:
    """The last layer's states for all steps; then, for each of ``states``, all layers' last ones [layers, N, H]."""
    if train and dropout:
        ctx.refuse("dropout in training mode; call model.eval() before torch.export.export")
    directions, of_layer = 1 + bidirectional, 4 if has_biases else 2
    of_layer += len(params) == (of_layer + 1) * directions * num_layers  # a projection (proj_size)
    x = ctx.permute(x, (1, 0, 2)) if batch_first else x
    last: list[list[Value]] = []
    parts: list[Value] = []
    for place, own in enumerate(_groups(params, of_layer)):
        reverse = bool(place % directions)
        result, cells = _layer(ctx, kind, x, [_row(ctx, state, place) for state in states], own, reverse)
        parts.append(result)
        last.append([_row(ctx, result, 0 if reverse else result.shape[0] - 1), *cells])
        if len(parts) == directions:
            x, parts = _concat(ctx, parts, axis=2), []
    stacks = (
        _concat(ctx, [ctx.reshape(one, (1, *one.shape)) for one in ones], axis=0) for ones in zip(*last, strict=True)
    )
    return ctx.permute(x, (1, 0, 2)) if batch_first else x, *stacks


def _layer(
    ctx: Context, kind: type[RecurrentOp], x: Value, initial: list[Value], params: Sequence[Value], reverse: bool
) -> tuple[Value, list[Value]]:
    """One layer in one direction: its states [T, N, H], and the last cell of an LSTM."""
    if len(params) % 2:
        return _projected_layer(ctx, x, initial, params, reverse)
    own, weight, *biases = params
    bias = ctx.emit(AddOp, *biases) if biases else None
    if kind is GruOp:
        bias, behind = _gru_biases(ctx, biases, weight)
        initial = [*initial, behind]
    gates = ctx.emit(LinearOp, x, own, bias)
    result = ctx.emit(kind, gates, weight, *initial, attrs=RecurrentAttrs(reverse))
    if kind is not LstmOp:
        return result, []
    steps = x.shape[0]
    return ctx.slice(result, 0, 0, steps), [_row(ctx, result, steps)]


def _projected_layer(
    ctx: Context, x: Value, initial: list[Value], params: Sequence[Value], reverse: bool
) -> tuple[Value, list[Value]]:
    """One layer of an LSTM whose states are projected (proj_size), by one whose states are not.

    ``W (P h)`` is ``(W P) h`` at all steps but the first one, whose state is given: there, the product is added to the
    gates, and the state is 0.
    """
    own, weight, *biases, projection = params
    hidden, cell = initial
    bias = ctx.emit(AddOp, *biases) if biases else None
    gates = ctx.emit(LinearOp, x, own, bias)
    steps = x.shape[0]
    first = steps - 1 if reverse else 0
    started = ctx.emit(AddOp, ctx.slice(gates, 0, first, first + 1), ctx.emit(LinearOp, hidden, weight))
    if steps > 1:
        rest = ctx.slice(gates, 0, 0, first) if reverse else ctx.slice(gates, 0, 1, steps)
        started = _concat(ctx, [rest, started] if reverse else [started, rest], axis=0)
    product = ctx.emit(MatmulOp, weight, projection)
    zero = ctx.full(0, cell.type)
    result = ctx.emit(LstmOp, started, product, zero, cell, attrs=RecurrentAttrs(reverse))
    states = ctx.emit(LinearOp, ctx.slice(result, 0, 0, steps), projection)
    return states, [_row(ctx, result, steps)]


def _gru_biases(ctx: Context, biases: Sequence[Value], weight: Value) -> tuple[Value | None, Value]:
    """What is added before the loop, and what the gate n adds to its product, which is multiplied afterwards."""
    units = weight.shape[1]
    if not biases:
        return None, ctx.full(0, TensorType((units,), weight.type.dtype))
    own, others = biases
    first = ctx.emit(AddOp, ctx.slice(own, 0, 0, 2 * units), ctx.slice(others, 0, 0, 2 * units))
    return _concat(ctx, [first, ctx.slice(own, 0, 2 * units, 3 * units)], 0), ctx.slice(others, 0, 2 * units, 3 * units)


def _groups(params: Sequence[Value], size: int) -> list[Sequence[Value]]:
    return [params[start : start + size] for start in range(0, len(params), size)]


def _row(ctx: Context, x: Value, index: int) -> Value:
    if isinstance(x.op, FullOp):  # a state that nobody gave: layers do not share it, so that each can be pruned alone
        return ctx.full(x.op.attrs.value, x.type.with_shape(x.shape[1:]))
    return ctx.reshape(ctx.slice(x, 0, index, index + 1), x.shape[1:])


def _concat(ctx: Context, parts: Sequence[Value], axis: int) -> Value:
    return parts[0] if len(parts) == 1 else ctx.emit(ConcatOp, *parts, attrs=ConcatOp.attrs_type(axis=axis))
