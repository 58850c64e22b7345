"""Which instruction sets a processor must have before code for a target may run on it."""

from __future__ import annotations

import functools

import tvm
import tvm_ffi

from .catalog import host_features, host_machine, list_targets
from .families import backend_of, family_of
from .target import Cpu, Target


@functools.cache
def required_features(target: Target) -> tuple[str, ...]:
    """Names in /proc/cpuinfo of what templates use for ``target`` and what LLVM may add for its processor, sorted."""
    if not isinstance(target, Cpu):  # code that launches kernels needs nothing beyond the baseline
        return ()
    llvm_features = tvm_ffi.get_global_func("target.llvm_get_cpu_features")(tvm.target.Target(target.tvm_target()))
    names = family_of(target).cpuinfo_names
    implied = {names[str(name)] for name in llvm_features if str(name) in names}
    return tuple(sorted(implied | set(target.features)))


def most_capable(available: frozenset[str]) -> Cpu | None:
    """The processor's record that needs most of the ``available`` instruction sets and no others; None if none fits.

    What LLVM adds for a record's processor counts: Intel's processors with bfloat16 cannot run code for AMD's.
    """
    needed = {target: set(required_features(target)) for target in list_targets() if isinstance(target, Cpu)}
    fitting = [target for target, names in needed.items() if names <= available]
    return max(fitting, key=lambda target: len(needed[target]), default=None)


def obstacle_here(target: Target) -> str:
    """Why code for ``target`` cannot run in this process, as the end of a sentence; "" where it can."""
    needed, here = family_of(target).machine, host_machine()
    if needed != here:
        return f"an {needed} processor, and this machine is {here}"
    lacking = sorted(set(required_features(target)) - host_features())
    if lacking:
        return f"this processor lacks {', '.join(lacking)}"
    backend = backend_of(target)
    return "" if backend is None else str(backend.obstacle_here(target))
