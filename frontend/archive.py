"""Reading a ``.pt2`` archive without running anything that it contains.

`torch.export.load` unpickles tensors and example inputs, maps compiled code, imports types and executes source text
that it makes from the archive, so it is never given one. The archive is read once, strictly; its program becomes
PyTorch's records by an allow-list (`program_json`); its tensors are made from raw bytes within their bounds; its
example inputs pass the restricted unpickler (``weights_only``). PyTorch builds the program from these alone. At last
every call is computed again on shapes (`recompute`), so what the file says about types is true.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch._export.serde import schema
from torch._export.serde.serialize import ExportedProgramDeserializer, deserialize_scalar_type
from torch.export import ExportedProgram
from torch.utils._pytree import TreeSpec, treespec_loads

from ..ir import TersorError, check_memory, shorten
from ..ir.foreign import Json, UserObject
from .export import tracing
from .file_extents import read_dynamic_inputs
from .program_json import AGAIN, damaged, read_program, read_record
from .recompute import recompute
from .structure import CLASSES

_MODEL = "models/model.json"
_SAMPLES = "data/sample_inputs/model.pt"
_COMPILED = ("data/aotinductor/", "data/executorch/", "data/mtia/")
_PAYLOADS = {"weights": "weight", "constants": "tensor"}  # folder under data/ to the prefix of its members
_LOCAL_HEADER_BYTES, _DESCRIPTOR_BYTES, _END_BYTES = 30, 24, 98  # the last: end of the directory, ZIP64 included
_PLAIN = (int, float, bool, str, type(None))


def load_program(path: Path) -> ExportedProgram:
    """Load an exported program.

    Raises
    ------
    TersorError
        When the archive is damaged or from another version, holds more than one program, or anything that could run
        code when it is loaded.
    """
    with path.open("rb") as file, _errors(path):
        members = _read_members(file)
    with _errors(path):
        return _build_program({name.partition("/")[2]: data for name, data in members.items()})


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except TersorError as error:
        raise TersorError(f"{path}: {error}") from error
    except Exception as error:  # zipfile, json and PyTorch raise errors of every kind on what they do not know
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = shorten(cause) or type(cause).__name__
        raise TersorError(f"{path}: cannot be read as an exported program ({reason}); {AGAIN}") from error


# The zip file -----------------------------------------------------------------------------------------------------


def _read_members(file: BinaryIO) -> dict[str, bytearray]:
    """All members of an archive that consists of nothing but plainly stored members, one after the other."""
    with zipfile.ZipFile(file) as archive:
        infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
        position = 0
        for info in infos:
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise TersorError(f"its member {shorten(info.filename)!r} is compressed; {AGAIN}")
            if not position <= info.header_offset <= position + (_DESCRIPTOR_BYTES if position else 0):
                raise damaged()
            file.seek(info.header_offset + _LOCAL_HEADER_BYTES - 4)
            lengths = file.read(4)
            name_and_extra = int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
            position = info.header_offset + _LOCAL_HEADER_BYTES + name_and_extra + info.file_size
        directory = sum(46 + len(info.filename.encode()) + len(info.extra) + len(info.comment) for info in infos)
        end = file.seek(0, io.SEEK_END)
        if not position <= archive.start_dir <= position + _DESCRIPTOR_BYTES or len(archive.NameToInfo) != len(infos):
            raise damaged()
        if end - archive.start_dir - directory > _END_BYTES:
            raise damaged()
        return {info.filename: bytearray(archive.read(info)) for info in infos}


# The program ------------------------------------------------------------------------------------------------------


def _build_program(members: dict[str, bytearray]) -> ExportedProgram:
    if members["archive_format"] != b"pt2":
        raise damaged()
    programs = [name for name in members if name.startswith("models/")]
    if programs != [_MODEL]:
        raise TersorError(f"must hold one program, found {len(programs)}; save it with torch.export.save")
    if any(name.startswith(_COMPILED) for name in members):
        raise TersorError(f"contains compiled code, which is refused; {AGAIN} without compiling it")
    if members.get("byteorder", b"little") != b"little":
        raise TersorError(f"comes from a machine of the other byte order; {AGAIN} on a machine like this one")
    data = json.loads(members[_MODEL])
    _check_version(members["archive_version"], data)
    with _errors_of_other_versions(data["torch_version"]):
        return _read_program(members, data)


def _read_program(members: dict[str, bytearray], data: Json) -> ExportedProgram:
    record = read_program(data)
    weights, constants = (_read_tensors(members, kind) for kind in _PAYLOADS)
    signature = record.graph_module.module_call_graph[0].signature
    if signature is None:
        raise damaged()
    samples = _read_samples(members.get(_SAMPLES, bytearray()))
    if samples is not None and not _fits(samples, treespec_loads(signature.in_spec)):
        raise TersorError(f"has example inputs that its program does not take; {AGAIN}")
    with tracing():
        program = ExportedProgramDeserializer().deserialize(record, weights, constants, samples)
    program.graph_module.meta[CLASSES] = data["graph_module"]["module_call_graph"][0]["signature"]["out_spec"]
    recompute(program, read_dynamic_inputs(record, data))
    return program


def _check_version(archive: bytearray, data: Json) -> None:
    version = data["schema_version"]["major"]
    if archive != b"0" or version != schema.SCHEMA_VERSION[0]:
        raise TersorError(
            f"was written by PyTorch {shorten(data.get('torch_version'), 20)}, whose files PyTorch {torch.__version__} "
            f"cannot read; {AGAIN}"
        )


@contextmanager
def _errors_of_other_versions(written: Json) -> Iterator[None]:
    """Name both versions where a file of another version cannot be read: fields and operators come and go."""
    try:
        yield
    except Exception as error:
        if str(written).partition("+")[0] == torch.__version__.partition("+")[0]:
            raise
        reason = str(error) if isinstance(error, TersorError) else shorten(error) or type(error).__name__
        raise TersorError(
            f"was written by PyTorch {shorten(written, 20)}, and cannot be read by PyTorch {torch.__version__}: "
            f"it {reason}"
        ) from error


def _read_tensors(members: dict[str, bytearray], kind: str) -> dict[str, torch.Tensor]:
    """Weights or constants by name; those that share a member share its memory."""
    if f"data/{kind}/model.pt" in members:
        raise TersorError(f"is in an older format with pickled weights, which is refused; {AGAIN}")
    config = json.loads(members[f"data/{kind}/model_{kind}_config.json"])
    tensors = {}
    for name, payload in read_record(schema.PayloadConfig, config).config.items():
        if payload.use_pickle or payload.tensor_meta is None or not payload.path_name.startswith(_PAYLOADS[kind]):
            raise TersorError(
                f"{shorten(name)!r} is stored as a pickle, which can run code when loaded, so it is refused; "
                "keep plain tensors in the model (not sparse, quantized or subclassed ones) and export it again"
            )
        tensor = _read_tensor(name, members[f"data/{kind}/{payload.path_name}"], payload.tensor_meta)
        requires_grad = payload.tensor_meta.requires_grad
        tensors[name] = torch.nn.Parameter(tensor, requires_grad) if payload.is_param else tensor
    return tensors


def _read_tensor(name: str, data: bytearray, meta: schema.TensorMeta) -> torch.Tensor:
    dtype = deserialize_scalar_type(meta.dtype)
    shape = [extent.as_int for extent in meta.sizes]
    strides = [stride.as_int for stride in meta.strides]
    offset = meta.storage_offset.as_int
    if meta.layout != schema.Layout.Strided or len(shape) != len(strides) or min([offset, *shape, *strides]) < 0:
        raise TersorError(f"weight {shorten(name)!r} is not a plain tensor; {AGAIN}")
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    if not data:
        raise TersorError(f"weight {shorten(name)!r} has no numbers; load the weights before exporting the model")
    last = offset + sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))
    check_memory(math.prod(shape) * dtype.itemsize, f"the numbers of weight {shorten(name)!r}")
    if (last + 1) * dtype.itemsize > len(data):
        raise TersorError(f"weight {shorten(name)!r} is larger than what the file holds of it; {AGAIN}")
    return torch.frombuffer(data, dtype=dtype).as_strided(shape, strides, offset)


def _read_samples(data: bytearray) -> tuple[tuple[UserObject, ...], dict[str, UserObject]] | None:
    if not data:
        return None
    _read_members(io.BytesIO(data))  # stored as plainly as the archive itself
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise TersorError(
            "its example inputs are a pickle of more than tensors, which can run code when loaded, so it is refused; "
            "export the model with plain tensors as inputs"
        ) from error


def _fits(value: UserObject, spec: TreeSpec) -> bool:
    """Whether a value has the structure of a tree spec, with nothing but tensors and plain values for leaves."""
    if spec.is_leaf():
        return isinstance(value, (torch.Tensor, *_PLAIN))
    if type(value) is not spec.type or len(value) != spec.num_children:
        return False
    if isinstance(value, dict) and list(value) != spec.context:
        return False
    items = value.values() if isinstance(value, dict) else value
    return all(_fits(item, child) for item, child in zip(items, spec.children(), strict=True))
