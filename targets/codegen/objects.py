"""From the kernels of a program to object files: each distinct one once, several at a time, or from a cache.

A kernel's function is named by the digest of what it is compiled from, so that the code of one program can be linked
into another. The digest is taken before any code is written: of everything that the code depends on, which is the
kernel's key, the target, and what writes and compiles kernels (`identity`).
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import shorten

import tvm
import tvm_ffi
from tvm import tirx

from ...ir import TersorWarning
from ..machines.catalog import usable_cores
from ..machines.target import Cpu
from .identity import code_identity
from .interruptible import call_in_parallel
from .kernel import CompileError
from .kernel_cache import KernelCache, KernelCacheError
from .lowering import Call, Program
from .tir_pipeline import PIPELINE

MOST_NODES = 1_000_000  # statements and expressions of a kernel; LLVM takes seconds for a hundred thousand
_NAME_DIGITS = 16  # of the digest


@dataclass(frozen=True)
class KernelObject:
    """A kernel as machine code.

    Attributes
    ----------
    name
        Of its function.
    path
        The object file that defines it.
    """

    name: str
    path: Path


def compile_kernels(
    programs: Sequence[Program], folder: Path, cache: KernelCache | None = None
) -> dict[str, KernelObject]:
    """An object for each distinct kernel of some programs, by `Kernel.key`.

    Parameters
    ----------
    programs
        All for one target.
    folder
        Where object files are written.
    cache
        Where code is looked for, and kept.

    Raises
    ------
    CompileError
        For a kernel that is too large to compile.

    Warns
    -----
    TersorWarning
        When code cannot be kept.
    """
    calls: dict[str, Call] = {}
    for program in programs:
        for call in program.calls:
            calls.setdefault(call.kernel.key, call)
    (target,) = {program.target for program in programs}
    identity = code_identity()
    digests = {key: _digest(key, target, identity) for key in calls}
    objects = {key: _object(call, digests[key], folder) for key, call in calls.items()}
    assert len({one.name for one in objects.values()}) == len(objects), "digests differ in their first digits"
    known = set[str]()
    if cache is not None and identity is not None and cache.is_trusted():
        known = {key for key, one in objects.items() if _copy_kept(cache, digests[key], one)}
    missing = [key for key in objects if key not in known]
    jobs = (_job(calls[key], objects[key], target) for key in missing)
    call_in_parallel(jobs, usable_cores())
    if missing and cache is not None and identity is not None:
        try:
            cache.write({digests[key]: objects[key].path.read_bytes() for key in missing})
        except KernelCacheError as error:
            warnings.warn(str(error), TersorWarning, stacklevel=2)
    return objects


def compile_kernel(function: tirx.PrimFunc, object: KernelObject, target: Cpu) -> None:
    """Write the object file of a PrimFunc."""
    module = tvm.IRModule({object.name: function.with_attr({"global_symbol": object.name, "tirx.is_scheduled": True})})
    compiled = tvm.tirx.build(module, target=tvm.target.Target(target.tvm_target()), pipeline=PIPELINE)
    compiled.write_to_file(str(object.path))


def _digest(key: str, target: Cpu, identity: str | None) -> str:
    """Of everything that a kernel's code depends on."""
    described = f"{target!r}\n{json.dumps(target.tvm_target(), sort_keys=True)}\n{key}\n{identity}"
    return hashlib.sha256(described.encode()).hexdigest()


def _object(call: Call, digest: str, folder: Path) -> KernelObject:
    name = f"{call.kernel.template}_{digest[:_NAME_DIGITS]}"
    return KernelObject(name, folder / f"{name}.o")


def _copy_kept(cache: KernelCache, digest: str, object: KernelObject) -> bool:
    """Write the object file that is kept, if there is one."""
    code = cache.read(digest)
    if code is not None:
        object.path.write_bytes(code)
    return code is not None


def _job(call: Call, object: KernelObject, target: Cpu) -> Callable[[], None]:
    """What compiles a kernel, whose TIR is written now."""
    function = call.kernel.build()
    _check_size(function, call)
    return partial(compile_kernel, function, object, target)


def _check_size(function: tirx.PrimFunc, call: Call) -> None:
    """Raise CompileError, which names the layer, for code that LLVM would need minutes and gigabytes for."""
    if code_size(function) <= MOST_NODES:
        return
    kernel = call.kernel
    spec, knobs = (shorten(str(text), 200, placeholder="...") for text in (kernel.spec, kernel.knobs))
    raise CompileError(
        f"layer {call.location!r}: template {kernel.template!r} writes more code than compiles in reasonable time "
        f"(over {MOST_NODES} statements and expressions) for {spec} with {knobs}; split this layer into smaller ones"
    )


def code_size(function: tirx.PrimFunc) -> int:
    """Statements and expressions of a PrimFunc, shared ones as often as they are used; counting ends past the bound."""
    count = 0

    def visit(node: tvm.ir.Node) -> object:
        nonlocal count
        count += 1
        return tvm_ffi.VisitInterrupt() if count > MOST_NODES else None

    tvm_ffi.structural_walk(function.body, visit)
    return count
