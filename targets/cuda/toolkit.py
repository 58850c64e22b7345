"""NVIDIA's compiler, and what it says about the kernels that it compiled."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...ir import TersorError
from ...ir.files import temporary_folder

_MATRIX = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async)\.")
_ENTRY = re.compile(r"^(?:\.visible )?\.entry (?P<name>\w+)", re.MULTILINE)
_REGISTERS = re.compile(r"Used (?P<registers>\d+) registers")
_SHARED = re.compile(r"(?P<bytes>\d+) bytes smem")
_SPILLS = re.compile(r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads")


@dataclass(frozen=True)
class Resources:
    """What one kernel takes of a multiprocessor.

    Attributes
    ----------
    registers
        For a thread.
    shared_bytes
        For a block.
    spilled_bytes
        Of a thread's registers, stored to memory.
    matrix_instructions
        Instructions for tensor cores in its PTX.
    """

    registers: int
    shared_bytes: int
    spilled_bytes: int
    matrix_instructions: int


@dataclass(frozen=True)
class DeviceCode:
    """Compiled kernels: a fat binary for one architecture, and what the compiler said about each."""

    binary: bytes
    resources: dict[str, Resources]


def compile_cuda(source: str, architecture: str) -> DeviceCode:
    """Compile CUDA C++ for an architecture such as ``"sm_90"``.

    Raises
    ------
    TersorError
        When there is no nvcc, or it refuses the source.
    """
    with temporary_folder() as folder:
        unit, binary = folder / "kernels.cu", folder / "kernels.fatbin"
        unit.write_text(source, encoding="utf-8")
        command = [find_nvcc(), "-std=c++17", "-O3", f"-arch={architecture}", "--resource-usage", "-w"]
        said = _run([*command, "--keep", "--keep-dir", str(folder), "--fatbin", "-o", str(binary), str(unit)])
        ptx = next(folder.glob("*.ptx")).read_text(encoding="utf-8")
        return DeviceCode(binary.read_bytes(), _parse_resources(said, ptx))


def find_nvcc() -> str:
    """Path of NVIDIA's compiler; raises TersorError where it is not installed."""
    path = shutil.which("nvcc")
    if path is None:
        raise TersorError(
            "nvcc is not installed: compiling for a GPU needs NVIDIA's CUDA toolkit (12 or later), with its bin "
            "folder in PATH; a GPU is needed only to run the model"
        )
    return path


def _run(command: Sequence[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        said = next((line for line in result.stderr.splitlines() if "error" in line), result.stderr.strip())
        raise TersorError(f"{Path(command[0]).name} failed: {said}; check that it supports C++17 and the target")
    return result.stdout + result.stderr


def _parse_resources(said: str, ptx: str) -> dict[str, Resources]:
    """What ``nvcc --resource-usage`` prints, and what PTX holds, by kernel."""
    starts = [*_ENTRY.finditer(ptx)]
    ends = [match.start() for match in starts[1:]] + [len(ptx)]
    matrix = {m["name"]: len(_MATRIX.findall(ptx, m.start(), end)) for m, end in zip(starts, ends, strict=True)}
    found = {}
    for section in said.split("Compiling entry function '")[1:]:
        name = section.partition("'")[0]
        registers, shared, spills = (one.search(section) for one in (_REGISTERS, _SHARED, _SPILLS))
        numbers = (0 if match is None else int(match[1]) for match in (registers, shared, spills))
        found[name] = Resources(*numbers, matrix[name])
    return found
