"""Arrays in files: inputs and outputs of compiled models as NumPy's .npy and .npz, and as .safetensors."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ...ir import TersorError, Value, suggest
from .model_info import Port
from .output_path import obstacle_to_writing

SUFFIXES = (".npy", ".npz", ".safetensors")


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
        for name, tensor in read_arrays(path).items():
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


def read_arrays(path: Path) -> dict[str | None, torch.Tensor]:
    """The arrays of one file by name; that of a .npy file has the name None."""
    check_suffix(path)
    if not path.is_file():
        raise TersorError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return {name: tensor for name, tensor in load_file(path).items()}
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            arrays = {None: loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, SafetensorError) as error:
        raise TersorError(f"{path}: not readable as a {path.suffix} file ({error}); write it again") from error
    return {name: _to_tensor(path, array) for name, array in arrays.items()}


def write_outputs(path: Path, outputs: Sequence[torch.Tensor], ports: Sequence[Port]) -> None:
    """Write a model's outputs; a .npy file takes one, the other kinds keep them under the outputs' names.

    Raises
    ------
    TersorError
        When the file cannot be written.
    """
    check_output(path, ports)
    named = {port.name: tensor.contiguous() for port, tensor in zip(ports, outputs, strict=True)}
    try:
        if path.suffix == ".safetensors":
            save_file(named, path)
            return
        arrays = {name: tensor.numpy() for name, tensor in named.items()}
        if path.suffix == ".npz":
            np.savez(path, **arrays)  # type: ignore[arg-type]  # no output is named allow_pickle
        else:
            np.save(path, next(iter(arrays.values())))
    except TypeError as error:  # NumPy has no bfloat16
        raise TersorError(f"{path}: {error}; write a .safetensors file instead") from error
    except (OSError, SafetensorError) as error:
        raise TersorError(f"{path}: cannot be written ({error}); choose another output path") from error


def check_output(path: Path, ports: Sequence[Port]) -> None:
    """Find out, before work is spent, whether a model's outputs can go to ``path``; raises TersorError if not."""
    check_suffix(path)
    if obstacle := obstacle_to_writing(path):
        raise TersorError(obstacle)
    if path.suffix == ".npy" and len(ports) != 1:
        raise TersorError(f"{path}: a .npy file holds one array, the model has {len(ports)} outputs; use .npz")


def check_suffix(path: Path) -> None:
    """Raise TersorError for a file of another kind."""
    if path.suffix not in SUFFIXES:
        raise TersorError(f"{path}: arrays are kept in {', '.join(SUFFIXES)} files, not {path.suffix or 'this kind'}")


def _to_tensor(path: Path, array: np.ndarray) -> torch.Tensor:
    native = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))
    try:
        return torch.from_numpy(native).reshape(array.shape)
    except TypeError as error:
        raise TersorError(f"{path}: arrays of {array.dtype} cannot be used; convert to a numeric type first") from error
