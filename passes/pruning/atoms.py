"""Which indices of which dimensions can only go together: a union-find over labels.

Every index of every dimension of every value has a label, an integer. Indices with one label are one and the same
channel, met at different places; labels that are tied stand or fall together. What must stay is pinned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import networkx
import numpy as np
from numpy.typing import NDArray

from ...ir import Op, Value

Labels = NDArray[np.int64]  # the labels of the indices along one dimension
Dims = tuple[Labels, ...]  # the labels of a value, one array for each dimension
Mixed = tuple[bool, ...]  # for each dimension of a value, whether some op reads it as a whole, see `mixing`

FIXED = 0  # label of an index that always stays: of the batch, of positions in a picture, of the graph's inputs


def fixed(extent: int) -> Labels:
    """Labels of a dimension that never shrinks."""
    return np.full(extent, FIXED, np.int64)


class Atoms:
    """Collects labels, ties between them, and pins.

    Parameters
    ----------
    mixed
        Of values, which dimensions are of no use to labels, since some later op reads them as a whole.
    held
        For each label whether it is known to stay, if that is known.

    Attributes
    ----------
    vanishing
        Values that are zero at all indices that may go, in the network whose weights are zero there. What channels add
        to a sum over them then is nothing, so that a sum may do without.
    """

    def __init__(self, mixed: Mapping[Value, Mixed], held: NDArray[np.bool_] | None = None) -> None:
        self._count = 1
        self._ties: list[NDArray[np.int64]] = []
        self._pins: list[tuple[Labels, str]] = []
        self.mixed = mixed
        self._held = held
        self.vanishing: set[Value] = set()
        self.pieces: list[Labels] = []

    def fresh(self, extent: int) -> Labels:
        """New labels, tied to nothing yet."""
        first = self._count
        self._count += extent
        return np.arange(first, self._count, dtype=np.int64)

    def may_go(self, labels: Labels) -> bool:
        """Whether some of these indices are not known to stay."""
        held = labels == FIXED if self._held is None else self._held[labels]
        return not bool(held.all())

    def tie(self, left: Labels, right: Labels, op: Op) -> None:
        """Indices at the same place of two arrays, which are broadcast, go together because of ``op``."""
        left, right = np.broadcast_arrays(left, right)
        differ = left != right
        first, second = left[differ], right[differ]
        held = (first == FIXED) | (second == FIXED)
        if held.any():
            pairs = np.concatenate([first[held], second[held]])
            self.pin(pairs, f"tied to channels that must stay, at {op.describe()}")
        codes = np.unique(first[~held] * self._count + second[~held])  # many times faster than unique rows
        self._ties.append(np.stack(np.divmod(codes, self._count), axis=1))

    def pin(self, labels: Labels, reason: str) -> None:
        """These indices must stay."""
        free = np.unique(labels[labels != FIXED])
        if len(free):
            self._pins.append((free, reason))

    def keep_some(self, labels: Labels) -> None:
        """Of these indices, which are part of a dimension, some must stay, since an op reads them alone."""
        self.pieces.append(labels)

    def resolve(self) -> Resolved:
        """The classes of labels that go together."""
        ties = networkx.Graph()
        for pairs in self._ties:
            ties.add_edges_from(pairs.tolist())
        classes = np.arange(self._count, dtype=np.int64)
        for component in networkx.connected_components(ties):
            members = list(component)
            classes[members] = min(members)
        reasons: dict[int, str] = {}
        for labels, reason in self._pins:
            for found in np.unique(classes[labels]).tolist():
                reasons.setdefault(found, reason)
        held = np.zeros(self._count, bool)
        held[list(reasons)] = True
        return Resolved(classes, np.where(held[classes], FIXED, classes), reasons)


@dataclass(frozen=True)
class Resolved:
    """Classes of labels.

    Attributes
    ----------
    classes
        For each label the smallest label that it goes together with.
    free
        The same, but `FIXED` for labels that must stay.
    reasons
        For each class that must stay, why.
    """

    classes: Labels
    free: Labels
    reasons: dict[int, str]

    @property
    def held(self) -> NDArray[np.bool_]:
        """For each label whether it must stay."""
        return self.free == FIXED

    def reason(self, labels: Labels) -> str:
        """Why the first of these indices that must stay does; empty if all may go."""
        found = (self.reasons.get(one, "") for one in self.classes[labels].tolist())
        return next(filter(None, found), "")
