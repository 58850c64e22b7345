"""Compilers that link code for a machine, which need not be the one that compiles."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...ir import TersorError
from .catalog import host_machine
from .families import family_of
from .target import Target

_GLIBC = "2.28"  # what TVM's own libraries for Linux are built against; ziglang can link for any version


@dataclass(frozen=True)
class Toolchain:
    """A compiler driver for C++.

    Attributes
    ----------
    command
        How it is called.
    """

    command: tuple[str, ...]

    def link_shared(self, output: str, objects: Sequence[str]) -> None:
        """Make a shared object of object files."""
        self._run("-shared", "-fPIC", "-o", output, *objects)

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
        result = subprocess.run([*self.command, *arguments], capture_output=True, text=True, check=False)
        if result.returncode:
            said = next((line for line in result.stderr.splitlines() if "error" in line), result.stderr.strip())
            raise TersorError(f"{' '.join(self.command)} failed to link: {said}; check that it can build a C++ program")


def find_toolchain(target: Target) -> Toolchain:
    """The compiler to link code for ``target`` with: the system's own, Debian's cross compiler, or ziglang.

    Raises
    ------
    TersorError
        When there is none, with what to install.
    """
    machine = family_of(target).machine
    if machine == host_machine():
        native = next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
        if native is not None:
            return Toolchain((native,))
    cross = shutil.which(f"{machine}-linux-gnu-g++")
    if cross is not None:
        return Toolchain((cross,))
    if importlib.util.find_spec("ziglang") is not None:
        return Toolchain((sys.executable, "-m", "ziglang", "c++", "-target", f"{machine}-linux-gnu.{_GLIBC}"))
    package = "g++" if machine == host_machine() else f"g++-{machine.replace('_', '-')}-linux-gnu"
    raise TersorError(f"no compiler to link for {target.name} with: apt-get install {package}, or pip install ziglang")
