"""How labels reach the result of an op, and what its attributes become: one class for each `ChannelFlow`.

A new op needs nothing here: it declares the trait ``channels``. What a flow cannot follow it pins, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ...ir import Attrs, ChannelFlow, Op
from .atoms import FIXED, Atoms, Labels, fixed
from .reshape import regroup

Dims = tuple[Labels, ...]  # the labels of a value, one array for each dimension
Kept = tuple[NDArray[np.bool_], ...]  # which indices of a value stay, one array for each dimension


def cut(tensor: torch.Tensor, masks: Sequence[NDArray[np.bool_]]) -> torch.Tensor:
    """What stays of a tensor; one mask for each dimension."""
    for dim, mask in enumerate(masks):
        tensor = tensor.index_select(dim, torch.from_numpy(np.flatnonzero(mask)))
    return tensor


class Flow(Protocol):
    """What pruning knows of the ops with one `ChannelFlow`."""

    def trace(self, op: Op, operands: Sequence[Dims], atoms: Atoms) -> Dims:
        """Labels of the only result; ties labels of operands that go together."""
        ...

    def resize(self, op: Op, operands: Sequence[Kept], result: Kept) -> Attrs:
        """The attributes of ``op``, when only these indices stay."""
        ...


def _extents(kept: Kept) -> tuple[int, ...]:
    return tuple(int(one.sum()) for one in kept)


class _Unchanged:
    """Base of the flows whose ops have no attribute that depends on an extent."""

    def resize(self, op: Op, operands: Sequence[Kept], result: Kept) -> Attrs:
        return op.attrs


class Other(_Unchanged):
    """Nothing may change."""

    def trace(self, op: Op, operands: Sequence[Dims], atoms: Atoms) -> Dims:
        for dims in operands:
            for labels in dims:
                atoms.pin(labels, f"{op.describe()} reads all channels together")
        return tuple(fixed(extent) for extent in op.results[0].shape)


class _Shaped:
    """Base of the flows whose ops name the shape of their result."""

    def resize(self, op: Op, operands: Sequence[Kept], result: Kept) -> Attrs:
        return replace(op.attrs, shape=_extents(result))


class Source(_Shaped):
    """A filled tensor, or a weight, which the pass cuts itself since its attributes name it."""

    def trace(self, op: Op, operands: Sequence[Dims], atoms: Atoms) -> Dims:
        return tuple(atoms.fresh(extent) for extent in op.result.shape)


class Identity(_Unchanged):
    """Elementwise ops with broadcasting; pooling and batch normalisation."""

    def trace(self, op: Op, operands: Sequence[Dims], atoms: Atoms) -> Dims:
        return _broadcast(op, operands, atoms) if op.elementwise else _per_channel(op, operands, atoms)


def _broadcast(op: Op, operands: Sequence[Dims], atoms: Atoms) -> Dims:
    shape = op.result.shape
    result: list[Labels | None] = [None] * len(shape)
    for dims in operands:
        for dim, labels in enumerate(dims, start=len(shape) - len(dims)):
            known = result[dim]
            if len(labels) != shape[dim]:
                atoms.pin(labels, f"broadcast by {op.describe()}")
            elif known is None:
                result[dim] = labels
            else:
                atoms.tie(known, labels, op)
    return tuple(fixed(extent) if found is None else found for found, extent in zip(result, shape, strict=True))


def _per_channel(op: Op, operands: Sequence[Dims], atoms: Atoms) -> Dims:
    (batch, channels, *positions), *vectors = operands
    for (vector,) in vectors:
        atoms.tie(channels, vector, op)
    for labels in positions:
        atoms.pin(labels, f"{op.describe()} reads them as positions")
    return (batch, channels, *(fixed(extent) for extent in op.result.shape[2:]))


class Produces:
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

    def resize(self, op: Op, operands: Sequence[Kept], result: Kept) -> Attrs:
        inputs = operands[0][op.channel_axis]
        depthwise = 1 < op.channel_groups == len(inputs)
        return replace(op.attrs, groups=int(inputs.sum())) if depthwise else op.attrs


class Concat(_Unchanged):
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


class Reshape(_Shaped):
    """Dimensions merged and split."""

    def trace(self, op: Op, operands: Sequence[Dims], atoms: Atoms) -> Dims:
        return regroup(op, operands[0], op.result.shape, atoms)


class Permute(_Unchanged):
    """Dimensions in another order."""

    def trace(self, op: Op, operands: Sequence[Dims], atoms: Atoms) -> Dims:
        return tuple(operands[0][dim] for dim in op.attrs.dims)


class Slice:
    """A range along an axis; with steps, that axis must stay as it is."""

    def trace(self, op: Op, operands: Sequence[Dims], atoms: Atoms) -> Dims:
        (dims,), attrs = operands, op.attrs
        labels = dims[attrs.axis]
        if attrs.step != 1:
            atoms.pin(labels, f"{op.describe()} takes every {attrs.step}th of them")
        taken = labels[attrs.start : attrs.stop : attrs.step]
        atoms.keep_some(taken)
        return (*dims[: attrs.axis], taken, *dims[attrs.axis + 1 :])

    def resize(self, op: Op, operands: Sequence[Kept], result: Kept) -> Attrs:
        kept = operands[0][op.attrs.axis]
        return replace(op.attrs, start=int(kept[: op.attrs.start].sum()), stop=int(kept[: op.attrs.stop].sum()))


class Pad:
    """New indices before and after, which can go like the others."""

    def trace(self, op: Op, operands: Sequence[Dims], atoms: Atoms) -> Dims:
        make = [atoms.fresh if (labels != FIXED).any() else fixed for labels in operands[0]]
        amounts = zip(make, op.attrs.before, operands[0], op.attrs.after, strict=True)
        return tuple(np.concatenate([new(before), labels, new(after)]) for new, before, labels, after in amounts)

    def resize(self, op: Op, operands: Sequence[Kept], result: Kept) -> Attrs:
        sides = zip(result, op.attrs.before, op.attrs.after, strict=True)
        counts = [(int(kept[:before].sum()), int(kept[len(kept) - after :].sum())) for kept, before, after in sides]
        return replace(op.attrs, before=tuple(one for one, _ in counts), after=tuple(one for _, one in counts))


class Expand(_Shaped):
    """Extents of 1 repeated, new dimensions in front."""

    def trace(self, op: Op, operands: Sequence[Dims], atoms: Atoms) -> Dims:
        return _broadcast(op, operands, atoms)


class Reduce(_Unchanged):
    """Sums, means and the like over some axes."""

    def trace(self, op: Op, operands: Sequence[Dims], atoms: Atoms) -> Dims:
        (dims,), attrs = operands, op.attrs
        for axis in attrs.axes:
            atoms.pin(dims[axis], f"{op.describe()} combines them")
        if attrs.keepdim:
            return tuple(fixed(1) if dim in attrs.axes else labels for dim, labels in enumerate(dims))
        return tuple(labels for dim, labels in enumerate(dims) if dim not in attrs.axes)


class Shuffle:
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


def flow_of(op: Op) -> Flow:
    """The flow that ``op`` declares; nothing is known of ops with several results."""
    return FLOWS[op.channels] if len(op.results) == 1 else FLOWS[ChannelFlow.OTHER]
