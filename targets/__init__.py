"""Targets: what a machine is, how a graph becomes code for it, and how that code is run, timed and kept.

Names are loaded when they are used: most of them need TVM, which takes seconds to import.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .runtime.writers import READERS, WRITERS

if TYPE_CHECKING:
    from .codegen.build import compile_graph
    from .machines.catalog import detect_host, list_targets, resolve_target
    from .machines.target import Cpu, Gpu, Target
    from .runtime.compiled_model import Compiled, CompiledModel
    from .runtime.dynamic import DynamicExecutable
    from .runtime.early_exit import EarlyExitExecutable
    from .runtime.executable import BenchmarkResult, Executable

_HOMES = {
    "BenchmarkResult": "runtime.executable",
    "Cpu": "machines.target",
    "DynamicExecutable": "runtime.dynamic",
    "EarlyExitExecutable": "runtime.early_exit",
    "Gpu": "machines.target",
    "Executable": "runtime.executable",
    "Target": "machines.target",
    "compile_graph": "codegen.build",
    "detect_host": "machines.catalog",
    "list_targets": "machines.catalog",
    "resolve_target": "machines.catalog",
}

__all__ = ["load", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load(path: str | Path, *, threads: int | None = None) -> Executable:
    """Read an artifact back, ready to be called.

    Parameters
    ----------
    path
        A file that ``Executable.save`` wrote.
    threads
        Threads of one call; all usable cores by default.

    Raises
    ------
    ArtifactError
        When the file is missing, damaged or of another format, or this machine or this TVM cannot run its code. The
        executable's ``graph`` raises it too, when the graph's weights are damaged.

    Warns
    -----
    TersorWarning
        When the model returns objects of a class that this process does not know: a dict or a tuple comes back instead.
    """
    from ..ir import TersorWarning

    executable = _executable(_read(path), threads=threads)
    if executable.classes_note:
        warnings.warn(executable.classes_note, TersorWarning, stacklevel=2)
    return executable


def _executable(model: Compiled, *, threads: int | None = None) -> Executable:
    from .runtime.compiled_model import CompiledFamily, CompiledSegments
    from .runtime.dynamic import DynamicExecutable
    from .runtime.early_exit import EarlyExitExecutable
    from .runtime.executable import Executable

    if isinstance(model, CompiledSegments):
        return EarlyExitExecutable(model, threads=threads)
    if isinstance(model, CompiledFamily):
        return DynamicExecutable(model, threads=threads)
    return Executable(model, threads=threads)


def _read(path: str | Path, *, runnable: bool = True) -> Compiled:
    from .packaging.artifact import read

    return read(path, runnable=runnable)


def _save(model: Compiled, path: str | Path) -> Path:
    from .packaging.artifact import save

    return save(model, path)


def _save_bundle(model: CompiledModel, path: str | Path, *, runtime: str | Path | None) -> Path:
    from .packaging.bundle import save_bundle

    return save_bundle(model, path, runtime=runtime)


WRITERS.update(artifact=_save, bundle=_save_bundle)
READERS.update(artifact=_read)
