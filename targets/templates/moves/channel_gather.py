"""Channels of several tensors in channel blocks, picked and put in any order that is known when the kernel is written.

Concatenation and slices that do not end on whole blocks, and the channel shuffle, are such gathers. For each block of
the result the source blocks that hold its channels are loaded, position by position, and merged by two-operand
shuffles, each one instruction: a block of 16 that interleaves two tensors takes 2 to 4 loads. Channels missing in the
last block are zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx

from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue, Expr, Index
from ..parallelism import shared_loop
from ..vector.builder import Output, constant, load, loop, make_prim_func, store, when
from ..vector.vectors import in_register, shuffle

_RUNS = 8  # pieces that the positions are cut into, so that threads share few channel blocks evenly


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


def build(spec: ChannelGatherSpec, target: Cpu) -> tirx.PrimFunc:
    """Write the PrimFunc ``(*parts, out)``."""
    inputs = [BufferSpec(f"part{index}", spec.size(count), spec.dtype) for index, count in enumerate(spec.parts)]
    output = BufferSpec("out", spec.size(len(spec.sources)), spec.dtype)
    blocks = spec.blocks(len(spec.sources))
    runs = math.gcd(spec.positions, _RUNS)
    itemsize = tirx.const(0, spec.dtype).ty.dtype.itemsize

    def body(parts: Sequence[Buffer], out: Output) -> None:
        moved = 2 * itemsize * output.size
        with shared_loop((spec.batch, blocks, runs), bytes_moved=moved) as (image, block, run):

            def write(number: int) -> Callable[[], None]:
                gather = _BlockGather(spec, number)
                return lambda: gather.write(
                    parts, out.buffer, image, run * (spec.positions // runs), spec.positions // runs
                )

            for number in range(blocks):
                when(True if blocks == 1 else block == number, write(number))

    return make_prim_func(
        "channel_gather", inputs, output, body, Epilogue(dtype=spec.dtype) if spec.dtype != "float32" else NO_EPILOGUE
    )


class _BlockGather:
    """One channel block of the result."""

    def __init__(self, spec: ChannelGatherSpec, number: int) -> None:
        self.spec = spec
        self.number = number
        sources = spec.sources[number * spec.block : (number + 1) * spec.block]
        self.lanes: dict[tuple[int, int], dict[int, int]] = {}  # (part, its block) -> lane of the result: lane there
        for lane, source in enumerate(sources):
            part, channel = spec.place(source)
            self.lanes.setdefault((part, channel // spec.block), {})[lane] = channel % spec.block

    def write(self, parts: Sequence[Buffer], out: Buffer, image: Index, first: Index, count: int) -> None:
        """Write the block at positions ``first`` to ``first + count``."""
        spec = self.spec
        with loop(count) as index:
            position = first + index
            block = (image * spec.blocks(len(spec.sources)) + self.number) * spec.positions
            store(out, (block + position) * spec.block, self._gather(parts, image, position), spec.block)

    def _gather(self, parts: Sequence[Buffer], image: Index, position: Index) -> Expr:
        spec = self.spec
        merged = None
        for (part, number), lanes in self.lanes.items():
            row = (image * spec.blocks(spec.parts[part]) + number) * spec.positions + position
            vector = in_register(load(parts[part], row * spec.block, spec.block))
            if merged is None and len(lanes) == spec.block and all(lane == source for lane, source in lanes.items()):
                return vector
            merged = constant(0, spec.block, spec.dtype) if merged is None else merged
            taken = [spec.block + lanes[lane] if lane in lanes else lane for lane in range(spec.block)]
            merged = in_register(shuffle((merged, vector), taken))
        return merged
