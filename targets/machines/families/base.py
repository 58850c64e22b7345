"""What a family of targets is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..target import Target

KIB, MIB = 1024, 1024 * 1024


@dataclass(frozen=True)
class Family:
    """Processors of one architecture.

    Attributes
    ----------
    name
        What stands before the colon in names of targets.
    machine
        The architecture, as `platform.machine` names it on Linux.
    records
        The targets that are known by name.
    cpuinfo_names
        Instruction sets that LLVM uses of its own accord when it compiles for a processor: its names, and those of
        /proc/cpuinfo. Left out: sets that only intrinsics reach (cryptography, system instructions), and LLVM's tuning
        flags.
    backend
        Name of the module that compiles for the family, loads its code and runs it, imported when it is needed (see
        `tersor.targets.cuda.backend`); "" for processors, which share the templates of `tersor.targets.templates`.
    relatives
        For some of the records, by name, the name of one whose float32 kernels are the same code: what was measured
        for that one tells what to use, as long as nothing was measured.
    status
        What users should know before they rely on it, in a few words: on which machines it was not tried, say.
    """

    name: str
    machine: str
    records: tuple[Target, ...]
    cpuinfo_names: Mapping[str, str]
    backend: str = ""
    status: str = ""
    relatives: Mapping[str, str] = field(default_factory=dict)
