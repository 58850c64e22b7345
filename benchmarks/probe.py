"""What this machine can do at most: multiply-adds of three types a second, and bytes from L2, from L3 and from memory.

Small kernels made with the same code generator as Tersor's own are timed, so that the limit and what is held
against it come from one tool chain, in one process, minutes apart. Each figure is the best of several repetitions:
other programs can only slow a probe down.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import psutil
import torch
import tvm
import tvm_ffi
from tvm.tirx.script.builder import ir as T

from tersor.ir.ops.integers import NARROW_BITS
from tersor.targets import Cpu
from tersor.targets.machines.catalog import resolve_cpu
from tersor.targets.runtime.threads import set_threads
from tersor.targets.runtime.virtual_machine import to_tvm
from tersor.targets.templates.base import NO_EPILOGUE, Buffer, BufferSpec
from tersor.targets.templates.vector import amx
from tersor.targets.templates.vector.bf16_tiles import SumsShape, sums_shape, unit_of
from tersor.targets.templates.vector.builder import Output, RegisterTile, load, make_prim_func, parallel, store
from tersor.targets.templates.vector.dot_product import WORD, BytePairProduct, DotProduct, dot_product

CHAINS = 12  # independent accumulators: latency (4 or 5 cycles) times ports (2), rounded up; they fit 16 registers
STEPS = 200_000  # multiply-adds of each chain: some milliseconds
TILE_STEPS = 400_000  # products of a tile, times its rows
STREAMED_BYTES = 256 * 2**20  # read in one call: some ten milliseconds
REPETITIONS = 15
L2_SHARE = 0.5  # of its size: what is read stays in L2
MEMORY_SHARE = 0.25  # of the free memory: at most this is taken
_TILES = {"amx": (2, 2), "dot": (13, 2)}  # rows and columns: as many sums as registers hold beside their operands


@dataclass(frozen=True)
class Probe:
    """What one machine reaches with a given number of threads.

    Attributes
    ----------
    threads
        Of all figures but the first.
    one_thread_gflops, gflops
        Float32 fused multiply-adds, counted as two operations, in 10^9 a second.
    l2_gbytes, l3_gbytes, memory_gbytes
        Reading, in 10^9 bytes a second, from a buffer that fits L2, that fits L3 only, and that fits neither.
    l2_bytes, l3_bytes
        Sizes of the caches that all threads together can use.
    bf16_gflops, int8_gflops
        Multiply-adds of bf16 numbers to float32 sums, and of bytes to int32 sums, counted like those of float32, with
        the fastest instruction that Tersor uses here. None where there is none: bf16 is computed in float32 then.
    """

    threads: int
    one_thread_gflops: float
    gflops: float
    l2_gbytes: float
    l3_gbytes: float
    memory_gbytes: float
    l2_bytes: int
    l3_bytes: int
    bf16_gflops: float | None = None
    int8_gflops: float | None = None

    def peak(self, products: str) -> float:
        """Multiply-adds of float32, bf16 or int8 numbers, as two operations each, in 10^9 a second."""
        narrow = {"bf16": self.bf16_gflops, "int8": self.int8_gflops}
        return narrow.get(products) or self.gflops

    def gbytes(self, size: int) -> float:
        """Bytes that can be read, 10^9 a second, from the nearest cache that holds ``size`` bytes."""
        if size <= self.l2_bytes:
            return self.l2_gbytes
        return self.l3_gbytes if size <= self.l3_bytes else self.memory_gbytes


def probe(threads: int, progress: Callable[[str], None] = lambda _: None) -> Probe:
    """Measure this machine; takes a few seconds.

    Parameters
    ----------
    threads
        Threads to measure with, no more than there are cores.
    progress
        Told the name of each measurement when it starts.
    """
    target = resolve_cpu("x86:native")
    l2_bytes = threads * target.l2_bytes
    far = max(4 * l2_bytes, min(2 * target.l3_bytes, round(MEMORY_SHARE * psutil.virtual_memory().available)))
    middle = min(8 * l2_bytes, target.l3_bytes)
    progress("multiply-adds")
    single = multiply_add_rate(target, 1)
    several = single if threads == 1 else multiply_add_rate(target, threads)
    progress("multiply-adds of narrow numbers")
    bf16, int8 = (rate and rate / 1e9 for rate in (bf16_rate(target, threads), int8_rate(target, threads)))
    bandwidths = []
    for name, size in {"L2": round(L2_SHARE * l2_bytes), "L3": middle, "memory": far}.items():
        progress(f"reading from {name}")
        bandwidths.append(read_rate(target, threads, size))
    l2, l3, memory = (rate / 1e9 for rate in bandwidths)
    return Probe(threads, single / 1e9, several / 1e9, l2, l3, memory, l2_bytes, target.l3_bytes, bf16, int8)


def multiply_add_rate(target: Cpu, threads: int) -> float:
    """Floating-point operations a second of independent fused multiply-adds on registers."""
    return MultiplyAdds(target, threads).rate()


class MultiplyAdds:
    """Independent fused multiply-adds on registers, compiled.

    Parameters
    ----------
    steps
        Multiply-adds of each chain: some 10 nanoseconds each.
    """

    def __init__(self, target: Cpu, threads: int, steps: int = STEPS) -> None:
        lanes = target.lanes()
        factors = BufferSpec("factors", 2 * lanes)
        self._output = BufferSpec("output", threads * CHAINS * lanes)

        def body(inputs: Sequence[Buffer], result: Output) -> None:
            with parallel(threads) as (thread,):
                tile = RegisterTile(CHAINS, lanes)
                for chain in range(CHAINS):
                    tile[chain] = load(inputs[0], 0, lanes)
                with T.serial(0, steps):
                    for chain in range(CHAINS):
                        # The operands come from memory that never changes, hence from registers; x <- x * a + b.
                        tile[chain] = tile[chain] * load(inputs[0], 0, lanes) + load(inputs[0], lanes, lanes)
                for chain in range(CHAINS):
                    store(result.buffer, (thread * CHAINS + chain) * lanes, tile[chain], lanes)

        self._values = torch.cat([torch.full((lanes,), 0.5), torch.full((lanes,), 1.0)])
        self._function = _compile("multiply_add", factors, self._output, body, target)["main"]
        self._threads = threads
        self._operations = 2.0 * threads * CHAINS * steps * lanes

    def rate(self, repetitions: int = REPETITIONS) -> float:
        """Floating-point operations a second, in the best of some repetitions."""
        return self._operations / _best_seconds(self._function, self._values, self._output, self._threads, repetitions)


def bf16_rate(target: Cpu, threads: int) -> float | None:
    """The same for bf16 numbers; None where no instruction multiplies them."""
    unit = unit_of(target)
    return None if unit is None else tile_rate(target, threads, sums_shape(unit, *_TILES[unit]), amx.TILE_DEPTH)


def int8_rate(target: Cpu, threads: int) -> float | None:
    """The same for bytes, weights of 7 bits where these are faster; None where bytes are widened first."""
    if amx.INTEGER_FEATURE in target.features and target.lanes() == amx.TILE_COLUMNS:
        return tile_rate(target, threads, amx.UnsignedTileShape(*_TILES["amx"]), 2 * amx.TILE_DEPTH)
    way = dot_product(target, "uint8", NARROW_BITS)
    return word_rate(target, threads, way) if type(way) in (DotProduct, BytePairProduct) else None


def tile_rate(target: Cpu, threads: int, shape: SumsShape, depth: int) -> float:
    """Operations a second of products of tiles that lie in L1, ``depth`` numbers to each sum in a step."""
    sums = shape.positions * shape.outputs
    zeros = torch.zeros(_tile_elements(shape), dtype=torch.uint16)
    output = BufferSpec("output", threads * sums, shape.sum_type)
    seconds = _best_seconds(tile_code(target, threads, shape)["main"], zeros, output, threads)
    return 2.0 * threads * sums * depth * _tile_steps(shape) / seconds


def tile_code(target: Cpu, threads: int, shape: SumsShape) -> tvm.runtime.Module:
    """The kernel behind `tile_rate`, compiled."""
    operands = BufferSpec("operands", _tile_elements(shape), "uint16")
    sums = shape.positions * shape.outputs
    output = BufferSpec("output", threads * sums, shape.sum_type)

    def body(inputs: Sequence[Buffer], result: Output) -> None:
        with parallel(threads) as (thread,):
            shape.begin()
            tiles = shape.tiles()
            tiles.clear()
            with T.serial(0, _tile_steps(shape)):
                tiles.multiply_add(inputs[0], 0, inputs[0], shape.positions * amx.TILE_DEPTH)
            tiles.store(result.buffer, thread * sums)
            shape.end()

    return _compile("multiply_tiles", operands, output, body, target, shape.llvm_ir)


def _tile_elements(shape: SumsShape) -> int:
    """Of both operands of a step, two bytes each."""
    return (shape.positions + shape.outputs) * amx.TILE_DEPTH


def _tile_steps(shape: SumsShape) -> int:
    return TILE_STEPS // shape.positions


def word_rate(target: Cpu, threads: int, way: DotProduct) -> float:
    """Operations a second of independent products of four bytes on registers."""
    lanes = target.lanes()
    factors = BufferSpec("factors", 2 * lanes, "int32")
    output = BufferSpec("output", threads * CHAINS * lanes, "int32")

    def body(inputs: Sequence[Buffer], result: Output) -> None:
        with parallel(threads) as (thread,):
            tile = RegisterTile(CHAINS, lanes, "int32")
            tile.fill(0)
            with T.serial(0, STEPS):
                for chain in range(CHAINS):
                    way.multiply_add(tile, chain, load(inputs[0], 0, lanes), load(inputs[0], lanes, lanes))
            for chain in range(CHAINS):
                store(result.buffer, (thread * CHAINS + chain) * lanes, tile[chain], lanes)

    function = _compile("multiply_words", factors, output, body, target)["main"]
    seconds = _best_seconds(function, torch.zeros(factors.size, dtype=torch.int32), output, threads)
    return 2.0 * threads * CHAINS * STEPS * lanes * WORD / seconds


def read_rate(target: Cpu, threads: int, size: int) -> float:
    """Bytes a second of reading ``size`` bytes over and over, each thread its own part."""
    lanes = target.lanes()
    stride = CHAINS * lanes
    steps = max(1, size // (4 * stride * threads))  # of one thread in one pass
    bytes_read = 4 * stride * threads * steps
    passes = max(1, STREAMED_BYTES // bytes_read)
    data = BufferSpec("data", threads * steps * stride)
    output = BufferSpec("output", threads * stride)

    def body(inputs: Sequence[Buffer], result: Output) -> None:
        with parallel(threads) as (thread,):
            tile = RegisterTile(CHAINS, lanes)
            tile.fill(0.0)
            with T.serial(0, passes), T.serial(0, steps) as step:
                for chain in range(CHAINS):
                    tile[chain] = tile[chain] + load(
                        inputs[0], ((thread * steps + step) * CHAINS + chain) * lanes, lanes
                    )
            for chain in range(CHAINS):
                store(result.buffer, (thread * CHAINS + chain) * lanes, tile[chain], lanes)

    function = _compile("read", data, output, body, target)["main"]
    return passes * bytes_read / _best_seconds(function, torch.ones(data.size), output, threads)


def _compile(
    name: str, data: BufferSpec, output: BufferSpec, body: Callable[..., None], target: Cpu, llvm_ir: str = ""
) -> tvm.runtime.Module:
    function = make_prim_func(name, [data], output, body, replace(NO_EPILOGUE, llvm_ir=llvm_ir))
    module = tvm.IRModule({"main": function})
    return tvm.tirx.build(module, target=tvm.target.Target(target.tvm_target()))


def _best_seconds(
    function: tvm_ffi.Function,
    data: torch.Tensor,
    output: BufferSpec,
    threads: int,
    repetitions: int = REPETITIONS,
) -> float:
    """Least seconds of a call; the first one wakes the threads and is dropped."""
    set_threads(threads)
    result = torch.zeros(output.size, dtype=getattr(torch, output.dtype))
    arguments = (to_tvm(data), to_tvm(result))
    function(*arguments)
    best = float("inf")
    for _ in range(repetitions):
        begin = time.perf_counter()
        function(*arguments)
        best = min(best, time.perf_counter() - begin)
    return best
