"""Bundles: compiled models that run where neither Python nor TVM is installed.

=====================  ====================================================================================
``run``                starts the runner, unless the machine is of another architecture
``runner``             the program: ``run --input x.npy --output y.npy``, ``run --bench 50 --threads 4``
``lib/``               TVM's runtime libraries, which the runner loads
``model.so``           the compiled code
``constants.bin``      the code's constants, laid out as kernels read them; mapped, not read
``manifest.txt``       inputs, outputs, constants and needed instruction sets (see ``runner/manifest.h``)
``source/``            the runner's source, with the two headers that it needs
``SHA256SUMS``         for ``sha256sum -c``, after a copy
``README.md``          how to copy, run and rebuild it
=====================  ====================================================================================
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import tvm_ffi

from ...ir import TersorError
from ...ir.files import check_writable, put, scratch_folder, writing
from ..machines.catalog import resolve_cpu
from ..machines.families import family_of
from ..machines.features import required_features
from ..machines.target import Target
from ..machines.toolchain import find_toolchain
from .artifact import constant_chunks, index_constants
from .bundle_runtime import LIBRARIES, copy_runtime, runtime_libraries
from .manifest import Constant

if TYPE_CHECKING:
    from ..runtime.compiled_model import CompiledModel
    from ..runtime.model_info import Port

FORMAT = 1  # of manifest.txt
MANIFEST = "manifest.txt"
CODE, CONSTANTS = "model.so", "constants.bin"
RUNNER = "runner"
_RESOURCES = Path(__file__).parent / "runner"
_COMPRESSION = 6
_ARCHIVES = (".tar.gz", ".tgz")
_HEADERS = ("tvm/ffi/c_api.h", "dlpack/dlpack.h")
_GLIBC = re.compile(rb"GLIBC_2\.(\d+)")


def save_bundle(model: CompiledModel, path: str | Path, *, runtime: str | Path | None = None) -> Path:
    """Write a bundle; an existing one is replaced only when the new one is complete.

    Parameters
    ----------
    path
        A folder, or a file that ends in ``.tar.gz`` or ``.tgz``.
    runtime
        A folder with `tersor.targets.packaging.bundle_runtime.LIBRARIES` for the target; by default they come from this
        installation or from PyPI, and are kept in the user's cache.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    TersorError
        When there is no compiler for the target, its runtime libraries cannot be had, or ``path`` cannot be written.
    """
    path, target = Path(path), model.info.target
    if family_of(target).backend:
        raise TersorError(f"bundles run on processors only, not on {target.name}; save an artifact instead")
    if model.info.states:
        raise TersorError(
            f"the runner of a bundle keeps no state, which {model.info.name} has ({', '.join(model.info.states)}); "
            "save an artifact, or let forward take the old values and return the new ones"
        )
    check_bundle_output(path)
    name = re.sub(r"\.(tar\.gz|tgz)$", "", path.name)
    with writing(path), scratch_folder(beside=path) as scratch:
        folder = scratch / name
        folder.mkdir()
        write_runner(target, folder, None if runtime is None else Path(runtime))
        write_model(model, folder)
        (folder / "README.md").write_text(_readme(model, folder), encoding="utf-8")
        (folder / "SHA256SUMS").write_text(_checksums(folder), encoding="utf-8")
        put(_packed(folder, scratch / "packed") if _is_archive(path) else folder, path)
    return path


def check_bundle_output(path: Path) -> None:
    """Find out, before work is spent, whether a bundle can go to ``path``; raises TersorError if not."""
    check_writable(path, folder=not _is_archive(path))
    if path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).is_file():
        raise TersorError(f"{path} is a directory with other files in it; name a new one for the bundle")


def write_model(model: CompiledModel, folder: Path) -> None:
    """Write what the runner runs: code, constants and manifest."""
    constants, _ = index_constants(model.constants)
    (folder / CODE).write_bytes(model.code.alone)
    with (folder / CONSTANTS).open("wb") as file:
        file.writelines(constant_chunks(model.constants))
    sizes = {name: (folder / name).stat().st_size for name in (CODE, CONSTANTS)}
    lines = _manifest_lines(model, sizes, constants)
    (folder / MANIFEST).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_runner(target: Target, folder: Path, runtime: Path | None = None) -> None:
    """Write the runner, its source, and the libraries that it loads."""
    machine = family_of(target).machine
    toolchain = find_toolchain(target, programs=True)
    copy_runtime(runtime_libraries(machine, runtime), folder / "lib")
    source = folder / "source"
    shutil.copytree(_RESOURCES, source, ignore=shutil.ignore_patterns("*.in"))
    for header in _HEADERS:
        (source / header).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(tvm_ffi.libinfo.find_include_path()) / header, source / header)
    libraries = [folder / "lib" / name for name in LIBRARIES]
    toolchain.build_program(folder / RUNNER, source / "main.cpp", source, libraries)
    start = folder / "run"
    start.write_text(_filled("run.sh.in", machine=machine, target=target.name), encoding="utf-8")
    start.chmod(0o755)


def _manifest_lines(model: CompiledModel, sizes: Mapping[str, int], constants: Sequence[Constant]) -> Iterator[str]:
    info = model.info
    yield f"tersor-bundle {FORMAT}"
    yield f"model {info.name}"
    yield f"target {info.target.name}"
    yield f"machine {family_of(info.target).machine}"
    yield from (f"feature {name}" for name in required_features(info.target))
    yield from (f"file {name} {size}" for name, size in sizes.items())
    yield from (f"input {_describe(port)}" for port in info.inputs)
    yield from (f"output {_describe(port)}" for port in info.outputs)
    yield from (f"constant {one.dtype} {one.offset} {one.count}" for one in constants)


def _describe(port: Port) -> str:
    shape = "x".join(str(extent) for extent in port.type.shape) or "scalar"
    return f"{_dtype(port)} {shape} {port.rows} {port.name}"


def _dtype(port: Port) -> str:
    return str(port.type.dtype.torch).removeprefix("torch.")


def _readme(model: CompiledModel, folder: Path) -> str:
    info = model.info
    linked = [folder / RUNNER, folder / CODE, *(folder / "lib" / name for name in LIBRARIES)]
    glibc = max(int(minor) for file in linked for minor in _GLIBC.findall(file.read_bytes()))
    inputs = [f"- input `{port.name}`: {_dtype(port)} {list(port.type.shape)}" for port in info.inputs]
    outputs = [f"- output `{port.name}`: {_dtype(port)} {list(port.type.shape)}" for port in info.outputs]
    arguments = [f"--input {port.name}.npy" for port in info.inputs]
    arguments += [f"--output {port.name}.npy" for port in info.outputs]
    return _filled(
        "README.md.in",
        model=info.name,
        target=info.target.name,
        machine=family_of(info.target).machine,
        version=version("tersor"),
        tvm=version("apache-tvm"),
        glibc=f"2.{glibc}",
        features=", ".join(required_features(info.target)),
        folder=folder.name,
        threads=str(resolve_cpu(info.target).cores),
        example=" ".join(arguments),
        ports="\n".join([*inputs, *outputs]),
    )


def _filled(template: str, **words: str) -> str:
    return Template((_RESOURCES / template).read_text(encoding="utf-8")).substitute(words)


def _checksums(folder: Path) -> str:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n" for path in paths)


def _is_archive(path: Path) -> bool:
    return path.name.endswith(_ARCHIVES)


def _packed(folder: Path, packed: Path) -> Path:
    """The archive of a complete bundle."""
    with tarfile.open(packed, "w:gz", compresslevel=_COMPRESSION) as archive:
        archive.add(folder, folder.name)
    return packed
