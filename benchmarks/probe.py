"""What this machine can do at most: multiply-adds a second, and bytes a second from L2, from L3 and from memory.

Small kernels made with the same code generator as Tersor's own are timed, so that the limit and what is held
against it come from one tool chain, in one process, minutes apart. Each figure is the best of several repetitions:
other programs can only slow a probe down.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil
import torch
import tvm
import tvm_ffi
from tvm.tirx.script.builder import ir as T

from tersor.targets import Cpu
from tersor.targets.machines.catalog import resolve_cpu
from tersor.targets.runtime.threads import set_threads
from tersor.targets.runtime.virtual_machine import to_tvm
from tersor.targets.templates.base import NO_EPILOGUE, Buffer, BufferSpec
from tersor.targets.templates.vector.builder import Output, RegisterTile, load, make_prim_func, parallel, store

CHAINS = 12  # independent accumulators: latency (4 or 5 cycles) times ports (2), rounded up; they fit 16 registers
STEPS = 200_000  # multiply-adds of each chain: some milliseconds
STREAMED_BYTES = 256 * 2**20  # read in one call: some ten milliseconds
REPETITIONS = 15
L2_SHARE = 0.5  # of its size: what is read stays in L2
MEMORY_SHARE = 0.25  # of the free memory: at most this is taken


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
    """

    threads: int
    one_thread_gflops: float
    gflops: float
    l2_gbytes: float
    l3_gbytes: float
    memory_gbytes: float
    l2_bytes: int
    l3_bytes: int

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
    bandwidths = []
    for name, size in {"L2": round(L2_SHARE * l2_bytes), "L3": middle, "memory": far}.items():
        progress(f"reading from {name}")
        bandwidths.append(read_rate(target, threads, size))
    l2, l3, memory = (rate / 1e9 for rate in bandwidths)
    return Probe(threads, single / 1e9, several / 1e9, l2, l3, memory, l2_bytes, target.l3_bytes)


def multiply_add_rate(target: Cpu, threads: int) -> float:
    """Floating-point operations a second of independent fused multiply-adds on registers."""
    lanes = target.lanes()
    factors = BufferSpec("factors", 2 * lanes)
    output = BufferSpec("output", threads * CHAINS * lanes)

    def body(inputs: Sequence[Buffer], result: Output) -> None:
        with parallel(threads) as (thread,):
            tile = RegisterTile(CHAINS, lanes)
            for chain in range(CHAINS):
                tile[chain] = load(inputs[0], 0, lanes)
            with T.serial(0, STEPS):
                for chain in range(CHAINS):
                    # The operands come from memory that never changes, hence from registers; x <- x * a + b.
                    tile[chain] = tile[chain] * load(inputs[0], 0, lanes) + load(inputs[0], lanes, lanes)
            for chain in range(CHAINS):
                store(result.buffer, (thread * CHAINS + chain) * lanes, tile[chain], lanes)

    values = torch.cat([torch.full((lanes,), 0.5), torch.full((lanes,), 1.0)])
    seconds = _best_seconds(_compile("multiply_add", factors, output, body, target), values, output.size, threads)
    return 2.0 * threads * CHAINS * STEPS * lanes / seconds


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

    function = _compile("read", data, output, body, target)
    return passes * bytes_read / _best_seconds(function, torch.ones(data.size), output.size, threads)


def _compile(
    name: str, data: BufferSpec, output: BufferSpec, body: Callable[..., None], target: Cpu
) -> tvm_ffi.Function:
    function = make_prim_func(name, [data], output, body, NO_EPILOGUE)
    module = tvm.IRModule({"main": function})
    return tvm.tirx.build(module, target=tvm.target.Target(target.tvm_target()))["main"]


def _best_seconds(function: tvm_ffi.Function, data: torch.Tensor, outputs: int, threads: int) -> float:
    """Least seconds of a call; the first one wakes the threads and is dropped."""
    set_threads(threads)
    result = torch.zeros(outputs)
    arguments = (to_tvm(data), to_tvm(result))
    function(*arguments)
    best = float("inf")
    for _ in range(REPETITIONS):
        begin = time.perf_counter()
        function(*arguments)
        best = min(best, time.perf_counter() - begin)
    return best
