"""What decides, besides a kernel itself, which code it becomes: Tersor's sources and TVM. Kept code is looked up by it.

A digest is no help where this process may run other code than the files hold. Then there is none, and nothing is kept:
where code outside of Tersor has registered how ops are computed, and where a source file changed after the process had
started, as it does while somebody develops Tersor.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import psutil

_ROOT = Path(__file__).parents[2]
_SOURCES = ("ir", "passes", "targets")  # folders, and the file below: what makes kernels, and measures them
_FACADE = "compiler.py"
_PACKAGES = ("apache-tvm", "apache-tvm-ffi")
_OWN = f"{__package__.partition('.targets')[0]}.targets."


def code_identity() -> str | None:
    """A digest (hexadecimal) of everything that writes kernels; None where this process may run something else."""
    return None if _has_foreign_code() else _digest_of_sources()


@functools.cache
def _digest_of_sources() -> str | None:
    digest = hashlib.sha256()
    started = psutil.Process().create_time()
    for package in _PACKAGES:
        digest.update(f"{package} {version(package)}\n".encode())
    for path in _files():
        status = path.stat()
        if max(status.st_mtime, status.st_ctime) > started:
            return None
        digest.update(f"{path.relative_to(_ROOT)} {status.st_size}\n".encode())
        digest.update(path.read_bytes())
    library = _tvm_library().stat()
    digest.update(f"{library.st_size} {library.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _files() -> Iterator[Path]:
    for folder in _SOURCES:
        yield from sorted((_ROOT / folder).rglob("*.py"))
    yield _ROOT / _FACADE


def _tvm_library() -> Path:
    """TVM's compiler, LLVM included: versions of one's own builds say little."""
    import tvm

    return Path(tvm.__file__).parent / "lib" / "libtvm_compiler.so"


def _has_foreign_code() -> bool:
    """Whether a plug-in writes kernels."""
    from ..templates.loops.formula import registered_formulas
    from .emit import registered_emitters
    from .kernel import registered_selectors

    registered = (*registered_selectors(), *registered_emitters(), *registered_formulas())
    return any(not function.__module__.startswith(_OWN) for function in registered)
