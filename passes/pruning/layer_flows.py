"""How labels pass the layers: convolution and linear layers, recurrent layers, layer norms, matrix products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ...ir import Attrs, Op, is_constant
from .apart import Other
from .atoms import Atoms, Dims, Mixed, fixed
from .flow import Kept, Moving


class Produces(Moving):
    """Convolution and linear layers."""

    def trace(self, op: Op, operands: Sequence[Dims], atoms: Atoms) -> Dims:
        x, (filters, kernels, *window), *vectors = operands
        axis, groups = op.channel_axis % len(x), op.channel_groups
        inputs, positions = x[axis], x[axis + 1 :]
        for labels in (*window, *positions):
            atoms.pin(labels, f"{op.describe()} reads them as positions")
        for (vector,) in vectors:
            atoms.tie(filters, vector, op)
        if groups == 1:
            atoms.tie(inputs, kernels, op)
        elif groups == len(inputs):  # depthwise: with a channel go the filters that read it
            atoms.pin(kernels, f"{op.describe()} reads one channel with each filter")
            atoms.tie(filters.reshape(groups, -1), inputs[:, None], op)
        else:  # each slice of the weight serves one channel of every group, and groups must stay equal in size
            shares = filters.reshape(groups, -1)
            atoms.tie(inputs.reshape(groups, -1), kernels, op)
            atoms.tie(shares, shares[:1], op)
        return (*x[:axis], filters, *(fixed(extent) for extent in op.result.shape[axis + 1 :]))

    def vanishes(self, op: Op, operands: Sequence[Dims], result: Dims, atoms: Atoms) -> bool:
        """Without its filter and bias, a channel is zero, whatever the layer reads; of rows this is not asked."""
        rows = result[: op.channel_axis % len(result)]
        return all(value in atoms.vanishing for value in op.inputs[1:]) and not any(map(atoms.may_go, rows))

    def mixes(self, op: Op, index: int, result: Mixed) -> Mixed:
        axis = op.channel_axis % len(result)
        positions = [True] * len(result[axis + 1 :])
        if index == 0:
            return (*result[:axis], op.channel_groups > 1 and result[axis], *positions)
        return (result[axis],) if index > 1 else (result[axis], False, *positions)

    def scales(self, op: Op, operands: Sequence[Dims], result: Dims) -> Dims:
        x, (filters, kernels, *_), *_ = operands
        return (filters, kernels, *x[: op.channel_axis % len(x)])

    def resize(self, op: Op, operands: Sequence[Kept], result: Kept) -> Attrs:
        inputs = operands[0][op.channel_axis]
        depthwise = 1 < op.channel_groups == len(inputs)
        return replace(op.attrs, groups=int(inputs.sum())) if depthwise else op.attrs


class Recurrent(Moving):
    """Hidden units: one goes with its row of each gate, with the numbers that it starts from, and as an input.

    Of zeros, each cell makes zeros.
    """

    def trace(self, op: Op, operands: Sequence[Dims], atoms: Atoms) -> Dims:
        (steps, batch, gates), (rows, units), *states = operands
        atoms.pin(steps, f"{op.describe()} reads them as steps")
        for labels in (gates, rows):
            atoms.tie(labels.reshape(-1, len(units)), units, op)
        for *samples, own in states:  # hidden states and cells; a bias, which all samples share
            atoms.tie(own, units, op)
            for labels in samples:
                atoms.tie(labels, batch, op)
        return (fixed(op.result.shape[0]), batch, units)

    def mixes(self, op: Op, index: int, result: Mixed) -> Mixed:
        _, batch, units = result
        operand = op.operands[index]
        assert operand is not None
        if index < 2:
            return (units, units) if index else (True, batch, units)
        return (batch, units)[-operand.type.rank :]

    def scales(self, op: Op, operands: Sequence[Dims], result: Dims) -> Dims:
        return (*result[1:], operands[1][1])


class Normalizes(Other):
    """Layer norm: channels that are zero when they are gone can go, since its statistics count zeros that went.

    As channels of its result are scaled and shifted by what goes too, they are zero again. A reshape had better leave
    channels to the dimensions in front, so that whole groups go (`mixes`).
    """

    def trace(self, op: Op, operands: Sequence[Dims], atoms: Atoms) -> Dims:
        if op.inputs[0] not in atoms.vanishing:
            return super().trace(op, operands, atoms)
        x, *vectors = operands
        for dims in vectors:
            for labels, own in zip(x[-op.attrs.dims :], dims, strict=True):
                atoms.tie(labels, own, op)
        return x

    def vanishes(self, op: Op, operands: Sequence[Dims], result: Dims, atoms: Atoms) -> bool:
        x, gamma, beta = (*op.operands, None, None)[:3]
        in_front, behind = (
            any(map(atoms.may_go, dims)) for dims in (result[: -op.attrs.dims], result[-op.attrs.dims :])
        )
        is_scaled = not behind or gamma in atoms.vanishing
        is_shifted = beta is not None and (in_front or beta not in atoms.vanishing)
        return x in atoms.vanishing and is_scaled and not is_shifted

    def resize(self, op: Op, operands: Sequence[Kept], result: Kept) -> Attrs:
        last = operands[0][-op.attrs.dims :]
        gone = math.prod(len(one) for one in last) - math.prod(int(one.sum()) for one in last)
        return replace(op.attrs, absent=op.attrs.absent + gone)


class Multiplies(Other):
    """Matrix product: terms of its sums can go where one of the factors is zero.

    Rows and columns of a constant stay, since they are positions that something was resized to, or channels that no
    layer makes. A reshape had better leave channels to the dimensions in front, so that whole heads go (`mixes`).
    """

    def place(self, op: Op, index: int, axis: int) -> int | None:
        """Columns arrive last."""
        rank = op.inputs[index].type.rank
        if axis >= rank - 2 and is_constant(op.inputs[index]):
            return None
        return op.result.type.rank - 1 if index == 1 and axis == _columns(op) else op.apart(index, axis)

    def trace(self, op: Op, operands: Sequence[Dims], atoms: Atoms) -> Dims:
        if any(value in atoms.vanishing for value in op.inputs):
            (*rows, terms), rhs = operands
            axis = 2 * len(rhs) - 3 - _columns(op)  # the other one of the last two
            atoms.tie(terms, rhs[axis], op)
            still = fixed(len(terms))
            operands = ((*rows, still), (*rhs[:axis], still, *rhs[axis + 1 :]))
        return super().trace(op, operands, atoms)

    def scales(self, op: Op, operands: Sequence[Dims], result: Dims) -> Dims:
        return (*result, operands[0][-1])


def _columns(op: Op) -> int:
    """The axis of the right operand that becomes the last one of the result."""
    return op.inputs[1].type.rank - (2 if op.attrs.transpose_rhs else 1)
