"""Arrays in files: inputs and outputs of compiled models as NumPy's .npy and .npz, and as .safetensors.

Files may be damaged or lie about themselves. So a header is read as text of a known form, and no more memory is taken
than the file has data for.
"""

from __future__ import annotations

import ast
import lzma
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch

from ...ir import TersorError, Value, suggest
from ...ir.files import check_writable, replacing
from ...ir.weights import read_tensors, write_tensors
from .model_info import Port

SUFFIXES = (".npy", ".npz", ".safetensors")

_MAGIC = b"\x93NUMPY"
_HEADER_SIZES = {1: "<H", 2: "<I", 3: "<I"}  # by the format's version
_MOST_HEADER = 1 << 16  # bytes; that of an array of numbers takes about a hundred
_NUMBERS = re.compile(r"[<>=|]?[biufc][0-9]{1,2}|[<>=|]?\?")
_ADVICE = "write it again"
_DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    SyntaxError,  # these four are Python's, for a header that is no literal
    MemoryError,
    RuntimeError,  # zipfile's, for an encrypted member or an unknown compression
    OverflowError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


def read_inputs(paths: Sequence[Path], ports: Sequence[Port | Value]) -> tuple[torch.Tensor, ...]:
    """One tensor for each input of a model.

    Parameters
    ----------
    paths
        A .npy file holds one array, for the next input that has none yet; .npz and .safetensors files hold arrays by
        the names of inputs.
    ports
        The inputs of a compiled model or of a graph.

    Raises
    ------
    TersorError
        When a file cannot be read, a name is not that of an input, or there are too many or too few arrays.
    """
    named: dict[str, torch.Tensor] = {}
    positional: list[torch.Tensor] = []
    names = [port.name for port in ports]
    for path in paths:
        for name, tensor in read_arrays(path):
            if name is None:
                positional.append(tensor)
            elif name in named:
                raise TersorError(f"{path}: input {name!r} is given twice")
            elif name in names:
                named[name] = tensor
            else:
                raise TersorError(f"{path}: the model has no input {name!r}{suggest(name, names)}")
    rest = [name for name in names if name not in named]
    if len(rest) != len(positional):
        wanted = ", ".join(f"{port.name}: {port.type}" for port in ports)
        given = len(named) + len(positional)
        raise TersorError(f"the model takes {len(ports)} inputs ({wanted}), got {given}; give each with --input")
    named |= dict(zip(rest, positional, strict=True))
    return tuple(named[name] for name in names)


def read_arrays(path: Path) -> list[tuple[str | None, torch.Tensor]]:
    """The arrays of one file with their names; that of a .npy file has the name None.

    Raises
    ------
    TersorError
        When there is no such file, it is damaged, or it holds something else than numbers.
    """
    check_suffix(path)
    if not path.exists():
        raise TersorError(f"{path}: no such file")
    if not path.is_file():
        raise TersorError(f"{path}: not a file; give a file of arrays")
    if path.suffix == ".safetensors":
        return list(read_tensors(path).items())
    try:
        if path.suffix == ".npz":
            return list(_read_npz(path))
        with path.open("rb") as file:
            return [(None, _read_npy(file, path.stat().st_size))]
    except _DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TersorError(f"{path}: not readable as a {path.suffix} file ({reason}); {_ADVICE}") from error


def write_outputs(path: Path, outputs: Sequence[torch.Tensor], ports: Sequence[Port]) -> None:
    """Write a model's outputs; a .npy file takes one, the other kinds keep them under the outputs' names.

    Raises
    ------
    TersorError
        When the file cannot be written.
    """
    check_output(path, ports)
    named = {port.name: tensor.contiguous() for port, tensor in zip(ports, outputs, strict=True)}
    with replacing(path) as fresh:
        if path.suffix == ".safetensors":
            write_tensors(fresh, named)
            return
        try:
            arrays = {name: tensor.numpy() for name, tensor in named.items()}
        except TypeError as error:  # NumPy has no bfloat16
            raise TersorError(f"{path}: {error}; write a .safetensors file instead") from error
        if path.suffix == ".npz":
            np.savez(fresh, **arrays)  # type: ignore[arg-type]  # no output is named allow_pickle
        else:
            np.save(fresh, next(iter(arrays.values())))


def check_output(path: Path, ports: Sequence[Port]) -> None:
    """Find out, before work is spent, whether a model's outputs can go to ``path``; raises TersorError if not."""
    check_suffix(path)
    check_writable(path)
    if path.suffix == ".npy" and len(ports) != 1:
        raise TersorError(f"{path}: a .npy file holds one array, the model has {len(ports)} outputs; use .npz")


def check_suffix(path: Path) -> None:
    """Raise TersorError for a file of another kind."""
    if path.suffix not in SUFFIXES:
        raise TersorError(f"{path}: arrays are kept in {', '.join(SUFFIXES)} files, not {path.suffix or 'this kind'}")


def _read_npz(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            with archive.open(info) as file:
                yield info.filename.removesuffix(".npy"), _read_npy(file, info.file_size)


def _read_npy(file: IO[bytes], size: int) -> torch.Tensor:
    """Read an array from a file of so many bytes; raises one of `_DAMAGED`."""
    start = file.read(len(_MAGIC) + 2)
    if start[: len(_MAGIC)] != _MAGIC or len(start) < len(_MAGIC) + 2 or start[len(_MAGIC)] not in _HEADER_SIZES:
        raise ValueError("its first bytes are not those of the format")
    length = struct.Struct(_HEADER_SIZES[start[len(_MAGIC)]])
    (header_bytes,) = length.unpack(file.read(length.size))
    if header_bytes > _MOST_HEADER:
        raise ValueError(f"its header has {header_bytes} bytes")
    header = ast.literal_eval(str(file.read(header_bytes), "utf-8").strip())
    if not isinstance(header, dict) or header.keys() != {"descr", "fortran_order", "shape"}:
        raise ValueError("its header is damaged")
    descr, fortran, shape = header["descr"], header["fortran_order"], header["shape"]
    if not isinstance(descr, str) or not _NUMBERS.fullmatch(descr):
        raise ValueError("it holds something else than numbers")
    if not isinstance(shape, tuple) or not all(type(extent) is int and extent >= 0 for extent in shape):
        raise ValueError("its shape is damaged")
    dtype = np.dtype(descr)
    wanted, given = math.prod(shape) * dtype.itemsize, size - length.size - len(start) - header_bytes
    if wanted > given:
        raise ValueError(f"its header declares {wanted} bytes of data, the file has {given}")
    data = file.read(wanted)
    if len(data) != wanted:
        raise EOFError("it ends too early")
    file.read(1)  # a zip member's checksum is compared at its end
    flat = np.frombuffer(data, dtype)
    if dtype.kind == "b":
        flat = flat.view(np.uint8) != 0
    array = flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)
    native = np.array(array, dtype.newbyteorder("="), order="C")  # writable, in memory of its own
    return torch.from_numpy(native).reshape(shape)
