"""What a target machine is: a frozen record that templates compute their tiles from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...ir.foreign import Json
from .layout_costs import MemoryTraffic

ALIGNMENT = 64  # bytes; where every buffer of a program starts, and what its kernels assume
_VNNI = {"avx512_vnni", "avx_vnni"}
_CHUNK_BYTES = 16  # what one thread of a GPU loads at once, and rows of half-precision matrices should be a multiple of


@dataclass(frozen=True)
class Target:
    """One machine that Tersor can compile for: a `Cpu` or a `Gpu`.

    Attributes
    ----------
    name
        As written by the user and in logs, for example ``"x86:znver4"``.
    family
        ``"x86"``, ``"arm"`` or ``"cuda"``.
    """

    name: str
    family: str
    integer_kernels: ClassVar[bool] = True  # whether there are kernels for 8-bit integers

    @property
    def weight_bits(self) -> int:
        """Bits of integers as weights, up to 8, that kernels multiply the fastest."""
        return 8

    def lanes(self, dtype_bytes: int = 4) -> int:
        """Elements of ``dtype_bytes`` bytes that kernels load at once."""
        raise NotImplementedError

    def layout_costs(self) -> MemoryTraffic | None:
        """What storing tensors in channel blocks costs, for the pass ``layout``; None where no kernel takes them."""
        return None

    def tvm_target(self) -> dict[str, Json]:
        """The JSON target that TVM's code generator takes."""
        raise NotImplementedError


@dataclass(frozen=True)
class Cpu(Target):
    """A processor.

    Attributes
    ----------
    mcpu
        The name LLVM knows the processor by.
    vector_bytes
        Width of a vector register in bytes: 64 for AVX-512, 32 for AVX2, 16 for NEON.
    vector_registers
        Number of architectural vector registers.
    l1_bytes, l2_bytes, l3_bytes
        Data cache sizes; L1 and L2 for one core.
    cores
        Physical cores that a program may use.
    features
        Instruction sets that generated code may use, for example ``"avx512_vnni"``; the artifact loader checks them.
    mtriple
        LLVM's name of architecture, system and calling convention; "" for those of the machine that compiles.
    channel_blocks
        Whether kernels take tensors that are stored in blocks of channels.
    multiply_adds
        Vectors of full width that are multiplied and added in one cycle.
    """

    mcpu: str
    vector_bytes: int
    vector_registers: int
    l1_bytes: int
    l2_bytes: int
    l3_bytes: int
    cores: int
    features: tuple[str, ...] = ()
    mtriple: str = ""
    channel_blocks: bool = True
    multiply_adds: int = 2

    @property
    def weight_bits(self) -> int:
        """On x86, instructions for products of bytes are exact for 7 bits; those of VNNI are for 8."""
        return 7 if self.family == "x86" and not _VNNI & set(self.features) else 8

    def lanes(self, dtype_bytes: int = 4) -> int:
        """Elements of ``dtype_bytes`` bytes in one vector register."""
        return self.vector_bytes // dtype_bytes

    def layout_costs(self) -> MemoryTraffic | None:
        return MemoryTraffic(self.cores) if self.channel_blocks else None

    def tvm_target(self) -> dict[str, Json]:
        options = {"mtriple": self.mtriple} if self.mtriple else {}
        return {"kind": "llvm", "mcpu": self.mcpu, "num-cores": self.cores, **options}


@dataclass(frozen=True)
class Gpu(Target):
    """An NVIDIA GPU, in a machine with an x86-64 processor.

    Attributes
    ----------
    architecture
        Its compute capability, as nvcc names it: ``"sm_90"``.
    multiprocessors
        How many it has.
    l1_bytes
        Of one multiprocessor, shared memory included.
    l2_bytes
        Of the GPU.
    registers
        Of 32 bits, in one multiprocessor.
    shared_bytes
        Shared memory that a block gets without asking the driver for more.
    warp
        Threads that run in step.
    block_threads
        The most threads of a block.
    """

    architecture: str
    multiprocessors: int
    l1_bytes: int
    l2_bytes: int
    registers: int = 64 * 1024
    shared_bytes: int = 48 * 1024
    warp: int = 32
    block_threads: int = 1024
    integer_kernels: ClassVar[bool] = False

    def lanes(self, dtype_bytes: int = 4) -> int:
        """Elements of ``dtype_bytes`` bytes that one thread loads at once."""
        return _CHUNK_BYTES // dtype_bytes

    def tvm_target(self) -> dict[str, Json]:
        return {
            "kind": "cuda",
            "arch": self.architecture,
            "max_num_threads": self.block_threads,
            "max_threads_per_block": self.block_threads,
            "max_shared_memory_per_block": self.shared_bytes,
            "thread_warp_size": self.warp,
            "host": {"kind": "llvm", "mcpu": "x86-64"},  # launches kernels: it needs nothing beyond the baseline
        }
