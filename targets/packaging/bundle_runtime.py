"""TVM's runtime libraries for the machine that a bundle is for: from a folder, from this installation, or from PyPI.

Code works with the runtime of the TVM that compiled it, so exactly the installed versions are taken. What is
downloaded is kept in the user's cache folder (``$XDG_CACHE_HOME/tersor``, by default ``~/.cache/tersor``).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution, version
from pathlib import Path

from ...ir import TersorError
from ...ir.files import cache_folder, make_folder, scratch_folder, temporary_folder, writing
from ..machines.catalog import host_machine
from .checks import ELF_HEADER_BYTES, is_library_for

LIBRARIES = ("libtvm_runtime.so", "libtvm_ffi.so")
PACKAGES = ("apache-tvm", "apache-tvm-ffi")
_LICENSES = ("LICENSE", "NOTICE")
_LICENSE_FILE = re.compile(rf"(^tvm|\.dist-info/licenses)/({'|'.join(_LICENSES)})$")
_PLATFORM = "manylinux_2_28"
_PYTHON = "311"  # both packages have wheels for it; the libraries do not depend on it


def runtime_libraries(machine: str, folder: Path | None) -> Path:
    """A folder with `LIBRARIES` for an architecture, and the licenses that they come under.

    Parameters
    ----------
    machine
        The architecture, for example ``"aarch64"``.
    folder
        Where they are; None to take those of this installation, or else download them.

    Raises
    ------
    TersorError
        When they are not in the folder, are for another architecture, or cannot be downloaded.
    """
    if folder is not None:
        _check(folder, machine)
        return folder
    versions = "-".join(version(package) for package in PACKAGES)
    kept = cache_folder() / f"runtime-{machine}-{versions}"
    if not kept.is_dir():
        make_folder(kept.parent)
        with writing(kept), scratch_folder(beside=kept) as scratch:
            fetched = scratch / kept.name
            fetched.mkdir()
            _copy_installed(fetched) if machine == host_machine() else _download(machine, fetched)
            _check(fetched, machine)
            try:
                fetched.rename(kept)
            except OSError:
                if not kept.is_dir():  # else another process was faster
                    raise
    _check(kept, machine)
    return kept


def copy_runtime(folder: Path, destination: Path) -> None:
    """Copy `LIBRARIES`, and the licenses beside them, to a new folder."""
    destination.mkdir()
    for path in folder.iterdir():
        if path.name in LIBRARIES or path.name.startswith(_LICENSES):
            shutil.copy(path, destination)


def _check(folder: Path, machine: str) -> None:
    for name in LIBRARIES:
        path = folder / name
        if not path.is_file():
            raise TersorError(
                f"{folder}: no {name} in it; take it from the wheels of {' and '.join(PACKAGES)} for {machine}"
            )
        with path.open("rb") as file:
            known = is_library_for(machine, file.read(ELF_HEADER_BYTES))
        if not known:
            raise TersorError(f"{path}: not a library for {machine}; take it from the wheel for that architecture")


def _copy_installed(folder: Path) -> None:
    """The libraries of this installation."""
    for package in PACKAGES:
        for file in distribution(package).files or ():
            if wanted := _wanted(package, file.name, str(file)):
                shutil.copy(file.locate(), folder / wanted)


def _download(machine: str, folder: Path) -> None:
    """The libraries within the wheels for another architecture."""
    with temporary_folder() as wheels:
        pins = [f"{package}=={version(package)}" for package in PACKAGES]
        command = [sys.executable, "-m", "pip", "download", *pins, "--no-deps", "--only-binary=:all:"]
        command += ["--platform", f"{_PLATFORM}_{machine}", "--python-version", _PYTHON, "--dest", str(wheels)]
        command += ["--quiet", "--disable-pip-version-check", "--retries", "2"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or [result.stderr.strip()]
            raise TersorError(
                f"cannot download {' and '.join(pins)} for {machine} ({lines[-1].removeprefix('ERROR: ')}); connect to "
                f"the network once, or name a folder with {' and '.join(LIBRARIES)} of these versions with --runtime"
            )
        for package, wheel in _by_package(wheels):
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    if wanted := _wanted(package, Path(name).name, name):
                        (folder / wanted).write_bytes(archive.read(name))


def _by_package(wheels: Path) -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        yield package, next(wheels.glob(f"{package.replace('-', '_')}-[0-9]*.whl"))


def _wanted(package: str, name: str, path: str) -> str:
    """Under which name a package's file belongs to the runtime; "" if it does not."""
    if name in LIBRARIES:
        return name
    return f"{name}.{package}" if _LICENSE_FILE.search(path) else ""
