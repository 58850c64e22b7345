"""The machines that Tersor knows by name, and detection of the one that it runs on."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from dataclasses import replace
from pathlib import Path

import psutil

from ...ir import TersorError
from ...ir.names import suggest
from .families import FAMILIES, family_of
from .families.base import KIB
from .target import Cpu, Target

# Linux, "Using XSTATE features in user space applications" (Documentation/arch/x86/xstate.rst).
_TILES = "amx_tile"
_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18

_SYNONYMS = {"AMD64": "x86_64", "arm64": "aarch64"}  # of architectures, by `platform.machine` on other systems
_RECORDS = tuple(record for family in FAMILIES.values() for record in family.records)
TARGETS = {record.name: record for record in _RECORDS}
_NATIVE = {family.machine: f"{name}:native" for name, family in FAMILIES.items() if not family.backend}


def list_targets() -> tuple[Target, ...]:
    """All records, by name."""
    return tuple(TARGETS[name] for name in sorted(TARGETS))


def resolve_target(target: str | Target) -> Target:
    """The record that a name stands for; ``"x86:native"`` or ``"arm:native"`` is the machine this runs on.

    Raises
    ------
    TersorError
        For an unknown name, with the nearest known one.
    """
    if isinstance(target, Target):
        return target
    if not isinstance(target, str):
        raise TersorError(f"a target is a name such as 'x86:native' or a tersor.targets.Target, not {target!r}")
    if target in _NATIVE.values():
        if target != native_name():
            raise TersorError(f"{target} is not this machine, which is {platform.machine()}; use {native_name()}")
        return detect_host()
    if target not in TARGETS:
        raise TersorError(
            f"unknown target {target!r}{suggest(target, [*TARGETS, *_NATIVE.values()])} (see `tersor targets`)"
        )
    return TARGETS[target]


def resolve_cpu(target: str | Target) -> Cpu:
    """`resolve_target` for what only processors have; raises TersorError for other machines too."""
    found = resolve_target(target)
    if not isinstance(found, Cpu):
        raise TersorError(f"kernels for {found.name} are not measured; name a processor, such as {native_name()}")
    return found


def relative_of(target: Cpu) -> Cpu | None:
    """A record whose float32 kernels are those of ``target``, with its caches and cores (`Family.relatives`)."""
    name = family_of(target).relatives.get(target.name)
    if name is None:
        return None
    caches = {level: getattr(target, level) for level in ("l1_bytes", "l2_bytes", "l3_bytes")}
    return replace(resolve_cpu(name), **caches, cores=target.cores)


def native_name() -> str:
    """The name that stands for the machine this runs on: ``"x86:native"`` or ``"arm:native"``."""
    return _NATIVE.get(host_machine(), "x86:native")


def detect_host() -> Cpu:
    """The most capable known record whose instruction sets this machine has, with its own caches and cores.

    Raises
    ------
    TersorError
        When no record suits this processor.
    """
    from .features import most_capable  # needs TVM, which takes a second to import

    best = most_capable(host_features())
    if best is None or host_machine() != family_of(best).machine:
        raise TersorError(
            f"{native_name()} needs an x86-64 processor with AVX2 and FMA or an ARM one with NEON, this one is "
            f"{platform.machine()} without; "
            f"name a target instead: {', '.join(sorted(TARGETS))}"
        )
    return replace(
        best,
        l1_bytes=_cache_bytes(1, best.l1_bytes),
        l2_bytes=_cache_bytes(2, best.l2_bytes),
        l3_bytes=_cache_bytes(3, best.l3_bytes),
        cores=usable_cores(),
    )


def host_machine() -> str:
    """This machine's architecture, under one name for each: ``"x86_64"``, ``"aarch64"``."""
    machine = platform.machine()
    return _SYNONYMS.get(machine, machine)


def host_features() -> frozenset[str]:
    """Instruction sets that this process may use, in the names of /proc/cpuinfo; empty where that file does not exist.

    Linux gives the matrix unit's registers to processes that ask; this one does, if the processor has them.
    """
    flags = features_in(_cpuinfo())
    if _TILES in flags and not _request_tiles():
        return frozenset(flag for flag in flags if not flag.startswith("amx"))
    return flags


def features_in(cpuinfo: str) -> frozenset[str]:
    """Instruction sets of the first processor in the text of a /proc/cpuinfo."""
    return frozenset(_entry(cpuinfo, "flags", "Features").split())


@functools.cache
def _request_tiles() -> bool:
    """Ask Linux for permission to use AMX tile registers, once for all threads; False where it refuses or is old."""
    return ctypes.CDLL(None).syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0


@functools.cache
def processor_name() -> str:
    """What the processor calls itself; family and model too where a virtual machine hides which one it is."""
    return _name_in(_cpuinfo()) or platform.processor() or platform.machine()


def usable_cores() -> int:
    """Physical cores that this process may run on."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))


def _name_in(cpuinfo: str) -> str:
    name, family, model = (_entry(cpuinfo, key) for key in ("model name", "cpu family", "model"))
    number = name.partition("@")[0]  # behind it stands the clock frequency
    hidden = family and number and not any(map(str.isdigit, number))  # "AMD EPYC" may be any of five generations
    return f"{name} (family {family}, model {model})" if hidden else name or _entry(cpuinfo, "CPU part")


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _entry(cpuinfo: str, *names: str) -> str:
    """What stands behind the first of ``names`` in the text of a /proc/cpuinfo; empty if there is none."""
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() in names), "")


def _cache_bytes(level: int, default: int) -> int:
    """Size of a data cache as Linux reports it for CPU 0, else ``default``."""
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            kind = (index / "type").read_text().strip()
            found = int((index / "level").read_text())
            size = (index / "size").read_text().strip()
        except OSError:
            continue
        if found == level and kind in ("Data", "Unified") and size.endswith("K"):
            return int(size[:-1]) * KIB
    return default
