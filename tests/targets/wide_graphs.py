"""Random graphs for compiled code: many channels, images in batches, views, masks, broadcasts, attention."""

from __future__ import annotations

from hypothesis import strategies as st

from tersor.ir import DType, Graph, TensorType, Value, ops
from tersor.tests.random_graphs import Grower

_CHANNELS = (5, 16, 17, 24, 32)
_LIMIT = 16384  # elements of a value


class WideGrower(Grower):
    """Adds what only code generation cares about to the steps of `Grower`."""

    def __init__(self, seed: int) -> None:
        inputs = {
            "x": TensorType((2, 24, 7, 6)),
            "picture": TensorType((2, 3, 7, 6)),
            "y": TensorType((2, 6)),
            "mask": TensorType((2, 1, 7, 6), DType.BOOL),
        }
        super().__init__(inputs, seed)
        self.mask = self.values.pop()
        self.steps = (
            *(self._wide_convolution, self._wide_convolution, self._broadcast, self._broadcast, self._reduced),
            *(self._masked, self._selected, self._sliced, self._transposed_product, self._attention, self._guarded),
        )

    def grow(self) -> None:
        if self.below(2):
            super().grow()
            return
        made = self.steps[self.below(len(self.steps))]()
        if made.type.size <= _LIMIT:
            self.values.append(made)

    def _wide_convolution(self) -> Value:
        x = self.pick(4)
        channels = _CHANNELS[self.below(len(_CHANNELS))]
        groups = x.shape[1] if self.below(4) == 0 else 1
        kernel, stride = (1, 3)[self.below(2)], 1 + self.below(2)
        return self.conv(x, channels if groups == 1 else groups, kernel, groups=groups, stride=stride)

    def _broadcast(self) -> Value:
        """With a slice of another value of the same shape, or of itself, of extent 1 along some dimensions."""
        x = self.pick()
        same = [value for value in self.values if value.shape == x.shape]
        other = same[self.below(len(same))]
        for axis in range(x.type.rank):
            if self.below(2):
                start = self.below(x.shape[axis])
                other = self.op(ops.SliceOp, other, axis=axis, start=start, stop=start + 1)
        other = self.op(ops.TanhOp, other) if self.below(2) else other
        return self.op((ops.AddOp, ops.MulOp, ops.MaximumOp)[self.below(3)], x, other)

    def _reduced(self) -> Value:
        x = self.pick()
        axes = tuple(axis for axis in range(x.type.rank) if self.below(2)) or (x.type.rank - 1,)
        kind = (ops.MeanOp, ops.SumOp, ops.MaxOp, ops.MinOp)[self.below(4)]
        reduced = self.op(kind, x, axes=axes, keepdim=True)
        return self.op(ops.SubOp, x, reduced) if self.below(2) else reduced

    def _masked(self) -> Value:
        fitting = [value for value in self.values if value.type.rank == 4 and value.shape[2:] == (7, 6)]
        x = fitting[self.below(len(fitting))]
        return self.op(ops.WhereOp, self.mask, x, self.number(-1.0)) if x.shape[0] in (1, 2) else x

    def _selected(self) -> Value:
        x = self.pick()
        positive = self.op(ops.GtOp, x, self.number(0.0))
        return self.op(ops.WhereOp, positive, self.op(ops.ExpOp, self.op(ops.ClampOp, x, max=1.0)), x)

    def _sliced(self) -> Value:
        x = self.pick()
        axis = self.below(x.type.rank)
        start, step = self.below(x.shape[axis]), 1 + self.below(2)
        return self.op(ops.SliceOp, x, axis=axis, start=start, stop=x.shape[axis], step=step)

    def _transposed_product(self) -> Value:
        x = self.pick(4)
        rows = self.op(ops.PermuteOp, x, dims=(0, 2, 1, 3))
        product = self.op(ops.MatmulOp, rows, self.op(ops.TanhOp, rows), transpose_rhs=True)
        return self.op(ops.PermuteOp, product, dims=(0, 2, 1, 3)) if self.below(2) else product

    def _attention(self) -> Value:
        x = self.pick(4)
        query, key = (
            self.op(ops.PermuteOp, self.op(kind, x), dims=(0, 2, 1, 3)) for kind in (ops.TanhOp, ops.SigmoidOp)
        )
        mixed = self.op(ops.AttentionOp, query, key, query, None, causal=bool(self.below(2)))
        return self.op(ops.PermuteOp, mixed, dims=(0, 2, 1, 3))

    def _guarded(self) -> Value:
        """Ops that are not finite everywhere, on numbers for which they are; padded channels may be others."""
        x = self.pick()
        positive = self.op(
            ops.AddOp,
            self.op(ops.AbsOp, x),
            self.weight(x.shape[1], *[1] * (x.type.rank - 2), positive=True) if x.type.rank > 1 else self.number(0.5),
        )
        kind = (ops.LogOp, ops.RsqrtOp, ops.ReciprocalOp, ops.SqrtOp)[self.below(4)]
        return self.op(kind, positive)


def wide_graph(seed: int, size: int) -> Graph:
    """A graph of about ``size`` steps with one to three outputs; the same for the same arguments."""
    return WideGrower(seed).grown(size)


def wide_graphs(max_size: int = 10) -> st.SearchStrategy[Graph]:
    """Strategy for `wide_graph`; shrinks towards few steps."""
    return st.builds(wide_graph, st.integers(0, 2**32 - 1), st.integers(1, max_size))
