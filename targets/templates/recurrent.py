"""Recurrent layers: the loop over time of an LSTM, a GRU or a plain recurrent layer in one direction.

A step multiplies the state of each row of the batch, a vector of ``units`` numbers, with the weight, and applies the
cell's formula to the sums. Units are cut into blocks. All gates of a block are summed in registers, so that the formula
follows without a detour through memory. The weight is packed in the order in which that reads it: for each block, for
each number of the state, the block's units of every gate. It stays in the cache from step to step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..machines.target import Cpu
from .base import NO_EPILOGUE, Buffer, BufferSpec, Expr, Index
from .parallelism import shared_loop
from .vector.builder import Output, RegisterTile, broadcast, load, loop, make_prim_func, store
from .vector.vector_math import maximum, sigmoid, tanh
from .vector.vectors import in_register, pieces

GATES = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 3, "lstm": 4}  # of each cell


@dataclass(frozen=True)
class RecurrentSpec:
    """A recurrent layer in one direction.

    Attributes
    ----------
    cell
        A key of `GATES`; `tersor.ir.ops.recurrent` has the formulas.
    steps, batch, units
        T, N and H: steps in time, rows of the batch, and numbers of one state.
    reverse
        Whether the last step comes first.
    """

    cell: str
    steps: int
    batch: int
    units: int
    reverse: bool = False

    def __post_init__(self) -> None:
        if self.cell not in GATES:
            raise ValueError(f"cell must be one of {', '.join(GATES)}, not {self.cell!r}")
        if min(self.steps, self.batch, self.units) < 1:
            raise ValueError(f"every extent must be positive: {self}")

    @property
    def gates(self) -> int:
        """Sums of one unit."""
        return GATES[self.cell]

    @property
    def state(self) -> int:
        """Numbers of the states of the whole batch."""
        return self.batch * self.units

    @property
    def macs(self) -> int:
        """Multiply-adds."""
        return self.steps * self.state * self.gates * self.units


@dataclass(frozen=True)
class RecurrentKnobs:
    """A register tile: ``rows`` of the batch by ``vectors`` of units, for each gate."""

    rows: int = 1
    vectors: int = 1


@dataclass(frozen=True)
class _Run:
    """``blocks`` blocks of ``vectors`` vectors with ``lanes`` units each, from unit ``first`` on."""

    first: int
    blocks: int
    vectors: int
    lanes: int

    @property
    def width(self) -> int:
        return self.vectors * self.lanes


def candidates(spec: RecurrentSpec, target: Cpu) -> list[RecurrentKnobs]:
    """Feasible knobs, best analytic guess first.

    That is what keeps all cores busy, and of those the most sums that leave registers for weights and formula.
    """
    free = target.vector_registers * 3 // 4
    vectors = -(-spec.units // target.lanes())
    tiles = [
        RecurrentKnobs(rows, count)
        for rows in (1, 2, 3, 4, 6, 8)
        for count in (1, 2, 3, 4, 6, 8)
        if rows <= spec.batch and count <= vectors and (rows * count * spec.gates <= free or rows == count == 1)
    ]
    return sorted(tiles, key=lambda knobs: (_longest(spec, target, knobs), -knobs.rows * knobs.vectors, -knobs.rows))


def _longest(spec: RecurrentSpec, target: Cpu, knobs: RecurrentKnobs) -> int:
    """How many states the busiest core computes in a step."""
    tiles, rest = divmod(spec.batch, knobs.rows)
    heights = ((knobs.rows, tiles), (rest, 1))
    runs = _runs(spec, target, knobs)
    return sum(-(-run.blocks * count // target.cores) * run.width * rows for run in runs for rows, count in heights)


def pack_weight(spec: RecurrentSpec, target: Cpu, knobs: RecurrentKnobs, weight: torch.Tensor) -> torch.Tensor:
    """PyTorch's weight [G * H, H] in the order of the kernel's reads."""
    by_gate = weight.reshape(spec.gates, spec.units, spec.units)
    packed = [
        by_gate[:, run.first : run.first + run.blocks * run.width]
        .reshape(spec.gates, run.blocks, run.width, spec.units)
        .permute(1, 3, 0, 2)
        .reshape(-1)
        for run in _runs(spec, target, knobs)
    ]
    return torch.cat(packed)


def _runs(spec: RecurrentSpec, target: Cpu, knobs: RecurrentKnobs) -> list[_Run]:
    """All units: whole blocks, one block of the whole vectors that are left, and single narrower vectors."""
    lanes = target.lanes()
    blocks, rest = divmod(spec.units // lanes, knobs.vectors)
    whole = _Run(0, blocks, knobs.vectors, lanes)
    shorter = _Run(whole.width * blocks, min(rest, 1), rest, lanes)
    last = spec.units // lanes * lanes
    narrow = [_Run(last + start, 1, 1, width) for start, width in pieces(spec.units - last, lanes)]
    return [run for run in (whole, shorter, *narrow) if run.blocks]


def build(spec: RecurrentSpec, target: Cpu, knobs: RecurrentKnobs) -> tirx.PrimFunc:
    """Write the PrimFunc ``(gates, weight, hidden, *bias or cell, out)``, shapes as `tersor.ir.ops.recurrent` says."""
    of_cell = {"gru": [BufferSpec("bias", spec.units)], "lstm": [BufferSpec("cell", spec.state)]}.get(spec.cell, [])
    inputs = (
        BufferSpec("gates", spec.steps * spec.state * spec.gates),
        BufferSpec("weight", spec.gates * spec.units**2),
        BufferSpec("hidden", spec.state),
        *of_cell,
    )
    rows = spec.steps + (spec.cell == "lstm")

    def body(buffers: Sequence[Buffer], out: Output) -> None:
        _Writer(spec, target, knobs, buffers, out.buffer).write()

    return make_prim_func("recurrent", inputs, BufferSpec("out", rows * spec.state), body, NO_EPILOGUE)


class _Writer:
    """Writes the kernel; what a step reads and what it writes are two halves of a scratch buffer, by turns."""

    def __init__(
        self, spec: RecurrentSpec, target: Cpu, knobs: RecurrentKnobs, buffers: Sequence[Buffer], out: Buffer
    ) -> None:
        self.spec, self.target, self.knobs, self.out = spec, target, knobs, out
        self.gates, self.weight, self.hidden, *self.rest = buffers
        self.states = T.alloc_buffer((2 * spec.state,), align=64)
        self.cells = spec.steps * spec.state  # where the result has the cells of an LSTM
        # Of a step's gates, the sums, and where states, cells and biases are.
        self.next_state: Callable[..., Expr] = getattr(self, spec.cell)

    def write(self) -> None:
        spec = self.spec
        _copy(self.hidden, self.states, 0, spec.state, self.target.lanes())
        if spec.cell == "lstm":
            _copy(self.rest[0], self.out, self.cells, spec.state, self.target.lanes())
        tiles, rest = divmod(spec.batch, self.knobs.rows)
        with loop(spec.steps) as step:
            for run in _runs(spec, self.target, self.knobs):
                # Bytes that each step reads from the cache.
                weights = 4 * spec.gates * spec.units * run.width * run.blocks
                with shared_loop((run.blocks, tiles), bytes_moved=weights * tiles) as (block, tile):
                    self._tile(step, tile * self.knobs.rows, self.knobs.rows, run, block)
                if rest:
                    with shared_loop((run.blocks,), bytes_moved=weights) as (block,):
                        self._tile(step, tiles * self.knobs.rows, rest, run, block)

    def _tile(self, step: Index, first_row: Index, rows: int, run: _Run, block: Index) -> None:
        """The next states of some rows for the units of one block."""
        spec = self.spec
        first_unit = block * run.width + run.first
        count, lanes = rows * run.vectors * spec.gates, run.lanes
        sums = RegisterTile(count, lanes)
        sums.fill(0.0)
        read, written = (((step + ahead) % 2) * spec.state for ahead in range(2))
        with loop(spec.units) as unit:
            panel = first_unit * spec.gates * spec.units + unit * spec.gates * run.width
            numbers = [
                in_register(broadcast(self.states[read + (first_row + row) * spec.units + unit], lanes))
                for row in range(rows)
            ]
            for gate, vector in itertools.product(range(spec.gates), range(run.vectors)):
                weight = in_register(load(self.weight, panel + gate * run.width + vector * lanes, lanes))
                for row, number in enumerate(numbers):
                    sums.multiply_add((row * run.vectors + vector) * spec.gates + gate, number, weight)
        # By way of memory, so that the formula is written once and not for each vector.
        products = T.alloc_buffer((count * lanes,), align=64)
        for index in range(count):
            store(products, index * lanes, sums[index], lanes)
        time = spec.steps - 1 - step if spec.reverse else step
        with loop(rows) as row, loop(run.vectors) as vector:
            unit = first_unit + vector * lanes
            inside = (first_row + row) * spec.units + unit
            base = (time * spec.batch + first_row + row) * spec.gates * spec.units + unit
            own = [load(self.gates, base + gate * spec.units, lanes) for gate in range(spec.gates)]
            place = (row * run.vectors + vector) * spec.gates
            sums_here = [load(products, (place + gate) * lanes, lanes) for gate in range(spec.gates)]
            state = in_register(self.next_state(own, sums_here, (read + inside, inside, unit), lanes))
            store(self.states, written + inside, state, lanes)
            store(self.out, time * spec.state + inside, state, lanes)

    def lstm(self, own: list[Expr], products: list[Expr], at: tuple[Index, ...], lanes: int) -> Expr:
        admit, forget, new, output = (in_register(a + b) for a, b in zip(own, products, strict=True))
        before = load(self.out, self.cells + at[1], lanes)
        kept = in_register(in_register(sigmoid(forget)) * before)
        cell = in_register(kept + in_register(sigmoid(admit)) * in_register(tanh(new)))
        store(self.out, self.cells + at[1], cell, lanes)
        return in_register(sigmoid(output)) * in_register(tanh(cell))

    def gru(self, own: list[Expr], products: list[Expr], at: tuple[Index, ...], lanes: int) -> Expr:
        reset, update = (in_register(sigmoid(in_register(own[i] + products[i]))) for i in range(2))
        bias = load(self.rest[0], at[2], lanes)
        new = in_register(tanh(in_register(own[2] + reset * (products[2] + bias))))
        return new + update * (load(self.states, at[0], lanes) - new)

    def rnn_tanh(self, own: list[Expr], products: list[Expr], at: tuple[Index, ...], lanes: int) -> Expr:
        return tanh(in_register(own[0] + products[0]))

    def rnn_relu(self, own: list[Expr], products: list[Expr], at: tuple[Index, ...], lanes: int) -> Expr:
        return maximum(own[0] + products[0], 0.0)


def _copy(source: Buffer, destination: Buffer, start: int, size: int, lanes: int) -> None:
    whole = size // lanes
    if whole:
        with loop(whole) as index:
            store(destination, index * lanes + start, load(source, index * lanes, lanes), lanes)
    for first, width in pieces(size - whole * lanes, lanes):
        offset = whole * lanes + first
        store(destination, start + offset, load(source, offset, width), width)
