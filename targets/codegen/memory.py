"""Static memory plan: where every buffer of a program lies in one arena, and how much memory a call needs.

Two buffers may overlap when no kernel call finds both alive. Greedy by size (Pisarchyk & Lee 2020, "Efficient Memory
Management for Deep Neural Net Inference", https://arxiv.org/abs/2001.03288): the largest buffer first, each into the
smallest gap between those that live at the same time. Values that lie inside another one's buffer (see
`tersor.targets.codegen.places`) need none of their own; the outer buffer lives as long as any of them. Outputs outlive
the call and have storages of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ...ir import Value
from ..machines.target import ALIGNMENT
from .lowering import Call, Program
from .places import Place, resolve

ARENA = 0  # index of the storage that all buffers but the outputs share


@dataclass(frozen=True)
class Region:
    """Where a buffer starts: ``offset`` bytes into storage ``storage``."""

    storage: int
    offset: int


@dataclass(frozen=True)
class MemoryPlan:
    """Memory of one call.

    Attributes
    ----------
    storages
        Sizes in bytes: the arena, then one for each buffer that is returned.
    regions
        Where each value that a kernel reads or writes starts, inputs of the program and constants apart.
    """

    storages: tuple[int, ...]
    regions: Mapping[Value, Region]

    @property
    def activation_bytes(self) -> int:
        """Bytes of all storages: the most that a call holds, its inputs and the constants apart."""
        return sum(self.storages)


@dataclass
class _Buffer:
    """Kernel calls ``first`` to ``last``, inclusive, need ``size`` bytes at ``offset``."""

    size: int
    first: int
    last: int
    offset: int = 0


def plan_memory(program: Program) -> MemoryPlan:
    """Assign memory to every buffer that the calls of ``program`` write."""
    places = {value: resolve(value, program.places) for value in _values(program)}
    buffers: dict[Value, _Buffer] = {}
    for index, call in enumerate(program.calls):
        for value in _touched(call):
            if value in places:
                base = places[value].base
                buffers.setdefault(base, _Buffer(_bytes(base), index, index)).last = index
    for base in program.outputs:
        if base in places:  # without elements, so that no call writes it
            buffers.setdefault(base, _Buffer(_bytes(base), 0, 0))
    returned = [base for base in buffers if base in program.outputs]
    arena = _pack([buffer for base, buffer in buffers.items() if base not in returned])
    storage_of = {base: index for index, base in enumerate(returned, start=ARENA + 1)}
    return MemoryPlan(
        (arena, *(buffers[base].size for base in returned)),
        {value: _region(value, place, storage_of, buffers) for value, place in places.items()},
    )


def _values(program: Program) -> dict[Value, None]:
    """Every value in memory of ours: what the calls touch and the program returns, its inputs apart."""
    touched = dict.fromkeys((*(value for call in program.calls for value in _touched(call)), *program.outputs))
    return {value: None for value in touched if value not in program.graph.inputs}


def _touched(call: Call) -> Iterator[Value]:
    yield from (argument for argument in call.arguments if isinstance(argument, Value))
    yield call.result


def _region(value: Value, place: Place, storage_of: dict[Value, int], buffers: dict[Value, _Buffer]) -> Region:
    inside = place.offset * value.type.dtype.itemsize
    return Region(storage_of.get(place.base, ARENA), buffers[place.base].offset + inside)


def _pack(buffers: list[_Buffer]) -> int:
    """Set the offsets of ``buffers``; returns the bytes that they take together.

    No order is best for all graphs, so each is tried: by size, by lifetime, by both, and in order of execution.
    """
    orders: list[Callable[[_Buffer], int | tuple[int, int]]] = [
        lambda b: -b.size,
        lambda b: (b.first - b.last, -b.size),
        lambda b: (b.first - b.last - 1) * b.size,
        lambda b: (b.first, -b.size),
    ]
    plans = [_pack_in_order(sorted(buffers, key=order)) for order in orders]
    total, offsets = min(plans, key=lambda plan: plan[0])
    for buffer in buffers:
        buffer.offset = offsets[id(buffer)]
    return total


def _pack_in_order(buffers: list[_Buffer]) -> tuple[int, dict[int, int]]:
    """Place ``buffers`` one after the other; returns the bytes taken and the offset of each, by identity."""
    first, last = (np.array([getattr(buffer, name) for buffer in buffers]) for name in ("first", "last"))
    for index, buffer in enumerate(buffers):
        meets = (first[:index] <= buffer.last) & (last[:index] >= buffer.first)
        neighbours = sorted((buffers[other] for other in np.flatnonzero(meets)), key=lambda b: b.offset)
        buffer.offset = _best_gap(buffer.size, neighbours)
    total = max((buffer.offset + buffer.size for buffer in buffers), default=0)
    return total, {id(buffer): buffer.offset for buffer in buffers}


def _best_gap(size: int, neighbours: list[_Buffer]) -> int:
    """Start of the smallest gap that ``size`` bytes fit into, or the end of the last neighbour."""
    end, best, best_gap = 0, None, None
    for other in neighbours:
        gap = other.offset - end
        if gap >= size and (best_gap is None or gap < best_gap):
            best, best_gap = end, gap
        end = max(end, other.offset + other.size)
    return end if best is None else best


def _bytes(value: Value) -> int:
    size = max(1, value.type.physical_size) * value.type.dtype.itemsize
    return -(-size // ALIGNMENT) * ALIGNMENT
