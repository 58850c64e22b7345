"""What a target machine is: a frozen record that templates compute their tiles from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .layout_costs import MemoryTraffic

ALIGNMENT = 64  # bytes; where every buffer of a program starts, and what its kernels assume


@dataclass(frozen=True)
class Target:
    """One machine that Tersor can compile for.

    Attributes
    ----------
    name
        As written by the user and in logs, for example ``"x86:znver4"``.
    family
        ``"x86"``, ``"arm"`` or ``"cuda"``.
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
    """

    name: str
    family: str
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

    def lanes(self, dtype_bytes: int = 4) -> int:
        """Elements of ``dtype_bytes`` bytes in one vector register."""
        return self.vector_bytes // dtype_bytes

    def layout_costs(self) -> MemoryTraffic | None:
        """What storing tensors in channel blocks costs, for the pass ``layout``; None where no kernel takes them."""
        return MemoryTraffic(self.cores) if self.channel_blocks else None

    def tvm_target(self) -> dict[str, Any]:
        """The JSON target that TVM's LLVM code generator takes."""
        options = {"mtriple": self.mtriple} if self.mtriple else {}
        return {"kind": "llvm", "mcpu": self.mcpu, "num-cores": self.cores, **options}
