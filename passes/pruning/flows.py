"""How labels reach the result of an op, and what its attributes become: one class for each `ChannelFlow`.

A new op needs nothing here: it declares the trait ``channels``. What a flow cannot follow it pins, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ...ir import Attrs, ChannelFlow, Op
from ...ir.ops import MeanOp, WeightOp
from .apart import Opaque, Other
from .atoms import Atoms, Dims, Mixed, fixed
from .flow import Flow, Kept, Moving, Shaped
from .layer_flows import Multiplies, Normalizes, Produces, Recurrent
from .reshape import mixes_regrouped, regroup


class Source(Shaped):
    """A filled tensor, or a weight, which the pass cuts itself since its attributes name it."""

    def trace(self, op: Op, operands: Sequence[Dims], atoms: Atoms) -> Dims:
        return tuple(atoms.fresh(extent) for extent in op.result.shape)

    def vanishes(self, op: Op, operands: Sequence[Dims], result: Dims, atoms: Atoms) -> bool:
        return isinstance(op, WeightOp) or op.attrs.value == 0


class Identity(Other):
    """Elementwise ops with broadcasting; pooling and batch normalisation."""

    def trace(self, op: Op, operands: Sequence[Dims], atoms: Atoms) -> Dims:
        return super().trace(op, operands, atoms) if op.elementwise else _per_channel(op, operands, atoms)

    def vanishes(self, op: Op, operands: Sequence[Dims], result: Dims, atoms: Atoms) -> bool:
        if op.elementwise:
            return super().vanishes(op, operands, result, atoms)
        others = len(operands) > 1 and any(atoms.may_go(labels) for dim, labels in enumerate(result) if dim != 1)
        return all(value in atoms.vanishing for value in op.inputs) and not others

    def mixes(self, op: Op, index: int, result: Mixed) -> Mixed:
        if op.elementwise:
            return super().mixes(op, index, result)
        return (result[1],) if index else (*result[:2], *[True] * len(result[2:]))


def _per_channel(op: Op, operands: Sequence[Dims], atoms: Atoms) -> Dims:
    (batch, channels, *positions), *vectors = operands
    for (vector,) in vectors:
        atoms.tie(channels, vector, op)
    for labels in positions:
        atoms.pin(labels, f"{op.describe()} reads them as positions")
    return (batch, channels, *(fixed(extent) for extent in op.result.shape[2:]))


class Concat(Moving):
    """Joined along an axis."""

    def trace(self, op: Op, operands: Sequence[Dims], atoms: Atoms) -> Dims:
        return _joined(op, operands, op.attrs.axis, atoms)


def _joined(op: Op, parts: Sequence[Dims], axis: int, atoms: Atoms) -> Dims:
    for part in parts[1:]:
        for dim, labels in enumerate(part):
            if dim != axis:
                atoms.tie(parts[0][dim], labels, op)
    joined = np.concatenate([part[axis] for part in parts])
    return (*parts[0][:axis], joined, *parts[0][axis + 1 :])


class Reshape(Shaped):
    """Dimensions merged and split."""

    def trace(self, op: Op, operands: Sequence[Dims], atoms: Atoms) -> Dims:
        return regroup(op, operands[0], op.result.shape, atoms)

    def mixes(self, op: Op, index: int, result: Mixed) -> Mixed:
        return mixes_regrouped(op.inputs[0].shape, op.result.shape, result)


class Permute(Moving):
    """Dimensions in another order."""

    def trace(self, op: Op, operands: Sequence[Dims], atoms: Atoms) -> Dims:
        return tuple(operands[0][dim] for dim in op.attrs.dims)

    def mixes(self, op: Op, index: int, result: Mixed) -> Mixed:
        return tuple(result[op.attrs.dims.index(dim)] for dim in range(len(result)))


class Slice(Moving):
    """A range along an axis; with steps, that axis must stay as it is."""

    def trace(self, op: Op, operands: Sequence[Dims], atoms: Atoms) -> Dims:
        (dims,), attrs = operands, op.attrs
        labels = dims[attrs.axis]
        if attrs.step != 1:
            atoms.pin(labels, f"{op.describe()} takes every {attrs.step}th of them")
        taken = labels[attrs.start : attrs.stop : attrs.step]
        atoms.keep_some(taken)
        return (*dims[: attrs.axis], taken, *dims[attrs.axis + 1 :])

    def mixes(self, op: Op, index: int, result: Mixed) -> Mixed:
        """An axis of which one index is taken has a meaning of its own for each, such as query, key and value."""
        axis = op.attrs.axis
        whole = result[axis] or op.attrs.step != 1 or op.result.shape[axis] == 1
        return (*result[:axis], whole, *result[axis + 1 :])

    def resize(self, op: Op, operands: Sequence[Kept], result: Kept) -> Attrs:
        kept = operands[0][op.attrs.axis]
        return replace(op.attrs, start=int(kept[: op.attrs.start].sum()), stop=int(kept[: op.attrs.stop].sum()))


class Pad(Moving):
    """New indices before and after, which can go like the others."""

    def trace(self, op: Op, operands: Sequence[Dims], atoms: Atoms) -> Dims:
        result = []
        for labels, *extents in zip(operands[0], op.attrs.before, op.attrs.after, strict=True):
            before, after = map(atoms.fresh, extents)
            if not atoms.may_go(labels):
                before, after = map(fixed, extents)
            result.append(np.concatenate([before, labels, after]))
        return tuple(result)

    def vanishes(self, op: Op, operands: Sequence[Dims], result: Dims, atoms: Atoms) -> bool:
        return op.inputs[0] in atoms.vanishing and op.attrs.value == 0

    def resize(self, op: Op, operands: Sequence[Kept], result: Kept) -> Attrs:
        sides = zip(result, op.attrs.before, op.attrs.after, strict=True)
        counts = [(int(kept[:before].sum()), int(kept[len(kept) - after :].sum())) for kept, before, after in sides]
        return replace(op.attrs, before=tuple(one for one, _ in counts), after=tuple(one for _, one in counts))


class Expand(Shaped, Other):
    """Extents of 1 repeated, new dimensions in front."""

    vanishes = Moving.vanishes


class Reduce(Moving):
    """Sums, means and the like over some axes.

    Zeros add nothing to a sum, so such channels can go; a mean is still taken over as many as there were.
    """

    def trace(self, op: Op, operands: Sequence[Dims], atoms: Atoms) -> Dims:
        (dims,), attrs = operands, op.attrs
        if not op.linear or op.inputs[0] not in atoms.vanishing:
            for axis in attrs.axes:
                atoms.pin(dims[axis], f"{op.describe()} combines them")
        if attrs.keepdim:
            return tuple(fixed(1) if dim in attrs.axes else labels for dim, labels in enumerate(dims))
        return tuple(labels for dim, labels in enumerate(dims) if dim not in attrs.axes)

    def mixes(self, op: Op, index: int, result: Mixed) -> Mixed:
        places = [op.apart(index, axis) for axis in range(op.inputs[0].type.rank)]
        return tuple(place is None or result[place] for place in places)

    def correction(self, op: Op, operands: Sequence[Kept]) -> float:
        shares = [operands[0][axis].mean() for axis in op.attrs.axes]
        return float(np.prod(shares)) if isinstance(op, MeanOp) else 1.0


class Shuffle(Moving):
    """Channel shuffle: the groups must stay equal, so channel i of each of them goes together."""

    def trace(self, op: Op, operands: Sequence[Dims], atoms: Atoms) -> Dims:
        batch, channels, *positions = _joined(op, operands, 1, atoms)
        shares = channels.reshape(op.attrs.groups, -1)
        atoms.tie(shares, shares[:1], op)
        taken = shares.T.reshape(-1)[op.attrs.start : op.attrs.stop]
        atoms.keep_some(taken)
        return (batch, taken, *positions)

    def resize(self, op: Op, operands: Sequence[Kept], result: Kept) -> Attrs:
        channels = np.concatenate([part[1] for part in operands])
        shuffled = channels.reshape(op.attrs.groups, -1).T.reshape(-1)
        start, stop = (int(shuffled[:end].sum()) for end in (op.attrs.start, op.attrs.stop))
        return replace(op.attrs, start=start, stop=stop)


FLOWS: dict[ChannelFlow, Flow] = {
    ChannelFlow.SOURCE: Source(),
    ChannelFlow.IDENTITY: Identity(),
    ChannelFlow.PRODUCES: Produces(),
    ChannelFlow.RECURRENT: Recurrent(),
    ChannelFlow.NORMALIZES: Normalizes(),
    ChannelFlow.MULTIPLIES: Multiplies(),
    ChannelFlow.CONCAT: Concat(),
    ChannelFlow.RESHAPE: Reshape(),
    ChannelFlow.PERMUTE: Permute(),
    ChannelFlow.SLICE: Slice(),
    ChannelFlow.PAD: Pad(),
    ChannelFlow.EXPAND: Expand(),
    ChannelFlow.REDUCE: Reduce(),
    ChannelFlow.SHUFFLE: Shuffle(),
    ChannelFlow.OTHER: Other(),
}
_OPAQUE = Opaque()


def flow_of(op: Op) -> Flow:
    """The flow that ``op`` declares; nothing is known of ops with several results."""
    return FLOWS[op.channels] if len(op.results) == 1 else _OPAQUE
