"""Channels of several tensors in channel blocks, picked and put in any order that is known when the kernel is written.

Concatenation and slices that do not end on whole blocks, and the channel shuffle, are such gathers. For each block of
the result the source blocks that hold its channels are loaded, position by position, and merged by two-operand
shuffles, each one instruction: a block of 16 that interleaves two tensors takes 2 to 4 loads. Channels missing in the
last block are zero. Blocks that take the same lanes share one piece of code; which source blocks they are follows from
a block's number, or is looked up in a table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from tvm import tirx

from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue, Expr, Index
from ..parallelism import shared_loop
from ..vector.builder import Output, bind, constant, load, loop, make_prim_func, store, when
from ..vector.vectors import in_register, shuffle

MOST_WRITTEN_OUT = 32  # blocks that have their own code, with all numbers known: a third faster on small planes
_STRETCHES = 8  # pieces that the positions are cut into, so that threads share few channel blocks evenly


@dataclass(frozen=True)
class ChannelGatherSpec:
    """``batch`` images of ``positions`` elements per channel.

    Attributes
    ----------
    parts
        Channels of each operand.
    sources
        For each channel of the result, its index in the joined channels of all operands.
    block
        Channels of a block, a power of two.
    """

    batch: int
    positions: int
    parts: tuple[int, ...]
    sources: tuple[int, ...]
    block: int
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if min(self.batch, self.positions, *self.parts, len(self.sources)) < 1:
            raise ValueError(f"every extent must be positive: {self}")
        if self.block < 2 or self.block & (self.block - 1):
            raise ValueError(f"block must be a power of two from 2 on, not {self.block}")
        if not 0 <= min(self.sources) <= max(self.sources) < sum(self.parts):
            raise ValueError(f"sources must lie in the {sum(self.parts)} channels of the parts")

    def blocks(self, channels: int) -> int:
        """Blocks that ``channels`` channels take."""
        return -(-channels // self.block)

    def size(self, channels: int) -> int:
        """Stored elements of a tensor with ``channels`` channels."""
        return self.batch * self.blocks(channels) * self.positions * self.block

    def place(self, source: int) -> tuple[int, int]:
        """Operand and channel there of an index in the joined channels."""
        for part, channels in enumerate(self.parts):
            if source < channels:
                return part, source
            source -= channels
        raise ValueError(f"there is no channel {source} after the last part")


def table(spec: ChannelGatherSpec) -> torch.Tensor | None:
    """What the kernel looks up, flat i32: the rows of all runs without a rule; None if there are none."""
    numbers = [number for run in block_runs(spec) if run.steps is None for row in run.rows for number in row]
    return torch.tensor(numbers, dtype=torch.int32) if numbers else None


def build(spec: ChannelGatherSpec, target: Cpu) -> tirx.PrimFunc:
    """Write the PrimFunc ``(*parts, out)``, or ``(*parts, table, out)`` where there is a table."""
    inputs = [BufferSpec(f"part{index}", spec.size(count), spec.dtype) for index, count in enumerate(spec.parts)]
    output = BufferSpec("out", spec.size(len(spec.sources)), spec.dtype)
    blocks = spec.blocks(len(spec.sources))
    stretches = math.gcd(spec.positions, _STRETCHES)
    runs, looked_up = block_runs(spec), table(spec)
    if looked_up is not None:
        inputs.append(BufferSpec("table", looked_up.numel(), "int32"))
    itemsize = tirx.const(0, spec.dtype).ty.dtype.itemsize

    def body(buffers: Sequence[Buffer], out: Output) -> None:
        moved = 2 * itemsize * output.size
        with shared_loop((spec.batch, blocks, stretches), bytes_moved=moved) as (image, block, stretch):
            count, before, place = spec.positions // stretches, 0, 0
            for run in runs:  # blocks are counted run by run
                behind = before + len(run.rows)
                writer = _RunWriter(spec, run, buffers, out.buffer, image, block - before, place)
                here = tirx.all(block >= before, block < behind) if len(runs) > 1 else True
                when(here, partial(writer.write, stretch * count, count))
                before, place = behind, place + run.table_size

    epilogue = Epilogue(dtype=spec.dtype) if spec.dtype != "float32" else NO_EPILOGUE
    return make_prim_func("channel_gather", inputs, output, body, epilogue)


Lanes = tuple[tuple[int, tuple[tuple[int, int], ...]], ...]  # see `BlockRun`


@dataclass(frozen=True)
class BlockRun:
    """Blocks of the result that take the same lanes out of source blocks.

    Attributes
    ----------
    lanes
        For each source block: its part, and pairs of a lane of the result and the lane there.
    rows
        For each block: its number, and the numbers of its source blocks in their parts.
    """

    lanes: Lanes
    rows: tuple[tuple[int, ...], ...]

    @property
    def steps(self) -> tuple[int, ...] | None:
        """By how much each row is more than the one before; None if that differs, and rows are looked up."""
        pairs = zip(self.rows, self.rows[1:], strict=False)
        steps = {tuple(new - old for old, new in zip(*pair, strict=True)) for pair in pairs}
        return None if len(steps) > 1 else next(iter(steps), (0,) * len(self.rows[0]))

    @property
    def table_size(self) -> int:
        """Numbers that are looked up."""
        return len(self.rows) * len(self.rows[0]) if self.steps is None else 0


@lru_cache(maxsize=256)
def block_runs(spec: ChannelGatherSpec) -> tuple[BlockRun, ...]:
    """All blocks of the result; those together that take the same lanes, unless there are few."""
    alike: dict[tuple[Lanes, int | None], list[tuple[int, ...]]] = {}
    blocks = spec.blocks(len(spec.sources))
    for number in range(blocks):
        lanes: dict[tuple[int, int], list[tuple[int, int]]] = {}  # (part, its block) -> lane of the result, lane there
        for lane, source in enumerate(spec.sources[number * spec.block : (number + 1) * spec.block]):
            part, channel = spec.place(source)
            lanes.setdefault((part, channel // spec.block), []).append((lane, channel % spec.block))
        pattern = tuple((part, tuple(pairs)) for (part, _), pairs in lanes.items())
        code = number if blocks <= MOST_WRITTEN_OUT else None
        alike.setdefault((pattern, code), []).append((number, *(block for _, block in lanes)))
    return tuple(BlockRun(pattern, tuple(rows)) for (pattern, _), rows in alike.items())


class _RunWriter:
    """Block ``index`` of a run, of one image; what is looked up begins at ``place``."""

    def __init__(
        self,
        spec: ChannelGatherSpec,
        run: BlockRun,
        buffers: Sequence[Buffer],
        out: Buffer,
        image: Index,
        index: Index,
        place: int,
    ) -> None:
        self.spec = spec
        self.run = run
        self.buffers = buffers
        self.out = out
        self.image = image
        self.index = index
        self.place = place

    def _row(self) -> list[Index]:
        """Number of the block, and of its source blocks."""
        if self.run.steps is not None:
            return [first + self.index * step for first, step in zip(self.run.rows[0], self.run.steps, strict=True)]
        width = len(self.run.rows[0])
        return [self.buffers[-1][self.place + self.index * width + column] for column in range(width)]

    def write(self, first: Index, count: int) -> None:
        """Write the block at positions ``first`` to ``first + count``."""
        spec = self.spec
        number, *sources = self._row()
        start = self._start(len(spec.sources), number)
        starts = [
            self._start(spec.parts[part], source) for (part, _), source in zip(self.run.lanes, sources, strict=True)
        ]
        with loop(count) as index:
            position = first + index
            store(self.out, (start + position) * spec.block, self._gather(starts, position), spec.block)

    def _start(self, channels: int, number: Index) -> Index:
        """Vectors before a block of a tensor with so many channels."""
        return bind((self.image * self.spec.blocks(channels) + number) * self.spec.positions)

    def _gather(self, starts: Sequence[Index], position: Index) -> Expr:
        block = self.spec.block
        merged = None
        for (part, lanes), start in zip(self.run.lanes, starts, strict=True):
            vector = in_register(load(self.buffers[part], (start + position) * block, block))
            if len(lanes) == block and all(lane == source for lane, source in lanes):
                return vector
            merged = constant(0, block, self.spec.dtype) if merged is None else merged
            taken = {lane: block + source for lane, source in lanes}
            merged = in_register(shuffle((merged, vector), [taken.get(lane, lane) for lane in range(block)]))
        return merged
