"""Targets: what a machine is, how a graph becomes code for it, and how that code is run, timed and kept.

Names are loaded when they are used: most of them need TVM, which takes seconds to import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .codegen.build import compile_graph
    from .machines.catalog import detect_host, list_targets, resolve_target
    from .machines.target import Target
    from .packaging.artifact import load
    from .runtime.executable import BenchmarkResult, Executable

_HOMES = {
    "BenchmarkResult": "runtime.executable",
    "Executable": "runtime.executable",
    "Target": "machines.target",
    "compile_graph": "codegen.build",
    "detect_host": "machines.catalog",
    "list_targets": "machines.catalog",
    "load": "packaging.artifact",
    "resolve_target": "machines.catalog",
}

__all__ = [
    "BenchmarkResult",
    "Executable",
    "Target",
    "compile_graph",
    "detect_host",
    "list_targets",
    "load",
    "resolve_target",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
