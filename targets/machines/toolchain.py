"""Compilers that link code for a machine, which need not be the one that compiles."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...ir import TersorError
from .catalog import host_machine
from .families import family_of
from .target import Target

if TYPE_CHECKING:
    import tvm

_GLIBC = "2.28"  # what TVM's own libraries for Linux are built against; ziglang can link for any version
_CXX, _CC = ("g++", "c++", "clang++"), ("gcc", "clang", "cc")
_TELLING = re.compile("error|failed|cannot")  # of what a compiler says, the line that tells why
_ROOM = 32 << 20  # bytes for objects and the linked code; where less is free, LLVM would end the process


class ToolchainError(TersorError):
    """There is no compiler to link with, or it does not work."""


@dataclass(frozen=True)
class Toolchain:
    """A compiler driver for C or C++.

    Attributes
    ----------
    command
        How it is called.
    """

    command: tuple[str, ...]

    def link(self, compiled: tvm.runtime.Executable, output: Path, addons: Sequence[Path] = ()) -> None:
        """Make a shared object of what TVM compiled, and of object files.

        Parameters
        ----------
        output
            In a folder for temporary files.

        Raises
        ------
        OSError
            When that folder has no room for them.
        ToolchainError
            When the compiler fails.
        """
        check_room(output.parent)
        compiled.export_library(
            str(output), fcompile=self.link_shared, workspace_dir=str(output.parent), addons=list(map(str, addons))
        )

    def link_shared(self, output: str, objects: Sequence[str]) -> None:
        """Make a shared object of object files, which use no library but those of C and of mathematics.

        Start-up files and the libraries of C++ are left out: to look through them takes longer than all the rest. What
        loads the code has the C library.
        """
        self._run("-shared", "-fPIC", "-nostdlib", "-o", output, *objects, "-lm")

    def build_program(self, output: Path, source: Path, include: Path, libraries: Sequence[Path]) -> None:
        """Make a program of one file of C++17; it looks for ``libraries`` in the folder ``lib`` beside itself.

        Parameters
        ----------
        include
            Where the source's headers are.
        """
        search = ("-Wl,-rpath,$ORIGIN/lib", "-pthread", "-Wl,--no-as-needed", f"-Wl,-rpath-link,{libraries[0].parent}")
        names = [str(library) for library in libraries]
        self._run("-std=c++17", "-O2", "-s", f"-I{include}", "-o", str(output), str(source), *search, *names)

    def _run(self, *arguments: str) -> None:
        name = " ".join(self.command)
        try:
            result = subprocess.run(
                [*self.command, *arguments], capture_output=True, text=True, errors="replace", check=False
            )
        except OSError as error:
            raise ToolchainError(f"{name} cannot be run ({error.strerror}); check the compiler") from error
        if result.returncode:
            lines = [line for line in result.stderr.splitlines() if line.strip()] or [f"status {result.returncode}"]
            telling = (line for line in lines if _TELLING.search(line) and "ld returned" not in line)
            said = next(telling, lines[-1])
            raise ToolchainError(f"{name} failed to link: {said[:300]}; check that it can build a C++ program")


def find_toolchain(target: Target, *, programs: bool = False) -> Toolchain:
    """The compiler to link code for ``target`` with: the system's own, Debian's cross compiler, or ziglang.

    The system's own is what the variables CXX or CC name, if they are set.

    Parameters
    ----------
    programs
        Whether it has to make programs of C++ too, which a compiler for C does not link.

    Raises
    ------
    ToolchainError
        When there is none, with what to install.
    """
    machine = family_of(target).machine
    if machine == host_machine():
        native = next(_native(programs), None)
        if native is not None:
            return Toolchain(native)
    cross = shutil.which(f"{machine}-linux-gnu-g++")
    if cross is not None:
        return Toolchain((cross,))
    if importlib.util.find_spec("ziglang") is not None:
        return Toolchain((sys.executable, "-m", "ziglang", "c++", "-target", f"{machine}-linux-gnu.{_GLIBC}"))
    package = "g++" if machine == host_machine() else f"g++-{machine.replace('_', '-')}-linux-gnu"
    raise ToolchainError(
        f"no compiler to link for {target.name} with: apt-get install {package}, or pip install ziglang"
    )


def _native(programs: bool) -> Iterator[tuple[str, ...]]:
    """Commands of this machine's compilers, the preferred one first."""
    for variable in ("CXX",) if programs else ("CXX", "CC"):
        command = tuple(shlex.split(os.environ.get(variable, "")))
        if command and shutil.which(command[0]) is None:
            raise ToolchainError(f"{variable} names {command[0]}, which is no program here; correct or unset it")
        if command:
            yield command
    yield from ((path,) for path in map(shutil.which, _CXX if programs else (*_CXX, *_CC)) if path is not None)


def check_room(folder: Path) -> None:
    """Raise OSError where LLVM, which ends the process when it cannot write, might not be able to write."""
    largest = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if largest != resource.RLIM_INFINITY and largest < _ROOM:
        limit = f"{largest >> 10} KiB (ulimit -f)"
        raise OSError(errno.EFBIG, f"files are limited to {limit}, linking needs {_ROOM >> 20} MiB")
    if shutil.disk_usage(folder).free < _ROOM:
        raise OSError(errno.ENOSPC, f"No space left on device, linking needs {_ROOM >> 20} MiB", str(folder))
